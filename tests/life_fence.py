# SPDX-License-Identifier: GPL-2.0-only
"""A dead pager's reads and writes have ended before another one serves: they would land on what the guest has written since.

A disk holds them, the pager is killed, and what the next one reads and writes is not held. Were it to serve at once, the guest
would go on, with seconds to rewrite the very pages; the release then spoils what it verifies. For reads the budget is raised to
all of the RAM at that moment: a page that were to leave the memory again could not be spoilt there.
"""
import os
import time

from life_rig import serves
from misuse_rig import cases, check, test, wait_for

UNFENCED_SECONDS = 3            # for a pager that does not wait, to do harm
REWRITING = {"image": "smp", "ram": 40}     # each page changes every other pass


def small_again(rig, vm):
    rig.criu_vm("set", rig.name, "--ram", "16M").check(0)
    vm.passes(5)


def hold(rig, fs, kind):
    """I/O of the pager is held. Returns how much."""
    fs(f"hold-{kind}")
    wait_for(f"{kind} that are held", 30, lambda: any(fs("status")))
    if kind == "reads":
        rig.criu_vm("set", rig.name, "--ram", "1G").check(0)
    time.sleep(0.2)
    return sum(fs("status"))


def nobody_serves(rig, fs, seconds=UNFENCED_SECONDS):
    """As long as it is held. A page that was in memory may still be touched, but none comes or goes."""
    before, end = fs("status"), time.monotonic() + seconds
    while time.monotonic() < end:
        answer = rig.stat()
        check(not serves(answer), "it serves while the I/O of the dead is in flight")
        time.sleep(0.1)
    check(fs("status") == before, f"held before: {before}, now {fs('status')}")
    return answer


@cases(reads="reads", writes="writes")
def fenced(rig, kind):
    fs = rig.faulty()
    vm = rig.paged(swap=f"{fs.path}/image", **REWRITING)
    for _ in range(3):
        small_again(rig, vm)
        held, pager = hold(rig, fs, kind), rig.pager()
        os.kill(pager, 9)
        fs("pass")
        answer = nobody_serves(rig, fs)
        check(answer["trouble"], f"stat does not say what it waits for: {answer}")
        fs("release")
        rig.served(pager)
        vm.passes(5, 60)
    vm.runs_on()
    rig.note = f"{held} held; stat: {answer['trouble']}"


@cases(reads="reads", writes="writes")
def fenced_by_hand(rig, kind):
    """The supervisor, killed too, does not have to be there for it."""
    fs = rig.faulty()
    vm = rig.paged(swap=f"{fs.path}/image", **REWRITING)
    small_again(rig, vm)
    hold(rig, fs, kind)
    answer = rig.stat()
    os.kill(answer["supervisor_pid"], 9)
    os.kill(answer["pager_pid"], 9)
    fs("pass")
    command = rig.start_criu_vm("lazy-pages", "--name", rig.name)
    nobody_serves(rig, fs)
    check(command.poll() is None, f"it did not wait: {rig.end_criu_vm(command) if command.poll() is not None else ''}")
    fs("release")
    rig.end_criu_vm(command).check(0)
    vm.passes(10, 60)
    vm.runs_on()


@cases(reads="reads", writes="writes")
def fenced_when_replaced(rig, kind):
    """A pager that lives is replaced while its I/O is held: the same."""
    fs = rig.faulty()
    vm = rig.paged(swap=f"{fs.path}/image", **REWRITING)
    small_again(rig, vm)
    hold(rig, fs, kind)
    pager = rig.pager()
    command = rig.start_criu_vm("lazy-pages", "--name", rig.name)
    time.sleep(0.5)
    fs("pass")
    end = time.monotonic() + UNFENCED_SECONDS
    while time.monotonic() < end:
        answer = rig.stat()
        check(not serves(answer) or answer["pager_pid"] == pager, "the new one serves while the old one's I/O is in flight")
        time.sleep(0.1)
    fs("release")
    rig.end_criu_vm(command).check(0)
    rig.served(pager)
    vm.passes(10, 60)
    vm.runs_on()


@test
def fenced_device_slow(rig):
    """Each request takes 50 ms, so that much is in flight at each of the kills."""
    fs = rig.faulty()
    vm = rig.paged(guest=rig.dma(), budget=32, swap=f"{fs.path}/image")
    fs("delay-ms 50")
    for _ in range(10):
        time.sleep(0.5)
        rig.kill_pager()
    fs("delay-ms 0")
    vm.passes(5, 60)
    vm.runs_on()
