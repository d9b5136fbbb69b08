#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a migration costs, beside QEMU's own: the same VM moves between two network namespaces, by each way in turn.

    bench/migration.py [--size MIB] [--runs N] [--rate RATE] [--ram MIB] [--rewrite BYTES] [--json FILE] [WAY]...

qemu         QEMU's pre-copy, plain, into a host with enough memory ("ideal"); its bandwidth is not limited
multifd      the same, with 4 multifd channels
naive        QEMU's pre-copy, plain, into a control group with little memory, and the kernel's swap
small        criu-vm's, into private virtual memory of that little memory; and "back": from there into plain memory, where the guest
             verifies all that it has. Beside it fio's sequential O_DIRECT reading, of as much as was in swap
plain        criu-vm's, into plain memory

Time: of QEMU's, from `migrate` until its event that says completed, its destination having been started before (released: and until
the source's process has ended); of criu-vm's, from the start of the command to its end, when the source's process has ended. Downtime: the
longest time between two ticks of the guest's own ticker, of which there is one each millisecond, by the host's clock, from its last
tick at the source to 10 s after its first one at the destination. Without --rate the link is as fast as the processors. Before each move
as much memory as the VM has is allocated and freed: where this machine is a VM itself, its hypervisor may have taken what was free
(free page reporting), and to get that back costs more than the move.
"""
import contextlib
import os
import statistics
import sys
import threading
import time

from moves import NAME, Moves, good, measured, parsed, recorded, show_failed, since
from runner import MB, MIB, spread, vm
from two_hosts import DESTINATION, SOURCE, kernel_paging, warm_memory

WAYS = ["qemu", "multifd", "naive", "small", "plain"]
WATCHED = 10                # seconds at the destination


class Bench(Moves):
    def __init__(self, opts, tmp):
        super().__init__(opts, tmp, f"rate={opts.rewrite}")

    def ways(self):
        return {"qemu": self.qemu_way, "multifd": self.multifd_way, "naive": self.naive_way, "small": self.small_way,
                "plain": self.plain_way}

    def moved(self, host, move, *args, **how):
        """move() has the VM leave the host; what it says, and what was seen."""
        idle = time.monotonic()
        warm_memory(self.opts.size * MIB)
        nr, begin, sent = self.ticks.ticks[-1][1], time.monotonic(), self.hosts.sent(host)
        result = move(host, *args, **how)
        self.ticks.wait_elsewhere(nr, 60)
        last, first = self.ticks.switched(nr)
        self.ticks.wait_until(first + WATCHED, 60)
        return {**result, "downtime_ms": self.ticks.longest(last, first + WATCHED) * 1e3, "switch_ms": (first - last) * 1e3,
                "before_ms": self.ticks.longest(begin, last) * 1e3, "idle_ms": self.ticks.longest(idle - 1, idle) * 1e3,
                "wire_bytes": self.hosts.sent(host) - sent}

    # ---- QEMU's ways

    def qemu_moved(self, memory=None, capabilities=(), **parameters):
        with self.qemu_destination(memory) as monitors:
            before = kernel_paging()
            result = self.moved(SOURCE, self.qemu_migrate, monitors, capabilities, **parameters)
            return {**result, "arriving": since(before, result["arriving"]), "paged": since(before, kernel_paging())}

    def qemu_way(self):
        return {"qemu": self.qemu_moved()}

    def multifd_way(self):
        return {"multifd": self.qemu_moved(None, ["multifd"], **{"multifd-channels": 4})}

    def naive_way(self):
        return {"naive": self.qemu_moved(self.small_memory())}

    # ---- criu-vm's

    def paged(self, host):
        """What stat says of a VM there, and how much has come from swap and gone there."""
        stat = self.criu_vm(host, "stat", NAME)[1]
        counts = stat["counts"]
        return stat, (counts["pages_in_swap"] + counts["pages_in_source"], counts["pages_out_written"])

    @contextlib.contextmanager
    def watched(self, host):
        """What paged() says every second, until the VM is not there any more."""
        seen, ended = [], threading.Event()

        def watch():
            with contextlib.suppress(vm.TestFailed, KeyError):
                while not ended.wait(1):
                    seen.append(self.paged(host)[1])
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            ended.set()
            thread.join()

    def small_way(self):
        with self.guest():
            there = self.moved(SOURCE, self.migrate, str(self.qemu.pid), "--ram", f"{self.opts.ram}M")
            stat, there["paged"] = self.paged(DESTINATION)
            there["swapped"] = swapped = stat["memory"]["swapped"]
            with self.watched(DESTINATION) as seen:
                back = self.moved(DESTINATION, self.migrate, NAME)
            back["source_paged"] = since(there["paged"], seen[-1] if seen else there["paged"])
            self.verified()
        self.fio("write", "fio", swapped)
        back["disk_s"] = self.fio("read", "fio", swapped)
        os.unlink(f"{self.tmp}/fio")
        return {"small": there, "back": back}

    def plain_way(self):
        with self.guest():
            result = self.moved(SOURCE, self.migrate, str(self.qemu.pid))
            self.verified()
            return {"plain": result}

# ---- the report


COLUMNS = {"time s": 20, "released s": 20, "downtime ms": 14, "of it switch": 14, "it says ms": 14, "MB on the wire": 17,
           "pages in, out": 14, "and later": 14}


def table(runs):
    print(f"{'median (range)':14}", *(f"{title:>{width}}" for title, width in COLUMNS.items()))
    for move in dict.fromkeys(m for r in runs for m in r):
        if done := good(runs, move):
            print(f"{move:14}", *(f"{cell:>{width}}" for cell, width in zip(cells(done), COLUMNS.values())))
        show_failed(runs, move)


def cells(done):
    paging = [" ".join(str(statistics.median_high(p)) for p in zip(*(r[when] for r in done))) if when in done[0] else "-"
              for when in ("arriving", "paged")]
    return [spread([r["seconds"] for r in done], 2), spread([r["released_s"] for r in done], 2), spread([r["downtime_ms"] for r in done]),
            spread([r["switch_ms"] for r in done]), spread([r["said_downtime_ms"] for r in done]),
            spread([r["wire_bytes"] / MB for r in done]), *paging]


def ratios(runs, bits_per_second, filled):
    """What it has to show: [(what, ratio of medians, smallest and largest of a round, at most)]. On a slow link only that it is used."""
    found = []

    def compare(what, move, value, other, other_value, most):
        both = [r for r in runs if all("failed" not in r.get(m, {"failed": 1}) for m in (move, other))]
        if both:
            ours, theirs = [r[move][value] for r in both], [r[other][other_value] for r in both]
            each = [a / b for a, b in zip(ours, theirs)]
            ratio = statistics.median(ours) / statistics.median(theirs)
            found.append((what, ratio, min(each), max(each), None if bits_per_second else most))

    compare("small: time, of qemu's", "small", "seconds", "qemu", "seconds", 0.5)
    compare("small: time, of multifd's", "small", "seconds", "multifd", "seconds", 0.75)
    compare("small: downtime, of qemu's", "small", "downtime_ms", "qemu", "downtime_ms", 1)
    compare("small: time, of naive's", "small", "seconds", "naive", "seconds", None)
    compare("plain: time, of qemu's", "plain", "seconds", "qemu", "seconds", None)
    compare("plain: time, of multifd's", "plain", "seconds", "multifd", "seconds", None)
    compare("back: time, of the disk's for what was in swap", "back", "seconds", "back", "disk_s", 1.2)
    for move in ("small", "qemu", "multifd") if bits_per_second else ():
        for what, size, most in (("the guest's bytes", lambda r: filled, None), ("bytes on the wire", lambda r: r["wire_bytes"], 1.05)):
            if each := [r["seconds"] * bits_per_second / 8 / size(r) for r in good(runs, move)]:
                found.append((f"{move}: time, of {what} over the link's rate", statistics.median(each), min(each), max(each),
                              most if move == "small" else None))
    return found


def counters(runs):
    """What has to be 0 if the guest is idle: [(what, the most of all rounds)]"""
    found = []
    for what, move, when in (("small: pages in and out at the destination before it ran", "small", "arriving"),
                             ("back: pages in and out at the source meanwhile", "back", "source_paged")):
        if each := [sum(r[when]) for r in good(runs, move)]:
            found.append((what, max(each)))
    return found


def verdict(is_good):
    return "yes" if is_good else "NO"


def show(found, counted):
    if found:
        print(f"\n{'ratio of medians (range of rounds)':58} {'':>18} {'at most':>8}")
    for what, ratio, least, largest, most in found:
        value, judged = f"{ratio:.2f} ({least:.2f}-{largest:.2f})", "" if most is None else verdict(ratio <= most)
        print(f"{what:58} {value:>18} {most or '':>8} {judged}")
    for what, most in counted:
        print(f"{what:58} {most:>18} {0:>8} {verdict(not most)}")


# ---- the command


def options(parser):
    parser.add_argument("--rewrite", type=int, default=0, metavar="BYTES", help="that the guest rewrites a second (0)")
    parser.add_argument("--limit", type=int, default=180, metavar="S", help="for QEMU to converge (180)")


def main():
    opts = parsed(__doc__, WAYS, "migration", options)
    bench, runs = measured(Bench, opts)
    found = ratios(runs, opts.bits, bench.filled)
    counted = [] if opts.rewrite else counters(runs)
    table(runs)
    show(found, counted)
    sys.exit(recorded(bench, runs, ratios=[dict(zip(("what", "ratio", "least", "largest", "at_most"), r)) for r in found],
                      counters=dict(counted)))


if __name__ == "__main__":
    main()
