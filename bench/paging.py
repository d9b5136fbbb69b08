#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How fast memory is that does not fit: criu-vm's paging engine beside the kernel's swap and the disk itself.

    bench/paging.py [-k ROW]... [--runs N] [--size MIB] [--ram MIB] [--quick] [--paging KEY=VALUE,...]

A process touches memory of which a third fits, in one pattern, and verifies what it finds. Its memory is private virtual memory, served
by criu-vm's own pager, as a VM's is; or it is in a control group of that size, with a swap file on the same disk, at the vm.page-cluster
that is best for the pattern. All is written once, in order, and enough of it read to put out the dirty rest, before anything is measured.
Runs of both alternate; a figure is a median, with the least and the most.

A host that is itself a VM may report free memory to the host beneath it, which takes it away, and is slow to give it again. Where that can
be put off, it is, while this runs.
"""
import argparse
import contextlib
import functools
import json
import mmap
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time

from paging_guest import KernelGuest, OurGuest
from paging_rigs import PAGE, Fio, Kernel, Ours, since
from runner import MB, MIB, ROOT, Runner, spread, vm

SETTLE = 0.42           # of all pages: read after all were written

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP

# name: pattern, percent of writes, at least so many times as fast as the kernel (None: for information)
TOUCHES = {
    "seq-read": ("seq", 0, 4),
    "seq-rw": ("seq", 100, 4),
    "stride-64k": ("stride", 0, 2),
    "zipf-pages": ("zipf", 0, 2),
    "zipf-near": ("zipf-near", 0, None),
    "zipf-64k": ("zipf-64k", 0, 2),
    "uniform-read": ("uniform", 0, 1),
    "uniform-rw": ("uniform", 100, 1),
}
GUESTS = {"guest-seq": ("seq", 0, 4), "guest-uniform": ("uniform", 0, 1)}   # the same in a Linux guest
HOTS = {"hot-after-scan": (0, 3), "hot-scattered": (1, None)}   # scattered, times as fast


MUCH = 0.15             # of the processors, for others to have while something is measured
FAULTS = 2000           # whose latency is measured
PAUSE_US = 1000         # before each
DISK = 512              # MiB that a guest's disk has
READERS = 4             # threads


def median_of(values):
    return statistics.median(list(values))


def of(runs, key):
    return spread([r[key] for r in runs])


def percentile(values, percent):
    return sorted(values)[min(len(values) * percent // 100, len(values) - 1)]


def folios_of_1m():
    path = "/sys/kernel/mm/transparent_hugepage/hugepages-1024kB/shmem_enabled"
    with contextlib.suppress(OSError), open(path, encoding="ascii") as f:
        return "[never]" not in f.read()
    return False


@contextlib.contextmanager
def free_memory_kept():
    """What is freed is not given back to the host beneath for a while."""
    before = {}
    try:
        for name, value in ("min_free_ms", "100000"), ("max_waiting_mib", "1000000"):
            path = f"/sys/module/page_reporting/parameters/{name}"
            with contextlib.suppress(OSError), open(path, "r+", encoding="ascii") as f:
                before[path] = f.read()
                f.write(value)
        yield
    finally:
        for path, value in before.items():
            with open(path, "w", encoding="ascii") as f:
                f.write(value)


def have_memory(mib):
    """So much free memory is this host's own now: what was never used, or was given back, costs the first who touches it as much as a read."""
    with mmap.mmap(-1, mib * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def cpu_cost(run):
    """Milliseconds of processor time for a chunk brought in and put out: the pager's, and the kernel's in the name of the workload."""
    chunks, pager, workload = run["counts"]["pages_in_swap"] / 256, run["cpu"]["pager"], run["cpu"]["workload"]
    parts = {"pager's user": pager["user"], "pager's system": pager["system"], "zaps": workload["zaps"],
             "workload's system": workload["system"] - workload["zaps"]}
    return {**{part: seconds * 1000 / chunks for part, seconds in parts.items()}, "all": sum(parts.values()) * 1000 / chunks}


def kernel_way(cluster, shared):
    return f"page-cluster {cluster}{', shared memory' if shared else ''}"


def others_share(cpu):
    """Of all processors, what others have taken of them. The kernel's threads and interrupts count as others here."""
    ours = sum(spent["user"] + spent["system"] for who, spent in cpu.items() if who != "host")
    return max(cpu["host"]["busy"] - ours, 0) / max(cpu["host"]["all"], 0.01)


class Bench:
    def __init__(self, opts, runner):
        self.opts, self.runner, self.results = opts, runner, []
        self.fio = Fio(runner, opts.size)

    def ours(self):
        return Ours(self.runner, self.opts)

    # What one run gives: {"value": larger is better, ...}

    def touched(self, workload, pattern, write, share=1):
        """share: of the seconds that are asked for."""
        workload.populate(int(workload.pages * SETTLE))
        workload.ask("touch", pattern, self.opts.warm * share, write)
        time_before, counts_before = workload.processor_time(), workload.counts()
        said = workload.ask("touch", pattern, self.opts.seconds * share, write)
        cpu = since(time_before, workload.processor_time())
        return {"value": said["touches"] / said["seconds"], **said, "cpu": cpu, "others": others_share(cpu),
                "counts": since(counts_before, workload.counts())}

    def hot(self, workload, scattered, _=1):
        workload.populate(0)
        said = workload.ask("hot", self.opts.ram // 2 * MIB // PAGE, scattered)
        return {"value": 1 / said["back"], **said}

    # Rows

    def compare(self, name, limit, run, unit, make=(Ours, Kernel)):
        """Alternating runs; before, one of the kernel for each page-cluster."""
        make_ours, make_kernel = (functools.partial(m, self.runner, self.opts) for m in make)
        if self.opts.alone:
            self.by_itself(name, run, unit, make_ours)
            return
        sweep = self.kernel_at_its_best(name, run, unit, make_kernel)
        best = max(sweep, key=lambda how: sweep[how]["value"])
        kernel, ours = ([sweep[best]] if self.opts.quick else []), []
        for _ in range(self.opts.runs):
            with make_ours().made() as workload:
                ours.append(run(workload))
            if not self.opts.quick:
                with make_kernel().made(*best) as workload:
                    kernel.append(run(workload))
            print(f"  {name}: criu-vm {unit(ours[-1])}, kernel {unit(kernel[-1])}", file=sys.stderr, flush=True)
        ratio = statistics.median(r["value"] for r in ours) / statistics.median(r["value"] for r in kernel)
        self.result(name, f"criu-vm {self.told(ours, unit)}, kernel {self.told(kernel, unit)} with {kernel_way(*best)}", ratio, limit,
                    criu_vm=ours, kernel=kernel, best=kernel_way(*best), sweep={kernel_way(*how): r for how, r in sweep.items()})

    def kernel_at_its_best(self, name, run, unit, make_kernel):
        """{(page-cluster, memory is shared): a run with that}"""
        sweep = {}

        def one(*how):
            with make_kernel().made(*how) as workload:
                sweep[how] = run(workload, 1 if self.opts.quick else 0.5)
            print(f"  {name}: kernel, {kernel_way(*how)}: {unit(sweep[how])}", file=sys.stderr, flush=True)
        for cluster in self.opts.clusters:
            one(cluster, False)
        if name not in GUESTS:
            one(max(sweep, key=lambda how: sweep[how]["value"])[0], True)
        return sweep

    def by_itself(self, name, run, unit, make_ours):
        runs = []
        for _ in range(self.opts.runs):
            with make_ours().made() as workload:
                runs.append(run(workload))
        self.result(name, f"criu-vm {self.told(runs, unit)}", statistics.median(r["value"] for r in runs), None, criu_vm=runs)

    @staticmethod
    def told(runs, unit):
        """The median, the least and the most."""
        runs = sorted(runs, key=lambda r: r["value"])
        return unit(runs[len(runs) // 2]) + (f" ({unit(runs[0])}-{unit(runs[-1])})" if len(runs) > 1 else "")

    def result(self, name, text, figure, limit, at_most=False, **more):
        good = limit is None or (figure <= limit if at_most else figure >= limit)
        wanted = "" if limit is None else f"{'<=' if at_most else '>='} {limit:g}"
        runs = [r for value in more.values() if isinstance(value, list) for r in value if isinstance(r, dict)]
        others = max((r.get("others", 0) for r in runs), default=0)
        busy = f"; others had {100 * others:.0f} % of the processors" if others > MUCH else ""
        print(f"{'ok  ' if good else 'FAIL'} {name:16} {figure:8.2f} {wanted:8} {text}{busy}", flush=True)
        self.results.append({"name": name, "figure": figure, "limit": limit, "at_most": at_most, "good": good, "text": text, **more})

    def touch_row(self, name):
        pattern, write, limit = {**TOUCHES, **GUESTS}[name]
        self.compare(name, limit, lambda workload, *share: self.touched(workload, pattern, write, *share),
                     lambda r: f"{r['value'] * PAGE / MB:.0f} MB/s" if pattern in ("seq", "stride") else f"{r['value'] / 1000:.1f} k/s",
                     (OurGuest, KernelGuest) if name in GUESTS else (Ours, Kernel))

    def hot_row(self, name):
        scattered, limit = HOTS[name]
        self.compare(name, limit, lambda workload, *share: self.hot(workload, scattered, *share), lambda r: f"{r['back']:.2f} s")

    # criu-vm alone, and the disk

    @contextlib.contextmanager
    def populated(self, **how):
        with self.ours().made(**how) as workload:
            workload.populate(int(workload.pages * SETTLE))
            yield workload

    def latencies(self, workload, load, pause_us=PAUSE_US):
        """Of faults on the first half of the memory, a pause before each, while so many MiB a second of the other are rewritten."""
        half = workload.pages // 2
        workload.ask("dirty", load, half)
        time.sleep(self.opts.warm if load else 1)
        before = workload.counts()
        said = workload.ask("latency", FAULTS // (4 if self.opts.quick else 1), pause_us, half)
        counts = since(before, workload.counts())
        workload.ask("dirty", 0, half)
        fault, raw = said["fault_ns"], said["raw_ns"]
        return {"fault_us": statistics.median(fault) / 1000, "raw_us": statistics.median(raw) / 1000,
                "fault_p99_us": percentile(fault, 99) / 1000, "raw_p99_us": percentile(raw, 99) / 1000,
                "written_pages": counts["pages_out_written"], "fault_ns": fault, "raw_ns": raw}

    def fault_row(self, _):
        self.fio.make()
        idle, incessant, loaded = [], [], []
        for _ in range(self.opts.runs):
            with self.populated(raw=self.fio.file) as workload:
                idle.append(self.latencies(workload, 0))
                incessant.append(self.latencies(workload, 0, pause_us=0))
                loaded.append(self.latencies(workload, self.opts.load))
        fio = self.fio.run("randread", "4k", 1, seconds=self.opts.seconds)
        self.result("fault", f"median {of(idle, 'fault_us')} us, a raw read {of(idle, 'raw_us')} us; by fio {fio['median_us']:.0f} us; "
                    f"without a pause {of(incessant, 'fault_us')} us, {of(incessant, 'raw_us')} us",
                    median_of(r["fault_us"] / r["raw_us"] for r in idle), 1.3, at_most=True, runs=idle, without_pause=incessant, fio=fio)
        self.result("fault-p99", f"{of(loaded, 'fault_p99_us')} us while {self.opts.load} MiB/s are rewritten, "
                    f"a raw read {of(loaded, 'raw_p99_us')} us",
                    median_of(busy["fault_p99_us"] / free["fault_us"] for busy, free in zip(loaded, idle)), 3, at_most=True, runs=loaded)

    def bulk_in_row(self, name):
        """Memory becomes plenty; all is touched, in order."""
        runs, fio = [], []
        self.fio.make()
        for _ in range(self.opts.runs):
            with self.populated() as workload:
                workload.set(self.opts.size)
                have_memory(self.opts.size)
                before = workload.counts()
                seconds = workload.ask("pass", 0)["seconds"]
                runs.append(since(before, workload.counts())["pages_in_swap"] * PAGE / seconds)
            fio.append(self.fio.run("read", "1M", self.opts.depth)["bytes_s"])
        self.bulk(name, "read", runs, fio)

    def bulk_out_row(self, name):
        """Memory becomes scarce; all was written to."""
        runs, fio = [], []
        for _ in range(self.opts.runs):
            with self.ours().made(budget=self.opts.size) as workload:
                workload.populate(0)
                before, begin = workload.counts(), time.monotonic()
                workload.set(self.opts.ram)
                vm.wait_for("less in memory", 120, lambda: workload.stat()["memory"]["memfd"] <= self.opts.ram * MIB)
                seconds = time.monotonic() - begin
                runs.append(since(before, workload.counts())["pages_out_written"] * PAGE / seconds)
            fio.append(self.fio.fresh_write("1M", self.opts.depth)["bytes_s"])
        self.bulk(name, "write", runs, fio)

    def bulk(self, name, what, runs, fio):
        self.result(name, f"{spread([r / MB for r in runs])} MB/s, fio {what}s {spread([r / MB for r in fio])} MB/s, "
                    f"1 MiB at depth {self.opts.depth}",
                    median_of(runs) / median_of(fio), 0.9, runs=runs, fio=fio)

    def cpu_row(self, name):
        """Of a chunk that is brought in, written to, and put out; without looking before sleeping, which takes time that nobody else wants."""
        runs = []
        for _ in range(self.opts.runs):
            with self.ours().made(paging="spin=off") as workload:
                runs.append(self.touched(workload, "seq", 100))
        cost = [cpu_cost(r) for r in runs]
        folios = folios_of_1m()
        parts = ", ".join(f"{part} {median_of(c[part] for c in cost):.2f}" for part in cost[0] if part != "all")
        self.result(name, f"ms {'with' if folios else 'without'} folios of 1 MiB: {parts}", median_of(c["all"] for c in cost),
                    0.27 if folios else 0.8, at_most=True, runs=runs)

    def guest_disk_row(self, name):
        """Of a guest whose memory is paged, with drains and without; that is wrong, and its data is not looked at."""
        rate, drained = {"with": [], "without": []}, []
        for _ in range(self.opts.runs):
            for way, build in ("with", self.opts.build), ("without", f"{self.opts.build}/no-drain"):
                with OurGuest(self.runner, self.opts, DISK, f"{build}/criu-vm").made() as workload:
                    workload.ask("dirty", self.opts.load, 0)
                    workload.ask("disk", self.opts.warm, READERS)
                    before = workload.counts()
                    rate[way].append(workload.ask("disk", self.opts.seconds, READERS)["bytes_s"])
                    counts = since(before, workload.counts())
                if way == "with":
                    drained.append(counts["drains"] / self.opts.seconds)
        self.result(name, f"{spread([r / MB for r in rate['with']])} MB/s, {spread(drained, 1)} drains a second; "
                    f"without drains {spread([r / MB for r in rate['without']])} MB/s",
                    median_of(rate["with"]) / median_of(rate["without"]), 0.8, runs=rate, drains_s=drained)

    def rows(self):
        return {**{name: self.touch_row for name in TOUCHES}, **{name: self.hot_row for name in HOTS}, "fault": self.fault_row,
                "bulk-in": self.bulk_in_row, "bulk-out": self.bulk_out_row, "cpu": self.cpu_row,
                **{name: self.touch_row for name in GUESTS}, "guest-disk": self.guest_disk_row}

    def save(self):
        os.makedirs(f"{self.opts.build}/bench", exist_ok=True)
        with open(f"{self.opts.build}/bench/paging.json", "w", encoding="ascii") as f:
            json.dump({"kernel": os.uname().release, "cpus": os.cpu_count(), "size_mib": self.opts.size, "ram_mib": self.opts.ram,
                       "when": time.strftime("%Y-%m-%d %H:%M"), "rows": self.results}, f, indent=1)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", action="append", metavar="ROW", help="only rows whose name contains it; may be repeated")
    parser.add_argument("--runs", type=int, metavar="N", help="of each, alternating (5)")
    parser.add_argument("--size", type=int, default=3072, metavar="MIB", help="memory that is touched (3072)")
    parser.add_argument("--ram", type=int, default=1024, metavar="MIB", help="what of it fits (1024)")
    parser.add_argument("--seconds", type=float, help="that a pattern is measured (10)")
    parser.add_argument("--warm", type=float, help="seconds of it before (15)")
    parser.add_argument("--clusters", help="values of vm.page-cluster to choose from")
    parser.add_argument("--load", type=int, default=64, metavar="MIB", help="rewritten a second while faults are measured (64)")
    parser.add_argument("--depth", type=int, default=4, help="fio's, where it reads and writes 1 MiB at a time (4)")
    parser.add_argument("--quick", action="store_true", help="a first look: one run, shorter, of two page-clusters")
    parser.add_argument("--alone", action="store_true", help="criu-vm only, compared to nothing")
    parser.add_argument("--paging", default="", metavar="KEY=VALUE,...", help="as for criu-vm restore")
    parser.add_argument("--dir", default="/var/tmp", help="where the swap is: on the disk to measure (/var/tmp)")
    parser.add_argument("--build", default=f"{ROOT}/build")
    parser.add_argument("--criu-vm", default=None)
    opts = parser.parse_args()
    for name, full, quick in ("runs", 5, 1), ("seconds", 10, 5), ("warm", 15, 5), ("clusters", "0,1,2,3,4,5", "0,3"):
        if getattr(opts, name) is None:
            setattr(opts, name, quick if opts.quick else full)
    opts.clusters = [int(c) for c in opts.clusters.split(",")]
    return opts


def interrupted(*_):
    for signum in SIGNALS:      # once is enough: cleaning up takes its time
        signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


def main():
    opts = parse()
    for signum in SIGNALS:
        signal.signal(signum, interrupted)
    tmp = tempfile.mkdtemp(prefix="bench-paging-", dir=opts.dir)
    bench = Bench(opts, Runner(opts, tmp))
    try:
        with free_memory_kept():
            for name, row in bench.rows().items():
                if not opts.k or any(k in name for k in opts.k):
                    row(name)
                    bench.save()
    except (vm.TestFailed, KeyboardInterrupt) as e:
        print(f"FAIL {name}: {e}" if str(e) else "interrupted", file=sys.stderr)
        return 1
    finally:
        vm.kill_all(tmp)
        shutil.rmtree(tmp, ignore_errors=True)
    return 0 if all(r["good"] for r in bench.results) else 1


if __name__ == "__main__":
    sys.exit(main())
