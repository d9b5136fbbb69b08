#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Bad input, refusals, failures and kills: the message helps, the VM is as before, nothing is left and nothing is lost.

    misuse.py [-k SUBSTRING]... [-j N] [--keep] [--list] [--build DIR] [--criu-vm FILE] [--dir DIR]

Guests of zdtm's under TCG, each test with VMs, run directory and files of its own. A criu-vm with sanitizers may be given:
what they detect fails the test.
"""
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
import misuse_dump          # noqa: F401; they register their tests
import misuse_refuse        # noqa: F401
import misuse_restore       # noqa: F401
import misuse_kill          # noqa: F401
import misuse_start         # noqa: F401
import misuse_stat          # noqa: F401
import misuse_tools         # noqa: F401
from misuse_rig import Rig, Skip, TestFailed


class Run:
    def __init__(self, opts):
        self.opts, self.rigs, self.lock = opts, set(), threading.Lock()

    def one(self, name, function):
        """(result, reason, seconds, lines to print after it)"""
        begin, lines, result, reason, rig = time.monotonic(), [], "ok", "", None
        try:
            if rig_of.stopping.is_set():
                raise TestFailed("interrupted")
            rig = Rig(self.opts)
            with self.lock:
                self.rigs.add(rig)
            function(rig)
            rig.finish()
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

    def all(self, tests):
        count = {"ok": 0, "FAIL": 0, "skip": 0}
        with concurrent.futures.ThreadPoolExecutor(self.opts.jobs) as pool:
            running = [pool.submit(self.one, *t) for t in tests]
            try:
                for done in concurrent.futures.as_completed(running):
                    name, result, reason, seconds, lines = done.result()
                    count[result] += 1
                    print(f"{result:4} {name}{f' ({reason})' if reason else ''} {seconds:.1f}s", *lines, sep="\n", flush=True)
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
        print(f"{count['ok']} passed, {count['FAIL']} failed, {count['skip']} skipped")
        return 1 if count["FAIL"] else 0


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", action="append", metavar="SUBSTRING", help="only tests whose name contains it; may be repeated")
    parser.add_argument("-j", dest="jobs", type=int, default=2, metavar="N", help="tests at a time (2)")
    parser.add_argument("--keep", action="store_true", help="keep each test's folder")
    parser.add_argument("--list", action="store_true", help="list the tests")
    parser.add_argument("--build", default=f"{root}/build", metavar="DIR", help="where the guests are built (build)")
    parser.add_argument("--criu-vm", default=None, metavar="FILE", help="the criu-vm to test (build/criu-vm)")
    parser.add_argument("--dir", default="/var/tmp", help="where tests keep their files: not a tmpfs (/var/tmp)")
    opts = parser.parse_args()
    opts.build = os.path.abspath(opts.build)
    opts.criu_vm = os.path.abspath(opts.criu_vm or f"{opts.build}/criu-vm")
    tests = [t for t in rig_of.TESTS if not opts.k or any(k in t[0] for k in opts.k)]
    if opts.list:
        print(*(name for name, _ in tests), sep="\n")
        return 0
    if os.geteuid():
        print(*(f"skip {name} (needs root) 0.0s" for name, _ in tests), f"0 passed, 0 failed, {len(tests)} skipped", sep="\n")
        return 0
    if not os.access(opts.criu_vm, os.X_OK):
        parser.error(f"{opts.criu_vm} is not built")
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):   # also where a shell in the background ignores them
        signal.signal(signum, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="misuse-build-", dir=opts.dir) as public:
        # Some tests run as a user who may not see where the project was cloned to.
        os.chmod(public, 0o755)
        shutil.copytree(f"{opts.build}/guest", f"{public}/guest", ignore=lambda *_: ["modules"])
        opts.build, opts.criu_vm = public, shutil.copy(opts.criu_vm, public)
        os.chdir(public)
        try:
            return Run(opts).all(tests)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130


if __name__ == "__main__":
    sys.exit(main())
