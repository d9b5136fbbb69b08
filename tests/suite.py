# SPDX-License-Identifier: GPL-2.0-only
"""Runs tests that get a rig of misuse_rig's: one after another or some at a time, a line each, and a count at the end."""
import argparse
import concurrent.futures
import os
import shutil
import signal
import sys
import tempfile
import threading
import time

import misuse_rig as rig_of
from misuse_rig import Skip, TestFailed

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Run:
    def __init__(self, opts, make_rig):
        self.opts, self.make_rig, self.rigs, self.lock = opts, make_rig, set(), threading.Lock()

    def one(self, name, function):
        """(name, result, reason, seconds, lines to print after it). A rig may have a note to be said, too."""
        begin, lines, result, reason, rig = time.monotonic(), [], "ok", "", None
        try:
            if rig_of.stopping.is_set():
                raise TestFailed("interrupted")
            rig = self.make_rig(self.opts)
            with self.lock:
                self.rigs.add(rig)
            function(rig)
            rig.finish()
            reason = getattr(rig, "note", "")
        except Skip as e:
            result, reason = "skip", str(e)
        except Exception as e:      # pylint: disable=broad-except; a mistake of ours fails this test, not all of them
            result, reason = "FAIL", str(e) if isinstance(e, TestFailed) else repr(e)
        if rig:
            if result == "FAIL":
                lines = [f"    {line}" for line in rig.log[-12:]]
                lines += [f"    pager.log: {line}" for line in rig.text_of(rig.pager_log).splitlines()[-12:]]
            rig.clean_up()
            if result == "FAIL":
                lines += [f"    was still there: {left}" for left in rig.left]
            if self.opts.keep:
                lines.append(f"    kept: {rig.tmp}")
            with self.lock:
                self.rigs.discard(rig)
        return name, result, reason.strip(), time.monotonic() - begin, lines

    def wait_for(self, pool, running, tell):
        """Calls it with each one that is done. Interrupted, all end before it raises."""
        try:
            for done in concurrent.futures.as_completed(running):
                tell(done)
        except KeyboardInterrupt:
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
            rig_of.stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            while self.rigs:    # their threads fail for want of processes, and clean up
                for rig in list(self.rigs):
                    rig_of.zdtm_vm.kill_all(rig.tmp)
                time.sleep(0.1)
            raise

    def all(self, tests):
        count = {"ok": 0, "FAIL": 0, "skip": 0}

        def tell(done):
            name, result, reason, seconds, lines = done.result()
            count[result] += 1
            print(f"{result:4} {name}{f' ({reason})' if reason else ''} {seconds:.1f}s", *lines, sep="\n", flush=True)
        with concurrent.futures.ThreadPoolExecutor(self.opts.jobs) as pool:
            running = [pool.submit(self.one, *t) for t in tests]
            self.wait_for(pool, running, tell)
        print(f"{count['ok']} passed, {count['FAIL']} failed, {count['skip']} skipped")
        return 1 if count["FAIL"] else 0


def parser(about):
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-k", action="append", metavar="SUBSTRING", help="only tests whose name contains it; may be repeated")
    p.add_argument("-j", dest="jobs", type=int, default=2, metavar="N", help="tests at a time (2)")
    p.add_argument("--keep", action="store_true", help="keep each test's folder")
    p.add_argument("--list", action="store_true", help="list the tests")
    p.add_argument("--build", default=f"{ROOT}/build", metavar="DIR", help="where the guests are built (build)")
    p.add_argument("--criu-vm", default=None, metavar="FILE", help="the criu-vm to test (build/criu-vm)")
    p.add_argument("--dir", default="/var/tmp", help="where tests keep their files: not a tmpfs (/var/tmp)")
    return p


def run(opts, tests, make_rig, runner=Run):
    """Of the tests, those that opts choose; the exit status."""
    opts.build = os.path.abspath(opts.build)
    opts.criu_vm = os.path.abspath(opts.criu_vm or f"{opts.build}/criu-vm")
    opts.tools = next((d for b in (os.path.dirname(opts.criu_vm), opts.build) if os.path.isdir(d := f"{b}/tests/faulty")), "")
    tests = [t for t in tests if not opts.k or any(k in t[0] for k in opts.k)]
    if opts.list:
        print(*(name for name, _ in tests), sep="\n")
        return 0
    if os.geteuid():
        print(*(f"skip {name} (needs root) 0.0s" for name, _ in tests), f"0 passed, 0 failed, {len(tests)} skipped", sep="\n")
        return 0
    if not os.access(opts.criu_vm, os.X_OK):
        print(f"{opts.criu_vm} is not built", file=sys.stderr)
        return 2
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):   # also where a shell in the background ignores them
        signal.signal(signum, signal.default_int_handler)
    rig_of.leftovers.sweep(opts.dir, "misuse-", "suite-build-")
    with tempfile.TemporaryDirectory(prefix="suite-build-", dir=opts.dir) as public:
        # Some tests run as a user who may not see where the project was cloned to.
        os.chmod(public, 0o755)
        rig_of.leftovers.hold(public)
        shutil.copytree(f"{opts.build}/guest", f"{public}/guest", ignore=lambda *_: ["modules"])
        opts.build, opts.criu_vm = public, shutil.copy(opts.criu_vm, public)
        os.chdir(public)
        try:
            return runner(opts, make_rig).all(tests)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
