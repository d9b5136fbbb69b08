# SPDX-License-Identifier: GPL-2.0-only
"""VMs of other users than root: root dumps and restores them, and gives their users no right that they did not have."""
import glob
import os
import re
import shutil
import subprocess

from misuse_restore import give_away, restore_fails
from misuse_rig import NOBODY, QEMU, cases, check, copy_program, test

DISK_GROUP = 6
DRIVE = ["-drive", "file={dir}/disk.img,if=none,id=disk,format=raw", "-device", "virtio-blk-pci,drive=disk"]
RUNAS = {"args": ["-runas", "nobody"]}
# What tells as whom it runs, and is then what it is named.
SCRIPT = """#!/bin/sh
echo "uid=$(id -u) gid=$(id -g) groups=$(id -G)" >> {said}
exec {program} "$@"
"""


def write_script(path, said, program):
    with open(path, "w", encoding="ascii") as f:
        f.write(SCRIPT.format(said=said, program=program))
    os.chmod(path, 0o755)


def check_said(path, nr):
    with open(path, encoding="ascii") as f:
        lines = f.read().splitlines()
    check(len(lines) == nr and set(lines) == {f"uid={NOBODY} gid={NOBODY} groups={NOBODY}"}, f"a program of nobody's ran as {lines}")


def their_qemu(folder):
    """A copy of QEMU, as the user of the folder could have one. It finds its firmware by its own place."""
    os.mkdir(f"{folder}/bin")
    os.symlink("/usr/share", f"{folder}/share")
    return copy_program(QEMU if os.path.isabs(QEMU) else shutil.which(QEMU), f"{folder}/bin/qemu-x")


def disk_vm(rig, **changes):
    """Of nobody's, the folder and all in it as well."""
    folder = rig.folder("vm-", NOBODY)
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", f"{folder}/disk.img", "16M"], check=True)
    os.chown(f"{folder}/disk.img", NOBODY, NOBODY)
    return rig.vm(**{"folder": folder, "image": "disk", "ram": 64, "append": "depth=4 disk=8M", "args": DRIVE,
                     "prefix": rig.as_user(NOBODY), **changes})


def overlays(vm):
    return sorted(glob.glob(f"{vm.dir}/disk.img.*"))


@cases(theirs=True, roots=False)
def users_program_restored(rig, given_away):
    """QEMU's binary is that user's own, and QEMU became that user by itself: it is not started as root for that."""
    folder = rig.folder("vm-", NOBODY)
    qemu = their_qemu(folder)
    rig.dump(rig.vm(folder=folder, qemu=qemu, **RUNAS))
    if given_away:
        give_away(rig.images())
    os.rename(qemu, qemu + ".real")
    said = f"{folder}/said"
    write_script(qemu, said, qemu + ".real")

    class Old:
        dir = folder
    rig.restore(Old).runs_on()
    check_said(said, 1)


@test
def users_groups(rig):
    """A group that the user is not in: a checkpoint that the user could have written does not give it."""
    vm = rig.vm(owner=NOBODY, prefix=["setpriv", "--reuid", str(NOBODY), "--regid", str(DISK_GROUP), "--clear-groups"])
    rig.dump(vm)
    give_away(rig.images())
    restore_fails(rig, says=[rig.images(), f"group {DISK_GROUP}", "chown"])
    for path in (rig.images(), *glob.glob(f"{rig.images()}/*")):
        os.chown(path, 0, 0)
    new = rig.restore(vm)
    with open(f"/proc/{new.pid}/status", encoding="latin-1") as f:
        check(re.search(rf"^Gid:\t{DISK_GROUP}\t", f.read(), re.M), "root's checkpoint is not restored as it was")
    new.runs_on()


@test
def users_qemu_img(rig):
    """The qemu-img that lies beside that user's QEMU, at a dump and at a restore."""
    folder = rig.folder("vm-", NOBODY)
    qemu = their_qemu(folder)
    said = f"{folder}/said"
    write_script(f"{folder}/bin/qemu-img", said, "/usr/bin/qemu-img")
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", f"{folder}/disk.img", "16M"], check=True)
    os.chown(f"{folder}/disk.img", NOBODY, NOBODY)
    vm = disk_vm(rig, folder=folder, qemu=qemu)
    rig.criu_vm("dump", str(vm.pid), "-D", rig.images(), "-R", "--disk-snapshot").check(0)
    check_said(said, 1)
    vm.kill()
    rig.restore(vm).runs_on()
    check_said(said, 2)
    check(len(overlays(vm)) == 2, f"the new files: {overlays(vm)}")
    check(all(os.stat(f).st_uid == NOBODY for f in overlays(vm)), "they are not that user's")


@test
def users_folder_at_dump(rig):
    """Where that user may make no file, root makes none."""
    vm = disk_vm(rig)
    os.chown(vm.dir, 0, 0)
    os.chmod(vm.dir, 0o755)                             # what is there can be opened
    rig.fails("dump", str(vm.pid), "-D", rig.images(), "-R", "--disk-snapshot", says=["disk.img", "ermission", "right to write"])
    check(not overlays(vm) and not os.path.exists(rig.images()), "something is left")
    vm.runs_on()


@cases(theirs=True, roots=False)
def users_folder_at_restore(rig, given_away):
    vm = disk_vm(rig)
    rig.criu_vm("dump", str(vm.pid), "-D", rig.images(), "-R", "--disk-snapshot").check(0)
    vm.kill()
    before = overlays(vm)
    os.chown(vm.dir, 0, 0)
    os.chmod(vm.dir, 0o755)                             # what is there can be opened
    if given_away:
        give_away(rig.images())
    restore_fails(rig, says=["disk.img", "ermission", "right to write"])
    check(overlays(vm) == before, f"made in root's folder: {overlays(vm)}")
    os.chown(vm.dir, NOBODY, NOBODY)
    rig.restore(vm).runs_on()


@test
def users_base(rig):
    """The image below the new file is read with that user's rights: what it says is below itself may be anything."""
    vm = disk_vm(rig)
    rig.criu_vm("dump", str(vm.pid), "-D", rig.images(), "-R", "--disk-snapshot").check(0)
    vm.kill()
    before = overlays(vm)
    os.chown(f"{vm.dir}/disk.img", 0, 0)
    os.chmod(f"{vm.dir}/disk.img", 0o600)
    restore_fails(rig, says=["no new file", "disk.img", "ermission"])
    check(overlays(vm) == before, f"left: {overlays(vm)}")


@test
def users_merge(rig):
    """What restore would not trust does not become root's by a merge."""
    rig.dump(rig.vm())
    give_away(rig.images())
    restore_fails(rig, says=[rig.images(), f"user {NOBODY}"])
    rig.fails("merge", rig.images(), "-o", f"{rig.tmp}/merged", says=[rig.images(), f"user {NOBODY}"])
    check(not os.path.exists(f"{rig.tmp}/merged"), "it was made")
