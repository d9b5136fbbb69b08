# SPDX-License-Identifier: GPL-2.0-only
"""Dumps that cannot be: the wrong VM, the wrong place. The VM, if there is one, runs on."""
import os
import shutil
import socket
import threading

from misuse_rig import NOBODY, Skip, cases, check, test, wait_for

OPTION = "-qmp unix:PATH,server=on,wait=off"


def dump_fails(rig, spec, *says, images=None, user=None):
    result = rig.fails("dump", str(spec), "-D", rig.images() if images is None else images, says=says, user=user)
    check(images is not None or not os.path.lexists(rig.images()), f"{rig.images()} was made; {result}")
    return result


@test
def dump_no_such_pid(rig):
    gone = rig.start(["true"])
    gone.wait()
    dump_fails(rig, gone.pid, f"process {gone.pid}", "ended")
    dump_fails(rig, 4194305, "process 4194305")         # more than any pid
    dump_fails(rig, "99999999999999999999")
    dump_fails(rig, 0)


@test
def dump_not_a_qemu(rig):
    sleep = rig.start(["sleep", "1000"])
    dump_fails(rig, sleep.pid, f"process {sleep.pid}", "sleep", "no QEMU")
    check(sleep.poll() is None, "the process has ended")
    dump_fails(rig, os.getpid(), "no QEMU")
    sleep.kill()


@test
def dump_unknown_name(rig):
    dump_fails(rig, "nobody-knows", "nobody-knows", "criu-vm stat")
    dump_fails(rig, "../run", "../run")
    dump_fails(rig, "")


@test
def dump_without_qmp(rig):
    vm = rig.vm(qmp=False)
    dump_fails(rig, vm.pid, str(vm.pid), OPTION)
    vm.passes()


@test
def dump_socket_missing(rig):
    dump_fails(rig, f"{rig.tmp}/none.sock", f"{rig.tmp}/none.sock", OPTION)


@test
def dump_socket_deleted(rig):
    vm = rig.vm()
    os.rename(vm.qmp_path, vm.qmp_path + ".old")
    dump_fails(rig, vm.pid, vm.qmp_path, OPTION)
    os.rename(vm.qmp_path + ".old", vm.qmp_path)
    vm.runs_on()


@test
def dump_socket_is_a_file(rig):
    path = f"{rig.tmp}/file"
    with open(path, "w", encoding="ascii"):
        pass
    dump_fails(rig, path, path, "no socket")
    dump_fails(rig, rig.tmp, rig.tmp)


@test
def dump_socket_of_an_ended_qemu(rig):
    vm = rig.vm()
    vm.kill()
    dump_fails(rig, vm.qmp_path, vm.qmp_path, "ended")


@test
def dump_socket_stolen(rig):
    """The path in one VM's command line belongs to another VM now: that one must not be dumped instead."""
    first = rig.vm()
    os.rename(first.qmp_path, f"{first.dir}/first.sock")
    os.rename(f"{first.dir}/serial.sock", f"{first.dir}/first-serial.sock")
    second = rig.vm(folder=first.dir)
    dump_fails(rig, first.pid, str(first.pid))
    second.runs_on()
    first.kill()


@cases(silent=(b"", False), garbage=(b"\0\xff{{{{hello\n", False), json=(b'{"hello": [1]}\n', False), huge=(b"[" * 70000, False),
       hangup=(b"", True), http=(b"HTTP/1.1 400 Bad Request\r\n\r\n", True),
       version=(b'{"QMP": {"version": {"qemu": 7}}}\n', False))
def dump_no_qmp_server(rig, says, hangs_up):
    """Somebody else listens there."""
    path, held = f"{rig.tmp}/other.sock", []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def serve():
            try:
                client = server.accept()[0]
                client.sendall(says)
                if hangs_up:
                    client.close()
                held.append(client)
            except OSError:
                pass
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        dump_fails(rig, path, path)
        thread.join()
    for client in held:
        client.close()


@test
def dump_socket_taken(rig):
    vm = rig.vm()
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(vm.qmp_path)
        other.recv(1000)
        for spec in (vm.pid, vm.qmp_path):
            dump_fails(rig, spec, vm.qmp_path, "taken", OPTION)
        vm.passes()
    vm.runs_on()
    rig.dump(vm)


@test
def dump_by_second_socket(rig):
    """One of its two sockets is taken: the other one will do."""
    vm = rig.vm(args=["-qmp", "unix:{dir}/second.sock,server=on,wait=off"])
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(vm.qmp_path)
        other.recv(1000)
        rig.dump(vm)


@test
def dump_place_taken(rig):
    vm = rig.vm()
    full, file, link = f"{rig.tmp}/full", f"{rig.tmp}/file", f"{rig.tmp}/link"
    os.mkdir(full)
    for path in (f"{full}/precious", file):
        with open(path, "w", encoding="ascii") as f:
            f.write("precious")
    os.symlink(f"{rig.tmp}/nowhere", link)
    dump_fails(rig, vm.pid, full, "not empty", images=full)
    dump_fails(rig, vm.pid, file, images=file)
    dump_fails(rig, vm.pid, link, images=link)
    check(os.listdir(full) == ["precious"] and rig.text_of(file) == "precious" and os.path.islink(link), "it was changed")
    vm.runs_on()


@test
def dump_place_impossible(rig):
    vm = rig.vm()
    parent = f"{rig.tmp}/no/parent"
    dump_fails(rig, vm.pid, parent, images=parent)
    check(not os.path.exists(f"{rig.tmp}/no"), "the parent was made")
    dump_fails(rig, vm.pid, images="")
    dump_fails(rig, vm.pid, images=f"{rig.tmp}/" + "x" * 300)
    dump_fails(rig, vm.pid, images="/proc/images")
    vm.runs_on()


@test
def dump_place_is_a_mount(rig):
    where = rig.mount("tmpfs", 8)
    vm = rig.vm()
    dump_fails(rig, vm.pid, where, "mount point", images=where)
    vm.runs_on()


@test
def dump_into_an_empty_directory(rig):
    vm = rig.vm()
    os.mkdir(rig.images())
    rig.dump(vm)
    rig.restore(vm)


@test
def dump_twice(rig):
    """What is dumped already is not overwritten."""
    first = rig.checkpoint()
    before = {e: os.stat(f"{rig.images()}/{e}").st_mtime_ns for e in os.listdir(rig.images())}
    vm = rig.vm()
    dump_fails(rig, vm.pid, rig.images(), "not empty", images=rig.images())
    check(before == {e: os.stat(f"{rig.images()}/{e}").st_mtime_ns for e in os.listdir(rig.images())}, "the first one was changed")
    vm.runs_on()
    vm.kill()
    rig.restore(first)


@cases(ext4=("ext4", 24), tmpfs=("tmpfs", 24), tiny=("tmpfs", 1))
def dump_disk_full(rig, kind, mib):
    where = rig.mount(kind, mib)
    vm = rig.vm(ram=128)
    free = os.statvfs(where).f_bavail
    result = rig.fails("dump", str(vm.pid), "-D", f"{where}/images", says=[where])
    check("No space" in result.err or "free" in result.err, f"it doesn't say that the disk is full; {result}")
    check(set(os.listdir(where)) <= {"lost+found"}, f"left there: {os.listdir(where)}")
    check(os.statvfs(where).f_bavail >= free - 16, "its space is not given back")
    vm.runs_on()
    rig.dump(vm)                                        # where there is room


@test
def dump_disk_full_paused(rig):
    where = rig.mount("tmpfs", 8)
    vm = rig.vm()
    vm.qmp("stop")
    rig.fails("dump", str(vm.pid), "-D", f"{where}/images", says=[where])
    vm.stays_paused()
    vm.qmp("cont")
    vm.runs_on()


@test
def dump_modes(rig):
    """Images hold what was in the guest's memory: nobody else may read them."""
    rig.checkpoint()
    for path in [rig.images(), *(f"{rig.images()}/{e}" for e in os.listdir(rig.images()))]:
        mode = os.stat(path).st_mode & 0o777
        check(mode & 0o077 == 0, f"{path} has mode {mode:o}")


@test
def dump_as_nobody(rig):
    """Without the right to: the message says so, and what would help."""
    vm = rig.vm()
    place = rig.folder("theirs-", NOBODY)
    for spec in (vm.pid, vm.qmp_path):
        dump_fails(rig, spec, "permission", "root", images=f"{place}/images", user=NOBODY)
    check(not os.listdir(place), "something was written")
    vm.runs_on()


@test
def dump_where_nobody_may_write(rig):
    vm = rig.vm(owner=NOBODY, prefix=rig.as_user(NOBODY))
    os.mkdir(f"{rig.tmp}/roots")
    dump_fails(rig, vm.pid, f"{rig.tmp}/roots", images=f"{rig.tmp}/roots/images", user=NOBODY)
    vm.runs_on()


@test
def dump_disk_deleted(rig):
    """The image that it runs on has no name any more: it could never be restored."""
    with open(f"{rig.tmp}/disk.img", "wb") as f:
        f.truncate(1 << 20)
    vm = rig.vm(args=["-drive", f"file={rig.tmp}/disk.img,if=virtio,format=raw"])
    os.rename(f"{rig.tmp}/disk.img", f"{rig.tmp}/moved.img")
    dump_fails(rig, vm.pid, f"{rig.tmp}/disk.img")
    shutil.copy(f"{rig.tmp}/moved.img", f"{rig.tmp}/disk.img")
    dump_fails(rig, vm.pid, f"{rig.tmp}/disk.img", "replaced")
    vm.runs_on()


@test
def dump_debugged(rig):
    """A debugger holds it: it cannot be frozen, and nothing happens to it."""
    if not shutil.which("strace"):
        raise Skip("needs strace")
    vm = rig.vm()
    strace = rig.start(["strace", "-qq", "-f", "-o", "/dev/null", "-e", "trace=none", "-p", str(vm.pid)])
    try:
        wait_for("the debugger", 10, lambda: all(vm.held()))
        dump_fails(rig, vm.pid, str(vm.pid), "debugger")
    finally:
        strace.terminate()
        strace.wait()
    vm.runs_on()
