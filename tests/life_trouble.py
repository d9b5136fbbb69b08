# SPDX-License-Identifier: GPL-2.0-only
"""Trouble that can be waited out: whoever needs such a page waits, stat says why, the others run, and it goes on afterwards."""
import os
import shutil
import subprocess
import time

from guests import MIB
from life_rig import TROUBLE_SECONDS
from misuse_rig import cases, check, test, wait_for

PULSING = {"ram": 64, "append": "pulse=1", "args": ["-smp", "2"]}


@test
def a_dead_readers_data_lands(rig):
    """What the take-over has to fence: a read that was begun by a process that has gone writes to memory that others have."""
    fs = rig.faulty()
    with open(f"{fs.path}/file", "wb") as f:
        f.write(b"late" * (MIB // 4))
    memfd = os.memfd_create("life")
    try:
        os.ftruncate(memfd, MIB)
        fs("hold-reads")
        reader = rig.start([f"{rig.opts.tools}/async-read", f"{fs.path}/file", str(MIB), str(memfd)], pass_fds=[memfd], stdout=-1)
        check(reader.stdout.readline() == b"begun\n", "the reader does not read")
        wait_for("the read", 5, lambda: fs("status")[0])
        reader.kill()
        reader.wait(25)
        time.sleep(1)
        check(fs("status")[0] == 1 and not any(os.pread(memfd, MIB, 0)), "the read has ended with its reader")
        fs("release")
        wait_for("the data of a dead process", 5, lambda: os.pread(memfd, MIB, 0) == b"late" * (MIB // 4))
    finally:
        os.close(memfd)


def one_waits(rig, vm, begin, end, waits):
    """A processor does, the other one runs on. It is begun again if both need the page, as one that holds their program."""
    for _ in range(5):
        begin()
        wait_for("a guest that waits, with the reason all the time", 30, waits)
        if rig.others_run(vm):
            return
        end()
        vm.passes(1, 60)
    check(False, "no other processor runs while one waits")


def said_and_over(rig, vm, end, words):
    check(rig.stat()["state"] == "served", f"stat: {rig.stat()}")
    wait_for("stat for people to say it", 5, lambda: words in rig.criu_vm("stat", rig.name).check(0).out)
    end()
    vm.passes(5, 60)
    rig.no_trouble()
    vm.runs_on()


def waits_and_goes_on(rig, vm, begin, end, words):
    """Between begin() and end(), ten seconds at least, the guest waits for a page and stat says why."""
    started = time.monotonic()
    one_waits(rig, vm, begin, end, lambda: waits_with_reason(rig, vm, words))
    time.sleep(max(0, TROUBLE_SECONDS - (time.monotonic() - started)))
    said_and_over(rig, vm, end, words)


def waits_with_reason(rig, vm, words):
    """False: not yet, or it got on after all, be it slowly. A disk that is nearly full takes a bit now and then."""
    rig.in_trouble(words)
    if not stood_still(vm):
        return False
    for _ in range(20):
        if not rig.stat().get("trouble"):
            return False
        time.sleep(0.1)
    return True


def stood_still(vm, seconds=1):
    before = vm.console.passes
    time.sleep(seconds)
    vm.console.check()
    return vm.console.passes == before


@cases(reads=("read-errno", "EIO", "Input/output error"), writes=("write-errno", "EIO", "Input/output error"),
       writes_enospc=("write-errno", "ENOSPC", "No space left"), reads_enodev=("read-errno", "ENODEV", "No such device"))
def swap_in_trouble(rig, command, errno, words):
    fs = rig.faulty()
    vm = rig.paged(swap=f"{fs.path}/image", **PULSING)
    waits_and_goes_on(rig, vm, lambda: fs(f"{command} {errno}"), lambda: fs(f"{command} 0"), words)


@cases(reads="hold-reads", writes="hold-writes")
def swap_hangs(rig, command):
    """It neither answers nor fails."""
    fs = rig.faulty()
    vm = rig.paged(swap=f"{fs.path}/image", **PULSING)
    one_waits(rig, vm, lambda: fs(command), lambda: fs("release"), lambda: stood_still(vm))
    check(rig.stat()["state"] == "served", f"stat: {rig.stat()}")
    fs("release")
    vm.passes(5, 60)
    vm.runs_on()


@test
def swap_file_system_full(rig):
    where = rig.mount("ext4", 96)
    filler = f"{where}/filler"
    subprocess.run(["fallocate", "-l", "64M", filler], check=True)
    old = rig.vm(**PULSING)
    rig.dump(old)
    vm = rig.restore(old, *rig.small(swap=f"{where}/image"), "--swap-sparse", runs=False)
    wait_for("a guest that waits, with the reason all the time", 30, lambda: waits_with_reason(rig, vm, "No space left"))
    said_and_over(rig, vm, lambda: os.unlink(filler), "No space left")


@test
def images_in_trouble(rig):
    """The page source; what is resident or in swap is not concerned."""
    fs = rig.faulty()
    old = rig.vm(**PULSING)
    rig.dump(old, images=f"{fs.path}/images")
    vm = rig.restore(old, *rig.small(), images=f"{fs.path}/images")
    waits_and_goes_on(rig, vm, lambda: fs("read-errno EIO"), lambda: fs("read-errno 0"), "Input/output error")


@cases(reads="read-errno EIO", writes="write-errno EIO")
def trouble_and_pager_killed(rig, command):
    """The next one has the same trouble, and gets over it."""
    fs = rig.faulty()
    vm = rig.paged(swap=f"{fs.path}/image")
    fs(command)
    rig.in_trouble("Input/output error")
    pager = rig.pager()
    rig.kill(pager)
    wait_for("another pager", 20, lambda: rig.stat().get("pager_pid") not in (None, pager))
    rig.in_trouble("Input/output error")
    fs(command.replace("EIO", "0"))
    vm.passes(5, 60)
    vm.runs_on()


@test
def trouble_and_drain(rig):
    """DMA is in flight when writes begin to fail: no drain that never ends, no QMP command that hangs for good."""
    fs = rig.faulty()
    vm = rig.paged(guest=rig.dma(), budget=32, swap=f"{fs.path}/image")
    for command in ("read-errno EIO", "write-errno ENOSPC", "read-errno EIO"):
        fs(command)
        rig.in_trouble()
        time.sleep(3)
        fs(f"{command.split()[0]} 0")
        vm.passes(3, 60)
    vm.runs_on()


# ---- images that have moved


@test
def swap_moved(rig):
    """The device has gone; its image was copied elsewhere, and the pager is told so."""
    fs = rig.faulty()
    vm = rig.paged(swap=f"{fs.path}/image")
    fs("read-errno ENODEV")
    fs("write-errno ENODEV")
    rig.in_trouble("No such device")
    wait_for("the guest to wait", 20, lambda: stood_still(vm))
    other = f"{rig.tmp}/swap/other"
    shutil.copy(f"{fs.backing}/image", other)
    os.chmod(other, 0o600)
    rig.criu_vm("lazy-pages", "--name", rig.name, "--swap", other).check(0)
    check(rig.stat()["swap"] == other, f"stat: {rig.stat()}")
    vm.passes(5, 60)
    rig.kill_pager()
    vm.runs_on()
    vm.kill()
    wait_for("the moved image's end", 15, lambda: not os.path.exists(other))


@test
def swap_of_another(rig):
    """Zeros, a short file, another VM's image, an older copy of a checkpoint: refused, and the VM is as before."""
    vm = rig.paged()
    other = rig.paged(name=f"{rig.name}-b", images=f"{rig.tmp}/images-b")
    files = {name: f"{rig.tmp}/{name}" for name in ("zeros", "short", "theirs")}
    ours = f"{rig.tmp}/swap/image"
    with open(files["zeros"], "wb") as f:
        f.truncate(os.path.getsize(ours))
    with open(files["short"], "wb") as f:
        f.truncate(MIB)
    shutil.copy(f"{rig.tmp}/swap/{rig.name}-b", files["theirs"])
    for path in (*files.values(), f"{rig.tmp}/swap/{rig.name}-b", f"{rig.tmp}/nowhere", rig.tmp):
        rig.fails("lazy-pages", "--name", rig.name, "--swap", path, says=[path])
        check((a := rig.stat())["state"] == "served" and a["swap"] == ours, f"stat: {a}")
        vm.passes()
        check(path == f"{rig.tmp}/nowhere" or os.path.exists(path), f"{path} has been deleted")
    other.runs_on()


@test
def images_moved(rig):
    """A new pager does not find them: the guest waits until it is told where they are."""
    vm = rig.paged(ram=128, runs=False)
    moved = f"{rig.tmp}/moved"
    os.rename(rig.images(), moved)
    rig.kill_both()
    result = rig.criu_vm("lazy-pages", "--name", rig.name)
    check(result.status in (1, 3) and rig.images() in result.err, f"without its images: {result}")
    rig.criu_vm("lazy-pages", "--name", rig.name, "--images-dir", moved).check(0)
    check(rig.stat()["images"] == moved, f"stat: {rig.stat()}")
    vm.passes(5, 60)
    rig.kill_pager()
    vm.runs_on()


@test
def images_moved_while_served(rig):
    vm = rig.paged(ram=128, runs=False)
    moved = f"{rig.tmp}/moved"
    os.rename(rig.images(), moved)
    rig.criu_vm("lazy-pages", "--name", rig.name, "--images-dir", moved).check(0)
    check(rig.stat()["images"] == moved, f"stat: {rig.stat()}")
    vm.passes(5, 60)
    vm.runs_on()


@test
def images_of_another(rig):
    """Another checkpoint, even of the same command line, is refused."""
    rig.dump(rig.vm(ram=64), images=f"{rig.tmp}/images-b")
    vm = rig.paged()
    for path in (f"{rig.tmp}/images-b", f"{rig.tmp}/nowhere", rig.tmp):
        rig.fails("lazy-pages", "--name", rig.name, "--images-dir", path, says=[path])
        check((a := rig.stat())["state"] == "served" and a["images"] == rig.images(), f"stat: {a}")
        vm.passes()
