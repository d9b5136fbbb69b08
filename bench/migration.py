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
import argparse
import contextlib
import json
import os
import platform
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
from two_hosts import ADDRESS, DESTINATION, OTHER, SOURCE, Hosts, Qmp, SmallMemory, Ticks, enough_memory, kernel_paging, warm_memory

NAME = "bench-migration"
WAYS = ["qemu", "multifd", "naive", "small", "plain"]
QEMU_PORT = 4444
OWN_MEMORY = 64 * MIB       # of a QEMU, beside the guest's: not counted against a small host's memory
WATCHED = 10                # seconds at the destination


class Bench(Runner):
    def __init__(self, opts, tmp):
        super().__init__(opts, tmp)
        self.hosts, self.qemu, self.ticks = Hosts(self, opts.rate, opts.mtu), None, None
        self.filled = 3500 * MB * opts.size // 4096 // MIB * MIB
        for host in ADDRESS:
            os.makedirs(f"{tmp}/{host}/state")

    # ---- the VM

    def guest_line(self, where, *args):
        o, folder = self.opts, f"{self.tmp}/{where}"
        return ["qemu-system-x86_64", "-accel", o.accel, "-m", f"{o.size}M", "-nodefaults", "-display", "none",
                "-serial", f"unix:{folder}/serial.sock,server=on,wait=off", "-serial", f"unix:{folder}/tick.sock,server=on,wait=off",
                "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off", "-kernel", f"{o.build}/guest/idle.elf",
                "-append", f"tick=2 fill={self.filled} rate={o.rewrite}", *args]

    def wait_line(self, word, seconds, send=b""):
        """For a line of the guest's serial port that begins so. Wherever criu-vm moved it to, its sockets are where they were."""
        with socket.socket(socket.AF_UNIX) as s:
            vm.wait_for("the guest's serial port", 20, lambda: s.connect_ex(f"{self.tmp}/{SOURCE}/serial.sock") == 0)
            s.settimeout(20)
            s.sendall(send)
            end = time.monotonic() + seconds
            for line in s.makefile("r", encoding="latin-1"):
                if line.startswith("BAD"):
                    raise vm.TestFailed(f"the guest says: {line.strip()}")
                if line.startswith(word):
                    return
                if time.monotonic() > end:
                    break
        raise vm.TestFailed(f"the guest did not say '{word}' in {seconds} s")

    @contextlib.contextmanager
    def guest(self):
        """A VM whose guest has filled its memory and is idle."""
        self.qemu = self.start(self.hosts.on(SOURCE, *self.guest_line(SOURCE)))
        self.ticks = Ticks(*(f"{self.tmp}/{host}/tick.sock" for host in ADDRESS))
        try:
            self.wait_line("ready", 600)
            time.sleep(2)
            yield
        finally:
            self.end_all()
            self.ticks.stop()

    def end_all(self):
        """QEMUs are killed, what criu-vm started for them ends by itself."""
        for pid in vm.processes_of(self.tmp):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="latin-1") as f:
                if f.read().startswith("qemu-system"):
                    os.kill(pid, signal.SIGKILL)
        self.qemu.wait()
        with contextlib.suppress(vm.TestFailed):
            vm.wait_for("the VM's end", 12, lambda: not vm.processes_of(self.tmp))
        vm.kill_all(self.tmp)

    def moved(self, host, move, *args):
        """move() has the VM leave the host; what it says, and what was seen."""
        idle = time.monotonic()
        warm_memory(self.opts.size * MIB)
        nr, begin, sent = self.ticks.ticks[-1][1], time.monotonic(), self.hosts.sent(host)
        result = move(host, *args)
        self.ticks.wait_elsewhere(nr, 60)
        last, first = self.ticks.switched(nr)
        self.ticks.wait_until(first + WATCHED, 60)
        return {**result, "downtime_ms": self.ticks.longest(last, first + WATCHED) * 1e3, "switch_ms": (first - last) * 1e3,
                "before_ms": self.ticks.longest(begin, last) * 1e3, "idle_ms": self.ticks.longest(idle - 1, idle) * 1e3,
                "wire_bytes": self.hosts.sent(host) - sent}

    # ---- QEMU's ways

    def qemu_way(self, multifd=0, memory=None):
        line = self.hosts.on(DESTINATION, *self.guest_line(DESTINATION, "-incoming", "defer"))
        with self.guest():
            self.start(memory.inside(line) if memory else line)
            before = kernel_paging()
            result = self.moved(SOURCE, self.qemu_migrate, multifd)
            return {**result, "arriving": since(before, result["arriving"]), "paged": since(before, kernel_paging())}

    def qemu_migrate(self, host, multifd):
        source, destination = (Qmp(self, f"{self.tmp}/{h}/qmp.sock") for h in (host, OTHER[host]))
        uri = f"tcp:{ADDRESS[OTHER[host]]}:{QEMU_PORT}"
        capabilities = [{"capability": "events", "state": True}] + [{"capability": "multifd", "state": True}] * bool(multifd)
        for monitor in source, destination:
            monitor.command("migrate-set-capabilities", capabilities=capabilities)
            monitor.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40}, **({"multifd-channels": multifd} if multifd else {}))
        destination.command("migrate-incoming", uri=uri)
        begin = time.monotonic()
        source.command("migrate", uri=uri)
        status = source.migration_ended(self.opts.limit)
        end, arriving = time.monotonic(), kernel_paging()
        time.sleep(0.2)             # the event comes before its figures
        told = source.command("query-migrate")
        if status != "completed":
            raise vm.TestFailed(f"{status or 'not converged'} after {end - begin:.0f} s, {told['ram']['transferred'] // MB} MB sent")
        killed = time.monotonic()
        self.qemu.kill()
        self.qemu.wait()
        source.close()
        destination.close()
        return {"seconds": end - begin, "released_s": end - begin + time.monotonic() - killed, "arriving": arriving,
                "said_downtime_ms": told["downtime"], "said": told}

    def naive_way(self):
        memory = SmallMemory(self, self.opts.ram * MIB + OWN_MEMORY, self.opts.size * MIB)
        with memory.made():
            return {"naive": self.qemu_way(memory=memory)}

    # ---- criu-vm's

    def criu_vm(self, host, *args):
        """(seconds, what it says as JSON)"""
        line = self.hosts.on(host, self.criu_vm_file, *args, "--run-dir", f"{self.tmp}/{host}/run", "--json")
        seconds, out = self.command(*line, env=self.environment_of(host))
        return seconds, json.JSONDecoder().raw_decode(out[out.index("{"):])[0]

    def environment_of(self, host):
        return {**self.environment(), "CRIU_VM_STATE_DIR": f"{self.tmp}/{host}/state"}

    @contextlib.contextmanager
    def server(self, host):
        """For one VM; it ends by itself when that has arrived."""
        line = [self.criu_vm_file, "lazy-pages", "--once", "--address", ADDRESS[host], "--insecure", "--user", "root", "--run-dir", f"{self.tmp}/{host}/run",
                "-o", f"{self.tmp}/{host}/log", "--json"]
        server = self.start(self.hosts.on(host, *line), env=self.environment_of(host), stdout=subprocess.PIPE, text=True)
        try:
            if not server.stdout.readline():
                raise vm.TestFailed("the server did not start")
            yield
            if server.wait(60):
                raise vm.TestFailed("the server says that the VM has not arrived")
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()

    def migrate(self, host, who, *args):
        with self.server(OTHER[host]):
            seconds, told = self.criu_vm(host, "migrate", who, "--insecure", "--name", NAME, *args, ADDRESS[OTHER[host]])
        return {"seconds": seconds, "released_s": seconds, "arriving": (told["page_ins"], told["page_outs"]),
                "said_downtime_ms": told["downtime_ms"], "said": told}

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
            self.wait_line("ok", 600, b"v")
        self.fio("write", "fio", swapped)
        back["disk_s"] = self.fio("read", "fio", swapped)
        os.unlink(f"{self.tmp}/fio")
        return {"small": there, "back": back}

    def plain_way(self):
        with self.guest():
            result = self.moved(SOURCE, self.migrate, str(self.qemu.pid))
            self.wait_line("ok", 600, b"v")
            return {"plain": result}

    def one(self, way):
        """Of each of its moves what there is to know; one that failed says why."""
        try:
            return {"qemu": lambda: {"qemu": self.qemu_way()}, "multifd": lambda: {"multifd": self.qemu_way(4)}, "naive": self.naive_way,
                    "small": self.small_way, "plain": self.plain_way}[way]()
        except (vm.TestFailed, subprocess.TimeoutExpired) as e:
            print(f"{way}: {e}", *self.logs(), sep="\n", file=sys.stderr, flush=True)
            return {way: {"failed": str(e)}}

    def logs(self):
        """The last lines of the servers'."""
        for host in ADDRESS:
            with contextlib.suppress(OSError), open(f"{self.tmp}/{host}/log", encoding="utf-8", errors="replace") as f:
                yield from (f"{host}: {line.rstrip()}" for line in f.readlines()[-8:])


def since(before, now):
    return tuple(n - b for n, b in zip(now, before))


# ---- the report


def good(runs, move):
    return [r[move] for r in runs if move in r and "failed" not in r[move]]


COLUMNS = {"time s": 20, "released s": 20, "downtime ms": 14, "of it switch": 14, "it says ms": 14, "MB on the wire": 17,
           "pages in, out": 14, "and later": 14}


def table(runs):
    print(f"{'median (range)':14}", *(f"{title:>{width}}" for title, width in COLUMNS.items()))
    for move in dict.fromkeys(m for r in runs for m in r):
        if done := good(runs, move):
            print(f"{move:14}", *(f"{cell:>{width}}" for cell, width in zip(cells(done), COLUMNS.values())))
        for r in runs:
            if "failed" in r.get(move, {}):
                print(f"{move:14} {r[move]['failed'].strip().splitlines()[-1]}")


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


def bits(rate):
    """As tc understands it."""
    for unit, factor in ("kbit", 10**3), ("mbit", 10**6), ("gbit", 10**9):
        if rate.lower().endswith(unit):
            return float(rate[:-len(unit)]) * factor
    raise argparse.ArgumentTypeError(f"{rate}: a number with kbit, mbit or gbit")


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", nargs="*", metavar="WAY", help=f"{', '.join(WAYS)} (all)")
    parser.add_argument("--size", type=int, default=4096, metavar="MIB", help="of the VM's memory (4096)")
    parser.add_argument("--ram", type=int, metavar="MIB", help="of a small host (a quarter of that)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rate", metavar="RATE", help="of the link, as 1gbit (unlimited)")
    parser.add_argument("--mtu", type=int, default=1500, help="of the link (1500)")
    parser.add_argument("--rewrite", type=int, default=0, metavar="BYTES", help="that the guest rewrites a second (0)")
    parser.add_argument("--limit", type=int, default=180, metavar="S", help="for QEMU to converge (180)")
    parser.add_argument("--accel", default="tcg")
    parser.add_argument("--build", default=f"{ROOT}/build", metavar="DIR")
    parser.add_argument("--criu-vm", metavar="FILE")
    parser.add_argument("--dir", default="/var/tmp", help="for swap, on the disk to measure (/var/tmp)")
    parser.add_argument("--json", metavar="FILE", help="all figures and commands (migration.json of the build's bench)")
    opts = parser.parse_args()
    opts.way = opts.way or WAYS
    opts.ram = opts.ram or opts.size // 4
    opts.json = opts.json or f"{opts.build}/bench/migration.json"
    if wrong := set(opts.way) - set(WAYS):
        parser.error(f"no such way: {', '.join(wrong)}")
    try:
        opts.bits = bits(opts.rate) if opts.rate else None
    except (ValueError, argparse.ArgumentTypeError) as e:
        parser.error(str(e))
    return opts


def measured(bench, opts):
    """Rounds, each with all ways in turn."""
    runs = []
    with bench.hosts.joined():
        for nr in range(opts.runs):
            runs.append({})
            for way in opts.way:
                print(f"-- round {nr + 1} of {opts.runs}: {way}", file=sys.stderr, flush=True)
                runs[-1] |= bench.one(way)
    return runs


def host():
    version = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "qemu": version}


def interrupted(*_):
    """Once: what cleans up is let go on."""
    for nr in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(nr, signal.SIG_IGN)
    raise KeyboardInterrupt


def main():
    opts = parsed()
    enough_memory(2 * opts.size * MIB + 1024 * MIB)
    for nr in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(nr, interrupted)
    tmp = tempfile.mkdtemp(prefix="bench-migration-", dir=opts.dir)
    try:
        bench = Bench(opts, tmp)
        runs = measured(bench, opts)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    finally:
        vm.kill_all(tmp)
        shutil.rmtree(tmp, ignore_errors=True)
    found = ratios(runs, opts.bits, bench.filled)
    counted = [] if opts.rewrite else counters(runs)
    table(runs)
    show(found, counted)
    os.makedirs(os.path.dirname(os.path.abspath(opts.json)), exist_ok=True)
    with open(opts.json, "w", encoding="utf-8") as f:
        json.dump({"size_mib": opts.size, "ram_mib": opts.ram, "filled_bytes": bench.filled, "rate": opts.rate, "mtu": opts.mtu,
                   "rewrite": opts.rewrite, "accel": opts.accel, "host": host(), "commands": bench.commands, "runs": runs,
                   "ratios": [dict(zip(("what", "ratio", "least", "largest", "at_most"), r)) for r in found],
                   "counters": dict(counted)}, f, indent=1)
    sys.exit(any("failed" in move for run in runs for move in run.values()))


if __name__ == "__main__":
    main()
