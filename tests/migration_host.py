# SPDX-License-Identifier: GPL-2.0-only
"""A host of the tests of migration.py: a network and a mount namespace, of which nothing is left when its processes have ended."""
import ctypes
import errno
import glob
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading

import misuse_rig
from guests import MIB
from misuse_rig import Skip, TestFailed, check, processes_of, wait_for

HOLD = """set -e
mkdir {tmp}/{letter}/cgroup
mount --rbind /sys/fs/cgroup {tmp}/{letter}/cgroup
mount -t sysfs sys /sys
mount --move {tmp}/{letter}/cgroup /sys/fs/cgroup
mount --bind {tmp}/{letter} {tmp}/host
mkdir -p /var/log/criu-vm
mount --bind {tmp}/{letter}/log /var/log/criu-vm
ip link set lo up
echo up
exec cat"""
FOLDERS = ("run", "state", "swap", "log")
CLONE_NEWNET = 0x40000000
RECORD = re.compile(r"[0-9a-f]{32}")


def namespace(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def read(path):
    try:
        with open(path, encoding="latin-1") as f:
            return f.read()
    except OSError:
        return ""


class Host:
    def __init__(self, rig, letter, address):
        self.rig, self.letter, self.address, self.server, self.listening = rig, letter, address, None, None
        self.dir, self.inside = f"{rig.tmp}/{letter}", f"{rig.tmp}/host"
        for d in FOLDERS:
            os.makedirs(f"{self.dir}/{d}")
        script = HOLD.format(tmp=rig.tmp, letter=letter)
        holder = rig.start(["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, text=True)
        rig.log[-1] = f"host {letter}: process {holder.pid}"
        check(holder.stdout.readline() == "up\n", f"no host can be made here: status {holder.poll()}")
        self.holder = holder
        self.pid, self.namespace = holder.pid, namespace(holder.pid)
        self.links = ()

    def enter(self):
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "--"]

    def close(self):
        """What still runs here keeps it."""
        self.holder.stdin.close()
        self.holder.wait()

    def run(self, *line):
        """A command of the system's on this host; its output."""
        p = subprocess.run([*self.enter(), *line], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        check(not p.returncode, f"{' '.join(line)}: {p.stderr.strip()}")
        return p.stdout

    def socket(self, *kind):
        """A socket of this host's network, of TCP if nothing else is said."""
        made = []

        def make():
            with open(f"/proc/{self.pid}/ns/net", encoding="ascii") as f:
                if not ctypes.CDLL(None, use_errno=True).setns(f.fileno(), CLONE_NEWNET):
                    made.append(socket.socket(*kind))
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        check(made, "this thread cannot enter another network namespace")
        made[0].settimeout(30)
        return made[0]

    def reaches(self, other):
        """That says no, at the least."""
        with self.socket() as s:
            s.settimeout(1)
            return s.connect_ex((other.address, 1)) in (0, errno.ECONNREFUSED)

    def mount(self, mib):
        """A small file system which nobody else sees."""
        image, where = f"{self.rig.tmp}/small-{self.letter}.img", f"{self.dir}/small"
        os.mkdir(where)
        with open(image, "wb") as f:
            f.truncate(mib * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True, stdin=subprocess.DEVNULL)
        try:
            self.run("mount", "-o", "loop", image, f"{self.inside}/small")
        except TestFailed as e:
            raise Skip(f"no loop mounts here: {e}") from None
        return f"{self.inside}/small"

    # ---- criu-vm

    def line(self, command, *args):
        return [*self.enter(), self.rig.opts.criu_vm, command, "--run-dir", f"{self.inside}/run", *args]

    def start_criu_vm(self, *args, env=None):
        return self.rig.start(self.line(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                              env={**self.rig.environment(), **(env or {})})

    def criu_vm(self, *args, env=None, seconds=300):
        return self.rig.end_criu_vm(self.start_criu_vm(*args, env=env), seconds)

    def fails(self, *args, says=(), status=1, env=None):
        result = self.criu_vm(*args, env=env).check(status, *says)
        check(result.err.strip() and not result.out.strip(), f"a failure is told on stderr, and nothing else; {result}")
        return result

    def stat(self, name):
        logged = len(self.rig.log)
        result = self.criu_vm("stat", name, "--json")
        del self.rig.log[logged:]
        return json.loads(result.check(0).out)

    def asked(self, name):
        """What stat says of a VM; {}: nothing yet, or not any more."""
        logged = len(self.rig.log)
        result = self.criu_vm("stat", name, "--json")
        del self.rig.log[logged:]
        return {} if result.status else json.loads(result.out)

    def leaving(self):
        """What stat says of VMs that have left, and have pages here."""
        return [vm["leaving"] for vm in json.loads(self.criu_vm("stat", "--json").check(0).out) if "leaving" in vm]

    def log_of(self, name):
        return read(f"{self.dir}/log/{name}.log")

    # ---- the server

    def serve(self, *args, secure=("--insecure",), env=None, swap=None, address=None, user="root"):
        """Starts it, and waits until it listens."""
        swap = swap or f"{self.inside}/swap"
        port = () if "--port" in args else ("--port", "0")
        as_user = ("--user", user) if user else ()      # the guests' own is root
        line = self.line("lazy-pages", "-vv", "--json", "--address", address or self.address, *port, *as_user, "--swap", swap, *secure,
                         *args)
        with open(f"{self.dir}/server.log", "ab") as log:
            self.server = self.rig.start(line, stdout=subprocess.PIPE, stderr=log, text=True, env={**self.rig.environment(), **(env or {})})
        check(select.select([self.server.stdout], [], [], 30)[0], "the server does not say where it listens")
        said = self.server.stdout.readline()
        check(said.strip(), f"the server has ended: {self.server_log()[-800:]}")
        self.listening = json.loads(said)["listening"]
        return self

    def serve_again(self):
        """A new server on the port of the one that has ended."""
        self.serve("--port", str(self.listening["port"]))

    def server_log(self):
        return read(f"{self.dir}/server.log")

    def where(self):
        return f"{self.listening['address']}:{self.listening['port']}"

    def stop_server(self, signum=signal.SIGTERM):
        server, self.server = self.server, None
        if not server:
            return
        check(server.poll() is None, f"the server ended by itself, status {server.poll()}: {self.server_log()[-800:]}")
        os.kill(server.pid, signum)
        status = server.wait(300)
        server.stdout.close()
        check(status in (0, -signal.SIGKILL), f"the server ended with status {status}: {self.server_log()[-800:]}")

    # ---- records

    def records(self):
        """Decisions made here, by token."""
        return {os.path.basename(p): read(p).strip() for p in glob.glob(f"{self.dir}/state/migrations/*")
                if RECORD.fullmatch(os.path.basename(p))}

    def source_records(self):
        return glob.glob(f"{self.dir}/state/migrations/*.source")

    def lazy_records(self):
        """Of pages that are needed from elsewhere, and of those that are here for others. That a VM has ended stays known."""
        there = [p for p in glob.glob(f"{self.dir}/state/migrations/*.lazy") if "ended" not in read(p)]
        return there + glob.glob(f"{self.dir}/state/migrations/*.status")

    # ---- what is here

    def processes(self):
        """All that runs here, but servers and what else the test itself has started."""
        mine = {p.pid for p in self.rig.processes}
        return [p for p in processes_of(self.rig.tmp) if p not in mine and namespace(p) == self.namespace]

    def qemus(self):
        return [p for p in processes_of(self.rig.tmp) if namespace(p) == self.namespace and "qemu" in read(f"/proc/{p}/comm")]

    def criu_vms(self):
        """Processes of criu-vm's here but the server, the oldest first."""
        server = self.server.pid if self.server else None
        return sorted(p for p in processes_of(self.rig.tmp) if namespace(p) == self.namespace and p != server
                      and read(f"/proc/{p}/comm").strip() == "criu-vm")

    def net(self):
        return set(self.run("ls", "/sys/class/net").split())

    def residue(self):
        left = [f"process {p} ({read(f'/proc/{p}/comm').strip()}) on host {self.letter}" for p in self.processes()]
        left += [path for d in ("run/*", "swap/*", "state/swap/*", "small/*.swap") for path in glob.glob(f"{self.dir}/{d}")]
        left += [f"interface {name} on host {self.letter}" for name in self.net() - set(self.links)] if self.links else []
        return left + self.source_records() + self.lazy_records()

    def nothing_left(self, seconds=15):
        """As if no VM had ever been here."""
        try:
            wait_for("residue", seconds / misuse_rig.zdtm_vm.PATIENCE, lambda: not self.residue() and not self.rig.empty_cgroups())
        except TestFailed:
            check(not misuse_rig.stopping.is_set(), "interrupted")
            raise TestFailed(f"left on host {self.letter}: {'; '.join(self.residue() + self.rig.empty_cgroups())}") from None
