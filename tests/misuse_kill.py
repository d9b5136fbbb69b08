# SPDX-License-Identifier: GPL-2.0-only
"""Ends at any moment: of criu-vm, of QEMU, of the pager. A VM runs well, or there is nothing of it."""
import fcntl
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time

from misuse_rig import NOBODY, Vm, alive, cases, check, memfd_bytes, peer_pid, processes_of, test, wait_for

# ---- a dump, cut off


def partials(rig):
    return [e for e in os.listdir(rig.tmp) if e.endswith(".partial")]


def cut_dump(rig, vm, signum):
    """The signal comes while memory is being copied: not faster than it can be watched, however busy the machine is."""
    line = ["nice", "-n", "10", *rig.line("dump", str(vm.pid), "-D", rig.images())]
    dump = rig.start(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def copying():
        check(dump.poll() is None, f"the dump ended too early: {rig.end_criu_vm(dump) if dump.poll() is not None else ''}")
        return any(os.path.getsize(f"{rig.tmp}/{p}/{e}") > 30 << 20 for p in partials(rig)
                   for e in os.listdir(f"{rig.tmp}/{p}") if e == "pages-1.img")
    wait_for("the copy", 30, copying)
    os.kill(dump.pid, signum)
    return rig.end_criu_vm(dump)


@cases(sigint=signal.SIGINT, sigterm=signal.SIGTERM)
def dump_cut_off(rig, signum):
    vm = rig.vm(image="touch", ram=1024, append="fill=95")
    result = cut_dump(rig, vm, signum).check(1, "interrupted")
    check(not partials(rig) and not os.path.exists(rig.images()), f"left: {partials(rig)}; {result}")
    vm.runs_on()
    vm.qmp("stop")
    cut_dump(rig, vm, signum).check(1, "interrupted")
    check(not partials(rig) and not os.path.exists(rig.images()), "left after the second")
    vm.stays_paused()


@test
def dump_killed(rig):
    """By SIGKILL it cannot clean up; but the VM runs on by itself, and the next dump is good."""
    vm = rig.vm(image="touch", ram=1024, append="fill=95")
    cut_dump(rig, vm, signal.SIGKILL).check(-signal.SIGKILL)
    check(not os.path.exists(rig.images()), "a checkpoint is there")
    half = partials(rig)
    check(len(half) == 1, f"{half}")
    vm.nobody_holds_it()
    rig.fails(*rig.restore_line(images=f"{rig.tmp}/{half[0]}"), says=[half[0]])
    wait_for("the VM to run", 10, lambda: vm.status() == "running")
    vm.runs_on()
    rig.dump(vm)
    shutil.rmtree(f"{rig.tmp}/{half[0]}")
    rig.restore(vm, "--lazy-pages")


@cases(sigint=signal.SIGINT, sigterm=signal.SIGTERM, sigkill=signal.SIGKILL)
def dump_cut_off_anywhere(rig, signum):
    """Whole or not at all, and the VM runs unless it is whole."""
    vm = rig.vm(ram=64)
    begin = time.monotonic()
    rig.dump(vm, images=f"{rig.tmp}/measure")
    whole = time.monotonic() - begin
    vm = rig.vm(ram=64)
    for i in range(6):
        dump = rig.start_criu_vm("dump", str(vm.pid), "-D", rig.images())
        time.sleep(random.uniform(0, whole * 1.1))
        if dump.poll() is None:
            os.kill(dump.pid, signum)
        result = rig.end_criu_vm(dump)
        if os.path.exists(rig.images()):
            check(result.status == 0 or signum == signal.SIGKILL, f"failed, and the checkpoint is there; {result}")
            if result.status:                           # killed after the commit: it must not run beside its checkpoint
                wait_for("the VM's end or pause: it runs beside its checkpoint", 10, vm.stopped_or_gone)
                vm.kill()
            vm.wait_end()
            rig.restore(vm, "--lazy-pages").kill()
            rig.nothing_left()
            shutil.rmtree(rig.images())
            vm = rig.vm(ram=64)
            continue
        check(result.status in (1, -signum), f"round {i}: {result}")
        if signum == signal.SIGKILL:
            vm.nobody_holds_it()
            wait_for("the VM to run", 10, lambda: vm.status() == "running")
            for p in partials(rig):
                shutil.rmtree(f"{rig.tmp}/{p}")
        check(not partials(rig), f"round {i}: {partials(rig)}")
        vm.runs_on()


# ---- a restore, cut off


FLAGS = {"eager": [], "small": ["--ram", "16M", "--swap", "{tmp}/swap/image"], "lazy": ["--lazy-pages"],
         "lazy-small": ["--lazy-pages", "--ram", "16M", "--swap", "{tmp}/swap/image"]}


@cases(**{f"{flavour}_{name}".replace("-", "_"): (flavour, signum) for flavour in FLAGS
          for name, signum in (("sigint", signal.SIGINT), ("sigterm", signal.SIGTERM), ("sigkill", signal.SIGKILL))})
def restore_cut_off(rig, flavour, signum):
    """At random moments: then either the VM runs, and well, or there is nothing. A SIGKILL may leave files; the name is free."""
    flags = [f.format(tmp=rig.tmp) for f in FLAGS[flavour]]
    old = rig.checkpoint(ram=64)
    begin = time.monotonic()
    rig.restore(old, *flags, runs=False).kill()
    whole = time.monotonic() - begin
    rig.nothing_left()
    for i in range(5):
        serial = f"{old.dir}/serial.log"
        before = len(rig.text_of(serial))
        restore = rig.start_criu_vm(*rig.restore_line(*flags))
        time.sleep(random.uniform(0, whole * 0.9))
        if restore.poll() is None:
            os.kill(restore.pid, signum)
        result = rig.end_criu_vm(restore)
        check(result.status in (0, 1, -signum), f"round {i}: {result}")

        if result.status == 0:
            finish_restored(rig, old)
        elif signum != signal.SIGKILL:                  # one that came at once was not caught: there was nothing yet
            check("interrupted" in result.err or result.status == -signum, f"round {i}: {result}")
            rig.nothing_left()
            check("ok " not in rig.text_of(serial)[before:], f"round {i}: the guest ran")
        else:
            if wait_for(f"round {i}: a VM that runs, or no process of it", 20, lambda: what_became(rig)) == "running":
                finish_restored(rig, old)
            new = rig.restore(old, *flags)              # whatever is left is in nobody's way
            new.kill()
            rig.nothing_left()


def what_became(rig):
    """Of a VM whose restore was killed, as soon as that is certain."""
    if not processes_of(rig.tmp):
        return "ended"
    result = rig.criu_vm("stat", rig.name, "--json")    # it may go at this moment
    return result.status == 0 and json.loads(result.out).get("guest") == "running" and "running"


def finish_restored(rig, old):
    pid = wait_for("the restored QEMU", 10, lambda: peer_pid(f"{old.dir}/qmp.sock"))
    vm = Vm(old.dir, pid)
    rig.vms.append(vm)
    vm.runs_on()
    vm.kill()
    rig.nothing_left()


# ---- a restored VM ends


@cases(eager=("eager", signal.SIGKILL), small=("small", signal.SIGKILL), lazy=("lazy", signal.SIGKILL),
       lazy_small=("lazy-small", signal.SIGKILL),
       by_sigterm=("lazy-small", signal.SIGTERM), by_sigsegv=("lazy-small", signal.SIGSEGV))
def qemu_killed(rig, flavour, signum):
    vm = rig.restore(rig.checkpoint(ram=64), *[f.format(tmp=rig.tmp) for f in FLAGS[flavour]])
    os.kill(vm.pid, signum)
    vm.wait_end()
    rig.nothing_left()
    log = rig.text_of(rig.pager_log)
    check("ended: killed by signal" in log or "ended: exit status" in log, f"how did it end? {log[-500:]}")


@cases(quit=[("quit", {})], shutdown=[("system_reset", {})])
def qemu_ends(rig, commands):
    """The guest's own end: -no-reboot makes a reboot one."""
    vm = rig.restore(rig.checkpoint(ram=64, args=["-no-reboot"]), *rig.lazy_small())
    for command, arguments in commands:
        vm.qmp(command, **arguments)
    vm.wait_end()
    rig.nothing_left()
    log = rig.text_of(rig.pager_log)
    check("ended: exit status 0" in log, f"how did it end? {log[-500:]}")
    check("killed" not in log, f"it was killed: {log[-500:]}")


@cases(eager="eager", lazy="lazy", lazy_small="lazy-small")
def guest_reboots(rig, flavour):
    vm = rig.restore(rig.checkpoint(ram=64), *[f.format(tmp=rig.tmp) for f in FLAGS[flavour]])
    vm.qmp("system_reset")
    wait_for("the guest's start", 30, lambda: vm.console.readies == 1 or vm.console.bad)
    check("BAD" not in (vm.console.bad or ""), f"{vm.console.bad}")
    vm.console.readies, vm.console.passes, vm.console.bad = 0, 0, None      # it counts from 1 again
    vm.runs_on()


# ---- a pager's end, and what is not its end


def pager_of(rig):
    return rig.stat()["pager_pid"]


def leave_unserved(rig):
    """Pager and supervisor are killed, so that no other pager follows."""
    answer = rig.stat()
    for key in ("supervisor_pid", "pager_pid"):
        os.kill(answer[key], signal.SIGKILL)
        wait_for("its end", 5, lambda key=key: not alive(answer[key]))


@cases(lazy="lazy", lazy_small="lazy-small")
def unserved(rig, flavour):
    """The guest waits, it sees no wrong page; stat says so; when QEMU is killed, the name is free."""
    flags = [f.format(tmp=rig.tmp) for f in FLAGS[flavour]]
    old = rig.vm(ram=64)
    old.qmp("stop")                                     # so that no page has come from the images when the pager goes
    rig.dump(old)
    vm = rig.restore(old, *flags, runs=False)
    leave_unserved(rig)
    vm.qmp("cont")
    time.sleep(0.5)
    check(alive(vm.pid), "QEMU has ended")
    vm.console.check()
    answer = rig.stat()
    check(answer["state"] == "unserved" and "no pager" in answer["message"], f"stat: {answer}")
    check("no pager" in rig.criu_vm("stat", rig.name).check(0).out, "stat in text")
    check("no pager" in rig.criu_vm("stat").check(0).out, "the table of all VMs")
    vm.stands_still()
    rig.fails(*rig.restore_line(*flags), says=[f"'{rig.name}'", "in use", str(vm.pid)])
    check(alive(vm.pid), "QEMU has ended")
    vm.kill()
    answer = rig.stat()
    check(answer["state"] == "ended", f"stat: {answer}")
    new = rig.restore(old, *flags, runs=False)
    check(rig.stat()["state"] == "served", f"stat: {rig.stat()}")
    new.qmp("cont")
    new.runs_on()
    new.kill()
    rig.nothing_left()


@test
def unserved_nothing_paged(rig):
    """All of its memory is there: it runs on without its pager."""
    vm = rig.restore(rig.checkpoint())
    leave_unserved(rig)
    vm.passes(5)
    answer = rig.stat()
    check(answer["state"] == "unserved", f"stat: {answer}")
    check("waits" not in answer["message"], f"it does not wait: {answer}")
    rig.fails(*rig.restore_line(), says=[f"'{rig.name}'", "in use"])
    vm.runs_on()
    vm.kill()
    rig.restore(vm)


@test
def leftovers_swap_replaced(rig):
    """The swap image of a dead VM was deleted by the user, who has a file of his own there now: it stays."""
    old = rig.checkpoint(ram=64)
    vm = rig.restore(old, *rig.lazy_small())
    leave_unserved(rig)
    vm.kill()
    image = f"{rig.tmp}/swap/image"
    inode = os.stat(image).st_ino
    for _ in range(50):                                 # ext4 gives the number of the deleted inode to the next file, often
        os.unlink(image)
        with open(image, "w", encoding="ascii") as f:
            f.write("precious")
        if os.stat(image).st_ino == inode:
            break
    rig.restore(old, "--lazy-pages").kill()
    check(rig.text_of(image) == "precious", "the user's file was deleted with the leftovers")
    os.unlink(image)


@cases(eager="small", lazy="lazy-small")
def swap_image_is_locked(rig, flavour):
    """As long as its VM runs, so that nobody takes it for a leftover."""
    rig.restore(rig.checkpoint(ram=64), *[f.format(tmp=rig.tmp) for f in FLAGS[flavour]])
    with open(f"{rig.tmp}/swap/image", "rb") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    check(False, "nobody holds its lock")


@test
def pager_keeps_on(rig):
    """What a terminal or a service manager sends to all does not end it."""
    vm = rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    pager = pager_of(rig)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        os.kill(pager, signum)
    vm.runs_on()
    check(pager_of(rig) == pager, "it is another one")
    check(os.getsid(pager) != os.getsid(0) and os.readlink(f"/proc/{pager}/fd/0") == "/dev/null", "it is not detached")


@test
def pager_stopped(rig):
    """SIGSTOP: the guest waits, stat tells and does not hang; SIGCONT: all goes on."""
    vm = rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    pager = pager_of(rig)
    os.kill(pager, signal.SIGSTOP)
    try:
        answer = rig.stat()
        check(answer["state"] == "silent" and answer["message"], f"stat: {answer}")
        rig.fails(*rig.restore_line(*rig.lazy_small()), says=["in use"])
    finally:
        os.kill(pager, signal.SIGCONT)
    vm.runs_on()
    check(rig.stat()["state"] == "served", "stat after it")


@test
def control_socket_abused(rig):
    """Whatever comes in on it, the pager serves on."""
    vm = rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    path, open_ones = f"{rig.tmp}/run/{rig.name}/control.sock", []
    requests = (b"", b"\n", b"\0" * 100, b"{}\n", b"[]\n", b'{"execute": 7}\n', b'{"execute": "nonsense"}\n', b'"stat"\n',
                b"[" * 100000, b"x" * (1 << 20), b'{"execute": "stat"}\n', b"{" + b'"a":{' * 5000 + b"\n", b"\xff\xfe\n")
    for i, text in enumerate(requests):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(0.3)
        try:
            s.connect(path)
            s.sendall(text)
            if i % 2:
                s.recv(100000)
        except OSError:
            pass
        open_ones.append(s)
    for _ in range(100):                                # and those who connect and say nothing
        s = socket.socket(socket.AF_UNIX)
        s.setblocking(False)
        try:
            s.connect(path)
        except OSError:
            pass
        open_ones.append(s)
    vm.runs_on()
    for s in open_ones:
        s.close()
    wait_for("an answer", 10, lambda: rig.stat()["state"] == "served")


# ---- users


@cases(runas=("runas", "lazy-small"), runas_eager=("runas", "eager"), started_as=("started", "lazy-small"),
       started_as_eager=("started", "small"))
def qemu_of_nobody(rig, how, flavour):
    """A QEMU that is not root: planted by way of /dev/userfaultfd; the new one is not root either."""
    guest = {"owner": NOBODY, "prefix": rig.as_user(NOBODY)} if how == "started" else {"owner": NOBODY, "args": ["-runas", "nobody"]}
    vm = rig.vm(ram=64, **guest)
    check(uid_of(vm.pid) == NOBODY, "it runs as root")
    rig.dump(vm)
    new = rig.restore(vm, *[f.format(tmp=rig.tmp) for f in FLAGS[flavour]])
    check(uid_of(new.pid) == NOBODY, "the new one runs as root")
    new.passes(10)
    if flavour != "eager":
        check(memfd_bytes(new.pid) <= 16 << 20, f"{memfd_bytes(new.pid)} bytes are resident, the budget is 16 MiB")
        answer = rig.stat()
        check(answer["counts"]["faults"] > 0 and answer["counts"]["chunks_out"] > 0, f"nothing was paged: {answer['counts']}")
    new.runs_on()


def uid_of(pid):
    with open(f"/proc/{pid}/status", encoding="latin-1") as f:
        return int(re.search(r"^Uid:\t\d+\t(\d+)", f.read(), re.M)[1])
