#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What it costs to move a VM that writes to all its memory, faster than it can be sent: lazily, beside QEMU's own ways.

    bench/lazy.py [--size MIB] [--ram MIB] [--runs N] [--rate RATE] [--rewrite BYTES] [--order ORDER] [--limit S] [--watch S] [WAY]...

precopy          QEMU's pre-copy, into a host with enough memory. It does not end; after so many seconds it is cancelled
multifd          the same, with 4 multifd channels
postcopy         QEMU's post-copy (postcopy-preempt), begun at once, into a host with enough memory ("ideal")
postcopy-round   the same, begun after one round of pre-copy
postcopy-naive   QEMU's post-copy, begun at once, into a control group with little memory, and the kernel's swap
lazy             criu-vm's, into private virtual memory of that little memory
lazy-plain       criu-vm's, into plain memory
lazy-auto        criu-vm's, which tries pre-copy first, into that little memory

The guest rewrites all its pages again and again, as fast as it can (--rewrite), in an order (--order) that is "scattered" and another one
each time, or "repeated": scattered, but always the same one, which a kernel's swap makes use of, since it reads together what was
written together; or "ascending". Ten times a second it says how many pages it has rewritten; a line's time is the host's. At the end it
verifies all that it has.

switch   seconds from the start of the migration until the guest's first tick at the destination
all      until the source holds nothing that is needed: QEMU's event says completed, its destination having been started before;
         criu-vm's command has ended
down     between the guest's last tick at the source and its first one at the destination; there is one each millisecond
stall    the longest time between two ticks from then on, until all is there and it is steady; and then, until so long after all was
         there (--watch)
steady   from the first second after the switch from which on it rewrites in each, and the two that follow, at least 80 % of what it does
         in the end, the median of the last 10
10 s     what it rewrote a second in the first ten
sent     bytes on the wire, headers too, of the guest's own

Without --rate the link is as fast as the processors. Before each move as much memory as the VM has is allocated and freed: see
bench/migration.py.
"""
import statistics
import sys
import time

from moves import POSTCOPY, Moves, good, measured, parsed, recorded, show_failed, since
from runner import MB, MIB, spread, vm
from two_hosts import SOURCE, kernel_paging, warm_memory

WAYS = ["precopy", "multifd", "postcopy", "postcopy-round", "postcopy-naive", "lazy", "lazy-plain", "lazy-auto"]
ORDERS = ["scattered", "repeated", "ascending"]     # as the guest counts them
BEFORE = 3                  # seconds that are watched before
ENOUGH = 0.8                # of what is reached in the end
SMOOTH = 3                  # seconds that are taken together
END = 10                    # seconds of it
FIRST = 10                  # seconds after the switch
POSTCOPY_LIMIT = 600        # seconds
PAGE = 4096


class Bench(Moves):
    def __init__(self, opts, tmp):
        super().__init__(opts, tmp, f"rate={opts.rewrite} order={ORDERS.index(opts.order)}")

    def ways(self):
        return {"precopy": lambda: {"precopy": self.endless()},
                "multifd": lambda: {"multifd": self.endless(["multifd"], **{"multifd-channels": 4})},
                "postcopy": lambda: {"postcopy": self.postcopy(0)},
                "postcopy-round": lambda: {"postcopy-round": self.postcopy(1)},
                "postcopy-naive": lambda: {"postcopy-naive": self.postcopy(0, self.small_memory())},
                "lazy": lambda: {"lazy": self.lazy("--lazy", "--ram", f"{self.opts.ram}M")},
                "lazy-plain": lambda: {"lazy-plain": self.lazy("--lazy")},
                "lazy-auto": lambda: {"lazy-auto": self.lazy("--lazy=auto", "--ram", f"{self.opts.ram}M")}}

    def ready(self):
        """Memory is there, and what the guest does before is seen."""
        warm_memory(self.opts.size * MIB)
        time.sleep(BEFORE)

    def endless(self, capabilities=(), **parameters):
        with self.qemu_destination() as monitors:
            source = monitors[0]
            self.ready()
            sent = self.hosts.sent(SOURCE)
            begin = self.qemu_start(monitors, capabilities, **parameters)
            status = source.migration_ended(self.opts.limit)
            end, told, sent = time.monotonic(), source.command("query-migrate"), self.hosts.sent(SOURCE) - sent
            if status is None:
                source.command("migrate_cancel")
                status = source.migration_ended(20)
            if status == "failed":
                raise vm.TestFailed(f"failed after {end - begin:.0f} s: {told.get('error-desc')}")
            time.sleep(1)
            self.verified()
            return {"ended": status == "completed", "seconds": end - begin, "wire_bytes": sent,
                    "rounds": told["ram"]["dirty-sync-count"], "before": self.each_second(begin - BEFORE, begin),
                    "meanwhile": self.each_second(begin, end), "said": told}

    def postcopy(self, rounds, memory=None):
        with self.qemu_destination(memory) as monitors:
            before = kernel_paging()
            result = self.moved(SOURCE, self.qemu_migrate, monitors, POSTCOPY, postcopy_after=rounds, limit=POSTCOPY_LIMIT)
            return {**result, "arriving": since(before, result["arriving"]), "paged": since(before, kernel_paging())}

    def lazy(self, *flags):
        with self.guest():
            return self.moved(SOURCE, self.migrate, str(self.qemu.pid), *flags, once=False)

    def each_second(self, begin, end):
        return [round(n) for n in self.lines.each_second(begin, end)]

    def moved(self, host, move, *args, **how):
        """move() has the VM leave the host; what it says, and what was seen."""
        self.ready()
        nr, begin, sent = self.ticks.ticks[-1][1], time.monotonic(), self.hosts.sent(host)
        result = move(host, *args, **how)
        all_there = time.monotonic()
        self.ticks.wait_elsewhere(nr, 60)
        last, first = self.ticks.switched(nr)
        end = max(all_there, first) + self.opts.watch
        self.ticks.wait_until(end, 60 + self.opts.watch)
        seen = self.each_second(first, end)
        steady_s, steady = steady_after(seen)
        settled = max(all_there, first + steady_s)
        result |= {"switch_s": first - begin, "downtime_ms": (first - last) * 1e3, "steady_s": steady_s, "steady": steady,
                   "before_ms": self.ticks.longest(begin, last) * 1e3, "stall_ms": self.ticks.longest(first, settled) * 1e3,
                   "later_ms": self.ticks.longest(settled, end) * 1e3, "before": self.each_second(begin - BEFORE, begin),
                   "meanwhile": self.each_second(begin, last), "after": seen, "wire_bytes": self.hosts.sent(host) - sent}
        self.verified()
        return result


def steady_after(seconds):
    """(from which second on, how much in each)"""
    steady = statistics.median(seconds[-END:])
    little = [i for i in range(len(seconds)) if statistics.mean(seconds[i:i + SMOOTH]) < ENOUGH * steady]
    return little[-1] + 1 if little else 0, steady


# ---- the report


def table(runs, filled):
    columns = {"switch s": 18, "all s": 18, "down ms": 16, "stall ms": 18, "then ms": 18, "sent": 18, "before MB/s": 18, "10 s MB/s": 18,
               "steady s": 10, "steady MB/s": 18}
    print(f"{'median (range)':14}", *(f"{title:>{width}}" for title, width in columns.items()))
    for move in dict.fromkeys(m for r in runs for m in r):
        done = good(runs, move)
        if done and "ended" in done[0]:
            show_endless(move, done)
        elif done:
            print(f"{move:14}", *(f"{cell:>{width}}" for cell, width in zip(cells(done, filled), columns.values())))
        show_failed(runs, move)


def show_endless(move, done):
    for r in done:
        what = "ended after" if r["ended"] else "did not end in"
        print(f"{move:14} {what} {r['seconds']:.0f} s: {r['rounds']} rounds, {r['wire_bytes'] / 1e9:.1f} GB sent; the guest rewrote "
              f"{statistics.mean(r['before']) / MB:.0f} MB/s before, {statistics.mean(r['meanwhile']) / MB:.0f} MB/s meanwhile")


def cells(done, filled):
    def of(what, digits=0):
        return spread([r[what] for r in done], digits)
    return [of("switch_s", 2), of("seconds", 2), of("downtime_ms"), of("stall_ms"), of("later_ms"),
            spread([r["wire_bytes"] / filled for r in done], 3), spread([statistics.mean(r["before"]) / MB for r in done]),
            spread([statistics.mean(r["after"][:FIRST]) / MB for r in done]), f"{statistics.median(r['steady_s'] for r in done):.0f}",
            spread([r["steady"] / MB for r in done])]


def show_seconds(runs):
    """Of the first round."""
    print(f"\nMB rewritten in each second: the last {BEFORE} before the migration | until the switch | from the switch on")
    for move, r in runs[0].items():
        if "before" in r:
            seconds = (" ".join(f"{n / MB:.0f}" for n in r.get(when, [])) for when in ("before", "meanwhile", "after"))
            print(f"{move:14} {' | '.join(seconds)}")


def allowed(move, r, filled):
    """Bytes: the guest's, and what it had dirtied between being sent and the switch, as criu-vm says what it sent."""
    told = r["said"]
    return max(filled, (told["pages"] + told["later_pages"]) * PAGE) if move == "lazy-auto" else filled


def ratios(runs, filled):
    """[(what, ratio: the largest of all rounds, at most)]"""
    found = []
    for move in ("lazy", "lazy-plain", "lazy-auto"):
        if each := [r["wire_bytes"] / allowed(move, r, filled) for r in good(runs, move)]:
            found.append((f"{move}: bytes on the wire, of the guest's and what was dirtied before the switch", max(each), 1.05))
    return found


def show(found):
    print()
    for what, ratio, most in found:
        print(f"{what:82} {ratio:.3f} {most:>8} {'yes' if ratio <= most else 'NO'}")


# ---- the command


def options(parser):
    parser.add_argument("--rewrite", default="16G", metavar="BYTES", help="that the guest rewrites a second (16G: as fast as it can)")
    parser.add_argument("--order", choices=ORDERS, default=ORDERS[0], help=f"in which it does ({ORDERS[0]})")
    parser.add_argument("--limit", type=int, default=60, metavar="S", help="for QEMU's pre-copy to end (60)")
    parser.add_argument("--watch", type=int, default=20, metavar="S", help="after all pages are there (20)")


def main():
    opts = parsed(__doc__, WAYS, "lazy", options)
    bench, runs = measured(Bench, opts)
    found = ratios(runs, bench.filled)
    table(runs, bench.filled)
    show_seconds(runs)
    show(found)
    sys.exit(recorded(bench, runs, ratios=[dict(zip(("what", "ratio", "at_most"), r)) for r in found]))


if __name__ == "__main__":
    main()
