# SPDX-License-Identifier: GPL-2.0-only
"""Restores that cannot be: bad images, bad options, a host that lacks something. Nothing runs, nothing is left."""
import glob
import os
import re
import shutil
import struct
import subprocess
import time

from misuse_rig import MIB, NOBODY, QEMU, Skip, cases, check, copy_program, peer_pid, test, wait_for

METADATA = ["inventory.img", "vm.img", "device-state.img", "pagemap-1.img", "stats-dump.img"]


def restore_fails(rig, *args, says=(), status=1, images=None, name=None, user=None):
    result = rig.fails(*rig.restore_line(*args, images=images, name=name), says=says, status=status, user=user)
    rig.nothing_left()
    return result


@test
def restore_from_no_checkpoint(rig):
    restore_fails(rig, says=[rig.images()])
    os.mkdir(rig.images())
    restore_fails(rig, says=[rig.images(), "no checkpoint"])
    with open(f"{rig.images()}/letter.txt", "w", encoding="ascii") as f:
        f.write("dear reader")
    restore_fails(rig, says=[rig.images()])
    restore_fails(rig, says=[f"{rig.images()}/letter.txt"], images=f"{rig.images()}/letter.txt")
    restore_fails(rig, images="")
    check(os.listdir(rig.images()) == ["letter.txt"], "the folder was changed")


@test
def restore_from_images_of_criu(rig):
    os.mkdir(rig.images())
    with open(f"{rig.images()}/inventory.img", "wb") as f:
        f.write(struct.pack("<II", 0x58313116, 2) + b"\x08\x02")        # img_version 2, and nothing of ours
    restore_fails(rig, says=["inventory.img"])


@test
def restore_from_partial(rig):
    """What a killed dump left is no checkpoint."""
    rig.checkpoint()
    os.unlink(f"{rig.images()}/inventory.img")
    os.rename(rig.images(), f"{rig.tmp}/images.0123.part")
    restore_fails(rig, says=["images.0123.part", "no checkpoint"], images=f"{rig.tmp}/images.0123.part")


def damaged(rig, path, content):
    """One file of the checkpoint is otherwise, for one attempt."""
    with open(path, "rb") as f:
        good = f.read()
    with open(path, "wb") as f:
        f.write(content(good))
    try:
        for flags in ([], ["--lazy-pages"]):
            restore_fails(rig, *flags, says=[os.path.basename(path)])
    finally:
        with open(path, "wb") as f:
            f.write(good)


def flipped(at):
    def flip(b):
        i = int(at * (len(b) - 1))
        return b[:i] + bytes([b[i] ^ 0x10]) + b[i + 1:]
    return flip


@cases(inventory="inventory.img", vm="vm.img", device_state="device-state.img", pagemap="pagemap-1.img", stats="stats-dump.img")
def restore_damaged(rig, name):
    old, path = rig.checkpoint(), f"{rig.images()}/{name}"
    for at in (0, 0.2, 0.5, 0.8, 1):
        damaged(rig, path, flipped(at))
    for content in (lambda b: b"", lambda b: b[:4], lambda b: b[:len(b) // 2], lambda b: b[:-1], lambda b: b + b"\0",
                    lambda b: b + b[8:], lambda b: bytes(len(b)), lambda b: os.urandom(len(b))):
        damaged(rig, path, content)
    os.rename(path, path + ".gone")
    restore_fails(rig, says=[name if name != "inventory.img" else rig.images()])
    os.mkdir(path)
    restore_fails(rig, says=[name])
    os.rmdir(path)
    os.mkfifo(path)
    restore_fails(rig, says=[name])                     # and does not wait for a writer
    os.unlink(path)
    os.rename(path + ".gone", path)
    rig.restore(old)                                    # undamaged, it is good


@test
def restore_damaged_pages_length(rig):
    old, path = rig.checkpoint(), f"{rig.images()}/pages-1.img"
    whole = os.path.getsize(path)
    with open(path, "r+b") as f:
        for size in (0, 4096, whole // 2, whole - 1, whole + 4096):
            f.truncate(size)
            for flags in ([], ["--lazy-pages"]):
                restore_fails(rig, *flags, says=["pages-1.img"])
    os.unlink(path)
    restore_fails(rig, "--lazy-pages", says=["pages-1.img"])
    rig.dump(rig.vm(folder=old.dir), images=f"{rig.tmp}/other")


@test
def restore_mixed(rig):
    """Files of two checkpoints do not make one."""
    rig.checkpoint(ram=32)
    other = rig.vm(ram=32)
    rig.dump(other, images=f"{rig.tmp}/other")
    for name in METADATA[1:4]:
        shutil.copy(f"{rig.images()}/{name}", f"{rig.images()}/saved")
        shutil.copy(f"{rig.tmp}/other/{name}", f"{rig.images()}/{name}")
        restore_fails(rig)
        os.rename(f"{rig.images()}/saved", f"{rig.images()}/{name}")


def flip_page(rig, at=0.5):
    with open(f"{rig.images()}/pages-1.img", "r+b") as f:
        f.seek(int(os.path.getsize(f.name) * at))
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))


@cases(all=[], small=["--ram", "16M", "--swap", "{tmp}/swap/image"])
def restore_damaged_pages_eager(rig, flags):
    """Found before the VM runs."""
    old = rig.checkpoint()
    for at in (0, 0.5, 0.99999):
        flip_page(rig, at)
        before = rig.text_of(f"{old.dir}/serial.log")
        restore_fails(rig, *[f.format(tmp=rig.tmp) for f in flags], says=["damaged"])
        check(rig.text_of(f"{old.dir}/serial.log") == before, "it ran")
        flip_page(rig, at)
    rig.restore(old)


@test
def restore_damaged_pages_lazy(rig):
    """Whoever touches the page waits, stat says why; when it can be read again, all goes on."""
    old = rig.checkpoint()
    flip_page(rig)
    vm = rig.restore(old, "--lazy-pages", runs=False)
    answer = wait_for("trouble", 30, lambda: (a := rig.stat()).get("trouble") and a)
    check("the images are damaged" in answer["trouble"], f"trouble: {answer['trouble']}")
    text = rig.criu_vm("stat", rig.name).check(0)
    check("damaged" in text.out, f"in text: {text}")
    check("damaged" in rig.criu_vm("stat").check(0).out, "the table of all VMs does not show it")
    vm.stands_still()
    flip_page(rig)
    vm.passes(2)
    wait_for("the end of the trouble", 10, lambda: not rig.stat().get("trouble"))


@test
def restore_damaged_pages_lazy_killed(rig):
    old = rig.checkpoint()
    flip_page(rig)
    vm = rig.restore(old, "--lazy-pages", runs=False)
    wait_for("trouble", 30, lambda: rig.stat().get("trouble"))
    vm.kill()
    rig.nothing_left()


# ---- options


@cases(too_little="1M", just_too_little="16383K", a_byte="1")
def restore_budget(rig, size):
    rig.checkpoint(ram=64)
    for flags in ([], ["--lazy-pages"]):
        restore_fails(rig, *flags, "--ram", size, "--swap", f"{rig.tmp}/swap/image", says=["--ram", "16 MiB"])


@test
def restore_budget_nonsense(rig):
    rig.checkpoint()
    for size in ("", "0", "-1", "12Q", "1G1", "0x100000", "nan", "inf", "1e30", "99999999999T", "16 M", "M", "0.0000001"):
        restore_fails(rig, "--ram", size, "--swap", f"{rig.tmp}/swap/image", says=["--ram"], status=2)
    restore_fails(rig, "--ram", status=2)


@test
def restore_paging_nonsense(rig):
    rig.checkpoint()
    for option in ("", "fast", "method", "method=", "method=3", "access=all", "queue-bits=0", "queue-bits=13", "spin=on", "folios=2M", "method=1,", "x=1"):
        restore_fails(rig, "--lazy-pages", "--paging", option, says=["--paging"], status=2)
    restore_fails(rig, "--lazy-pages", "--paging", status=2)
    restore_fails(rig, "--paging", "method=1", says=["--ram", "--lazy-pages"], status=2)


@test
def restore_bad_name(rig):
    rig.checkpoint()
    before = sorted(os.listdir(rig.tmp))
    for name in ("", ".", "..", "../vm", "a/b", "-vm", ".vm", "a" * 65, "a b", "a\nb", "ä"):
        restore_fails(rig, status=2, name=name)
    check(sorted(os.listdir(rig.tmp)) == before, f"something was made: {os.listdir(rig.tmp)}")


@test
def restore_name_in_use(rig):
    old = rig.checkpoint()
    vm = rig.restore(old, *rig.lazy_small())
    result = rig.fails(*rig.restore_line(*rig.lazy_small()), says=[f"'{rig.name}'", "in use", "--name"])
    check("swap" not in result.err, f"the name is in use, not the swap image; {result}")
    vm.runs_on()
    check(rig.stat()["state"] == "served", "its pager is gone")


@test
def restore_swap_in_use(rig):
    """Under another name, but into the same swap image."""
    vm = rig.restore(rig.checkpoint(), *rig.lazy_small())
    rig.fails(*rig.restore_line(*rig.lazy_small(), name=f"{rig.name}-other"), says=[f"{rig.tmp}/swap/image"])
    vm.runs_on()
    check(os.path.exists(f"{rig.tmp}/swap/image"), "the first VM's swap image was deleted")


@cases(lazy=["--lazy-pages"], eager=[])
def restore_swap_exists(rig, flags):
    """A file of the user's is never touched."""
    rig.checkpoint()
    mine = f"{rig.tmp}/mine"
    os.mkdir(mine)
    for path in ("file", f"{rig.name}.swap"):
        with open(f"{mine}/{path}", "w", encoding="ascii") as f:
            f.write("precious")
    os.symlink(f"{mine}/file", f"{mine}/link")
    os.symlink(f"{mine}/nowhere", f"{mine}/dangling")
    for swap, named in ((f"{mine}/file", "file"), (f"{mine}/link", "link"), (f"{mine}/dangling", "dangling"),
                        (mine, f"{rig.name}.swap")):
        restore_fails(rig, *flags, "--ram", "16M", "--swap", swap, says=[f"{mine}/{named}"])
    check(sorted(os.listdir(mine)) == sorted(["dangling", "file", "link", f"{rig.name}.swap"]), f"{os.listdir(mine)}")
    check(rig.text_of(f"{mine}/file") == rig.text_of(f"{mine}/{rig.name}.swap") == "precious", "the file was changed")


@test
def restore_swap_impossible(rig):
    rig.checkpoint()
    restore_fails(rig, "--lazy-pages", "--ram", "16M", "--swap", f"{rig.tmp}/no/parent", says=[f"{rig.tmp}/no/parent"])
    restore_fails(rig, "--lazy-pages", "--ram", "16M", "--swap", "/proc/image", says=["/proc/image"])
    where = rig.mount("tmpfs", 64)
    for swap in (f"{where}/image", where):
        restore_fails(rig, "--lazy-pages", "--ram", "16M", "--swap", swap, says=[where, "in memory"])
    check(not os.listdir(where), f"left there: {os.listdir(where)}")


@cases(eager=[], lazy=["--lazy-pages"])
def restore_swap_full(rig, flags):
    old, where = rig.checkpoint(), rig.mount("ext4", 20)
    result = restore_fails(rig, *flags, "--ram", "16M", "--swap", f"{where}/image", says=[f"{where}/image", "--swap"])
    check("free" in result.err, f"how much is missing? {result}")
    check(set(os.listdir(where)) <= {"lost+found"}, f"left there: {os.listdir(where)}")
    rig.restore(old, *flags)


@test
def restore_swap_full_while_running(rig):
    """Sparse, and then the disk is full: pages stay in memory, or wait; none is lost."""
    old = rig.checkpoint(ram=64)
    where = rig.mount("ext4", 12)
    vm = rig.restore(old, "--lazy-pages", "--ram", "16M", "--swap", f"{where}/image", "--swap-sparse", runs=False)
    trouble = wait_for("trouble", 40, lambda: rig.stat().get("trouble"))
    check("swap" in trouble, f"trouble: {trouble}")
    vm.console.check()
    vm.kill()
    wait_for("a clean disk", 10, lambda: set(os.listdir(where)) <= {"lost+found"})


@test
def restore_swap_registered(rig):
    """Where the image is stands in a folder that survives the host, and goes with the VM. Made there, it needs no link."""
    old, registry = rig.checkpoint(ram=64), f"{rig.tmp}/state/swap"
    vm = rig.restore(old, *rig.lazy_small())
    links = glob.glob(f"{registry}/*")
    check(len(links) == 1 and re.fullmatch(f"{rig.name}-[0-9a-f]{{16}}[.]swap", os.path.basename(links[0])), f"registered: {links}")
    check(os.readlink(links[0]) == f"{rig.tmp}/swap/image", f"it leads to {os.readlink(links[0])}")
    vm.kill()
    rig.nothing_left()
    vm = rig.restore(old, "--lazy-pages", "--ram", "16M")
    check(glob.glob(f"{registry}/*") == [f"{registry}/{rig.name}.swap"], f"there is: {os.listdir(registry)}")


@cases(restore="restore", stat="stat")
def restore_after_reboot(rig, command):
    """The first command after a reboot of the host forgets what is left of it, and says so; the next ones have nothing to do."""
    registry = f"{rig.tmp}/state/swap"
    os.makedirs(registry)
    line = rig.restore_line(images="/nowhere") if command == "restore" else ("stat",)
    for first in (True, False):
        link = f"{registry}/vm-0123456789abcdef.swap"
        os.symlink("/nowhere/vm.swap", link)
        result = rig.criu_vm(*line)
        check(os.path.islink(link) != first and ("/nowhere/vm.swap" in result.err) == first, f"{'first' if first else 'next'}: {result}")
    os.unlink(link)


@test
def restore_swap_on_device(rig):
    """All of a device, without a file; nobody else's as long as the VM lives, and empty afterwards."""
    old, disk = rig.checkpoint(ram=64), f"{rig.tmp}/disk.img"
    with open(disk, "wb") as f:
        f.truncate(100 * MIB)
    made = subprocess.run(["losetup", "-f", "--show", "--direct-io=on", disk], capture_output=True, text=True, check=False)
    if made.returncode:
        raise Skip("no loop device can be made here")
    device = made.stdout.strip()
    try:
        vm = rig.restore(old, "--lazy-pages", "--ram", "16M", "--swap", device)
        vm.passes(3)
        check(rig.stat()["swap"] == device, f"stat: {rig.stat()['swap']}")
        rig.fails(*rig.restore_line("--lazy-pages", "--ram", "16M", "--swap", device, name=f"{rig.name}-other"), says=[device])
        vm.runs_on()
        vm.kill()
        rig.nothing_left()
        subprocess.run(["mkfs.ext4", "-q", device], check=True, stdin=subprocess.DEVNULL)
        restore_fails(rig, "--ram", "16M", "--swap", device, says=[device, "ext4"])
    finally:
        subprocess.run(["losetup", "-d", device], check=False)


@test
def restore_wrong_arguments(rig):
    rig.checkpoint()
    rig.fails("restore", status=2, says=["-D"])
    restore_fails(rig, "stray", status=2, says=["stray"])
    restore_fails(rig, "--bogus", status=2, says=["bogus"])
    restore_fails(rig, "-D", status=2)


@test
def restore_log_impossible(rig):
    rig.checkpoint()
    restore_fails(rig, "-o", f"{rig.tmp}/no/log", says=[f"{rig.tmp}/no/log"])


# ---- the host


def qemu_says(rig, *behind, says):
    for lazy in ([], ["--lazy-pages"]):
        restore_fails(rig, *lazy, "--", *behind, says=says)


@cases(device=(["-device", "nonsense"], "nonsense"), option=(["-nonsense"], "nonsense"), cpu=(["-cpu", "nonsense"], "nonsense"),
       machine=(["-machine", "nonsense=on"], "nonsense"), missing_value=(["-device"], "device"),
       file=(["-drive", "file=/no/such/file,if=virtio,format=raw"], "/no/such/file"), word=(["nonsense"], "nonsense"),
       netdev=(["-device", "e1000,netdev=nonsense"], "nonsense"))
def restore_qemu_refuses(rig, behind, says):
    """What QEMU says is shown to who waits."""
    rig.checkpoint()
    qemu_says(rig, *behind, says=[says])


@test
def restore_other_machine(rig):
    """A device is missing: what was recorded of it cannot be loaded."""
    old = rig.checkpoint(args=["-device", "e1000,id=nic"])
    result = restore_fails(rig, "--", "-device", "virtio-rng-pci,id=nic")
    check("e1000" in result.err or "load" in result.err, f"QEMU's reason is missing; {result}")
    rig.restore(old)


@test
def restore_memory_replaced(rig):
    rig.checkpoint()
    qemu_says(rig, "-m", "64M", says=[""])
    qemu_says(rig, "-object", "memory-backend-ram,id=x,size=32M", "-machine", "memory-backend=x", says=[""])


@test
def restore_qemu_gone(rig):
    qemu = f"{rig.tmp}/qemu-system-copy"
    copy_program(QEMU, qemu)
    vm = rig.checkpoint(qemu=qemu, args=["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"])
    os.rename(qemu, qemu + ".moved")
    for lazy in ([], ["--lazy-pages"]):
        restore_fails(rig, *lazy, says=[qemu])
    os.rename(qemu + ".moved", qemu)
    rig.restore(vm)


@test
def restore_qemu_cannot_run(rig):
    qemu = f"{rig.tmp}/qemu-system-copy"
    copy_program(QEMU, qemu)
    rig.checkpoint(qemu=qemu, args=["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"])
    for content, mode in ((b"#!/no/such/shell\n", 0o755), (b"#!/bin/sh\necho no more of that; exit 3\n", 0o755), (b"", 0o644)):
        os.unlink(qemu)
        with open(qemu, "wb") as f:
            f.write(content)
        os.chmod(qemu, mode)
        result = restore_fails(rig)
        check(qemu in result.err or "no more of that" in result.err, f"what QEMU said is missing; {result}")


@test
def restore_folder_gone(rig):
    """The folder that QEMU was started in."""
    cwd = rig.folder("cwd-")
    old = rig.checkpoint(options={"cwd": cwd})
    os.rmdir(cwd)
    restore_fails(rig, says=[cwd])
    os.mkdir(cwd)
    rig.restore(old)


@test
def restore_disk_missing(rig):
    path = f"{rig.tmp}/disk.img"
    with open(path, "wb") as f:
        f.truncate(MIB)
    drive = ["-drive", "file={},if=none,id=d0,format=raw", "-device", "virtio-blk-pci,drive=d0,id=disk0"]
    old = rig.checkpoint(args=[a.format(path) for a in drive])
    os.rename(path, f"{rig.tmp}/moved.img")
    for lazy in ([], ["--lazy-pages"]):
        restore_fails(rig, *lazy, says=[path])
    check(not os.path.exists(path), "it was made")
    rig.restore(old, "--lazy-pages", "--force", "--", "-drive", drive[1].format(f"{rig.tmp}/moved.img"))


@test
def restore_disk_in_use(rig):
    """Another VM runs on the same disk: two must not write it."""
    path = f"{rig.tmp}/disk.img"
    with open(path, "wb") as f:
        f.truncate(MIB)
    drive = ["-drive", f"file={path},if=none,id=d0,format=raw", "-device", "virtio-blk-pci,drive=d0"]
    rig.checkpoint(args=drive)
    other = rig.vm(args=drive)
    restore_fails_while(rig, other, says=["lock"])


def restore_fails_while(rig, other, says):
    for lazy in ([], ["--lazy-pages"]):
        result = rig.fails(*rig.restore_line(*lazy), says=says)
        check(os.listdir(f"{rig.tmp}/run") == [], f"a run directory is left; {result}")
        other.runs_on()


@test
def restore_the_other_runs(rig):
    """Two restores of one checkpoint: the second takes nothing from the first."""
    old = rig.checkpoint()
    first = rig.restore(old, "--lazy-pages")
    first.qmp("stop")
    second = rig.restore(old, "--lazy-pages", "--", "-serial", "null", "-qmp", f"unix:{rig.tmp}/second.sock,server=on,wait=off",
                         name=f"{rig.name}-second", runs=False)
    second.qmp_path = f"{rig.tmp}/second.sock"
    wait_for("the second VM", 10, lambda: second.status() == "running")
    check(peer_pid(first.qmp_path) == first.pid, "the first one's socket is gone")
    first.stays_paused()
    first.qmp("cont")
    first.runs_on()


@cases(run_dir_file="file", run_dir_deep="deep", run_dir_long="long")
def restore_run_dir(rig, kind):
    rig.checkpoint()
    place = {"file": f"{rig.tmp}/file", "deep": f"{rig.tmp}/no/such", "long": f"{rig.tmp}/{'x' * 120}"}[kind]
    if kind == "file":
        with open(place, "w", encoding="ascii"):
            pass
    result = restore_fails(rig, "--lazy-pages", "--run-dir", place)
    check(place[-20:] in result.err or "path" in result.err, f"where? {result}")
    check(kind != "long" or not os.path.exists(place) or not os.listdir(place), "left behind in the run directory")


@test
def restore_as_nobody(rig):
    """First the images cannot be read, then there is no place for the run directory, then no right to serve pages."""
    rig.dump(rig.vm(owner=NOBODY))
    restore_fails(rig, says=["ermission", rig.images()], user=NOBODY)
    give_away(rig.images())
    place = rig.folder("theirs-", NOBODY)
    for args, says in (([], f"{rig.tmp}/run"), (["--lazy-pages", "--run-dir", f"{place}/run"], "userfaultfd")):
        log = f"{place}/log{len(args)}"
        result = rig.criu_vm(*rig.restore_line(*args, "-o", log), user=NOBODY)
        said = result.err + rig.text_of(log)
        check(result.status == 1 and "ermi" in said and says in said, f"{says}: what is not permitted? {said}; {result}")
    wait_for("no run directory", 5, lambda: not os.path.exists(f"{place}/run") or not os.listdir(f"{place}/run"))


def give_away(path):
    for where in [path, *(f"{path}/{e}" for e in os.listdir(path))]:
        os.chown(where, NOBODY, NOBODY)


# ---- paused is paused


@cases(eager=[], lazy=["--lazy-pages"], small=["--lazy-pages", "--ram", "16M", "--swap", "{tmp}/swap/image"])
def restore_paused(rig, flags):
    vm = rig.vm()
    vm.qmp("stop")
    rig.dump(vm)
    new = rig.restore(vm, *[f.format(tmp=rig.tmp) for f in flags], runs=False)
    new.stays_paused()
    check(rig.stat()["guest"] == "paused", "stat says that it runs")
    new.qmp("cont")
    new.runs_on()
    wait_for("stat to say that it runs", 5, lambda: rig.stat()["guest"] == "running")


@test
def restore_never_started(rig):
    """Dumped before it ran at all (-S)."""
    folder = rig.folder("vm-")
    process = rig.start(rig.command_line(folder, args=["-S"]))
    wait_for("QEMU", 10, lambda: peer_pid(f"{folder}/qmp.sock"))
    rig.criu_vm("dump", str(process.pid), "-D", rig.images()).check(0)

    class Old:
        dir = folder
    vm = rig.restore(Old, "--lazy-pages", runs=False)
    time.sleep(0.3)
    check(vm.status() in ("paused", "prelaunch") and not vm.console.passes, "it runs")
    vm.qmp("cont")
    wait_for("its first passes", 30, lambda: vm.console.passes > 2)
    vm.console.readies = 0                              # its first start
