#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Guests that check themselves x flavours of dump and restore.

    zdtm.py list
    zdtm.py run [-t GUEST]... [-f FLAVOUR]... [-a tcg|kvm]... [-k SUBSTRING] [--time SECONDS] [--share N] [-j N] [--keep] [--json]

Each test starts QEMU by a plain command line, lets the guest run, dumps it, restores it, and lets it run again; where it runs on
at its dump, so it has to do as well as its copy. The guest's own verdict, the bounds of its memory and what is left behind decide. The guests are built by `make -f tests/zdtm/guests.mk guests`.
"""
import argparse
import concurrent.futures
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import vm
from flavours import DEFAULT_FLAVOURS, FLAVOURS, LAZY_SMALL
from guests import GUESTS, MIB, QEMU, QEMU_MODULES, SLOW_KVM, modules_of
from vm import TestFailed, wait_for

LEAST_BUDGET = 16     # MiB, as criu-vm accepts it
SPOILED = {"memory", "smp", "disk", "linux"}


class Skip(Exception):
    pass


class Test:
    def __init__(self, guest, flavour, accel, opts):
        self.guest, self.accel, self.opts = guest, accel, opts
        self.kind, self.flavour = flavour, FLAVOURS[flavour]
        self.name = f"{guest.name}/{flavour}/{accel}"
        self.vm_name = f"zdtm-{os.getpid()}-{guest.name}-{flavour}-{accel}"
        self.ram = guest.ram_mib(accel)
        self.few = 1 if accel == "kvm" and SLOW_KVM else 3      # passes
        self.small = max(self.ram // opts.share, LEAST_BUDGET)  # MiB
        self.tmp, self.console, self.sampler, self.qemu = "", None, None, None
        self.budget = None                                      # MiB, of the VM that runs now
        self.pid = self.who = None                              # of its QEMU; what criu-vm calls it: pid or name
        self.notes, self.left = {}, []
        self.modules = QEMU_MODULES

    # What it consists of

    def run(self):
        if self.accel == "kvm":
            if not self.opts.kvm:
                raise Skip("no usable /dev/kvm")
            if reason := self.guest.kvm_reason():
                raise Skip(reason)
        if self.flavour.dumps and not os.access(self.opts.criu_vm, os.X_OK):
            raise Skip(f"{self.opts.criu_vm} is not built")
        self.tmp = tempfile.mkdtemp(prefix="zdtm-", dir=self.opts.dir)
        try:
            for d in ("run", "swap"):
                os.mkdir(f"{self.tmp}/{d}")
            self.start_guest()
            if self.kind == "spoil":
                self.spoil()
            elif self.kind == "plain":
                self.watch()
                self.end()
            else:
                self.dump_and_restore()
        finally:
            for thread in filter(None, (self.sampler, self.console)):
                thread.stop()
            self.left = vm.kill_all(self.tmp)
            if self.qemu:
                self.qemu.wait()

    def dump_and_restore(self):
        if self.flavour.paged:
            self.dump("first")
            self.restore("first", "first", LAZY_SMALL)
            self.console.wait_passes(self.few, 120)
        parent = self.parents()
        before = self.console.passes
        self.dump("images", *self.flavour.dump, parent=parent)
        if self.flavour.runs_on:
            self.let_run_and_end(before)
        elif "-s" in self.flavour.dump:
            os.kill(self.pid, signal.SIGKILL)
            self.ended()
        if self.flavour.merge:
            self.merge(parent)
        self.restore("images", "last", self.flavour.restore)
        if self.flavour.fill:
            self.fill()
        self.watch()
        self.stat()
        self.end()
        self.check_residue()

    def start_guest(self):
        if self.guest.disk:
            with open(f"{self.tmp}/disk.img", "wb") as f:
                f.truncate(self.guest.disk * MIB)
        with open(f"{self.tmp}/qemu.log", "wb") as log:
            self.qemu = subprocess.Popen(self.guest.command_line(self.accel, self.opts.build, self.tmp), env=self.environment(),
                                         stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.pid, self.who = self.qemu.pid, str(self.qemu.pid)
        self.console = vm.Console(f"{self.tmp}/serial.sock", f"{self.tmp}/serial.log")

        def up():
            if self.qemu.poll() is not None:
                raise TestFailed(f"QEMU ended by itself, status {self.qemu.returncode}")
            self.console.check()
            return self.console.passes
        wait_for("the guest's first pass", self.guest.boot_seconds, up)
        self.console.wait_passes(self.few, self.guest.boot_seconds)

    def parents(self):
        """The commands before the dump, the guest running on between them. Their last directory."""
        parent = None
        for nr, (command, *flags) in enumerate(self.flavour.before, 1):
            self.checkpoint(command, f"parent-{nr}", flags, parent)
            parent = f"parent-{nr}"
            self.console.wait_passes(self.few, 120)
        return parent

    def checkpoint(self, command, images, flags, parent):
        if "-R" in flags and self.guest.writes_disk:
            flags = [*flags, "--disk-snapshot"]
        if parent:
            flags = [*flags, "--prev-images-dir", f"{self.tmp}/{parent}"]
        if self.flavour.stream and images == "images":
            self.stream_out(command, *flags)
        else:
            self.criu_vm(command, self.who, "-D", f"{self.tmp}/{images}", *flags)

    def dump(self, images, *flags, parent=None):
        begin = time.monotonic()
        self.checkpoint("dump", images, flags, parent)
        self.notes["dump_s"] = round(time.monotonic() - begin, 2)
        if not {"-R", "-s"} & set(flags):
            self.ended()
        self.console.check()
        if os.path.exists(f"{self.tmp}/{images}"):
            self.criu_vm("verify", f"{self.tmp}/{images}")

    def let_run_and_end(self, before):
        """The source goes on well, and makes room for its copy, which begins where the source was at its dump."""
        self.watch()
        self.console.stop()
        os.kill(self.pid, signal.SIGKILL)
        self.ended()
        self.console = vm.Console(f"{self.tmp}/serial.sock", f"{self.tmp}/serial.log", before)

    def ended(self):
        wait_for("the end of the QEMU that was dumped", 10, lambda: self.qemu.poll() is not None and not vm.alive(self.pid))
        if self.sampler:
            self.sampler.stop()
            self.check_budget()
            self.sampler = None

    def merge(self, parent):
        self.criu_vm("merge", f"{self.tmp}/images", "-o", f"{self.tmp}/merged")
        for nr in range(len(self.flavour.before)):
            shutil.rmtree(f"{self.tmp}/parent-{nr + 1}")
        shutil.rmtree(f"{self.tmp}/images")
        os.rename(f"{self.tmp}/merged", f"{self.tmp}/images")
        self.criu_vm("verify", f"{self.tmp}/images")

    def restore(self, images, suffix, flags):
        name = f"{self.vm_name}-{suffix}"
        flags = [f.format(tmp=self.tmp, ram=self.small, name=suffix) for f in flags]
        flags += ["--name", name, "-o", f"{self.tmp}/pager.log"]
        if self.opts.restore_qemu:
            flags += ["--qemu", self.opts.restore_qemu]
            self.modules = modules_of(self.opts.restore_qemu)
        before, begin = self.console.passes, time.monotonic()
        if self.flavour.stream:
            with open(f"{self.tmp}/stream", "rb") as f:
                self.stream_in(f, "restore", "--stream", *flags)
        else:
            self.criu_vm("restore", "-D", f"{self.tmp}/{images}", *flags)
        self.notes["restore_s"] = round(time.monotonic() - begin, 2)
        self.pid, self.who = wait_for("the restored QEMU's own QMP socket", 10, lambda: vm.peer_pid(f"{self.tmp}/qmp.sock")), name
        self.budget = self.small if "--ram" in flags else None
        self.sampler = vm.ResidencySampler(self.pid)
        self.console.wait_passes(1, 60)
        self.notes["first_pass_s"] = round(time.monotonic() - begin, 2)
        self.notes["passes_before"] = before

    def fill(self):
        def filled():
            self.console.check()
            return self.ask_stat()["images"] is None
        wait_for("a VM that needs its images no longer", 120, filled)
        shutil.rmtree(f"{self.tmp}/images")

    def watch(self):
        """The guest goes on, and well, for the time asked for and for a few passes at least."""
        begin, first = time.monotonic(), self.console.passes
        while time.monotonic() - begin < self.opts.time:
            time.sleep(0.05)
            self.console.check()
            self.check_budget()
        if self.console.passes < first + self.few:
            self.console.wait_passes(first + self.few - self.console.passes, 120)
        if self.guest.linux:
            self.verify_linux()
        self.check_budget()
        self.notes["passes"] = self.console.passes - first
        self.notes["last"] = self.console.last

    def verify_linux(self):
        answer = vm.ask(f"{self.tmp}/check.sock", "verify", 180)
        if answer.get("errors") != 0:
            raise TestFailed(f"the guest's answer to 'verify': {answer}")

    def check_budget(self):
        if not self.sampler or not self.budget:
            return
        allowed = (self.budget + self.guest.in_flight) * MIB
        if self.sampler.peak > allowed:
            raise TestFailed(f"{self.sampler.peak} bytes of the VM's memory are resident, {allowed} are allowed")
        if self.sampler.samples and not self.sampler.peak:
            raise TestFailed("the restored QEMU holds no memfd")
        self.notes["peak_mib"] = round(self.sampler.peak / MIB, 1)

    def ask_stat(self):
        out = self.criu_vm("stat", self.who, "--json")
        try:
            return json.loads(out)
        except ValueError:
            raise TestFailed(f"stat --json printed no JSON: {out[:200]!r}") from None

    def stat(self):
        self.notes["stat"] = self.ask_stat()

    def end(self):
        """Some VMs quit, the others are killed."""
        if self.flavour.quits:
            vm.qmp(f"{self.tmp}/qmp.sock", "quit")
        else:
            os.kill(self.pid, signal.SIGKILL)
        wait_for("the end of the VM", 10, lambda: self.qemu.poll() is not None and not vm.alive(self.pid))
        self.console.check()

    def check_residue(self):
        """Whatever criu-vm made for the VM goes with it."""
        def residue():
            left = [f"process {p}" for p in vm.processes_of(self.tmp)]
            left += [f"{self.tmp}/{d}/{e}" for d in ("run", "swap") for e in os.listdir(f"{self.tmp}/{d}")]
            left += glob.glob(f"{self.tmp}/state/swap/*")
            left += [e for e in os.listdir(self.tmp) if ".partial" in e]
            for where in ("/proc/mounts", "/proc/net/unix"):
                with open(where, encoding="latin-1") as f:
                    left += [line.strip() for line in f if self.vm_name in line or self.tmp in line]
            for root, dirs, _ in os.walk("/sys/fs/cgroup"):
                left += [f"{root}/{d}" for d in dirs if self.vm_name in d]
            return left
        self.console.stop()
        try:
            # The space of a swap image is given back last; a disk that discards takes its time.
            wait_for("residue", 60, lambda: not residue())
        except TestFailed:
            raise TestFailed("left behind: " + "; ".join(residue())) from None

    def spoil(self):
        if not vm.spoil(self.qemu.pid, 32):
            raise TestFailed("no page with a pattern was found in QEMU's memory")
        wait_for("the guest's BAD", 60, lambda: self.console.bad)
        self.notes["verdict"] = self.console.bad

    # What it needs for that

    def environment(self):
        return {**os.environ, vm.TAG: self.tmp, "CRIU_VM_STATE_DIR": f"{self.tmp}/state", "QEMU_MODULE_DIR": self.modules}

    def criu_vm(self, command, *args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE):
        line = [self.opts.criu_vm, command, *args, "--run-dir", f"{self.tmp}/run"]
        with open(f"{self.tmp}/criu-vm.log", "ab") as log:
            log.write(f"$ {' '.join(line)}\n".encode())
            log.flush()
            try:
                p = subprocess.run(line, env=self.environment(), stdin=stdin, stdout=stdout, stderr=log, timeout=600, check=False)
            except subprocess.TimeoutExpired:
                raise TestFailed(f"criu-vm {command} did not end in 600 s") from None
            log.write(p.stdout or b"")
        if p.returncode:
            raise TestFailed(f"criu-vm {command}: exit status {p.returncode}")
        return p.stdout

    def stream_out(self, command, *flags):
        with open(f"{self.tmp}/stream", "wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as pipe:
            self.criu_vm(command, self.who, "--stream", *flags, stdout=pipe.stdin)

    def stream_in(self, file, *args):
        with subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE, env=self.environment()) as pipe:
            self.criu_vm(*args, stdin=pipe.stdout)

    def tail_of_logs(self):
        for log in ("qemu.log", "criu-vm.log", "pager.log", "serial.log"):
            try:
                with open(f"{self.tmp}/{log}", encoding="latin-1") as f:
                    lines = f.read().splitlines()[-15:]
            except OSError:
                continue
            yield from (f"    {log}: {line}" for line in lines)


def run_one(test):
    """(result, reason, seconds, lines to print after it)"""
    begin, lines = time.monotonic(), []
    result, reason = "ok", ""
    try:
        test.run()
    except Skip as e:
        result, reason = "skip", str(e)
    except Exception as e:      # pylint: disable=broad-except; a mistake of ours fails this test, not all of them
        result, reason = "FAIL", str(e) if isinstance(e, TestFailed) else repr(e)
        lines += [f"    {left}" for left in test.left] + list(test.tail_of_logs()) if test.tmp else []
    if test.tmp:
        if test.opts.keep:
            lines.append(f"    kept: {test.tmp}")
        else:
            shutil.rmtree(test.tmp, ignore_errors=True)
    return result, reason, time.monotonic() - begin, lines


def kvm_works():
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    try:
        p = subprocess.run([QEMU, "-accel", "kvm", "-display", "none", "-nodefaults", "-S", "-monitor", "stdio"],
                           input=b"quit\n", capture_output=True, timeout=50, check=False)
        return p.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def chosen_tests(opts):
    flavours = opts.flavour or DEFAULT_FLAVOURS
    for guest in GUESTS:
        if guest.name not in opts.guest if opts.guest else guest.heavy:
            continue
        for accel in opts.accel or ["tcg", "kvm"]:
            if accel not in guest.accels and not opts.guest:
                continue
            for flavour in flavours:
                if flavour == "spoil" and (guest.name not in SPOILED or accel == "kvm"):
                    continue
                test = Test(guest, flavour, accel, opts)
                if opts.k in test.name:
                    yield test


def run(opts):
    tests = list(chosen_tests(opts))
    count = {"ok": 0, "FAIL": 0, "skip": 0}
    results = []
    opts.kvm = any(t.accel == "kvm" for t in tests) and kvm_works()
    with concurrent.futures.ThreadPoolExecutor(opts.jobs) as pool:
        running = {pool.submit(run_one, t): t for t in tests}
        try:
            for done in concurrent.futures.as_completed(running):
                test, (result, reason, seconds, lines) = running[done], done.result()
                count[result] += 1
                results.append({"name": test.name, "result": result, "reason": reason, "seconds": round(seconds, 1), **test.notes})
                if not opts.json:
                    print(f"{result:4} {test.name}{f' ({reason})' if reason else ''} {seconds:.1f}s", *lines, sep="\n", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for test in tests:
                if test.tmp:
                    vm.kill_all(test.tmp)       # its own thread then fails, and cleans up
            raise
    if opts.json:
        json.dump(results, sys.stdout, indent=1)
        print()
    print(f"{count['ok']} passed, {count['FAIL']} failed, {count['skip']} skipped", file=sys.stderr if opts.json else sys.stdout)
    return 1 if count["FAIL"] else 0


def main():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="list guests and flavours")
    p = commands.add_parser("run", help="run tests")
    p.add_argument("-t", dest="guest", action="append", choices=[g.name for g in GUESTS], metavar="GUEST")
    p.add_argument("-f", dest="flavour", action="append", choices=FLAVOURS, metavar="FLAVOUR")
    p.add_argument("-a", dest="accel", action="append", choices=["tcg", "kvm"])
    p.add_argument("-k", default="", metavar="SUBSTRING", help="only tests whose GUEST/FLAVOUR/ACCEL contains it")
    p.add_argument("--time", type=float, default=3, metavar="SECONDS", help="how long a restored guest is watched (3)")
    p.add_argument("--share", type=int, default=4, metavar="N", help="the small budget is 1/N of the VM's memory (4)")
    p.add_argument("-j", dest="jobs", type=int, default=2, metavar="N", help="tests at a time (2)")
    p.add_argument("--keep", action="store_true", help="keep each test's folder")
    p.add_argument("--json", action="store_true", help="results and figures as JSON")
    p.add_argument("--build", default=f"{root}/build", metavar="DIR", help="where the guests are built (build)")
    p.add_argument("--restore-qemu", metavar="FILE", help="another QEMU to restore in; the first one is QEMU's of the environment")
    p.add_argument("--criu-vm", default=None, metavar="FILE", help="the criu-vm to test (build/criu-vm)")
    p.add_argument("--dir", default="/var/tmp", help="where tests keep their files: not a tmpfs (/var/tmp)")
    opts = parser.parse_args()
    if opts.command == "list":
        for name, kind in [(g.name, g) for g in GUESTS] + list(FLAVOURS.items()):
            print(f"{name:16} {kind.about}")
        return 0
    opts.criu_vm = opts.criu_vm or f"{opts.build}/criu-vm"
    signal.signal(signal.SIGTERM, signal.default_int_handler)       # as Ctrl-C
    try:
        return run(opts)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
