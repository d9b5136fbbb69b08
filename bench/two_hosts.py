# SPDX-License-Identifier: GPL-2.0-only
"""Two hosts in one: network namespaces joined by a link; memory that is too small, with a kernel's swap; QEMU's monitors."""
import contextlib
import json
import os
import socket
import subprocess
import sys
import time

from runner import MIB, vm

SOURCE, DESTINATION = "source", "destination"
OTHER = {SOURCE: DESTINATION, DESTINATION: SOURCE}
ADDRESS = {SOURCE: "198.18.0.1", DESTINATION: "198.18.0.2"}    # for benchmarks (RFC 2544)
MADV_POPULATE_WRITE = 23


class Hosts:
    """Each has a network namespace, and nothing but that: the file system is one."""

    def __init__(self, runner, rate, mtu):
        self.runner, self.rate, self.mtu = runner, rate, mtu
        self.namespaces = {host: f"criu-vm-bench-{os.getpid()}-{host}" for host in ADDRESS}
        runner.words |= {namespace: host.upper() for host, namespace in self.namespaces.items()}

    def ip(self, host, *args):
        return self.runner.command("ip", "-n", self.namespaces[host], *args)[1]

    @contextlib.contextmanager
    def joined(self):
        try:
            self.join()
            yield
        finally:
            for namespace in self.namespaces.values():
                subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL, check=False)

    def join(self):
        for namespace in self.namespaces.values():
            self.runner.command("ip", "netns", "add", namespace)
        self.ip(SOURCE, "link", "add", "name", "wire", "mtu", str(self.mtu), "type", "veth",
                "peer", "name", "wire", "mtu", str(self.mtu), "netns", self.namespaces[DESTINATION])
        for host, address in ADDRESS.items():
            self.ip(host, "address", "add", f"{address}/24", "dev", "wire")
            self.ip(host, "link", "set", "lo", "up")
            self.ip(host, "link", "set", "wire", "up")
            if self.rate:
                self.runner.command("tc", "-n", self.namespaces[host], "qdisc", "add", "dev", "wire", "root",
                                    "tbf", "rate", self.rate, "burst", "256k", "latency", "20ms")

    def on(self, host, *line):
        """A command line that runs there. Not by `ip netns exec`, which hides the control groups."""
        return ["nsenter", f"--net=/run/netns/{self.namespaces[host]}", *line]

    def sent(self, host):
        """Bytes, headers too; on a link that is not limited, those of what segmentation offload leaves together once."""
        if not self.rate:
            return json.loads(self.ip(host, "-s", "-j", "link", "show", "wire"))[0]["stats64"]["tx"]["bytes"]
        return json.loads(self.runner.command("tc", "-n", self.namespaces[host], "-s", "-j", "qdisc", "show", "dev", "wire")[1])[0]["bytes"]


class SmallMemory:
    """A control group with a limit, and a swap file in front of all other swap."""

    def __init__(self, runner, limit, swap):
        root = "/sys/fs/cgroup"
        v1 = os.path.exists(f"{root}/memory/memory.limit_in_bytes")
        self.group = f"{root}{'/memory' if v1 else ''}/criu-vm-bench-{os.getpid()}"
        self.knob = f"{self.group}/{'memory.limit_in_bytes' if v1 else 'memory.max'}"
        self.runner, self.limit, self.swap, self.file = runner, limit, swap, f"{runner.tmp}/kernel-swap"
        runner.words[self.group] = "CGROUP"

    @contextlib.contextmanager
    def made(self):
        """Whoever was in it has to have ended."""
        try:
            self.make()
            yield
        finally:
            subprocess.run(["swapoff", self.file], stderr=subprocess.DEVNULL, check=False)
            with contextlib.suppress(OSError):
                os.unlink(self.file)
            for _ in range(50):
                with contextlib.suppress(OSError):
                    os.rmdir(self.group)
                if not os.path.exists(self.group):
                    break
                time.sleep(0.1)

    def make(self):
        self.runner.command("mkdir", self.group)
        self.runner.command("sh", "-c", f"echo {self.limit} >{self.knob}")
        self.runner.command("fallocate", "-l", str(self.swap), self.file)
        os.chmod(self.file, 0o600)
        self.runner.command("mkswap", self.file)
        self.runner.command("swapon", "-p", "32767", self.file)

    def inside(self, line):
        return ["sh", "-c", f'echo $$ >{self.group}/cgroup.procs; exec "$@"', "sh", *line]


def kernel_paging():
    """Pages that the kernel has read from swap and written to it."""
    with open("/proc/vmstat", encoding="ascii") as f:
        counts = dict(line.split() for line in f)
    return int(counts["pswpin"]), int(counts["pswpout"])


class Qmp:
    """A monitor that stays connected: answers and events."""

    def __init__(self, runner, path):
        self.runner, self.path, self.rest, self.events = runner, path, b"", []
        self.socket = socket.socket(socket.AF_UNIX)
        vm.wait_for(path, 20, lambda: self.socket.connect_ex(path) == 0)
        self.line(20)
        self.command("qmp_capabilities")

    def line(self, seconds):
        end = time.monotonic() + seconds
        while b"\n" not in self.rest:
            self.socket.settimeout(max(end - time.monotonic(), 0.001))
            if not (data := self.socket.recv(65536)):
                raise vm.TestFailed(f"{self.path}: QEMU has closed its monitor")
            self.rest += data
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def command(self, name, **arguments):
        where = os.path.basename(os.path.dirname(self.path))
        if not name.startswith("q"):
            self.runner.said([f"QMP ({where}):", name, *(f"{k}={json.dumps(v)}" for k, v in arguments.items())])
        self.socket.settimeout(20)
        self.socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while "event" in (answer := self.line(60)):
            self.events.append(answer)
        if "error" in answer:
            raise vm.TestFailed(f"QMP {name}: {answer['error']['desc']}")
        return answer["return"]

    def rounds(self):
        """Of pre-copy, that have begun."""
        return self.command("query-migrate").get("ram", {}).get("dirty-sync-count", 0)

    def migration_ended(self, seconds):
        """"completed", "failed", "cancelled" or "postcopy-paused", as QEMU's event says it; None: not in that time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                self.events.append(self.line(left))
            for event in self.events:
                status = event["data"].get("status") if event["event"] == "MIGRATION" else None
                if status in ("completed", "failed", "cancelled", "postcopy-paused"):
                    return status
            self.events.clear()
        return None

    def close(self):
        self.socket.close()


def enough_memory(nr_bytes):
    with open("/proc/meminfo", encoding="ascii") as f:
        available = next(int(line.split()[1]) << 10 for line in f if line.startswith("MemAvailable:"))
    if available < nr_bytes:
        raise SystemExit(f"{available // MIB} MiB of memory are available, {nr_bytes // MIB} are needed: make the VM smaller with --size")


def warm_memory(nr_bytes):
    """So much of the free memory is there really, not only by the word of a hypervisor."""
    populate = f"import mmap; mmap.mmap(-1, {nr_bytes}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).madvise({MADV_POPULATE_WRITE})"
    subprocess.run([sys.executable, "-c", populate], check=True)
