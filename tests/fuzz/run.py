#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the fuzzers, one after another, each for some time; or, with --replay, only the inputs that are kept of each.

    run.py [--build DIR] [--seconds N] [--replay] [FUZZER]...

Inputs begin with tests/fuzz/corpus/NAME. New ones that reach something new go to DIR/corpus/NAME, from where the next run begins, too;
an input that a fuzzer stops at is kept in DIR/found. The last line is `N passed, M failed, K skipped`.
"""
import argparse
import glob
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
RSS_MIB = 3000          # a device state may be 1 GiB long
INPUT_SECONDS = 20      # longer for one input is a hang
REPLAY_SECONDS = 120


def inputs(name):
    return sorted(glob.glob(f"{HERE}/corpus/{name}/*"))


def fuzz(program, name, opts):
    """(good, what there is to say)"""
    corpus, found = f"{opts.build}/corpus/{name}", f"{opts.build}/found"
    for d in (corpus, found):
        os.makedirs(d, exist_ok=True)
    p = subprocess.run([program, f"-max_total_time={opts.seconds}", f"-rss_limit_mb={RSS_MIB}", f"-timeout={INPUT_SECONDS}",
                        f"-artifact_prefix={found}/{name}-", "-print_final_stats=1", corpus, f"{HERE}/corpus/{name}"],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
    runs = re.search(r"number_of_executed_units: (\d+)", p.stdout)
    covered = re.findall(r"cov: (\d+)", p.stdout)
    if p.returncode:
        return False, "\n" + p.stdout[-6000:]
    return True, f": {runs[1] if runs else '?'} inputs, {covered[-1] if covered else '?'} places reached"


def replay(program, name):
    try:
        p = subprocess.run([program, *inputs(name)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           errors="replace", timeout=REPLAY_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return False, f": no end after {REPLAY_SECONDS} s"
    return (False, "\n" + p.stdout[-6000:]) if p.returncode else (True, f": {len(inputs(name))} inputs")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", help="build/fuzz, or with --replay build")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("fuzzer", nargs="*")
    opts = parser.parse_args()
    opts.build = os.path.abspath(opts.build or f"{ROOT}/build" + ("" if opts.replay else "/fuzz"))
    passed = failed = 0
    for source in sorted(glob.glob(f"{HERE}/fuzz_*.c")):
        name = os.path.basename(source)[len("fuzz_"):-len(".c")]
        if opts.fuzzer and name not in opts.fuzzer:
            continue
        program = f"{opts.build}/tests/fuzz/fuzz_{name}"
        with tempfile.TemporaryDirectory(prefix="criu-vm-fuzz-", dir="/dev/shm") as folder:
            os.environ["FUZZ_DIR"] = folder
            if not os.access(program, os.X_OK):
                good, text = False, ": is not built"
            else:
                good, text = replay(program, name) if opts.replay else fuzz(program, name, opts)
        passed += good
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} fuzz_{name}{text}", flush=True)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
