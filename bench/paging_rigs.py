# SPDX-License-Identifier: GPL-2.0-only
"""A workload whose memory is paged: by criu-vm's engine, or by the kernel. The processor time that it takes. fio on the same disk."""
import contextlib
import json
import os
import socket
import subprocess
import time

from runner import MIB, vm
from two_hosts import SmallMemory

PAGE = 4096
PAGE_CLUSTER = "/proc/sys/vm/page-cluster"
POPULATE_CLUSTER = 5
SWAP_FILE = 8 << 30
TICKS = os.sysconf("SC_CLK_TCK")
END_SECONDS = 10


def processor_time(pid):
    """Seconds of all its threads, the kernel's in it too; zaps: of these its planted ring's."""
    def times(path):
        with open(path, encoding="ascii", errors="replace") as f:
            name, rest = f.read().rsplit(")", 1)
        return name.split("(", 1)[1], [int(n) / TICKS for n in rest.split()[11:13]]

    user, system = times(f"/proc/{pid}/stat")[1]
    zaps = 0.0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):      # it has ended
            name, spent = times(f"/proc/{pid}/task/{task}/stat")
            zaps += sum(spent) if name.startswith("iou-") else 0
    return {"user": user, "system": system, "zaps": zaps}


def host_time():
    """{"busy", "all"}: seconds of all processors."""
    with open("/proc/stat", encoding="ascii") as f:
        times = [int(n) / TICKS for n in f.readline().split()[1:9]]     # user nice system idle iowait irq softirq steal
    return {"busy": sum(times) - times[3] - times[4], "all": sum(times)}


def since(before, now):
    """The differences of all numbers in nested dictionaries."""
    return {key: since(before.get(key, {}), value) if isinstance(value, dict) else value - before.get(key, 0)
            for key, value in now.items() if isinstance(value, (dict, int, float)) and not isinstance(value, bool)}


class Workload:
    """A process that takes commands. rig.start(arguments) starts it."""

    def __init__(self, runner, opts):
        self.runner, self.opts, self.process = runner, opts, None
        self.pages = opts.size * MIB // PAGE
        self.program = f"{opts.build}/bench/paging-workload"

    def started(self, line):
        self.process = self.runner.start(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        """What it answers. A wrong page is a failure of the bench."""
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"wrong": "the workload has ended"}
        if "wrong" in answer:
            raise vm.TestFailed(f"{' '.join(map(str, words))}: {answer['wrong']}")
        return answer

    def populate(self, read):
        """Writes all pages, then reads so many."""
        self.ask("populate", read)

    def ended(self):
        if not self.process:
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()          # it ends then
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:       # interrupted, it is in the middle of something
            self.process.kill()                 # its child has that signal, too
            self.process.wait(60)
        self.process.stdout.close()

    def processor_time(self):
        """By process, those whose it is; and the whole host's."""
        return {"host": host_time()}

    def counts(self):
        return {}


class Ours(Workload):
    name = "criu-vm"

    @contextlib.contextmanager
    def made(self, budget=None, raw=None, paging=None):
        """budget: MiB. paging: as the option, in its place."""
        control = f"{self.runner.tmp}/control.sock"
        line = [f"{self.opts.build}/bench/paging-pager", "--ram", str(self.opts.size), "--budget", str(budget or self.opts.ram),
                "--swap", f"{self.runner.tmp}/swap", "--control", control, *(["--paging", paging or self.opts.paging] if paging or self.opts.paging else []),
                "--", self.program, *(["--raw", raw] if raw else [])]
        try:
            self.started(line)
            vm.wait_for("the pager", 30, lambda: os.path.exists(control) or self.process.poll() is not None)
            self.control = control
            yield self
        finally:
            self.ended()
            with contextlib.suppress(OSError):
                os.unlink(control)

    def request(self, **what):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(60)
            s.connect(self.control)
            s.sendall(json.dumps(what).encode() + b"\n")
            answer = b""
            while data := s.recv(65536):
                answer += data
        answer = json.loads(answer)
        if "error" in answer:
            raise vm.TestFailed(f"the pager says: {answer['error']}")
        return answer

    def stat(self):
        return self.request(execute="stat")

    def set(self, mib):
        self.request(execute="set", ram=mib * MIB)

    def counts(self):
        return self.stat()["counts"]

    def processor_time(self):
        stat = self.stat()
        return {**super().processor_time(), "pager": processor_time(stat["pager_pid"]), "workload": processor_time(stat["qemu_pid"])}


class Kernel(Workload):
    name = "kernel"

    @contextlib.contextmanager
    def made(self, cluster, shared=False):
        memory = SmallMemory(self.runner, self.opts.ram * MIB, SWAP_FILE)
        try:
            with memory.made(), page_cluster(cluster):
                try:
                    self.started(memory.inside([self.program, "--pages", str(self.pages), *(["--shared"] if shared else [])]))
                    yield self
                finally:
                    self.ended()
        finally:
            self.process = None

    def populate(self, read):
        with page_cluster(POPULATE_CLUSTER):    # it is read in order, which would take long with others
            super().populate(read)

    def counts(self):
        with open("/proc/vmstat", encoding="ascii") as f:
            counts = dict(line.split() for line in f)
        return {key: int(counts[key]) for key in ("pswpin", "pswpout", "swap_ra", "swap_ra_hit") if key in counts}

    def processor_time(self):
        return {**super().processor_time(), "workload": processor_time(self.process.pid)}


@contextlib.contextmanager
def page_cluster(value):
    with open(PAGE_CLUSTER, encoding="ascii") as f:
        before = f.read().strip()
    try:
        with open(PAGE_CLUSTER, "w", encoding="ascii") as f:
            f.write(str(value))
        yield
    finally:
        with open(PAGE_CLUSTER, "w", encoding="ascii") as f:
            f.write(before)


class Fio:
    """The disk by itself."""

    def __init__(self, runner, size):
        self.runner, self.size, self.file = runner, size, f"{runner.tmp}/raw"

    def make(self):
        """A file that was written, else it would be read without the disk."""
        if not os.path.exists(self.file):
            self.run("write", "1M", 16)

    def run(self, rw, block, depth, seconds=None, file=None):
        """{"bytes_s", "median_us"}"""
        line = ["fio", f"--name={rw}", f"--filename={file or self.file}", f"--rw={rw}", f"--bs={block}",
                f"--size={self.size}M", "--direct=1", "--fallocate=posix", "--output-format=json",
                f"--ioengine={'io_uring' if depth > 1 else 'psync'}", f"--iodepth={depth}",
                *(["--time_based", f"--runtime={seconds}"] if seconds else [])]
        out = self.runner.command(*line)[1]
        job = json.loads(out[out.index("{"):])["jobs"][0]["read" if "read" in rw else "write"]
        return {"bytes_s": job["bw_bytes"], "median_us": job["clat_ns"]["percentile"]["50.000000"] / 1000}

    def fresh_write(self, block, depth):
        """To a file whose blocks are reserved, as a swap image is at first."""
        file = f"{self.runner.tmp}/fresh"
        try:
            return self.run("write", block, depth, file=file)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(file)


