# SPDX-License-Identifier: GPL-2.0-only
"""A VM that moves between two hosts, by QEMU's ways and criu-vm's, and how it is seen to move."""
import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from guest_says import Lines, Ticks
from runner import MB, MIB, ROOT, Runner, vm
from two_hosts import ADDRESS, DESTINATION, OTHER, SOURCE, Hosts, Qmp, SmallMemory, enough_memory, kernel_paging

NAME = "bench-migration"
QEMU_PORT = 4444
OWN_MEMORY = 64 * MIB       # of a QEMU, beside the guest's: not counted against a small host's memory
POSTCOPY = ("postcopy-ram", "postcopy-preempt")


class Moves(Runner):
    """append: for the guest, after its ticks and how much it fills."""

    def __init__(self, opts, tmp, append):
        super().__init__(opts, tmp)
        self.hosts, self.append = Hosts(self, opts.rate, opts.mtu), append
        self.qemu = self.ticks = self.lines = None
        self.filled = 3500 * MB * opts.size // 4096 // MIB * MIB
        for host in ADDRESS:
            os.makedirs(f"{tmp}/{host}/state")

    def ways(self):
        """{name: a function that returns {name of a move: what there is to know of it}}"""
        raise NotImplementedError

    def one(self, way):
        """Of each of its moves what there is to know; one that failed says why."""
        try:
            return self.ways()[way]()
        except (vm.TestFailed, subprocess.TimeoutExpired) as e:
            print(f"{way}: {e}", *self.logs(), sep="\n", file=sys.stderr, flush=True)
            return {way: {"failed": str(e)}}

    # ---- the VM

    def guest_line(self, where, *args):
        o, folder = self.opts, f"{self.tmp}/{where}"
        return ["qemu-system-x86_64", "-accel", o.accel, "-m", f"{o.size}M", "-nodefaults", "-display", "none",
                "-serial", f"unix:{folder}/serial.sock,server=on,wait=off", "-serial", f"unix:{folder}/tick.sock,server=on,wait=off",
                "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off", "-kernel", f"{o.build}/guest/idle.elf",
                "-append", f"tick=2 fill={self.filled} {self.append}", *args]

    @contextlib.contextmanager
    def guest(self):
        """A VM whose guest has filled its memory."""
        self.qemu = self.start(self.hosts.on(SOURCE, *self.guest_line(SOURCE)))
        self.ticks = Ticks(*(f"{self.tmp}/{host}/tick.sock" for host in ADDRESS))
        self.lines = Lines(*(f"{self.tmp}/{host}/serial.sock" for host in ADDRESS))
        try:
            self.lines.wait("ready", 120)
            time.sleep(2)
            yield
        finally:
            self.end_all()
            self.ticks.stop()
            self.lines.stop()

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

    def verified(self):
        """By the guest: all that it has."""
        self.lines.wait("ok", 120, b"v")

    # ---- QEMU's ways

    @contextlib.contextmanager
    def qemu_destination(self, memory=None):
        """Its monitors, at the source and there; memory: the little that there is."""
        line = self.hosts.on(DESTINATION, *self.guest_line(DESTINATION, "-incoming", "defer"))
        with memory.made() if memory else contextlib.nullcontext(), self.guest():
            self.start(memory.inside(line) if memory else line)
            yield [Qmp(self, f"{self.tmp}/{host}/qmp.sock") for host in (SOURCE, DESTINATION)]

    def small_memory(self):
        return SmallMemory(self, self.opts.ram * MIB + OWN_MEMORY, self.opts.size * MIB)

    def qemu_start(self, monitors, capabilities=(), **parameters):
        """Begins; when that was."""
        source, destination = monitors
        uri = f"tcp:{ADDRESS[DESTINATION]}:{QEMU_PORT}"
        for monitor in monitors:
            monitor.command("migrate-set-capabilities", capabilities=[{"capability": c, "state": True} for c in ("events", *capabilities)])
            monitor.command("migrate-set-parameters", **{"max-bandwidth": 1 << 40}, **parameters)
        destination.command("migrate-incoming", uri=uri)
        begin = time.monotonic()
        source.command("migrate", uri=uri)
        return begin

    def qemu_migrate(self, _host, monitors, capabilities=(), *, postcopy_after=None, limit=None, **parameters):
        """postcopy_after: so many rounds, of which each is begun with a look at what is dirty. It must end, in time."""
        limit = limit or self.opts.limit
        source, _ = monitors
        begin = self.qemu_start(monitors, capabilities, **parameters)
        if postcopy_after is not None:
            vm.wait_for("QEMU's rounds", 60, lambda: source.rounds() > postcopy_after)
            source.command("migrate-start-postcopy")
        status = source.migration_ended(limit)
        end, arriving = time.monotonic(), kernel_paging()
        time.sleep(0.2)             # the event comes before its figures
        told = source.command("query-migrate")
        if status != "completed":
            raise vm.TestFailed(f"{status or 'not converged'} after {end - begin:.0f} s, {told['ram']['transferred'] // MB} MB sent")
        killed = time.monotonic()
        self.qemu.kill()
        self.qemu.wait()
        return {"seconds": end - begin, "released_s": end - begin + time.monotonic() - killed, "arriving": arriving,
                "said_downtime_ms": told["downtime"], "said": told}

    # ---- criu-vm's

    def criu_vm(self, host, *args):
        """(seconds, what it says as JSON)"""
        line = self.hosts.on(host, self.criu_vm_file, *args, "--run-dir", f"{self.tmp}/{host}/run", "--json")
        seconds, out = self.command(*line, env=self.environment_of(host))
        return seconds, json.JSONDecoder().raw_decode(out[out.index("{"):])[0]

    def environment_of(self, host):
        return {**self.environment(), "CRIU_VM_STATE_DIR": f"{self.tmp}/{host}/state"}

    @contextlib.contextmanager
    def server(self, host, *, once=True):
        """once: for one VM; it ends by itself when that has arrived."""
        line = [self.criu_vm_file, "lazy-pages", *["--once"] * once, "--address", ADDRESS[host], "--insecure", "--user", "root",
                "--run-dir", f"{self.tmp}/{host}/run", "-o", f"{self.tmp}/{host}/log", "--json"]
        server = self.start(self.hosts.on(host, *line), env=self.environment_of(host), stdout=subprocess.PIPE, text=True)
        try:
            if not server.stdout.readline():
                raise vm.TestFailed("the server did not start")
            yield
            if once and server.wait(60):
                raise vm.TestFailed("the server says that the VM has not arrived")
        finally:
            server.terminate()
            server.wait()
            server.stdout.close()

    def migrate(self, host, who, *args, once=True):
        with self.server(OTHER[host], once=once):
            seconds, told = self.criu_vm(host, "migrate", who, "--insecure", "--name", NAME, *args, ADDRESS[OTHER[host]])
        return {"seconds": seconds, "released_s": seconds, "arriving": (told["page_ins"], told["page_outs"]),
                "said_downtime_ms": told["downtime_ms"], "said": told}

    def logs(self):
        """The last lines of the servers'."""
        for host in ADDRESS:
            with contextlib.suppress(OSError), open(f"{self.tmp}/{host}/log", encoding="utf-8", errors="replace") as f:
                yield from (f"{host}: {line.rstrip()}" for line in f.readlines()[-8:])


# ---- what the commands share


def since(before, now):
    return tuple(n - b for n, b in zip(now, before))


def good(runs, move):
    return [r[move] for r in runs if move in r and "failed" not in r[move]]


def show_failed(runs, move):
    for r in runs:
        if "failed" in r.get(move, {}):
            print(f"{move:14} {r[move]['failed'].strip().splitlines()[-1]}")


def show_figures(moves):
    """At once: a bench takes long."""
    for move, result in moves.items():
        print(f"   {move}:", *(f"{k}={v:.4g}" for k, v in result.items() if isinstance(v, (int, float))), file=sys.stderr, flush=True)


def bits(rate):
    """A second, as tc understands it."""
    for unit, factor in ("kbit", 10**3), ("mbit", 10**6), ("gbit", 10**9):
        if rate.lower().endswith(unit):
            return float(rate[:-len(unit)]) * factor
    raise ValueError(f"{rate}: a number with kbit, mbit or gbit")


def parsed(about, ways, name, add_options):
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", nargs="*", metavar="WAY", help=f"{', '.join(ways)} (all)")
    parser.add_argument("--size", type=int, default=4096, metavar="MIB", help="of the VM's memory (4096)")
    parser.add_argument("--ram", type=int, metavar="MIB", help="of a small host (a quarter of that)")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rate", metavar="RATE", help="of the link, as 1gbit (unlimited)")
    parser.add_argument("--mtu", type=int, default=1500, help="of the link (1500)")
    add_options(parser)
    parser.add_argument("--accel", default="tcg")
    parser.add_argument("--build", default=f"{ROOT}/build", metavar="DIR")
    parser.add_argument("--criu-vm", metavar="FILE")
    parser.add_argument("--dir", default="/var/tmp", help="for swap, on the disk to measure (/var/tmp)")
    parser.add_argument("--json", metavar="FILE", help=f"all figures and commands ({name}.json of the build's bench)")
    opts = parser.parse_args()
    opts.way = opts.way or ways
    opts.ram = opts.ram or opts.size // 4
    opts.json = opts.json or f"{opts.build}/bench/{name}.json"
    if wrong := set(opts.way) - set(ways):
        parser.error(f"no such way: {', '.join(wrong)}")
    try:
        opts.bits = bits(opts.rate) if opts.rate else None
    except ValueError as e:
        parser.error(str(e))
    return opts


def interrupted(*_):
    """Once: what cleans up is let go on."""
    for nr in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(nr, signal.SIG_IGN)
    raise KeyboardInterrupt


def measured(kind, opts):
    """The bench, and what was seen in its rounds, each with all ways in turn."""
    enough_memory(2 * opts.size * MIB + 1024 * MIB)
    for nr in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(nr, interrupted)
    tmp = tempfile.mkdtemp(prefix=f"{NAME}-", dir=opts.dir)
    try:
        bench, runs = kind(opts, tmp), []
        with bench.hosts.joined():
            for nr in range(opts.runs):
                runs.append({})
                for way in opts.way:
                    print(f"-- round {nr + 1} of {opts.runs}: {way}", file=sys.stderr, flush=True)
                    runs[-1] |= (result := bench.one(way))
                    show_figures(result)
        return bench, runs
    except KeyboardInterrupt:
        sys.exit("interrupted")
    finally:
        vm.kill_all(tmp)
        shutil.rmtree(tmp, ignore_errors=True)


def recorded(bench, runs, **more):
    """Into the file, and the exit status."""
    opts = bench.opts
    version = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[0]
    os.makedirs(os.path.dirname(os.path.abspath(opts.json)), exist_ok=True)
    with open(opts.json, "w", encoding="utf-8") as f:
        json.dump({"size_mib": opts.size, "ram_mib": opts.ram, "filled_bytes": bench.filled, "guest": bench.append, "rate": opts.rate,
                   "mtu": opts.mtu, "accel": opts.accel, "host": {"kernel": platform.release(), "cpus": os.cpu_count(), "qemu": version},
                   "commands": bench.commands, "runs": runs, **more}, f, indent=1)
    return any("failed" in move for run in runs for move in run.values())
