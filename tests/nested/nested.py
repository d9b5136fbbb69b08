#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs unit test programs in a guest whose kernel has what this host's may lack: the bitmap of idle pages (kernel.sh builds it).

    nested.py [--build DIR] [--cpus N] [--memory MIB] [--timeout SECONDS] [-v] [NAME]...        NAME: as test_idle, which is the default

The programs, with the libraries that they need, are the guest's initramfs; its disk is an empty file system on /var/tmp; what they
print comes over its serial line. The last line is `N passed, M failed, K skipped`.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
QEMU = os.environ.get("QEMU") or "qemu-system-x86_64"
DISK_MIB = 2048         # sparse
CHECKED = r"^\d+%: Checks: (\d+), Failures: (\d+), Errors: (\d+)$"


def libraries(program):
    """What the dynamic linker would load for it, and the linker."""
    out = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(?:=> |^\s+)(/\S+) \(0x", out, re.M)


def initramfs(programs, folder):
    root = f"{folder}/root"
    for name in ("bin", "programs"):
        os.makedirs(f"{root}/{name}")
    shutil.copy(shutil.which("busybox"), f"{root}/bin/busybox")
    shutil.copy(f"{HERE}/init", f"{root}/init")
    for program in programs:
        shutil.copy(program, f"{root}/programs")
        for library in libraries(program):
            os.makedirs(f"{root}{os.path.dirname(library)}", exist_ok=True)
            shutil.copy(library, f"{root}{library}")
    with open(f"{folder}/initramfs", "wb") as f:
        names = subprocess.run(["find", "."], cwd=root, check=True, capture_output=True).stdout
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names, stdout=f, check=True)
    return f"{folder}/initramfs"


def disk(folder):
    path = f"{folder}/disk.img"
    with open(path, "wb") as f:
        f.truncate(DISK_MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1", path], check=True)
    return path


def console(opts, folder):
    """All that the guest says, until it powers off."""
    command = [QEMU, "-accel", "tcg", "-cpu", "max", "-smp", str(opts.cpus), "-m", f"{opts.memory}M", "-nodefaults", "-display", "none",
               "-no-reboot",
               "-kernel", f"{opts.build}/guest/nested-vmlinuz", "-initrd", initramfs(opts.programs, folder), "-serial", "stdio",
               "-drive", f"file={disk(folder)},if=none,id=disk,format=raw,cache=unsafe", "-device", "virtio-blk-pci,drive=disk",
               "-append", "console=ttyS0 quiet panic=-1 no_timer_check CK_TIMEOUT_MULTIPLIER=10"]
    lines = []
    with subprocess.Popen(["timeout", "--signal=KILL", str(opts.timeout), *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          text=True, errors="replace") as qemu:
        for line in qemu.stdout:
            lines.append(line.rstrip())
            if opts.verbose:
                print(lines[-1], flush=True)
    return lines, qemu.returncode


def verdicts(lines):
    """(name, what it printed, exit status) of each program; status None: it has not ended."""
    name, said = None, []
    for line in lines:
        if m := re.fullmatch(r"== begins: (\S+)", line):
            name, said = m[1], []
        elif m := re.fullmatch(r"== ended: (\S+) (\d+)", line):
            yield name, said, int(m[2])
            name = None
        else:
            said.append(line)
    if name:
        yield name, said, None


def report(opts, lines, status):
    passed = failed = skipped = 0
    told = list(verdicts(lines))
    for name, said, code in told:
        found = re.search(CHECKED, "\n".join(said), re.M)
        bad = int(found[2]) + int(found[3]) if found else 0
        if code == 77:
            skipped += 1
            print(f"skip {name}:", *said)
        elif not found or (code and not bad):
            failed += 1
            print(f"FAIL {name} (status {code})", *said[-40:], sep="\n    ")
        else:
            passed += int(found[1]) - bad
            failed += bad
            print(f"{'FAIL' if bad else 'ok  '} {name}: {found[1]} checks", *said, sep="\n    ")
    missing = len(opts.programs) - len(told)
    if missing or status:
        failed += max(missing, 1)
        print(f"FAIL the guest (status {status}); {missing} programs were not begun", *lines[-20:], sep="\n    ")
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=f"{ROOT}/build", metavar="DIR", help="where all is built (build)")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--timeout", type=int, default=900, metavar="SECONDS")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what the guest says as it comes")
    parser.add_argument("name", nargs="*", default=["test_idle"])
    opts = parser.parse_args()
    opts.programs = [f"{opts.build}/tests/unit/{name}" for name in opts.name]
    with tempfile.TemporaryDirectory(prefix="nested-", dir="/var/tmp") as folder:
        return report(opts, *console(opts, folder))


if __name__ == "__main__":
    sys.exit(main())
