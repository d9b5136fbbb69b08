# SPDX-License-Identifier: GPL-2.0-only
"""Chains of real VMs, verified and merged."""
import json
import os
import shutil
import signal
import subprocess

from misuse_rig import Skip, cases, check, test, wait_for


def chain(rig, vm, *args, last=(), paused=False):
    """Two pre-dumps and a dump, of the VM when it was paused or not: their directories, the newest last."""
    dirs = [f"{rig.tmp}/images-{i}" for i in range(3)]
    rig.criu_vm("pre-dump", str(vm.pid), "-D", dirs[0], *args).check(0)
    vm.passes(1)
    rig.criu_vm("pre-dump", str(vm.pid), "-D", dirs[1], "--prev-images-dir", dirs[0], *args).check(0)
    vm.passes(1)
    if paused:
        vm.qmp("stop")
    rig.criu_vm("dump", str(vm.pid), "-D", dirs[2], "--prev-images-dir", dirs[1], *args, *last).check(0)
    vm.wait_end(5)
    return dirs


def flip_all_over(path):
    """A bit in each 64 KiB. Twice is not at all."""
    with open(path, "r+b") as f:
        for at in range(1000, os.path.getsize(path), 1 << 16):
            f.seek(at)
            byte = f.read(1)
            f.seek(at)
            f.write(bytes([byte[0] ^ 0x20]))


def verified(rig, path, status=0):
    return json.loads(rig.criu_vm("verify", path, "--json").check(status).out)


@cases(raw=(), zstd=("--compress", "zstd"))
def merge_a_chain(rig, *args):
    """The new one is restored, after the others are gone; they are as they were."""
    vm = rig.vm()
    dirs, one = chain(rig, vm, *args), f"{rig.tmp}/one"
    answer = verified(rig, dirs[2])
    check(answer["whole"] and answer["restorable"] and not answer["problems"], f"verify says {answer}")
    check([layer["ram_only"] for layer in answer["layers"]] == [False, True, True], f"the layers: {answer['layers']}")
    check(bool(answer["layers"][2]["compressed_chunks"]) == bool(args), f"compressed: {answer['layers']}")
    result = json.loads(rig.criu_vm("merge", dirs[2], "-o", one, "--json").check(0).out)
    check(result["layers"] == 3 and result["bytes"] == os.path.getsize(f"{one}/pages-1.img"), f"merge says {result}")
    check(verified(rig, dirs[2])["layers"] == answer["layers"], "a directory of the chain was changed")
    for path in dirs:
        shutil.rmtree(path)
    answer = verified(rig, one)
    check(answer["whole"] and answer["restorable"] and len(answer["layers"]) == 1, f"verify says {answer}")
    for flags in ([], rig.lazy_small()):
        copy = rig.restore(vm, *flags, images=one)
        copy.runs_on()
        copy.kill()
        rig.nothing_left()


@test
def merge_refuses(rig):
    rig.checkpoint()
    os.mkdir(f"{rig.tmp}/full")
    with open(f"{rig.tmp}/full/file", "w", encoding="ascii"):
        pass
    rig.fails("merge", rig.images(), status=2, says=["-o"])
    rig.fails("merge", "-o", f"{rig.tmp}/one", status=2, says=["one directory"])
    rig.fails("merge", rig.images(), "-o", f"{rig.tmp}/full", says=["not empty"])
    rig.fails("merge", rig.images(), "-o", f"{rig.tmp}/no/where", says=[f"{rig.tmp}/no"])
    rig.fails("merge", f"{rig.tmp}/nowhere", "-o", f"{rig.tmp}/one", says=["nowhere"])
    rig.fails("merge", rig.images(), "-o", rig.images(), says=["not empty"])
    check(not os.path.exists(f"{rig.tmp}/one"), "something was made")


@test
def merge_onto_a_full_disk(rig):
    """Nothing is left there."""
    rig.checkpoint(ram=64)
    disk = rig.mount("ext4", 8)
    rig.fails("merge", rig.images(), "-o", f"{disk}/one", says=["No space left"])
    check(os.listdir(disk) == ["lost+found"], f"left: {os.listdir(disk)}")


@test
def merge_shares_blocks(rig):
    """On a file system that can, one that is taken whole takes no more space."""
    vm = rig.checkpoint(ram=64)
    if not shutil.which("mkfs.btrfs"):
        raise Skip("no mkfs.btrfs")
    disk = rig.mount("btrfs", 256)
    rig.criu_vm("merge", rig.images(), "-o", f"{disk}/a").check(0)
    subprocess.run(["sync", "-f", disk], check=True)
    free = os.statvfs(disk).f_bavail
    rig.criu_vm("merge", f"{disk}/a", "-o", f"{disk}/b").check(0)
    subprocess.run(["sync", "-f", disk], check=True)
    used = (free - os.statvfs(disk).f_bavail) * os.statvfs(disk).f_frsize
    size = os.path.getsize(f"{disk}/b/pages-1.img")
    check(used < size / 2, f"{used} bytes more for {size} bytes of pages")
    rig.restore(vm, images=f"{disk}/b").kill()
    flip_all_over(f"{disk}/b/pages-1.img")
    rig.fails("merge", f"{disk}/b", "-o", f"{disk}/c", says=["damaged"])
    check(sorted(os.listdir(disk)) == ["a", "b"], f"left: {os.listdir(disk)}")


@test
def verify_says_what_it_was_asked(rig):
    rig.checkpoint()
    result = rig.criu_vm("verify", rig.images()).check(0)
    check("whole" in result.out and not result.err, str(result))
    rig.fails("verify", status=2, says=["one directory"])
    rig.fails("verify", f"{rig.tmp}/nowhere", says=["nowhere"])
    answer = verified(rig, f"{rig.tmp}/nowhere", status=1)
    check(not answer["whole"] and len(answer["problems"]) == 1, f"verify says {answer}")


@test
def verify_tells_a_missing_parent(rig):
    vm = rig.vm()
    dirs = chain(rig, vm)
    os.rename(dirs[0], f"{rig.tmp}/elsewhere")
    rig.fails("verify", dirs[2], says=["images-0"])
    os.rename(f"{rig.tmp}/elsewhere", dirs[0])
    rig.criu_vm("verify", dirs[2]).check(0)


@cases(verify=("verify", "{images}"), merge=("merge", "{images}", "-o", "{tmp}/one"))
def disk_errors(rig, *line):
    """A disk that cannot be read is told; when it can be, all is well."""
    fs, vm = rig.faulty(), rig.vm()
    rig.dump(vm, images=f"{fs.path}/images")
    line = [word.format(images=f"{fs.path}/images", tmp=rig.tmp) for word in line]
    fs("read-errno EIO")
    rig.fails(*line, says=["Input/output error"])
    check(not os.path.exists(f"{rig.tmp}/one"), "something was made")
    fs("read-errno 0")
    rig.criu_vm(*line).check(0)


@cases(verify=("verify", "{images}"), merge=("merge", "{images}", "-o", "{tmp}/one"))
def interrupted(rig, *line):
    """Ctrl-C, on a disk that is slow."""
    fs, vm = rig.faulty(), rig.vm()
    rig.dump(vm, images=f"{fs.path}/images")
    fs("delay-ms 300")
    process = rig.start_criu_vm(*[word.format(images=f"{fs.path}/images", tmp=rig.tmp) for word in line])
    threads = f"/proc/{process.pid}/task"
    wait_for("its threads", 20, lambda: len(os.listdir(threads)) > 2)
    process.send_signal(signal.SIGINT)
    rig.end_criu_vm(process, 5).check(1, "interrupted")
    fs("delay-ms 0")
    check(not os.path.exists(f"{rig.tmp}/one"), "something was made")


@test
def verify_knows_the_disks(rig):
    """A checkpoint is whole, and cannot be restored once its disk has changed."""
    disk = f"{rig.tmp}/disk.img"
    with open(disk, "wb") as f:
        f.truncate(1 << 20)
    rig.checkpoint(args=["-drive", f"file={disk},format=raw,if=virtio"])
    check(verified(rig, rig.images())["restorable"], "it cannot be restored")
    with open(disk, "r+b") as f:
        f.write(b"changed")
    answer = verified(rig, rig.images(), status=1)
    check(answer["whole"] and not answer["restorable"] and any(disk in p for p in answer["problems"]), f"verify says {answer}")
    rig.fails("verify", rig.images(), says=[disk, "whole"])
