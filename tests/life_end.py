# SPDX-License-Identifier: GPL-2.0-only
"""How a VM ends: all that was made for it goes, and its log says how. A reboot is no end."""
import os
import signal
import threading

from misuse_rig import cases, check, processes_of, test, wait_for

END_SECONDS = 15


def gone(rig, vm, *words):
    """All of it, the swap image too; the log's last line has one of the words."""
    vm.wait_end(END_SECONDS)
    line = rig.how_it_ended(END_SECONDS)
    check(any(w in line for w in words), f"one of {words} was expected: {line}")
    rig.note = line.partition("ended: ")[2]


@cases(sigkill=(signal.SIGKILL, "SIGKILL", "signal 9", "Killed"), sigsegv=(signal.SIGSEGV, "SIGSEGV", "signal 11", "Segmentation"),
       sigabrt=(signal.SIGABRT, "SIGABRT", "signal 6", "Aborted"), sigterm=(signal.SIGTERM, "signal", "status 0"))
def signalled(rig, signum, *words):
    vm = rig.paged()
    os.kill(vm.pid, signum)
    gone(rig, vm, *words)


@cases(quit=("quit", "quit"), powerdown=("system_reset", "guest-reset", "reset"))
def by_monitor(rig, command, *words):
    """-no-reboot makes a reset an end."""
    vm = rig.paged(ram=64, args=["-no-reboot"])
    vm.qmp(command)
    gone(rig, vm, *words)


@test
def poweroff(rig):
    vm = rig.paged(guest=rig.linux(), budget=64)
    rig.ask(vm, "poweroff")
    gone(rig, vm, "guest-shutdown")


@test
def panic_is_an_end(rig):
    """By the reset that follows it, with -no-reboot."""
    vm = rig.paged(guest=rig.linux(), budget=64, args=["-no-reboot"])
    rig.ask(vm, "panic")
    wait_for("the end of QEMU", 30, lambda: not vm.alive())
    check("panic" in (vm.console.bad or "panic"), f"the guest says: {vm.console.bad}")
    vm.console.bad = None
    gone(rig, vm, "panic", "guest-reset")


@cases(reboot="reboot", panic="panic")
def starts_again(rig, command):
    """The same QEMU under the same pager; it verifies its new memory, the former life's is nowhere in it."""
    vm = rig.paged(guest=rig.linux("fill=30"), budget=64)
    pager = rig.pager()
    rig.ask(vm, command)
    rig.boots_again(vm)
    rig.verified(vm)
    check(rig.pager() == pager, "it is another pager")
    rig.kill_pager()
    rig.verified(vm)
    vm.runs_on()


@cases(supervisor="supervisor_pid", pager="pager_pid")
def one_is_dead(rig, which):
    """The supervisor is dead for long, or the pager dies with QEMU: the other cleans up."""
    vm = rig.paged()
    victim = rig.stat()[which]
    os.kill(victim, signal.SIGKILL)
    if which == "supervisor_pid":
        vm.passes()
    vm.kill()
    gone(rig, vm, "signal 9", "not known" if which == "supervisor_pid" else "Killed")


@test
def ends_while_taken_over(rig):
    """QEMU is killed at the moment of a take-over."""
    old = rig.checkpoint(ram=64)
    for delay in (0, 0.02, 0.05, 0.1, 0.3):
        vm = rig.restore(old, *rig.small())
        timer = threading.Timer(delay, vm.kill)
        timer.start()
        result = rig.criu_vm("lazy-pages", "--name", rig.name)
        timer.join()
        check(result.status in (0, 1, 3), f"{result}")
        rig.nothing_left(END_SECONDS)


@test
def ends_while_waiting_for_a_page(rig):
    """A QEMU whose guest waits for a disk that does not answer can be killed, and goes."""
    fs = rig.faulty()
    vm = rig.paged(swap=f"{fs.path}/image")
    fs("hold-reads")
    wait_for("a read", 20, lambda: fs("status")[0])
    os.kill(vm.pid, signal.SIGKILL)
    vm.wait_end(END_SECONDS)
    fs("release")
    gone(rig, vm, "SIGKILL", "signal 9", "Killed")


@test
def starter_ends(rig):
    """The session that restored it ends, and all its processes: the VM runs on."""
    old = rig.checkpoint(ram=64)
    vm = rig.restore(old, *rig.small())
    shell = rig.start(["sh", "-c", "sleep 100 & wait"])
    restored_by = os.getsid(shell.pid)
    os.killpg(restored_by, signal.SIGKILL)
    check(vm.pid in processes_of(rig.tmp), "QEMU has ended")
    vm.runs_on()
