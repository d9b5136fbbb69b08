#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""A Linux VM of 1 GiB is dumped, and restored into 256 MiB: what `make demo` shows.

    demo.py [--time SECONDS] [--build DIR] [--criu-vm FILE] [--dir DIR]

The guest has 80 % of its memory filled with pages that it can check, and verifies and rewrites them for ever. It is started by a
plain command line and knows nothing of all this. The last line says `verified` or `NOT VERIFIED`, as the exit status does (0, 1).
"""
import argparse
import dataclasses
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, f"{ROOT}/tests/zdtm")

import vm                               # pylint: disable=wrong-import-position
from guests import GUESTS, MIB          # pylint: disable=wrong-import-position
from vm import TestFailed, wait_for     # pylint: disable=wrong-import-position

NAME = "demo"
BUDGET = 256                            # MiB
PAGE = 4096
GUEST = dataclasses.replace(next(g for g in GUESTS if g.name == "linux-1g"), append="fill=80")
STEP_SECONDS = 180                      # longer than any step takes, on a busy machine too
TERMINAL = sys.stdout.isatty()


def size(nr_bytes):
    if not nr_bytes:
        return "0"
    if nr_bytes < MIB:
        return f"{nr_bytes / 1024:.0f} KiB"
    return f"{nr_bytes / MIB:.1f} MiB" if nr_bytes < 1024 * MIB else f"{nr_bytes / MIB / 1024:.2f} GiB"


def bold(text):
    return f"\033[1m{text}\033[0m" if TERMINAL else text


def heading(text):
    print(f"\n{bold(text)}", flush=True)


def fact(label, text):
    print(f"  {label:<22} {text}", flush=True)


def show_command(line):
    """A command as a shell takes it, broken before an option where it is long."""
    words = [shlex.quote(w) for w in line]
    starts = [i for i, w in enumerate(words) if i == 0 or w.startswith("-")] + [len(words)]
    text = "$"
    for a, b in zip(starts, starts[1:]):
        part = " " + " ".join(words[a:b])
        if len(text) - text.rfind("\n") + len(part) > 110:
            text += " \\\n   "
        text += part
    print(text, flush=True)


class Progress:
    """One line that is drawn again and again on a terminal; elsewhere a line now and then."""
    EVERY = 0.2 if TERMINAL else 10.0

    def __init__(self):
        self.drawn = 0.0

    def show(self, text, last=False):
        now = time.monotonic()
        if not last and now - self.drawn < self.EVERY:
            return
        self.drawn = now
        if TERMINAL:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{f'  {text}'[:width]}\033[K", end="\n" if last else "", flush=True)
        else:
            print(f"  {text}", flush=True)


class Demo:
    def __init__(self, opts, tmp):
        self.opts, self.tmp = opts, tmp
        self.qemu, self.console, self.sampler = None, None, None
        self.alone = 0.0                # seconds of a pass, all being in memory
        self.before = 0                 # passes before the dump
        self.took = {}                  # seconds of each step

    def environment(self):
        return {**os.environ, vm.TAG: self.tmp}

    def run(self):
        """What was verified."""
        begin = time.monotonic()
        self.boot()
        self.dump()
        self.restore()
        passes = self.watch()
        answer = self.verify()
        stat = self.stat()
        self.end()
        self.took["all"] = time.monotonic() - begin
        self.report(stat, answer, passes)
        return self.judge(answer)

    def boot(self):
        line = GUEST.command_line("tcg", ".", ".")
        heading(f"A Linux VM with {GUEST.ram} MiB, nothing prepared but -qmp")
        show_command(["cd", self.tmp])
        show_command(line)
        begin = time.monotonic()
        with open(f"{self.tmp}/qemu.log", "wb") as log:
            self.qemu = subprocess.Popen(line, cwd=self.tmp, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=log, start_new_session=True)
        self.console = vm.Console(f"{self.tmp}/serial.sock", f"{self.tmp}/serial.log")
        progress = Progress()

        def verified_once():
            if self.qemu.poll() is not None:
                raise TestFailed(f"QEMU ended by itself, status {self.qemu.returncode}")
            self.console.check()
            if TERMINAL:
                progress.show(f"{time.monotonic() - begin:5.1f} s   booting, filling memory")
            return self.console.passes
        wait_for("the guest's first pass", STEP_SECONDS, verified_once)
        self.took["boot"] = time.monotonic() - begin
        progress.show(f"{self.took['boot']:5.1f} s   {size(self.ask('status')['filled'])} filled and verified once", last=True)
        self.console.wait_passes(1, STEP_SECONDS)
        begin = time.monotonic()
        self.console.wait_passes(2, STEP_SECONDS)
        self.alone = (time.monotonic() - begin) / 2

    def dump(self):
        heading("Dump")
        self.took["dump"] = self.criu_vm("dump", str(self.qemu.pid), "-D", "images")
        wait_for("the end of the dumped QEMU", 10, lambda: self.qemu.poll() is not None)
        self.console.check()
        self.before = self.console.passes

    def restore(self):
        heading(f"Lazy restore into {BUDGET} MiB, the rest in a private swap file")
        self.took["restore"] = self.criu_vm("restore", "-D", "images", "--name", NAME, "--lazy-pages", "--ram", f"{BUDGET}M",
                                            "--swap", "swap.img", "-o", "pager.log")
        self.sampler = vm.ResidencySampler(self.stat()["qemu_pid"])
        if TERMINAL:
            print(f"watch it elsewhere by: {self.opts.criu_vm} stat {NAME} --watch --run-dir {self.tmp}/run")

    def watch(self):
        """The guest verifies its memory while it is paged, for a while and for a pass at least. Seconds of each pass."""
        heading("The guest verifies all its memory, and rewrites a tenth of it in each pass")
        progress, begin = Progress(), time.monotonic()
        ends = [begin]
        while (elapsed := time.monotonic() - begin) < self.opts.time or len(ends) < 2:
            if elapsed > STEP_SECONDS:
                raise TestFailed(f"the guest got through no pass in {STEP_SECONDS} s")
            time.sleep(0.1)
            self.console.check()
            passes = self.console.passes - self.before
            ends += [time.monotonic()] * (passes - len(ends) + 1)
            self.show_stat(progress, elapsed, passes)
        self.show_stat(progress, time.monotonic() - begin, self.console.passes - self.before, last=True)
        self.took["watch"] = time.monotonic() - begin
        return [b - a for a, b in zip(ends, ends[1:])]

    def show_stat(self, progress, elapsed, passes, last=False):
        if not last and time.monotonic() - progress.drawn < progress.EVERY:
            return
        stat = self.stat()
        n = stat["counts"]
        progress.show(f"{elapsed:5.1f} s  {stat['memory']['memfd'] / MIB:5.1f}/{BUDGET} MiB  {n['faults']:7,} faults  "
                      f"in {size((n['pages_in_swap'] + n['pages_in_source']) * PAGE):>9}  "
                      f"out {size(n['pages_out_written'] * PAGE):>9}  passes {passes}", last)

    def verify(self):
        heading("It is asked for a pass from beginning to end")
        begin = time.monotonic()
        answer = self.ask("verify")
        self.took["verify"] = time.monotonic() - begin
        fact("its answer", f"{answer['passes']} passes, {answer['passes'] - self.before} of them since the restore, "
             f"{size(answer['rewritten'] * PAGE)} rewritten, {answer['errors']} wrong pages")
        return answer

    def report(self, stat, answer, passes):
        n, memory, s = stat["counts"], stat["memory"], self.took
        pages = {k: size(v * PAGE) for k, v in n.items() if k.startswith("pages_")}

        heading("What it took")
        fact("memory of the guest", f"{size(stat['ram'])}, {size(answer['filled'])} of it checked")
        fact("resident", f"{size(memory['memfd'])} now, {size(self.sampler.peak)} at most of {BUDGET} MiB "
             f"(the memfd's blocks, {self.sampler.samples:,} samples)")
        fact("elsewhere", f"{size(memory['swapped'])} in swap, {size(memory['remote'])} in the images, "
             f"{size(memory['empty'])} empty")
        fact("faults", f"{n['faults']:,}, {n['minor_faults']:,} of them on a page still in memory")
        fact("paged in", f"{pages['pages_in_source']} from the images, {pages['pages_in_swap']} from swap, "
             f"{pages['pages_in_zero']} of zeros")
        fact("paged out", f"{pages['pages_out_written']} written, {pages['pages_out_clean']} clean and dropped, "
             f"{pages['pages_out_zero']} of zeros")
        fact("QEMU in host swap", size(stat["qemu_host_swap"]))
        fact("a pass", f"{self.alone:.1f} s with all in memory, {statistics.median(passes):.1f} s while paged")
        fact("times", f"boot {s['boot']:.1f} s, dump {s['dump']:.1f} s, restore {s['restore']:.1f} s, "
             f"watched {s['watch']:.1f} s, last pass {s['verify']:.1f} s, end {s['end']:.1f} s; {s['all']:.1f} s in all")

    def judge(self, answer):
        if answer["errors"]:
            raise TestFailed(f"the guest found {answer['errors']} wrong pages")
        self.console.check()
        if not 0 < self.sampler.peak <= BUDGET * MIB:
            raise TestFailed(f"{size(self.sampler.peak)} of guest memory were resident, {BUDGET} MiB are the budget")
        return (f"{size(answer['filled'])}, {answer['passes'] - self.before} times since the restore, no wrong page, "
                f"in {size(self.sampler.peak)} of memory")

    def end(self):
        heading("The VM quits, and its pager removes what it had made for it")
        begin = time.monotonic()
        self.sampler.stop()
        vm.qmp(f"{self.tmp}/qmp.sock", "quit")

        def gone():
            left = vm.processes_of(self.tmp) + os.listdir(f"{self.tmp}/run")
            return not left and not os.path.exists(f"{self.tmp}/swap.img")
        wait_for("the end of the VM's pager, swap file and run directory", STEP_SECONDS, gone)
        self.took["end"] = time.monotonic() - begin
        fact("gone", "QEMU, pager, swap file, run directory")

    def close(self):
        """Whatever happened before: nothing of it stays."""
        for thread in filter(None, (self.sampler, self.console)):
            thread.stop()
        end = time.monotonic() + STEP_SECONDS
        while vm.kill_all(self.tmp) and time.monotonic() < end:     # a process that deletes a file ends only after that
            pass
        if self.qemu:
            self.qemu.wait()
        shutil.rmtree(self.tmp, ignore_errors=True)

    def criu_vm(self, command, *args):
        """Runs it in sight; its seconds."""
        line = [self.opts.criu_vm, command, *args, "--run-dir", "run"]
        show_command(["criu-vm", *line[1:]])
        begin = time.monotonic()
        status = subprocess.run(line, cwd=self.tmp, env=self.environment(), stdin=subprocess.DEVNULL, timeout=STEP_SECONDS,
                                check=False).returncode
        if status:
            raise TestFailed(f"criu-vm {command}: exit status {status}")
        return time.monotonic() - begin

    def stat(self):
        p = subprocess.run([self.opts.criu_vm, "stat", NAME, "--json", "--run-dir", f"{self.tmp}/run"], env=self.environment(),
                           stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
        stat = json.loads(p.stdout) if not p.returncode else {}
        if stat.get("state") != "served":
            raise TestFailed(stat.get("message") or p.stderr.strip() or "the VM has ended")
        return stat

    def ask(self, command):
        answer = vm.ask(f"{self.tmp}/check.sock", command, STEP_SECONDS)
        if "errors" not in answer:
            raise TestFailed(f"the guest does not answer '{command}'")
        return answer

    def tail_of_logs(self):
        for log in ("qemu.log", "pager.log", "serial.log"):
            try:
                with open(f"{self.tmp}/{log}", encoding="latin-1") as f:
                    yield from (f"  {log}: {line.rstrip()}" for line in f.readlines()[-8:])
            except OSError:
                pass


def verdict(good, text):
    color = ("\033[1;32m", "\033[1;31m")[not good] if TERMINAL else ""
    print(f"\n{color}{'verified' if good else 'NOT VERIFIED'}: {text}{color and chr(27) + '[0m'}", flush=True)
    return 0 if good else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", type=float, default=30, metavar="SECONDS", help="how long the paged guest is watched (30)")
    parser.add_argument("--build", default=f"{ROOT}/build", metavar="DIR", help="where the guests are built (build)")
    parser.add_argument("--criu-vm", default=None, metavar="FILE", help="the criu-vm to show (build/criu-vm)")
    parser.add_argument("--dir", default="/var/tmp", help="where the demo keeps its files: on a disk, not a tmpfs (/var/tmp)")
    opts = parser.parse_args()
    opts.criu_vm = os.path.abspath(opts.criu_vm or f"{opts.build}/criu-vm")
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)         # as Ctrl-C
    tmp = tempfile.mkdtemp(prefix="criu-vm-demo-", dir=opts.dir)
    demo = Demo(opts, tmp)
    good, text, tail = False, "", []
    try:
        os.mkdir(f"{tmp}/run")
        os.symlink(os.path.abspath(f"{opts.build}/guest"), f"{tmp}/guest")
        text, good = demo.run(), True
    except KeyboardInterrupt:
        text = "interrupted"
    except (TestFailed, OSError, ValueError, LookupError, subprocess.SubprocessError) as e:
        text, tail = str(e) if isinstance(e, TestFailed) else repr(e), ["", *demo.tail_of_logs()]
    finally:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_IGN)                 # it is ending already
        demo.close()
    for line in tail:
        print(line)
    return verdict(good, text)


if __name__ == "__main__":
    sys.exit(main())
