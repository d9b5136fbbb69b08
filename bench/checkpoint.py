#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a checkpoint costs: the pause of a guest that runs on, and the speed of dump and restore beside the disk's own.

    bench/checkpoint.py [--size MIB] [--rounds N] [--rate BYTES]... [--json FILE] [pause | background | throughput]...

pause        `dump -R` after two pre-dumps; the guest rewrites 50 MB a second.
background   `dump -R --background`, at several rates of rewriting.
throughput   dump and restore of incompressible memory, fsync included. Beside them in each round: fio's sequential O_DIRECT on the
             same disk, QEMU's migrate to a file and from it, CRIU's dump and restore of a process of that size.

A pause is the longest time between two ticks of the guest's own ticker, of which there is one each millisecond, by the host's
clock: without KVM a guest's clocks stand still while it is stopped. All is read from the disk, not from the host's page cache.
"""
import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from runner import MB, MIB, ROOT, Runner, spread, vm

NAME = "bench-checkpoint"
RATES = [0, 50 * MB, 200 * MB, 1000 * MB]
PROCESS = """
import mmap, os, sys, time
size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 1 << 20):
    memory[at:at + (1 << 20)] = os.urandom(1 << 20)
open(sys.argv[2], "w").close()
while True:
    time.sleep(1)
"""


class Ticker(threading.Thread):
    """Takes the bytes that the guest sends at each tick, and remembers the gaps between them, as (end, seconds)."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.socket, self.gaps = path, socket.socket(socket.AF_UNIX), []
        vm.wait_for(path, 20, self.connected)
        self.start()

    def connected(self):
        return self.socket.connect_ex(self.path) == 0

    def run(self):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))      # what is measured is the guest, not this
        last = time.monotonic()
        with contextlib.suppress(OSError):
            while self.socket.recv(4096):
                now = time.monotonic()
                self.gaps.append((now, now - last))
                last = now

    def longest(self, begin, end):
        """In milliseconds, of those that ended between two instants, and until the first tick after them."""
        vm.wait_for("a tick", 20, lambda: self.gaps and self.gaps[-1][0] > end)
        seen = []
        for at, gap in list(self.gaps):
            if at > begin:
                seen.append(gap)
            if at > end:
                break
        return max(seen) * 1e3


class Bench(Runner):
    def __init__(self, opts, tmp):
        super().__init__(opts, tmp)
        self.qemu = self.console = self.ticker = None
        self.criu_failed = None

    # ---- what it runs

    def criu_vm(self, command, *args):
        return self.command(self.criu_vm_file, command, *args, "--run-dir", f"{self.tmp}/run")[0]

    def guest_line(self, rate, *args):
        o = self.opts
        return ["qemu-system-x86_64", "-accel", o.accel, "-m", f"{o.size}M", "-nodefaults", "-display", "none",
                "-serial", f"unix:{self.tmp}/serial.sock,server=on,wait=off", "-serial", f"unix:{self.tmp}/tick.sock,server=on,wait=off",
                "-qmp", f"unix:{self.tmp}/qmp.sock,server=on,wait=off",
                "-kernel", f"{o.build}/guest/rewrite.elf", "-append", f"tick=2 rate={rate}", *args]

    @contextlib.contextmanager
    def guest(self, rate):
        """A VM whose guest has filled its memory and runs."""
        self.qemu = self.start(self.guest_line(rate))
        self.ticker = Ticker(f"{self.tmp}/tick.sock")
        self.console = vm.Console(f"{self.tmp}/serial.sock", f"{self.tmp}/serial.log")
        try:
            self.console.wait_passes(1, 600)
            yield
            self.console.check()
        finally:
            self.console.stop()
            self.qemu.kill()
            self.qemu.wait()

    def kill(self, pid):
        """And all that criu-vm started for it."""
        os.kill(pid, signal.SIGKILL)
        vm.wait_for("the VM's end", 300, lambda: not vm.processes_of(self.tmp))

    def removed(self, *names):
        for name in names:
            shutil.rmtree(f"{self.tmp}/{name}", ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(f"{self.tmp}/{name}")

    # ---- the guest's pauses

    def rewritten(self):
        """Bytes, of which it tells at each of its passes."""
        return int(self.console.last.split()[-1]) * 4096

    def reached(self, seconds=6):
        """Bytes a second, and the longest gap meanwhile: with nobody else at work."""
        self.console.wait_passes(1, 60)
        before, begin = self.rewritten(), time.monotonic()
        time.sleep(seconds)
        self.console.wait_passes(1, 60)
        now = time.monotonic()
        return {"bytes_per_second": round((self.rewritten() - before) / (now - begin)), "gap_ms": self.ticker.longest(begin, now)}

    def paused(self, command, directory, *flags):
        begin = time.monotonic()
        seconds = self.criu_vm(command, str(self.qemu.pid), "-D", f"{self.tmp}/{directory}", *flags)
        size = sum(e.stat().st_size for e in os.scandir(f"{self.tmp}/{directory}") if e.is_file(follow_symlinks=False))
        return {"seconds": seconds, "pause_ms": self.ticker.longest(begin, time.monotonic()), "bytes": size}

    def good(self, *directories):
        """The last checkpoint is whole, and its guest finds its memory as it should be."""
        self.criu_vm("verify", f"{self.tmp}/{directories[-1]}")
        self.restored_runs(directories[-1])
        self.removed(*directories)

    def restored_runs(self, directory):
        self.criu_vm("restore", "-D", f"{self.tmp}/{directory}", "--name", NAME, "-o", f"{self.tmp}/log")
        pid = vm.wait_for("the restored QEMU", 10, lambda: vm.peer_pid(f"{self.tmp}/qmp.sock"))
        console = vm.Console(f"{self.tmp}/serial.sock", f"{self.tmp}/restored.log")
        try:
            vm.wait_for("two passes of the restored guest", 120, lambda: console.check() or console.passes >= self.console.passes + 2)
        finally:
            console.stop()
            self.kill(pid)

    def chain(self):
        steps = {"pre-dump 1": ("pre-dump", "1"), "pre-dump 2": ("pre-dump", "2", "--prev-images-dir", f"{self.tmp}/1"),
                 "dump -R": ("dump", "3", "-R", "--prev-images-dir", f"{self.tmp}/2")}
        rounds = {step: [] for step in steps}
        with self.guest(50 * MB):
            alone = self.reached()
            for nr in range(self.opts.rounds):
                if nr:
                    self.removed("1", "2", "3")
                for step, args in steps.items():
                    rounds[step].append(self.paused(*args))
        self.good("1", "2", "3")
        return [{"what": step, "alone": alone, "rounds": r} for step, r in rounds.items()]

    def background(self):
        results = []
        for rate in self.opts.rate or RATES:
            rounds = []
            with self.guest(rate):
                alone = self.reached()
                for nr in range(self.opts.rounds):
                    if nr:
                        self.removed("1")
                    rounds.append(self.paused("dump", "1", "-R", "--background"))
            self.good("1")
            results.append({"what": f"--background, rate {rate // MB} MB/s", "alone": alone, "rounds": rounds})
        return results

    # ---- throughput

    def forget(self, *names):
        """The host's page cache, of these files and directories; they are on the disk then."""
        for name in names:
            path = f"{self.tmp}/{name}"
            for file in [e.path for e in os.scandir(path)] if os.path.isdir(path) else [path]:
                fd = os.open(file, os.O_RDONLY)
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def qmp(self, command, **arguments):
        self.said(["QMP:", command, *(f"{k}={v}" for k, v in arguments.items())])
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(f"{self.tmp}/qmp.sock")
            f = s.makefile("rw")
            f.readline()
            for line in {"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}:
                f.write(json.dumps(line) + "\n")
                f.flush()
                while "event" in (answer := json.loads(f.readline())):
                    pass
                if "error" in answer:
                    raise vm.TestFailed(f"QMP {command}: {answer['error']['desc']}")
            return answer["return"]

    def migrated(self):
        """Waits for QEMU's own migration."""
        def ended():
            status = vm.qmp(f"{self.tmp}/qmp.sock", "query-migrate").get("status")
            if status == "failed":
                raise vm.TestFailed("QEMU's migration failed")
            return status == "completed"
        vm.wait_for("QEMU's migration", 600, ended)

    def qemu_save(self):
        vm.qmp(f"{self.tmp}/qmp.sock", "stop")
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        begin = time.monotonic()
        self.qmp("migrate", uri=f"exec:cat >{self.tmp}/qemu")
        self.migrated()
        self.forget("qemu")
        seconds = time.monotonic() - begin
        vm.qmp(f"{self.tmp}/qmp.sock", "cont")
        return seconds

    def qemu_load(self):
        begin = time.monotonic()
        qemu = self.start(self.guest_line(0, "-S", "-incoming", f"exec:cat {self.tmp}/qemu"))
        try:
            vm.wait_for("QEMU's sockets", 20, lambda: vm.peer_pid(f"{self.tmp}/qmp.sock") == qemu.pid)
            self.migrated()
            return time.monotonic() - begin
        finally:
            qemu.kill()
            qemu.wait()

    def criu_save(self, process):
        """Seconds, or None if CRIU does not know this kernel."""
        os.makedirs(f"{self.tmp}/criu")
        begin = time.monotonic()
        try:
            self.command(self.opts.criu, "dump", "-t", str(process.pid), "-D", f"{self.tmp}/criu")
        except (vm.TestFailed, OSError) as e:
            self.criu_failed = " ".join(str(e).split("\n"))
            return None
        self.forget("criu")
        seconds = time.monotonic() - begin
        process.wait()      # its pid is to be had again
        return seconds

    def criu_load(self, process):
        seconds = self.command(self.opts.criu, "restore", "-d", "-D", f"{self.tmp}/criu")[0]
        os.kill(process.pid, signal.SIGKILL)
        return seconds

    @contextlib.contextmanager
    def process(self):
        """One as large as the VM, full of random bytes."""
        ready = f"{self.tmp}/process-ready"
        line = [sys.executable, "-c", PROCESS, str(self.opts.size), ready]
        with open(f"{self.tmp}/process.log", "wb") as log:
            p = subprocess.Popen(line, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        vm.wait_for("a process that has filled its memory", 300, lambda: os.path.exists(ready))
        try:
            yield p
        finally:
            p.kill()
            p.wait()

    def dump(self):
        seconds = self.criu_vm("dump", str(self.qemu.pid), "-D", f"{self.tmp}/images")
        self.qemu.wait()
        return seconds

    def restore(self):
        seconds = self.criu_vm("restore", "-D", f"{self.tmp}/images", "--name", NAME, "-o", f"{self.tmp}/log")
        self.kill(vm.peer_pid(f"{self.tmp}/qmp.sock"))
        return seconds

    def round(self):
        """Seconds: all save, and all load."""
        with self.process() as process:
            save = {"criu": self.criu_save(process)}
            load = {"criu": save["criu"] and self.criu_load(process)}
        with self.guest(0):
            save |= {"fio": self.fio("write", "fio", self.opts.size * MIB), "qemu": self.qemu_save(), "criu-vm": self.dump()}
        self.forget("fio", "qemu", "images")
        load |= {"fio": self.fio("read", "fio", self.opts.size * MIB), "criu-vm": self.restore(), "qemu": self.qemu_load()}
        self.removed("fio", "qemu", "criu", "images")
        return save, load

    def throughput(self):
        rounds = [self.round() for _ in range(self.opts.rounds)]
        return {"dump": [save for save, _ in rounds], "restore": [load for _, load in rounds]}


# ---- tables


def pause_table(results):
    print(f"{'pause, median (range)':32} {'ms':>18} {'without ms':>11} {'rewritten MB/s':>15} {'s':>18} {'MB':>6}")
    for r in results:
        rounds, alone = r["rounds"], r["alone"]
        print(f"{r['what']:32} {spread([x['pause_ms'] for x in rounds]):>18} {alone['gap_ms']:11.0f} {alone['bytes_per_second'] / MB:15.0f} "
              f"{spread([x['seconds'] for x in rounds], 2):>18} {statistics.median(x['bytes'] for x in rounds) / MB:6.0f}")


def throughput_table(results, size):
    print(f"{'MB/s, median (range)':20} {'dump':>18} {'of fio':>18} {'restore':>18} {'of fio':>18}")
    for who in "fio", "criu-vm", "qemu", "criu":
        cells = []
        for rounds in results.values():
            rounds = [r for r in rounds if r[who]]
            cells += [spread([size * MIB / MB / r[who] for r in rounds]), spread([r["fio"] / r[who] for r in rounds], 2)] if rounds else ["-", "-"]
        print(f"{who:20}", *(f"{c:>18}" for c in cells))


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar="PART", help="pause, background, throughput (all)")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of the VM's memory (2048)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, action="append", metavar="BYTES", help=f"rewritten a second, for background ({RATES})")
    parser.add_argument("--accel", default="tcg")
    parser.add_argument("--build", default=f"{ROOT}/build", metavar="DIR")
    parser.add_argument("--criu-vm", metavar="FILE")
    parser.add_argument("--criu", default="criu", metavar="FILE")
    parser.add_argument("--dir", default="/var/tmp", help="on the disk to measure (/var/tmp)")
    parser.add_argument("--json", metavar="FILE", help="all figures and commands, into a file")
    opts = parser.parse_args()
    opts.part = opts.part or ["pause", "background", "throughput"]
    if wrong := set(opts.part) - {"pause", "background", "throughput"}:
        parser.error(f"no such part: {', '.join(wrong)}")
    return opts


def measured(bench, opts):
    results = {}
    if "pause" in opts.part:
        results["pause"] = bench.chain()
    if "background" in opts.part:
        results["background"] = bench.background()
    if "throughput" in opts.part:
        results["throughput"] = bench.throughput()
    return results


def main():
    opts = parsed()
    signal.signal(signal.SIGTERM, signal.default_int_handler)       # as Ctrl-C: nothing is left behind
    tmp = tempfile.mkdtemp(prefix="bench-checkpoint-", dir=opts.dir)
    bench = Bench(opts, tmp)
    try:
        results = measured(bench, opts)
    finally:
        vm.kill_all(tmp)
        shutil.rmtree(tmp, ignore_errors=True)
    if pauses := results.get("pause", []) + results.get("background", []):
        pause_table(pauses)
    if "throughput" in results:
        throughput_table(results["throughput"], opts.size)
    if bench.criu_failed:
        print(f"criu does not work here: {bench.criu_failed}")
    if opts.json:
        with open(opts.json, "w", encoding="utf-8") as f:
            json.dump({"size_mib": opts.size, "commands": bench.commands, "criu_failed": bench.criu_failed, **results}, f, indent=1)


if __name__ == "__main__":
    main()
