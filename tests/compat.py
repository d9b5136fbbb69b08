#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What is not of this version: checkpoints of earlier ones, CRIU's tools, another QEMU.

    compat.py [-k SUBSTRING]... [-j N] [--keep] [--list] [--build DIR] [--criu-vm FILE] [--dir DIR]

QEMU= names the QEMU to test with, NEWER_QEMU= one that is newer, in which its VMs are to run on. The checkpoints of earlier versions are
tests/golden/*.tar.xz, made by tests/golden/make.py.
"""
import glob
import json
import os
import shutil
import subprocess
import sys
import tarfile

import suite
from misuse_rig import QEMU, TESTS, Rig, Skip, Vm, cases, check, copy_program, test

GOLDEN = {os.path.basename(p).split(".")[0]: p for p in sorted(glob.glob(f"{suite.ROOT}/tests/golden/*.tar.xz"))}
ALL_OF_A_PAGE = 4096


# ---- checkpoints of earlier versions

def unpack(rig, archive):
    with tarfile.open(archive) as tar:
        tar.extractall(f"{rig.tmp}/golden")
    return f"{rig.tmp}/golden"


def restore_elsewhere(rig, *args, stdin=subprocess.DEVNULL):
    """A VM that was started in a folder, and with a QEMU, that are not here: it goes on where it was."""
    folder = rig.folder("vm-")
    line = rig.line("restore", "--name", rig.name, "--json", *args, "--qemu", QEMU, "--", "-kernel", f"{rig.opts.build}/guest/memory.elf",
                    "-serial", f"unix:{folder}/serial.sock,server=on,wait=off", "-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off")
    process = rig.start(line, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    vm = Vm(folder, json.loads(rig.end_criu_vm(process).check(0).out)["qemu_pid"])
    rig.vms.append(vm)
    vm.passes(10)
    vm.runs_on()


@cases(**{f"{version}_{kind}{'_lazy' if lazy else ''}": (archive, kind, lazy) for version, archive in GOLDEN.items()
          for kind in ("raw", "zstd", "increment") for lazy in ((), ("--lazy-pages",))})
def golden(rig, archive, kind, lazy):
    images = f"{unpack(rig, archive)}/{kind}"
    rig.criu_vm("verify", images).check(0)
    restore_elsewhere(rig, "-D", images, *lazy)


@cases(**{version: (archive,) for version, archive in GOLDEN.items()})
def golden_stream(rig, archive):
    with open(f"{unpack(rig, archive)}/stream", "rb") as stream:
        restore_elsewhere(rig, "--stream", stdin=stream)


@cases(**{version: (archive,) for version, archive in GOLDEN.items()})
def golden_parent_of_a_new_one(rig, archive):
    """What was dumped once can be shown, and merged into what is written today."""
    folder = unpack(rig, archive)
    rig.criu_vm("merge", f"{folder}/increment", "-o", f"{folder}/merged").check(0)
    rig.criu_vm("verify", f"{folder}/merged").check(0)
    for name in ("inventory.img", "vm.img", "device-state.img", "pagemap-1.img", "stats-dump.img"):
        rig.criu_vm("show", "--json", f"{folder}/increment/{name}").check(0)
    restore_elsewhere(rig, "-D", f"{folder}/merged")


# ---- CRIU's crit

def crit(rig, images, name):
    p = subprocess.run(["crit", "show", f"{images}/{name}"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    rig.log.append(f"crit show {name}: status {p.returncode}, said: {p.stderr[-500:]}")
    check(p.returncode == 0 and not p.stderr, f"crit show {name}: status {p.returncode}: {p.stderr[-500:]}")
    return json.loads(p.stdout)


def crit_pages(rig, images):
    """How many pages are stored, and how many are the parent's, as crit tells it."""
    shown = crit(rig, images, "pagemap-1.img")
    check(shown["magic"] == "PAGEMAP" and shown["entries"][0] == {"pages_id": 1}, f"a pagemap begins otherwise: {shown['entries'][0]}")
    stored = parents = 0
    for entry in shown["entries"][1:]:
        flags = entry["flags"]
        check(flags in ("PE_PRESENT", "PE_PARENT"), f"crit knows no such flags: {entry}")
        check(int(entry["vaddr"], 16) % ALL_OF_A_PAGE == 0, f"no address of a page: {entry}")
        check(entry.get("in_parent", False) == (flags == "PE_PARENT"), f"two opinions of the parent: {entry}")
        stored += entry["nr_pages"] if flags == "PE_PRESENT" else 0
        parents += entry["nr_pages"] if flags == "PE_PARENT" else 0
    return stored, parents


@cases(raw=(), zstd=("--compress", "zstd"))
def crit_shows(rig, *dump_args):
    vm = rig.vm()
    before, images = f"{rig.tmp}/before", rig.images()
    rig.criu_vm("pre-dump", str(vm.pid), "-D", before).check(0)
    vm.passes()
    rig.criu_vm("dump", str(vm.pid), "-D", images, "--prev-images-dir", before, *dump_args).check(0)
    for where, has_parent in ((before, False), (images, True)):
        inventory, stats = crit(rig, where, "inventory.img"), crit(rig, where, "stats-dump.img")["entries"][0]["dump"]
        check(inventory["magic"] == "INVENTORY" and inventory["entries"][0]["img_version"] == 2, f"crit shows something else: {inventory}")
        stored, parents = crit_pages(rig, where)
        check(stored == stats["pages_written"], f"{stored} pages in the pagemap, the statistics are {stats}")
        check(not has_parent or stored * ALL_OF_A_PAGE < 32 << 20, f"an increment with {stored} pages")
        check(bool(parents) == has_parent, f"{parents} pages of the parent")


# ---- another QEMU

@test
def restore_in_a_copy_of_qemu(rig):
    vm = rig.checkpoint(args=["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"])
    other = f"{rig.tmp}/qemu-system-other"
    copy_program(QEMU, other)
    copy = rig.restore(vm, "--qemu", os.path.relpath(other))
    check(os.readlink(f"/proc/{copy.pid}/exe") == other, "the VM runs in another QEMU than was asked for")
    copy.runs_on()


@test
def restore_in_no_qemu(rig):
    rig.checkpoint()
    for wrong in (f"{rig.tmp}/nothing", rig.tmp, f"{rig.images()}/vm.img"):
        rig.fails(*rig.restore_line("--qemu", wrong), status=2, says=("--qemu", "cannot be run"))
    rig.fails(*rig.restore_line("--qemu", shutil.which("true")))


@cases(pc=(), q35=("-machine", "q35", "-vga", "std"))
def restore_in_newer_qemu(rig, *args):
    """With the machine type that it had, whatever the newer one's own is; and from there once more."""
    newer = os.environ.get("NEWER_QEMU")
    if not newer:
        raise Skip("NEWER_QEMU= names none")
    vm = rig.checkpoint(args=args)
    machine = json.loads(rig.criu_vm("show", "--json", f"{rig.images()}/vm.img").check(0).out)["entries"][0]["machine"]
    there = rig.restore(vm, "--qemu", newer)
    check(there.qmp("qom-get", path="/machine", property="type") == f"{machine}-machine", "the VM is on another machine now")
    rig.dump(there, f"{rig.tmp}/again")
    rig.restore(vm, "--lazy-pages", images=f"{rig.tmp}/again").runs_on()


if __name__ == "__main__":
    sys.exit(suite.run(suite.parser(__doc__).parse_args(), TESTS, Rig))
