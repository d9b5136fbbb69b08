# SPDX-License-Identifier: GPL-2.0-only
"""A restored QEMU that takes its time, or ends, before its monitor answers."""
import os
import signal
import time

from misuse_rig import QEMU, Vm, cases, check, copy_program, make_script, peer_pid, test, wait_for


def asleep(rig, script):
    """A checkpoint whose QEMU is this shell script when it is restored; {qemu} in it is the real one."""
    qemu = f"{rig.tmp}/qemu-system-copy"
    copy_program(QEMU, qemu)
    old = rig.checkpoint(qemu=qemu, args=["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"])
    os.rename(qemu, f"{qemu}.real")
    make_script(qemu, "#!/bin/sh\n" + script.format(qemu=f"{qemu}.real", name=rig.name, tmp=rig.tmp))
    return old


def starts_asleep(rig):
    """A restore, and its VM, whose QEMU has no monitor yet."""
    old = asleep(rig, "echo $$ >{tmp}/pid; exec sleep 600\n")
    restore = rig.start_criu_vm(*rig.restore_line())
    return restore, Vm(old.dir, int(wait_for("the new QEMU", 10, lambda: rig.text_of(f"{rig.tmp}/pid").strip())))


def starts_busy(rig):
    """The same, but one of its threads has greeted, while its main thread, which takes commands, reads from a pipe."""
    path = f"{rig.tmp}/blob"
    with open(path, "wb"):
        pass
    old = rig.checkpoint(args=["-fw_cfg", f"name=opt/criu-vm/blob,file={path}"])
    os.unlink(path)
    os.mkfifo(path)
    restore = rig.start_criu_vm(*rig.restore_line())

    def reads():
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return None
    restore.pipe = wait_for("the new QEMU to read", 10, reads)
    return restore, Vm(old.dir, peer_pid(f"{old.dir}/qmp.sock"))


def runs_well(rig, vm, result):
    rig.vms.append(vm)
    check(not result.err, f"a complaint: {result}")
    vm.runs_on()


# It waits for the first, and then as long as others might take.
SEES_CONNECTIONS = """
nr() {{ grep -c /run/{name}/qmp.sock /proc/net/unix; }}
for i in $(seq 600); do [ "$(nr)" -ge 2 ] && break; sleep 0.1; done
sleep 1.2
nr >{tmp}/sockets
"""


@test
def start_late(rig):
    """It is waited for with one connection: of several it would greet the dead ones first."""
    old = asleep(rig, SEES_CONNECTIONS + "exec {qemu} \"$@\"\n")
    result = rig.criu_vm(*rig.restore_line()).check(0)
    runs_well(rig, Vm(old.dir, peer_pid(f"{old.dir}/qmp.sock")), result)
    sockets = rig.text_of(f"{rig.tmp}/sockets").strip()
    check(sockets == "2", f"one that listens and one connection were expected, there are {sockets}")


@test
def start_busy(rig):
    restore, vm = starts_busy(rig)
    time.sleep(1.2)
    os.close(restore.pipe)
    runs_well(rig, vm, rig.end_criu_vm(restore).check(0))


@cases(asleep_interrupted=(starts_asleep, signal.SIGINT), busy_interrupted=(starts_busy, signal.SIGINT),
       asleep_killed=(starts_asleep, signal.SIGKILL), busy_killed=(starts_busy, signal.SIGKILL))
def start_ended(rig, start, signum):
    """Ctrl-C, or the end of QEMU: it is seen at once, long before any time-out."""
    restore, vm = start(rig)
    time.sleep(0.8)
    begin = time.monotonic()
    os.kill(vm.pid if signum == signal.SIGKILL else restore.pid, signum)
    rig.end_criu_vm(restore).check(1, "QEMU has ended" if signum == signal.SIGKILL else "interrupted")
    check(time.monotonic() - begin < 20, f"seen after {time.monotonic() - begin:.1f} s")
    rig.nothing_left()
