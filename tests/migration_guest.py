# SPDX-License-Identifier: GPL-2.0-only
"""A guest that travels between the hosts of a MigrationRig, and what it says wherever it is."""
import json
import os
import re
import socket
import threading

import misuse_rig
from migration_host import read
from misuse_rig import Qmp, TestFailed, check, wait_for


class QuickQmp(Qmp):
    """Of a QEMU that may be held, and not answer."""

    def __init__(self, path):       # pylint: disable=super-init-not-called
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        self.file.readline()
        self.call("qmp_capabilities")


class End(misuse_rig.Console):
    """Of the journey's serial lines, one host's."""

    def __init__(self, journey, letter, path, log):
        self.journey, self.letter = journey, letter
        super().__init__(path, log)

    def line(self, line):
        self.journey.line(self.letter, line)


class Journey:
    """What a guest says, wherever it runs. A pass that is said twice was made twice: two guests ran, or an old one."""

    def __init__(self):
        self.passes, self.readies, self.bad, self.last, self.ends = 0, 0, None, "", {}
        self.said, self.lock, self.pulses = {}, threading.Lock(), 0     # pulses: of a processor that needs no page, with pulse=1

    def listen(self, host, folder):
        if host.letter not in self.ends:
            self.ends[host.letter] = End(self, host.letter, f"{folder}/serial.sock", f"{folder}/serial.log")

    def line(self, where, line):
        with self.lock:
            if m := re.fullmatch(r"ok (\d+)( .*)?", line):
                n = int(m[1])
                if n in self.said:
                    self.bad = self.bad or f"pass {n} on host {where}, it was made on host {self.said[n]} before"
                self.said[n] = where
                self.passes, self.last = max(self.passes, n), f"{line} (host {where})"
            elif line.startswith("BAD") or "Kernel panic" in line:
                self.bad = self.bad or f"{line} (host {where})"
            elif line.startswith("ready "):
                self.readies += 1
            elif line.startswith("pulse "):
                self.pulses += 1

    wait_passes = misuse_rig.zdtm_vm.Console.wait_passes

    def next_life(self):
        """After a reset: it counts from 1 again."""
        wait_for("the guest's next start", 30, lambda: self.readies > 1 or "BAD" in (self.bad or ""))
        check("BAD" not in (self.bad or ""), f"the guest says: {self.bad}")
        with self.lock:
            self.passes, self.readies, self.bad, self.said = 0, 1, None, {}

    def check(self):
        check(not misuse_rig.stopping.is_set(), "interrupted")
        check(not self.bad, f"the guest says: {self.bad}")
        check(self.readies < 2, "the guest started again from its beginning")

    def unread(self):
        return sum(end.unread() for end in self.ends.values())

    def is_alive(self):
        return any(end.is_alive() for end in self.ends.values())

    def stop(self):
        for end in self.ends.values():
            end.stop()


class Stay(misuse_rig.Vm):
    """A traveller's QEMU on one host. The test has a monitor of its own there."""

    def __init__(self, host, folder, pid, journey, name=None):      # pylint: disable=super-init-not-called
        self.host, self.dir, self.pid, self.name, self.ended = host, folder, pid, name, False
        self.pidfd = os.pidfd_open(pid)
        self.qmp_path = f"{folder}/own.sock"
        self.console = journey

    def wait_end(self, seconds=15):
        wait_for(f"the end of QEMU {self.pid} on host {self.host.letter}", seconds, lambda: not self.alive())
        self.console.check()

    def is_held(self):
        return not self.alive() or any(self.held())

    def can_run(self):
        """Whether somebody could make it run by its monitor. It does run then."""
        if self.is_held():
            return False
        try:
            with QuickQmp(self.qmp_path) as q:
                if q.call("query-status")["status"] != "running":
                    q.call("cont")
                return q.call("query-status")["status"] == "running"
        except (OSError, ValueError, TypeError, TestFailed):
            return False


class Traveller:
    """A guest, wherever it is."""

    def __init__(self, rig, host, guest, accel="tcg", args=(), runs=True, shell=False):     # shell: it is a job of one
        rig.nr_travellers += 1
        self.rig, self.guest, self.folder = rig, guest, f"vm-{rig.nr_travellers}"
        self.journey, self.name, self.moves = Journey(), f"{rig.name}-{rig.nr_travellers}", 0
        for h in rig.hosts.values():
            os.mkdir(f"{h.dir}/{self.folder}")
        inside = f"{rig.tmp}/host/{self.folder}"
        line = guest.command_line(accel, rig.opts.build, inside)
        self.line = [*line, "-qmp", f"unix:{inside}/own.sock,server=on,wait=off", *(a.replace("{shared}", rig.shared) for a in args)]
        self.shell = [] if not shell else ["sh", "-c", 'set -m; "$@" & wait', "sh"]
        self.at = self.start(host, runs)

    def dir_at(self, host):
        return f"{host.dir}/{self.folder}"

    def start(self, host, runs=True):
        folder = self.dir_at(host)
        with open(f"{folder}/qemu.log", "wb") as log:
            process = self.rig.start([*host.enter(), *self.shell, *self.line], stdout=log, stderr=log)
        for h in self.rig.hosts.values():
            self.journey.listen(h, self.dir_at(h))
        pid, children = process.pid, f"/proc/{process.pid}/task/{process.pid}/children"
        if self.shell:
            pid = int(wait_for("the shell's job", 10, lambda: read(children)))
        stay = self.rig.stay(Stay(host, folder, pid, self.journey))

        def up():
            check(process.poll() is None, f"QEMU ended by itself: {read(f'{folder}/qemu.log')}")
            self.journey.check()
            return self.journey.passes > 1 or not runs
        wait_for("the guest's first passes", self.guest.boot_seconds, up)
        return stay

    def by(self):
        """How criu-vm is told of it: by name if it is one of its own."""
        return self.at.name or str(self.at.pid)

    def other(self):
        return self.rig.hosts["b" if self.at.host.letter == "a" else "a"]

    def migrate_line(self, to, *args, secure=("--insecure",)):
        return ("migrate", self.by(), to.where(), "--json", "-vv", *(() if "--name" in args else ("--name", self.name)), *secure, *args)

    def move(self, *args, to=None, runs=True, secure=("--insecure",), env=None):
        """To the other host, whose server runs. What the command says of it."""
        to, was = to or self.other(), self.at
        result = was.host.criu_vm(*self.migrate_line(to, *args, secure=secure), env=env).check(0)
        summary = json.loads(result.out)
        was.wait_end(5)
        name = args[args.index("--name") + 1] if "--name" in args else self.name
        self.arrived(to, name)
        self.moves += 1
        if runs:
            self.at.passes(2, 60)
        if was.name and to is not was.host:
            was.host.nothing_left()
        check(not was.host.source_records(), f"records of a migration that is over: {was.host.source_records()}")
        return summary

    def arrived(self, to, name=None):
        name = name or self.name
        self.at = self.rig.stay(Stay(to, self.dir_at(to), to.stat(name)["qemu_pid"], self.journey, name))
        return self.at

    def runs_on(self):
        """Where it is, as if nothing had happened."""
        self.at.runs_on()

    def ask(self, command, seconds=240):
        """The Linux guest's answer."""
        return misuse_rig.zdtm_vm.ask(f"{self.at.dir}/check.sock", command, seconds)

    def verified(self):
        """A Linux guest looks at all of its memory."""
        answer = self.ask("verify")
        check(answer.get("errors") == 0, f"the guest's answer to 'verify': {answer}")
        self.journey.check()
        return answer
