# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of migration.py share: two hosts joined by a wire, servers, and guests that travel between them.

A host is a network and a mount namespace, and nothing of it is left when its processes end. Both see the same paths: what is
TMP/host/... to a host is TMP/a/... or TMP/b/... to the test. Disks are shared: they are in TMP/shared.
"""
import dataclasses
import glob
import os
import re
import signal
import subprocess
import threading

import life_rig
import misuse_rig
from guests import MIB, Guest
from migration_guest import Traveller
from migration_host import Host, read
from misuse_rig import Result, TestFailed, check, leftovers, wait_for

HELD_SECONDS = 9        # a stage with the fault delayN: time enough on a busy host, and too little for a line to be lost


class Command:
    """A criu-vm that runs on a host, its messages in a file."""

    def __init__(self, rig, host, args, env=None):
        rig.nr_commands += 1
        self.rig, self.args = rig, args
        self.out, self.err = (f"{rig.tmp}/command-{rig.nr_commands}.{what}" for what in ("out", "err"))
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = rig.start(host.line(*args), stdout=out, stderr=err, env={**rig.environment(), **(env or {})})

    def said(self):
        return read(self.err)

    def runs(self):
        return self.process.poll() is None

    def end(self, seconds=300):
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TestFailed(f"no end after {seconds} s: {' '.join(self.args)}; said: {self.said()[-1500:]}") from None
        result = Result(self.args, self.process.returncode, read(self.out), self.said())
        self.rig.log.append(f"  status {result.status}: {(result.err + result.out).strip()[-1500:]}")
        check(not (found := misuse_rig.DETECTED.search(result.err)), f"{found and found[0]}: {result}")
        check(result.status in (0, 1, 2, 3, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL), f"crashed: {result}")
        return result


def stages_done(text):
    """Their names, in order, each once."""
    return list(dict.fromkeys(re.findall(r"stage '([^']+)': done", text)))


class Background(threading.Thread):
    def __init__(self, function):
        super().__init__(daemon=True)
        self.function, self.value, self.error = function, None, None
        self.start()

    def run(self):
        try:
            self.value = self.function()
        except Exception as e:      # pylint: disable=broad-except; raised by result()
            self.error = e

    def result(self):
        self.join()
        if self.error:
            raise self.error
        return self.value


class MigrationRig(life_rig.LifeRig):
    def __init__(self, opts):
        super().__init__(opts)
        self.shared, self.nr_travellers, self.nr_commands = f"{self.tmp}/shared", 0, 0
        for d in ("host", "shared"):
            os.mkdir(f"{self.tmp}/{d}")
        self.hosts = {}
        try:
            self.a, self.b = (self.hosts.setdefault(letter, Host(self, letter, f"10.77.0.{n}")) for n, letter in enumerate("ab", 1))
            subprocess.run(["ip", "link", "add", "wire", "netns", str(self.a.pid), "type", "veth", "peer", "name", "wire", "netns",
                            str(self.b.pid)], check=True, capture_output=True)
            for host in self.hosts.values():
                host.run("ip", "address", "add", f"{host.address}/24", "dev", "wire")
                host.run("ip", "link", "set", "wire", "up")
                host.links = host.net()
        except BaseException:
            self.clean_up()
            raise

    def environment(self):
        return {**super().environment(), "CRIU_VM_STATE_DIR": f"{self.tmp}/host/state"}

    @property
    def pager_log(self):
        """What all said at last, in one file."""
        with open(f"{self.tmp}/said", "w", encoding="latin-1") as f:
            for path in sorted(glob.glob(f"{self.tmp}/[ab]/*.log") + glob.glob(f"{self.tmp}/[ab]/log/*.log")):
                f.writelines(f"{os.path.relpath(path, self.tmp)}: {line}\n" for line in read(path).splitlines()[-6:])
        return f"{self.tmp}/said"

    @pager_log.setter
    def pager_log(self, _):
        """The base's is another."""

    # ---- guests

    def stay(self, stay):
        self.vms.append(stay)
        return stay

    def memory(self, ram=64, host=None, append="", args=(), image="memory", shell=False):
        return Traveller(self, host or self.a, Guest("simple", "", image, ram, append=append), args=args, shell=shell)

    def guest(self, name, append="", accel="tcg", args=(), host=None, **changes):
        """One of zdtm's; its disk is one that both hosts see."""
        guest = self.zdtm_guest(name, append, **changes)
        if guest.disk:
            path = f"{self.shared}/disk-{self.nr_travellers}.img"
            with open(path, "wb") as f:
                f.truncate(guest.disk * MIB)
            guest = dataclasses.replace(guest, args=[a.replace("{tmp}/disk.img", path) for a in guest.args])
        return Traveller(self, host or self.a, guest, accel, args)

    def start_migrate(self, vm, to, *args, env=None):
        """A Command; what it says can be read while it runs."""
        return Command(self, vm.at.host, vm.migrate_line(to, *args), env)

    def in_background(self, function):
        """A thread; its result() waits for it and has what the function returned, or raised."""
        return Background(function)

    # ---- the wire

    def cut(self):
        self.b.run("ip", "link", "set", "wire", "down")

    def mend(self):
        """And each knows where the other is."""
        self.b.run("ip", "link", "set", "wire", "up")
        for host, other in ((self.a, self.b), (self.b, self.a)):
            host.run("ip", "neighbour", "flush", "dev", "wire")
            wait_for("the wire", 10, lambda h=host, o=other: h.reaches(o))

    def bytes_sent(self):
        """By host a, and what the kernel adds."""
        return int(self.a.run("cat", "/sys/class/net/wire/statistics/tx_bytes"))

    # ---- the end

    def empty_cgroups(self):
        return [g for g in leftovers.cgroups(self.tmp) if os.path.isdir(g) and not read(f"{g}/cgroup.procs").strip()]

    def residue(self):
        return [line for host in self.hosts.values() for line in host.residue()] + leftovers.cgroups(self.tmp)

    def detected(self):
        super().detected()
        for path in glob.glob(f"{self.tmp}/[ab]/log/*.log") + glob.glob(f"{self.tmp}/[ab]/server.log"):
            found = misuse_rig.DETECTED.search(read(path))
            check(not found, f"{path} says {found and found[0]}")

    def finish(self):
        for host in self.hosts.values():
            host.stop_server()
        super().finish()

    def clean_up(self):
        for host in self.hosts.values():
            host.close()
        super().clean_up()
