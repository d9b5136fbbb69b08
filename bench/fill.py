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

    def filled(self):
        return not self.stat()["memory"]["source"]

    def kill(self, pid):
        os.kill(pid, 9)
        vm.wait_for("the pager's end", 300, lambda: not vm.processes_of(self.tmp))

    def passes(self, flags):
        """Of a VM that runs: seconds that each pass took, the faults' mean in us, seconds after which it was filled."""
        console = vm.Console(f"{self.tmp}/serial.sock", f"{self.tmp}/serial.log")
        pid = self.restore_small("running", *flags)
        times, filled, begun = [], None, time.monotonic()
        seen, last, looked = console.passes, begun, begun
        while (now := time.monotonic()) < begun + self.seconds or (flags and not filled):
            time.sleep(0.01)
            console.check()
            if console.passes > seen:
                times.append(now - last)
                seen, last = console.passes, now
            if flags and not filled and now > looked + 0.2:
                looked = now
                filled = now - begun if self.filled() else None
        stat = self.stat()
        self.kill(pid)
        console.stop()
        return times, stat["counts"]["page_in_ns"] / 1e3 / sum(stat["page_in_latency_log2_us"]), filled

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

        self.console.stop()
        pid = self.restore_small("paused", "--fill")
        begun = time.monotonic()
        vm.wait_for("a VM that is filled", 600, self.filled)
        seconds = time.monotonic() - begun
        counts = self.stat()["counts"]
        self.kill(pid)
        print(f"paused   {size:.0f} MiB in {seconds:.2f} s: {size / seconds:.0f} MiB/s; "
              f"{counts['pages_filled_memory'] / 256:.0f} MiB into memory, {counts['pages_filled_swap'] / 256:.0f} into swap")
        print("disk     reads {:.0f} MiB/s, writes {:.0f}, copies {:.0f}".format(*(size / s for s in self.disk())), flush=True)

        for what, *flags in ("running",), ("filling", "--fill"):
            times, page_in, filled = self.passes(flags)
            print(f"{what}  passes of", *(f"{s:.1f}" for s in times), f"s; a page-in takes {page_in:.0f} us",
                  f"; filled in {filled:.1f} s: {size / filled:.0f} MiB/s" if filled else "", flush=True)


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
