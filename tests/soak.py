#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Verifying guests in private virtual memory for an hour: no wrong byte, no guest that stands still, no pager that ends by itself.

    soak.py [--minutes N] [--seed N] [--pressure none|light|full] [--stuck SECONDS] [-t GUEST]... [-j N] [--list]
            [--build DIR] [--criu-vm FILE] [--dir DIR]

VM after VM, some at a time: a guest of zdtm's is dumped and restored lazily into a random budget, with random --paging options. While
it runs, its budget and options change, its pager is killed and taken over, by its supervisor or by hand. The host is short of memory
now and then:
  light: caches are dropped, pages are moved about by the kernel's compaction
  full:  that, and all of its memory is taken until a part of it is in its swap (a swap file of the test's)
The first failure ends it; that VM's folder and log are kept. The seed that is said at the beginning makes the same choices again; what
the kernel and the guests make of them differs.
"""
import contextlib
import copy
import concurrent.futures
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import suite                                            # noqa: E402
import life_long                                        # noqa: E402
from guests import MIB                                  # noqa: E402
from life_rig import BY_NAME, LifeRig                   # noqa: E402
from misuse_rig import Skip, check, memfd_bytes, stopping, wait_for      # noqa: E402

GUESTS = ["memory", "memory-random", "smp", "disk", "disk-uring", "disk-deep", "linux", "linux-disk"]
PAGING = {"method": ["adaptive", "adaptive", "1", "2"], "access": ["auto", "auto", "minor", "none"],
          "queue-bits": ["1", "4", "8", "8", "12"], "folios": ["auto", "off"], "spin": ["auto", "off"]}
LIVE = ["method", "access"]     # can be changed while it runs
SMALLEST = 16                   # MiB, of a budget
VM_SECONDS = (60, 240)
PAUSE = (0.1, 6)                # seconds between two things that are done to a VM
ENDED = "the pager has ended"   # what its supervisor says of it
PRESSURE_PAUSE = (5, 60)
HOG_SECONDS = 10


class Tenant:
    """One VM from its boot to its end, and what is done to it."""

    def __init__(self, rig, rnd, end):
        self.rig, self.rnd = rig, rnd
        self.guest = BY_NAME[rnd.choice(rig.opts.guest or GUESTS)]
        self.ram = self.guest.ram_mib("tcg")
        self.end = min(end, time.monotonic() + rnd.uniform(*VM_SECONDS))
        self.kills = self.sets = 0
        self.passes = self.since = None
        self.budget = self.some_budget()
        paging = self.some_paging(PAGING)
        self.about = f"{self.guest.name}, {paging}"
        fill = ["--fill"] if rnd.random() < 0.3 else []
        self.vm = rig.paged("--paging", paging, *fill, budget=self.budget, guest=self.guest, runs=False)

    def some_budget(self):
        """Small ones more often than large ones."""
        return round(SMALLEST * (self.ram / SMALLEST) ** self.rnd.random())

    def some_paging(self, keys):
        return ",".join(f"{key}={self.rnd.choice(PAGING[key])}" for key in keys)

    def live(self):
        actions = {self.set_ram: 6, self.nothing: 6, self.kill_pager: 2, self.set_paging: 1, self.take_over: 1}
        while time.monotonic() < self.end:
            self.rnd.choices(list(actions), actions.values())[0]()
            pause = time.monotonic() + self.rnd.uniform(*PAUSE)
            while time.monotonic() < pause:
                self.gets_on()
                time.sleep(0.05)

    def gets_on(self):
        """It has made a pass lately, a good one."""
        self.vm.console.check()
        check(self.vm.alive(), "QEMU has ended")
        now = time.monotonic()
        if self.passes != self.vm.console.passes:
            self.passes, self.since = self.vm.console.passes, now
        check(now - self.since < self.rig.opts.stuck, f"no pass for {self.rig.opts.stuck} s; stat: {self.rig.stat()}")

    def nothing(self):
        self.rig.stat()

    def set_ram(self):
        self.budget = self.some_budget()
        self.sets += 1
        self.rig.criu_vm("set", self.rig.name, "--ram", f"{self.budget}M").check(0)

    def set_paging(self):
        self.rig.criu_vm("set", self.rig.name, "--paging", self.some_paging(LIVE)).check(0)

    def kill_pager(self):
        self.rig.kill_pager()
        self.kills += 1

    def take_over(self):
        """By hand, nobody being left."""
        self.rig.kill_both()
        self.rig.criu_vm("lazy-pages", "--name", self.rig.name).check(0)

    def is_well(self):
        """All that it has, looked at once more; no more in memory than there should be; and nobody died but by our hand."""
        self.vm.passes(2, self.rig.opts.stuck)
        if self.guest.linux:
            self.rig.verified(self.vm, self.rig.opts.stuck)
        allowed = (self.budget + self.guest.in_flight) * MIB
        wait_for(f"{allowed // MIB} MiB at most in memory", 30, lambda: memfd_bytes(self.vm.pid) <= allowed)
        ended = self.rig.text_of(self.rig.pager_log).count(ENDED)
        check(ended == self.kills, f"{self.kills} pagers were killed, {ended} have ended")
        self.rig.note = f"{self.about}; {self.vm.console.passes} passes, {self.sets} budgets, {self.kills} kills"


def pressure(rig, rnd, kind, goes_on):
    """Until it ends. In full, if the host can swap."""
    def write(path, text):
        with open(path, "w", encoding="ascii") as f:
            f.write(text)

    def hog():
        with life_long.memory_hog(rig):
            goes_on(HOG_SECONDS)
    ways = [lambda: write("/proc/sys/vm/compact_memory", "1"), lambda: write("/proc/sys/vm/drop_caches", "3")]
    done = 0
    with contextlib.ExitStack() as stack:
        if kind == "full":
            stack.enter_context(life_long.host_swap(rig))
            ways.append(hog)
        while goes_on(rnd.uniform(*PRESSURE_PAUSE)):
            rnd.choice(ways)()
            done += 1
    rig.note = f"{kind}, {done} times"


class Soak(suite.Run):
    def __init__(self, opts, make_rig):
        super().__init__(opts, make_rig)
        self.failed, self.vms = False, 0
        self.rnd = random.Random(opts.seed)
        self.end = time.monotonic() + 60 * opts.minutes

    def goes_on(self, seconds=0):
        """Whether it still does so many seconds later."""
        until = min(self.end, time.monotonic() + seconds)
        while time.monotonic() < until and not self.failed and not stopping.is_set():
            time.sleep(0.1)
        return time.monotonic() < self.end and not self.failed and not stopping.is_set()

    def told(self, name, function):
        def kept(rig):
            try:
                function(rig)
            except Skip:
                raise
            except Exception:
                rig.opts = copy.copy(rig.opts)
                rig.opts.keep = True
                print(f"kept: {rig.tmp} {rig.pager_log}", flush=True)
                raise
        name, result, reason, seconds, lines = self.one(name, kept)
        self.failed |= result == "FAIL"
        print(f"{result:4} {name}{f' ({reason})' if reason else ''} {seconds:.0f}s", *lines, sep="\n", flush=True)

    def one_vm(self, rig, seed):
        tenant = Tenant(rig, random.Random(seed), self.end)
        rig.log.append(tenant.about)
        tenant.live()
        tenant.is_well()

    def lane(self, seeds):
        while self.goes_on():
            with self.lock:
                self.vms += 1
                nr = self.vms
            seed = seeds.getrandbits(32)
            self.told(f"VM {nr}", lambda rig: self.one_vm(rig, seed))       # pylint: disable=cell-var-from-loop; it is called at once

    def all(self, _):
        print(f"seed {self.opts.seed}", flush=True)
        seeds = [random.Random(self.rnd.getrandbits(64)) for _ in range(self.opts.jobs + 1)]
        with concurrent.futures.ThreadPoolExecutor(self.opts.jobs + 1) as pool:
            running = [pool.submit(self.lane, s) for s in seeds[1:]]
            if self.opts.pressure != "none":
                running.append(pool.submit(self.told, "pressure", lambda rig: pressure(rig, seeds[0], self.opts.pressure, self.goes_on)))
            self.wait_for(pool, running, lambda done: done.result())
        print(f"{self.vms} VMs, {'a failure' if self.failed else 'no wrong byte'}; seed {self.opts.seed}")
        return 1 if self.failed else 0


def main():
    parser = suite.parser(__doc__)
    parser.add_argument("--minutes", type=float, default=60, metavar="N", help="how long (60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), metavar="N",
                        help="of the choices (a random one)")
    parser.add_argument("--pressure", choices=["none", "light", "full"], default="full", help="on the host's memory (full)")
    parser.add_argument("--stuck", type=int, default=240, metavar="SECONDS",
                        help="a guest that makes no pass for so long stands still (240)")
    parser.add_argument("-t", dest="guest", action="append", choices=BY_NAME, metavar="GUEST", help="which ones")
    return suite.run(parser.parse_args(), [("soak", None)], LifeRig, Soak)


if __name__ == "__main__":
    sys.exit(main())
