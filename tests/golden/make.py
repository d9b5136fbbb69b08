#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes the checkpoints that later versions of criu-vm have to read: FORMAT.tar.xz beside this file, once for each format.

    make.py FORMAT [--build DIR] [--criu-vm FILE]

A guest that checks its own memory, dumped in every way that leaves something else on the disk: raw/, zstd/, increment/ over pre-dump/, and
stream. Made with the QEMU that QEMU= names, or the system's; VERSION in the archive says which it was. Needs root.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tarfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, f"{ROOT}/tests/zdtm")
import vm as zdtm_vm                    # noqa: E402
from guests import QEMU                 # noqa: E402

FOLDER = "/var/tmp/criu-vm-golden"      # is written into what is made
MACHINE = "pc-i440fx-7.2"
RAM = "5M"


class Maker:
    def __init__(self, opts):
        self.criu_vm = os.path.abspath(opts.criu_vm or f"{opts.build}/criu-vm")
        os.makedirs(f"{FOLDER}/run", mode=0o755)
        shutil.copy(f"{opts.build}/guest/memory.elf", FOLDER)

    def run(self, *args, **options):
        return subprocess.run([self.criu_vm, *args, "--run-dir", f"{FOLDER}/run"], check=True, stdin=subprocess.DEVNULL, **options)

    def guest(self):
        qemu = subprocess.Popen([QEMU, "-machine", MACHINE, "-accel", "tcg", "-m", RAM, "-nodefaults", "-display", "none", "-serial",
                                 f"unix:{FOLDER}/serial.sock,server=on,wait=off", "-qmp", f"unix:{FOLDER}/qmp.sock,server=on,wait=off",
                                 "-kernel", f"{FOLDER}/memory.elf", "-append", "words=2"], cwd="/", stdin=subprocess.DEVNULL)
        console = zdtm_vm.Console(f"{FOLDER}/serial.sock", f"{FOLDER}/serial.log")
        zdtm_vm.wait_for("the guest's first passes", 30, lambda: console.passes > 2)
        return qemu, console

    def make(self, *dumps):
        """A guest that makes some passes before each of the dumps, the last of which ends it."""
        qemu, console = self.guest()
        try:
            for dump in dumps:
                console.wait_passes(3, 30)
                dump(str(qemu.pid))
        finally:
            console.stop()
            qemu.kill()
            qemu.wait()

    def dump_stream(self, pid):
        with open(f"{FOLDER}/stream", "wb") as out:
            self.run("dump", pid, "--stream", stdout=out)

    def all(self):
        self.make(lambda pid: self.run("dump", pid, "-D", f"{FOLDER}/raw"))
        self.make(lambda pid: self.run("dump", pid, "-D", f"{FOLDER}/zstd", "--compress", "zstd:19"))
        self.make(lambda pid: self.run("pre-dump", pid, "-D", f"{FOLDER}/pre-dump"),
                  lambda pid: self.run("dump", pid, "-D", f"{FOLDER}/increment", "--prev-images-dir", f"{FOLDER}/pre-dump"))
        self.make(self.dump_stream)
        with open(f"{FOLDER}/VERSION", "w", encoding="ascii") as f:
            for binary, option in ((self.criu_vm, "-V"), (QEMU, "--version")):
                f.write(subprocess.run([binary, option], check=True, capture_output=True, text=True).stdout.splitlines()[0] + "\n")


def plain(info):
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("format", help="as format-2")
    parser.add_argument("--build", default=f"{ROOT}/build", metavar="DIR")
    parser.add_argument("--criu-vm", metavar="FILE")
    opts = parser.parse_args()
    archive = f"{HERE}/{opts.format}.tar.xz"
    if os.path.exists(archive):
        sys.exit(f"{archive} is there: what was made once must not change")
    try:
        Maker(opts).all()
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for name in ("VERSION", "raw", "zstd", "pre-dump", "increment", "stream"):
                tar.add(f"{FOLDER}/{name}", name, filter=plain)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
