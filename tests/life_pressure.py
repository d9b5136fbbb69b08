# SPDX-License-Identifier: GPL-2.0-only
"""Budgets that change, several VMs, images that become needless; a host that swaps, a VM that idles."""
import shutil
import time

from guests import MIB
from misuse_rig import Skip, cases, check, memfd_bytes, test, wait_for

SETTLE_SECONDS = 5


def set_ram(rig, size, name=None):
    return rig.criu_vm("set", name or rig.name, "--ram", size)


def resident_within(rig, vm, mib):
    """For good: while a budget shrinks, memory is below it for a moment at times."""
    sampler = rig.watch_memory(vm)

    def settled():
        sampler.peak = 0
        time.sleep(0.5)
        return 0 < sampler.peak <= mib * MIB
    wait_for(f"{mib} MiB at most in memory; there were {memfd_bytes(vm.pid) / MIB:.1f}", SETTLE_SECONDS, settled)
    sampler.stop()


# ---- set


@test
def shrink_and_grow(rig):
    """Promptly, under a guest that touches all of its memory again and again, and for its pager's successors too."""
    vm = rig.paged(ram=128, budget=96)
    vm.passes(3)
    for mib in (32, 16, 64, 24, 128):
        set_ram(rig, f"{mib}M").check(0)
        resident_within(rig, vm, mib)
        sampler = rig.watch_memory(vm)
        vm.passes(3, 60)
        sampler.stop()
        check(sampler.peak <= mib * MIB, f"{sampler.peak / MIB:.1f} MiB were in memory, {mib} are the budget")
        check((a := rig.stat())["memory"]["budget"] == mib * MIB, f"stat: {a['memory']}")
        if mib != 16:
            check(sampler.peak > 0.7 * mib * MIB, f"no more than {sampler.peak / MIB:.1f} MiB of {mib} were used")
    vm.runs_on()


@test
def set_survives(rig):
    vm = rig.paged(ram=128, budget=64)
    set_ram(rig, "24M").check(0)
    rig.kill_pager()
    check((a := rig.stat())["memory"]["budget"] == 24 * MIB, f"stat: {a['memory']}")
    vm.passes(3)
    resident_within(rig, vm, 24)
    rig.kill_both()
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    vm.passes(3)
    resident_within(rig, vm, 24)


@test
def set_refused(rig):
    """Below what works, with the figure; the VM is as before. More than its RAM is its RAM."""
    vm = rig.paged(ram=64, budget=32)
    rig.fails("set", rig.name, "--ram", "1M", says=["1 MiB", "16 MiB"])
    rig.fails("set", rig.name, "--ram", "4095", says=["16 MiB"])
    check(rig.stat()["memory"]["budget"] == 32 * MIB, f"stat: {rig.stat()['memory']}")
    for size in ("many", "0", "-1M", ""):
        rig.fails("set", rig.name, "--ram", size, says=["--ram"], status=2)
    rig.fails("set", rig.name, status=2)
    rig.fails("set", "--ram", "16M", status=2)
    rig.fails("set", "nobody", "--ram", "16M", says=["nobody"])
    vm.passes()
    set_ram(rig, "1G").check(0)
    check(rig.stat()["memory"]["budget"] == 64 * MIB, f"stat: {rig.stat()['memory']}")
    vm.runs_on()


@cases(eager=[], paused=["stop"])
def set_without_paging(rig, commands):
    """A VM that was restored with all of its RAM is in memory, not in private virtual memory."""
    vm = rig.restore(rig.checkpoint(ram=64))
    for command in commands:
        vm.qmp(command)
    rig.fails("set", rig.name, "--ram", "16M", says=["--ram"])
    if not commands:
        vm.runs_on()


@test
def set_unserved(rig):
    vm = rig.paged()
    rig.kill_both()
    rig.fails("set", rig.name, "--ram", "16M", says=["pager"])
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    vm.runs_on()


@test
def set_with_dma(rig):
    guest = rig.dma()
    vm = rig.paged(guest=guest, budget=64)
    for mib in (32, 64, 24):
        set_ram(rig, f"{mib}M").check(0)
        time.sleep(SETTLE_SECONDS)
        resident_within(rig, vm, mib + guest.in_flight)
        vm.passes(3, 60)
    vm.runs_on()


# ---- more than one


@test
def several_vms(rig):
    """Each within its own budget, and one's end is no other's business."""
    vms = {}
    for letter, budget, guest in (("a", 16, {"ram": 48}), ("b", 24, {"ram": 48}),
                                  ("c", 32, {"image": "smp", "ram": 64, "args": ["-smp", "2"]})):
        name = f"{rig.name}-{letter}"
        vm = rig.paged(budget=budget, name=name, images=f"{rig.tmp}/images-{letter}", **guest)
        vms[name] = (vm, budget, rig.watch_memory(vm))
    for vm, _, _ in vms.values():
        vm.passes(3, 60)
    rig.kill_pager(f"{rig.name}-b")
    vms[f"{rig.name}-a"][0].kill()
    for name, (vm, budget, sampler) in vms.items():
        check(sampler.peak <= budget * MIB, f"{name}: {sampler.peak / MIB:.1f} MiB of {budget}")
        if not name.endswith("a"):
            vm.runs_on()


# ---- restore --fill


def images_not_needed(rig, seconds=60):
    wait_for("a VM that needs its images no longer", seconds, lambda: not rig.stat()["images"])


@cases(all=None, small=16)
def fill(rig, budget):
    """The rest comes by itself, within the budget; then the images can go."""
    old = rig.checkpoint(ram=128)
    options = rig.small(budget) if budget else ["--lazy-pages"]
    vm = rig.restore(old, *options, "--fill")
    sampler = rig.watch_memory(vm)
    images_not_needed(rig)
    check(rig.stat()["memory"]["remote"] == 0, f"stat: {rig.stat()['memory']}")
    shutil.rmtree(rig.images())
    vm.passes(10, 60)
    rig.kill_pager()
    vm.passes(3, 60)
    check(not budget or sampler.peak <= budget * MIB, f"{sampler.peak / MIB:.1f} MiB were in memory")
    vm.runs_on()


@test
def fill_paused(rig):
    """Nobody touches anything: it comes none the less."""
    old = rig.vm(ram=128)
    old.qmp("stop")
    rig.dump(old)
    vm = rig.restore(old, *rig.small(32), "--fill", runs=False)
    images_not_needed(rig)
    shutil.rmtree(rig.images())
    check((n := memfd_bytes(vm.pid)) > 16 * MIB, f"memory is filled first; there are {n / MIB:.1f} MiB in it")
    vm.stays_paused()
    vm.qmp("cont")
    vm.passes(10, 60)


@test
def fill_interrupted(rig):
    """Pagers are killed while it goes on; the last of them brings it to its end."""
    fs = rig.faulty()
    old = rig.vm(ram=128)
    rig.dump(old)
    fs("delay-ms 20")
    vm = rig.restore(old, *rig.small(swap=f"{fs.path}/image"), "--fill", runs=False)
    for _ in range(5):
        time.sleep(0.3)
        rig.kill_pager()
    fs("delay-ms 0")
    images_not_needed(rig)
    shutil.rmtree(rig.images())
    vm.passes(10, 60)
    vm.runs_on()


# ---- the VM's cgroup


def cgroup_of(rig):
    path = rig.stat().get("cgroup")
    if not path:
        raise Skip("no cgroup can be made here")
    return path


@test
def cgroup_holds_all(rig):
    """QEMU, supervisor and pager, and the successors of those, are in the VM's cgroup; this test is not."""
    rig.paged()
    path = cgroup_of(rig)

    def members():
        with open(f"{path}/cgroup.procs", encoding="ascii") as f:
            return set(map(int, f.read().split()))
    for kill in (lambda: None, rig.kill_pager):
        kill()
        answer = rig.stat()
        wanted = {answer[k] for k in ("qemu_pid", "supervisor_pid", "pager_pid")}
        check(members() == wanted, f"{members()} are in it, {wanted} were expected")
    rig.kill_both()
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    answer = rig.stat()
    check(members() == {answer[k] for k in ("qemu_pid", "supervisor_pid", "pager_pid")}, f"{members()} after a take-over by hand")
