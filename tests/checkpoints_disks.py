# SPDX-License-Identifier: GPL-2.0-only
"""Checkpoints of VMs that write to their disks: the disk belongs to the checkpoint, or the checkpoint is refused."""
import glob
import json
import os
import signal
import subprocess

from misuse_rig import Skip, cases, check, test

DISK = 16 << 20
DRIVE = ["-drive", "file={dir}/disk.img,if=none,id=disk,format=raw,cache=none,aio=native", "-device", "virtio-blk-pci,drive=disk"]
QCOW2 = ["-drive", "file={dir}/disk.img,if=none,id=disk,format=qcow2,cache=none,aio=native", "-device", "virtio-blk-pci,drive=disk"]
LIBVIRT = ["-object", "iothread,id=io0",
           "-blockdev", '{{"driver":"file","filename":"{dir}/disk.img","node-name":"s1","auto-read-only":true,"discard":"unmap",'
           '"cache":{{"direct":true}},"aio":"native"}}',
           "-blockdev", '{{"node-name":"f1","read-only":false,"cache":{{"direct":true}},"driver":"qcow2","file":"s1"}}',
           "-device", '{{"driver":"virtio-blk-pci","drive":"f1","id":"v1","iothread":"io0"}}']


def disk_vm(rig, args, kind="raw"):
    """The guest of zdtm that keeps its disk's queue full, and verifies all that it reads."""
    folder = rig.folder("vm-")
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, f"{folder}/disk.img", str(DISK)], check=True)
    return rig.vm(folder=folder, image="disk", ram=64, append="depth=32 disk=8M", args=args)


def overlays(vm, what):
    return sorted(glob.glob(f"{vm.dir}/disk.img.*{what}*.qcow2"))


def times(vm):
    st = os.stat(f"{vm.dir}/disk.img")
    return st.st_mtime_ns, st.st_size


def snapshot(rig, vm, images, *args):
    rig.criu_vm("dump", str(vm.pid), "-D", images, "-R", "--disk-snapshot", *args).check(0)


def copy_of(rig, vm, images, *args):
    """Restored from the images, until it has made some passes; its folder's console belongs to vm, so that one of them ends first."""
    copy = rig.restore(vm, *args, images=images)
    copy.passes(3)
    copy.kill()
    rig.nothing_left()


@cases(drive=(DRIVE, "raw"), qcow2=(QCOW2, "qcow2"), libvirt=(LIBVIRT, "qcow2"))
def disk_snapshot(rig, args, kind):
    """The VM runs on, over a new file; it is restored twice, eagerly and lazily, each time as it was at the dump."""
    vm = disk_vm(rig, args, kind)
    snapshot(rig, vm, rig.images())
    before = times(vm)
    check(len(overlays(vm, "criu-vm")) == 1, f"the VM's new files: {os.listdir(vm.dir)}")
    vm.passes(5)
    check(times(vm) == before, "the VM still writes to the file that the checkpoint keeps")
    vm.kill()
    copy_of(rig, vm, rig.images())
    copy_of(rig, vm, rig.images(), *rig.lazy_small())
    check(times(vm) == before, "a restored VM wrote to the file that the checkpoint keeps")
    check(len(overlays(vm, "restored")) == 2, f"the restored VMs' files: {os.listdir(vm.dir)}")


@test
def disk_snapshot_background(rig):
    vm = disk_vm(rig, DRIVE)
    snapshot(rig, vm, rig.images(), "--background")
    before = times(vm)
    vm.passes(3)
    vm.kill()
    copy_of(rig, vm, rig.images())
    check(times(vm) == before, "the file that the checkpoint keeps was changed")


@cases(drive=DRIVE, libvirt=LIBVIRT)
def disk_snapshot_twice(rig, args):
    """Two checkpoints of one VM, each with its own instant of the disk; and one of a restored VM."""
    vm = disk_vm(rig, args, "qcow2" if args is LIBVIRT else "raw")
    images = [f"{rig.tmp}/images-{i}" for i in range(3)]
    snapshot(rig, vm, images[0])
    vm.passes(3)
    snapshot(rig, vm, images[1])
    vm.passes(3)
    vm.kill()
    for path in images[:2]:
        copy_of(rig, vm, path)
    copy = rig.restore(vm, images=images[1])
    copy.passes(2)
    rig.criu_vm("dump", rig.name, "-D", images[2], "-R", "--disk-snapshot").check(0)
    copy.passes(2)
    copy.kill()
    rig.nothing_left()
    for path in reversed(images):
        copy_of(rig, vm, path)


@test
def disk_changed_since(rig):
    """Without a snapshot the VM goes on with the disk, and the checkpoint is not restored beside that."""
    vm = disk_vm(rig, DRIVE)
    result = rig.criu_vm("dump", str(vm.pid), "-D", rig.images(), "-R").check(0)
    check("--disk-snapshot" in result.err, f"nothing is said of its disks; {result}")
    vm.passes(3)
    vm.kill()
    rig.fails(*rig.restore_line(), says=["disk.img", "has changed", "--force"])
    rig.nothing_left()
    answer = json.loads(rig.criu_vm("verify", rig.images(), "--json").check(1).out)
    check(not answer["restorable"], f"verify says {answer}")


@test
def disk_as_it_was(rig):
    """A VM that ended with its dump left the disk as the checkpoint knows it; once it was restored, that is over. --force is believed."""
    vm = disk_vm(rig, DRIVE)
    rig.dump(vm)
    copy_of(rig, vm, rig.images())
    rig.fails(*rig.restore_line(), says=["has changed", "--force"])
    answer = json.loads(rig.criu_vm(*rig.restore_line("--force", "--json")).check(0).out)
    os.kill(answer["qemu_pid"], signal.SIGKILL)         # before the guest says that its disk is not what it was
    rig.nothing_left()


@test
def disk_snapshot_that_fails(rig):
    """No place for the images: the VM goes on with its own disk, as if nothing had happened."""
    vm = disk_vm(rig, DRIVE)
    small = rig.mount("tmpfs", 1)
    rig.fails("dump", str(vm.pid), "-D", f"{small}/images", "-R", "--disk-snapshot", says=["space"])
    check(not overlays(vm, "criu-vm"), f"left: {os.listdir(vm.dir)}")
    before = times(vm)
    vm.passes(3)
    check(times(vm) != before, "the VM does not write to its disk")
    vm.kill()


@test
def disk_on_a_block_device(rig):
    loop = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False).stdout.strip()
    folder = rig.folder("vm-")
    with open(f"{folder}/disk.img", "wb") as f:
        f.truncate(DISK)
    if not loop or subprocess.run(["losetup", loop, f"{folder}/disk.img"], capture_output=True, check=False).returncode:
        raise Skip("no loop device here")
    try:
        args = [a.replace("{dir}/disk.img", loop) for a in DRIVE]
        vm = rig.vm(folder=folder, image="disk", ram=64, append="depth=32 disk=8M", args=args)
        rig.fails("dump", str(vm.pid), "-D", rig.images(), "-R", "--disk-snapshot", says=[loop, "no regular file"])
        vm.passes(2)
        rig.dump(vm)
        copy_of(rig, vm, rig.images())
    finally:
        subprocess.run(["losetup", "-d", loop], check=False)
