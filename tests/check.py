#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs the suites that are named and adds their counts: what `make check` and `make asan` do after building.

    check.py [--build DIR] [--long] SUITE[:VARIANT]...        SUITE: docs unit platform zdtm misuse now checkpoints compat life migration
                                                      fuzz (the inputs that are kept); VARIANT: a build variant, as asan

Every suite prints its failures and skips in full, and all failures are printed once more behind the last one, where nobody can
overlook them. The last line is `N passed, M failed, K skipped`.
"""
import argparse
import concurrent.futures
import glob
import os
import re
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM_TIMEOUT = 900
CHECK_TIMEOUTS = {"CK_DEFAULT_TIMEOUT": "60", "CK_TIMEOUT_MULTIPLIER": "4"}     # of one check; others may keep all processors busy
# Of zdtm's guests and flavours, those that fit into a check; `make zdtm` runs all.
ZDTM_CHECK = [
    ["-a", "tcg", "-t", "memory", "-f", "eager", "-f", "lazy-small", "-f", "fill", "-f", "predump", "-f", "running", "-f", "background",
     "-f", "compressed", "-f", "merged", "-f", "streamed", "-f", "paged", "-f", "paged-running", "-f", "spoil"],
    ["-a", "tcg", "-t", "linux", "-f", "lazy-small", "-f", "paged-running"],
    ["-a", "tcg", "-t", "memory-memfd", "-t", "memory-file", "-t", "memory-numa", "-t", "memory-q35", "-t", "smp", "-f", "lazy-small"],
    ["-a", "tcg", "-t", "disk", "-t", "disk-uring", "-f", "lazy-small"],
    ["-a", "tcg", "-t", "disk-deep", "-f", "predump"],      # the one that notices a pre-dump without its drain
    ["-a", "tcg", "-t", "disk", "-f", "background", "-f", "paged-background"],
    ["-a", "tcg", "-t", "memory-memfd", "-f", "predump"],
    ["-a", "kvm", "-t", "memory", "-t", "disk", "-t", "timer", "-t", "touch", "-f", "lazy-small"],
    ["-a", "kvm", "-t", "disk", "-f", "background", "-f", "paged-background"],
]
# A variant is slow: a few VMs only.
ZDTM_VARIANT = [["-a", "tcg", "-t", "memory", "-f", "eager-small", "-f", "lazy-small"]]


# And unit programs that take long in one, and have no peer's or file's bytes to look at; `make asan` runs all.
LONG_IN_VARIANT = {f"test_{name}" for name in ("disks", "engine", "engine_pages", "fill", "fill_once", "fill_order", "fill_overtaken",
                                               "migrate_lines", "netdevs", "page_lines", "protect", "pv_reader", "receive_pages", "recover",
                                               "server", "settle", "snapshot", "swap_device", "tables", "take_over", "tap", "track")}

AGAIN_LINES = 15    # of a failure, at the end


class Count:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures, self.in_failure = [], False

    def say(self, text):
        """Prints it; what begins with FAIL will be said again."""
        print(text, flush=True)
        if text.startswith("FAIL"):
            self.failures.append([text])
            self.in_failure = True
        elif self.in_failure and text.startswith((" ", "\t")):
            self.failures[-1].append(text)
        else:
            self.in_failure = False

    def say_failures(self):
        for failure in self.failures:
            print(*"\n".join(failure).splitlines()[:AGAIN_LINES], sep="\n")

    def add(self, text):
        """The last `N passed, M failed, K skipped` of another runner's output; False if there is none."""
        found = re.findall(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", text, re.M)
        if found:
            passed, failed, skipped = map(int, found[-1])
            self.passed += passed
            self.failed += failed
            self.skipped += skipped
        return bool(found)


def run(command):
    try:
        p = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           errors="replace", timeout=PROGRAM_TIMEOUT, check=False, env={**os.environ, **CHECK_TIMEOUTS})
        return p.returncode, p.stdout
    except subprocess.TimeoutExpired as e:
        return -1, f"{(e.stdout or b'').decode(errors='replace')}\nno end after {PROGRAM_TIMEOUT} s"


def in_parallel(commands):
    """What run() gives for each, in their order. They wait more than they work."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() + 1) as pool:
        yield from pool.map(run, commands)


def programs(folder, build):
    return sorted(p for p in glob.glob(f"{ROOT}/{build}/tests/{folder}/*") if os.access(p, os.X_OK) and not os.path.isdir(p))


def unit(count, build, but=()):
    names = [p for p in programs("unit", build) if os.path.basename(p) not in but]
    for program, (status, out) in zip(names, in_parallel([p] for p in names)):
        name = os.path.basename(program)
        found = re.search(r"^\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)$", out, re.M)
        if status == 77:
            count.skipped += 1
            print(f"skip {name}: {out.strip()}")
        elif not found or (status and found[2] == found[3] == "0"):
            count.failed += 1
            count.say(f"FAIL {name} (status {status})\n{out}")
        else:
            bad = int(found[2]) + int(found[3])
            skips = re.findall(r"^skip (\w+:\d+: .*)$", out, re.M)       # SKIP_CASE(), for which Check has no word
            count.passed += int(found[1]) - bad - len(skips)
            count.failed += bad
            count.skipped += len(skips)
            for skip in skips:
                print(f"skip {name} {skip}")
            count.say(f"{'FAIL' if bad else 'ok  '} {name}: {int(found[1]) - len(skips)} checks" + (f"\n{out}" if bad else ""))


def platform(count, build):
    for program in programs("platform", build):
        status, out = run([program])
        word = {0: "ok  ", 77: "skip"}.get(status, "FAIL")
        count.passed += status == 0
        count.skipped += status == 77
        count.failed += status not in (0, 77)
        count.say(f"{word} {os.path.basename(program)}" + (f": {out.strip()}" if status else ""))


def others(count, command):
    """A runner that prints as it goes, and counts for itself."""
    p = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, errors="replace")
    lines = []
    for line in p.stdout:
        lines.append(line)
        if not re.match(r"\d+ passed, ", line):
            count.say(line.rstrip("\n"))
    status = p.wait()
    if not count.add("".join(lines)):
        count.failed += 1
        count.say(f"FAIL {' '.join(command)} (status {status}) gave no count")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build")
    parser.add_argument("--long", action="store_true", help="of a variant, also what a check has no time for")
    parser.add_argument("suite", nargs="+")
    opts = parser.parse_args()
    if opts.long:
        os.environ["CRIU_VM_LONG"] = "1"    # unit tests of the engine: every way of paging
    count = Count()
    for which in opts.suite:
        suite, _, variant = which.partition(":")
        build = f"{opts.build}/{variant}" if variant else opts.build
        zdtm = [sys.executable, "-B", "tests/zdtm/zdtm.py", "run", "--build", opts.build, "--criu-vm", f"{build}/criu-vm"]
        begun = time.time()
        print(f"== {which}", flush=True)
        if suite == "unit":
            unit(count, build, LONG_IN_VARIANT if variant and not opts.long else ())
        elif suite == "platform":
            platform(count, build)
        elif suite == "docs":
            others(count, [sys.executable, "-B", "tests/docs.py", "--criu-vm", f"{build}/criu-vm"])
        elif suite in ("misuse", "now", "checkpoints", "compat", "life", "migration"):
            others(count, [sys.executable, "-B", f"tests/{suite}.py", "--build", opts.build, "--criu-vm", f"{build}/criu-vm"])
        elif suite == "fuzz":
            others(count, [sys.executable, "-B", "tests/fuzz/run.py", "--replay", "--build", build])
        elif suite == "zdtm":
            for selection in ZDTM_VARIANT if variant else ZDTM_CHECK:
                others(count, zdtm + selection)
        else:
            parser.error(f"there is no suite {suite}")
        print(f"== {which}: {time.time() - begun:.0f} s", flush=True)
    count.say_failures()
    print(f"{count.passed} passed, {count.failed} failed, {count.skipped} skipped")
    return 1 if count.failed else 0


if __name__ == "__main__":
    sys.exit(main())
