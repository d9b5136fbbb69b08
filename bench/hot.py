#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How long a VM that was restored lazily takes until it is as fast as it was: with what its checkpoint says of what was hot, and without.

    bench/hot.py [--size MIB] [--hot MIB] [--runs N] [--watch S] [--json FILE]

The guest rewrites the hot part of its memory again and again, scattered, another order each time, as fast as it can, and says ten times a
second how many pages it has rewritten. Nothing else of it is touched. Of the same guest there are two checkpoints: one of when all its
memory was plain memory, which says nothing, and one that was made of the VM restored from that. They are restored in turn.

runs     seconds from the start of the restore until the guest has rewritten its first pages
back     and until it does, in one second and in each of the two that follow, 80 % of what it does in the end; or as long as it was watched
10 s     what it rewrote a second in the first ten
all      and until 98 % of what it uses is in memory, touched or not
waits    how often it waited for a page of the checkpoint, until the end
"""
import argparse
import json
import os
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time

from runner import MB, MIB, ROOT, Runner, spread, vm

NAME = "bench-hot"
ENOUGH, SMOOTH, FIRST = 0.8, 3, 10      # of what is reached in the end; seconds, seconds
ALL = 0.98                              # of what it uses
PAGE = 4096


class Console(vm.Console):
    """Remembers when it was told how many pages."""

    def __init__(self, path, log):
        self.told = []
        super().__init__(path, log)

    def line(self, line):
        if m := re.fullmatch(r"pages (\d+)", line):
            self.told.append((time.monotonic(), int(m[1])))
        super().line(line)


def rates(told, begin, end):
    """Pages in each second from then on."""
    def at(instant):
        before = [n for t, n in told if t <= instant]
        return before[-1] if before else told[0][1]
    return [at(begin + s + 1) - at(begin + s) for s in range(int(end - begin))]


class Bench(Runner):
    def guest_line(self):
        o = self.opts
        return ["qemu-system-x86_64", "-accel", o.accel, "-m", f"{o.size}M", "-nodefaults", "-display", "none",
                "-serial", f"unix:{self.tmp}/serial.sock,server=on,wait=off", "-qmp", f"unix:{self.tmp}/qmp.sock,server=on,wait=off",
                "-kernel", f"{o.build}/guest/idle.elf", "-append", f"tick=2 rate={1 << 40} fill={o.hot * MIB}"]

    def criu_vm(self, command, *args):
        return self.command(self.criu_vm_file, command, *args, "--run-dir", f"{self.tmp}/run")[1]

    def stat(self):
        return json.loads(self.criu_vm("stat", NAME, "--json"))

    def forget(self, directory):
        """Of the host's page cache."""
        for entry in os.scandir(directory):
            fd = os.open(entry.path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def first(self):
        """The checkpoint that says nothing of what was hot."""
        qemu = self.start(self.guest_line())
        console = Console(f"{self.tmp}/serial.sock", f"{self.tmp}/serial.log")
        vm.wait_for("a guest that rewrites", 300, lambda: console.told and console.told[-1][1] > 2 * self.opts.hot * MIB // PAGE)
        self.criu_vm("dump", str(qemu.pid), "-D", f"{self.tmp}/without")
        qemu.wait()
        console.stop()

    def restored(self, which, dump=None):
        self.forget(f"{self.tmp}/{which}")
        begin = time.monotonic()
        console = Console(f"{self.tmp}/serial.sock", f"{self.tmp}/serial.log")
        self.criu_vm("restore", "-D", f"{self.tmp}/{which}", "--lazy-pages", "--name", NAME, "-o", f"{self.tmp}/log")
        pid = vm.wait_for("the restored QEMU", 10, lambda: vm.peer_pid(f"{self.tmp}/qmp.sock"))
        came = []
        while time.monotonic() < begin + self.opts.watch:
            s = self.stat()
            came.append((time.monotonic() - begin, s["memory"]["resident"]))
            time.sleep(0.1)
        console.check()
        if dump:
            self.criu_vm("dump", NAME, "-D", f"{self.tmp}/{dump}")
        else:
            os.kill(pid, signal.SIGKILL)
        vm.wait_for("the VM's end", 300, lambda: not vm.processes_of(self.tmp))
        console.stop()
        return {**self.figures(console.told, begin, came), "waits": s["counts"]["faults_source"]}

    def figures(self, told, begin, came):
        each = rates(told, begin, told[-1][0])
        end = statistics.median(each[-10:])
        back = next((s for s in range(len(each) - SMOOTH) if min(each[s:s + SMOOTH]) >= ENOUGH * end), len(each))
        return {"runs": told[0][0] - begin, "back": back, "first": sum(each[:FIRST]) * PAGE / FIRST, "end": end * PAGE,
                "all": next((t for t, r in came if r >= ALL * self.opts.hot * MIB), came[-1][0]), "each": each}


def table(results):
    print(f"{'median (range)':10} {'runs s':>16} {'back s':>12} {'10 s MB/s':>18} {'end MB/s':>18} {'all s':>16} {'waits':>20}")
    for which, runs in results.items():
        print(f"{which:10} {spread([r['runs'] for r in runs], 2):>16} {spread([r['back'] for r in runs]):>12} "
              f"{spread([r['first'] / MB for r in runs]):>18} {spread([r['end'] / MB for r in runs]):>18} "
              f"{spread([r['all'] for r in runs], 1):>16} {spread([r['waits'] for r in runs]):>20}")


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of the VM's memory (2048)")
    parser.add_argument("--hot", type=int, default=512, metavar="MIB", help="of that, what the guest uses (512)")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each (5)")
    parser.add_argument("--watch", type=int, default=40, metavar="S", help="how long each is watched (40 s)")
    parser.add_argument("--accel", default="tcg")
    parser.add_argument("--build", default=f"{ROOT}/build", metavar="DIR")
    parser.add_argument("--criu-vm", metavar="FILE")
    parser.add_argument("--dir", default="/var/tmp", help="on the disk to measure (/var/tmp)")
    parser.add_argument("--json", metavar="FILE", help="all figures and commands, into a file")
    return parser.parse_args()


def main():
    opts = parsed()
    signal.signal(signal.SIGTERM, signal.default_int_handler)       # as Ctrl-C: nothing is left behind
    tmp = tempfile.mkdtemp(prefix="bench-hot-", dir=opts.dir)
    bench, results = Bench(opts, tmp), {"without": [], "with": []}
    try:
        bench.first()
        bench.restored("without", dump="with")                      # not counted
        for _ in range(opts.runs):
            for which, runs in results.items():
                runs.append(bench.restored(which))
    finally:
        vm.kill_all(tmp)
        shutil.rmtree(tmp, ignore_errors=True)
    table(results)
    if opts.json:
        with open(opts.json, "w", encoding="utf-8") as f:
            json.dump({"size_mib": opts.size, "hot_mib": opts.hot, "commands": bench.commands, **results}, f, indent=1)


if __name__ == "__main__":
    sys.exit(main())
