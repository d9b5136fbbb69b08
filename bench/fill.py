#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How fast `criu-vm restore --lazy-pages --fill` fills a VM, and what its guest feels of it.

    bench/fill.py [--guest NAME] [--seconds N]

A VM is restored into a quarter of its memory. Paused: how long until its images are not needed, against what the disk does by
itself. Running, its guest verifying all its memory and rewriting some: how long its passes take while it is filled, and without.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, f"{ROOT}/tests/zdtm")
import vm  # noqa: E402
from guests import GUESTS, MIB  # noqa: E402

NAME = "bench-fill"


class Bench:
    def __init__(self, opts, tmp):
        self.criu, self.tmp, self.seconds = opts.criu_vm or f"{opts.build}/criu-vm", tmp, opts.seconds
        self.guest = next(g for g in GUESTS if g.name == opts.guest)
        self.qemu = subprocess.Popen(self.guest.command_line("tcg", opts.build, tmp), env={**os.environ, vm.TAG: tmp},
                                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.console = vm.Console(f"{tmp}/serial.sock", f"{tmp}/serial.log")

    def criu_vm(self, *args):
        return subprocess.run([self.criu, *args, "--run-dir", f"{self.tmp}/run"], env={**os.environ, vm.TAG: self.tmp},
                              stdout=subprocess.PIPE, check=True).stdout

    def dump(self, who, images):
        self.criu_vm("dump", who, "-D", f"{self.tmp}/{images}")

    def restore(self, images, *flags):
        out = self.criu_vm("restore", "-D", f"{self.tmp}/{images}", "--name", NAME, "-o", f"{self.tmp}/log", "--json", *flags)
        return json.loads(out)["qemu_pid"]

    def restore_small(self, images, *flags):
        return self.restore(images, "--lazy-pages", "--ram", f"{self.guest.ram // 4}M", "--swap", f"{self.tmp}/swap", *flags)

    def stat(self):
        return json.loads(self.criu_vm("stat", NAME, "--json"))

    def wait_filled(self):
        begun = time.monotonic()
        vm.wait_for("a VM that is filled", 600, lambda: self.stat()["images"] is None)
        return time.monotonic() - begun

    def kill(self, pid):
        os.kill(pid, 9)
        vm.wait_for("the pager's end", 300, lambda: not vm.processes_of(self.tmp))

    def passes(self, until):
        """Seconds that each pass took while not until()."""
        times, seen, last = [], self.console.passes, time.monotonic()
        while not until():
            time.sleep(0.02)
            if self.console.passes > seen:
                times.append((time.monotonic() - last) / (self.console.passes - seen))
                seen, last = self.console.passes, time.monotonic()
        self.console.check()
        return times

    def dd(self, **of):
        begun = time.monotonic()
        subprocess.run(["dd", "bs=1M", "status=none", *(f"{k}={v}" for k, v in of.items())], check=True)
        return time.monotonic() - begun

    def disk(self):
        """Seconds to read the pages, to write as many, and to copy them; a MiB at a time."""
        pages, copy = f"{self.tmp}/paused/pages-1.img", f"{self.tmp}/copy"
        read = self.dd(**{"if": pages}, of="/dev/null", iflag="direct")
        write = self.dd(**{"if": "/dev/zero"}, of=copy, oflag="direct", count=os.path.getsize(pages) // MIB)
        both = self.dd(**{"if": pages}, of=copy, iflag="direct", oflag="direct", conv="notrunc")
        os.unlink(copy)
        return read, write, both

    def run(self):
        self.console.wait_passes(2, self.guest.boot_seconds)
        self.dump(str(self.qemu.pid), "running")
        self.qemu.wait()
        self.restore("running")
        vm.qmp(f"{self.tmp}/qmp.sock", "stop")
        self.dump(NAME, "paused")
        size = os.path.getsize(f"{self.tmp}/paused/pages-1.img") / MIB

        pid = self.restore_small("paused", "--fill")
        seconds = self.wait_filled()
        counts = self.stat()["counts"]
        self.kill(pid)
        print(f"paused   {size:.0f} MiB in {seconds:.2f} s: {size / seconds:.0f} MiB/s; "
              f"{counts['pages_filled_memory'] / 256:.0f} MiB into memory, {counts['pages_filled_swap'] / 256:.0f} into swap")
        print("disk     reads {:.0f} MiB/s, writes {:.0f}, copies {:.0f}".format(*(size / s for s in self.disk())), flush=True)

        for flags in [], ["--fill"]:
            pid = self.restore_small("running", *flags)
            begun, filled = time.monotonic(), None

            def stop():
                nonlocal filled
                now = time.monotonic()
                if flags and not filled and self.stat()["images"] is None:
                    filled = now - begun
                return now - begun > self.seconds and (filled or not flags)
            times = self.passes(stop)
            counts = self.stat()["counts"]
            self.kill(pid)
            print(f"{'filling' if flags else 'running':8} passes of " + " ".join(f"{s:.1f}" for s in times) + " s; "
                  f"page-ins of {counts['page_in_ns'] / 1e3 / max(sum(counts[f'faults_{x}'] for x in ('swap', 'source')), 1):.0f} us"
                  + (f"; filled in {filled:.1f} s: {size / filled:.0f} MiB/s" if flags else ""), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guest", default="linux-1g", choices=[g.name for g in GUESTS])
    parser.add_argument("--seconds", type=float, default=40, help="how long each running VM is watched (40)")
    parser.add_argument("--build", default=f"{ROOT}/build")
    parser.add_argument("--criu-vm", default=None)
    opts = parser.parse_args()
    tmp = tempfile.mkdtemp(prefix="bench-fill-", dir="/var/tmp")
    bench = Bench(opts, tmp)
    try:
        bench.run()
    finally:
        bench.console.stop()
        vm.kill_all(tmp)
        bench.qemu.wait()
        shutil.rmtree(tmp, ignore_errors=True)


if __name__ == "__main__":
    main()
