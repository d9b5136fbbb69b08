# SPDX-License-Identifier: GPL-2.0-only
"""What was hot in private virtual memory is in its checkpoint, and a VM restored from it begins with that."""
import json
import os
import socket

from misuse_rig import MIB, cases, check, test, wait_for

RAM, BUDGET = 64, 24        # MiB
PAGE = 4096


def resident_of(rig, images):
    """Pages that were in memory, as the checkpoint says; 0: it does not say."""
    path = f"{images}/resident.img"
    if not os.path.exists(path):
        return 0
    shown = json.loads(rig.criu_vm("show", "--json", path).check(0).out)
    return sum(e["resident_pages"] for e in shown["entries"])


def hot_dump(rig, *kind, budget=BUDGET, images="hot"):
    """Of a VM in private virtual memory that has run for a while, and is paused. The VM that has ended, and the checkpoint."""
    images = f"{rig.tmp}/{images}"
    vm = rig.paged(budget=budget, ram=RAM)
    vm.passes(3, 60)
    vm.qmp("stop")
    rig.criu_vm("dump", str(vm.pid), "-D", images, *kind).check(0)
    if kind:
        vm.kill()
    vm.wait_end(20)
    wait_for("the end of what served it", 20, lambda: not os.path.exists(f"{rig.tmp}/run/{rig.name}"))
    return vm, images


def ages(rig):
    """How recently each chunk was used, as its pager knows; 0: nothing of it is in memory."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(20)
        s.connect(f"{rig.tmp}/run/{rig.name}/control.sock")
        s.sendall(b'{"execute": "ages"}\n')
        answer = json.loads(s.makefile().readline())
    check("error" not in answer, f"the pager's answer: {answer}")
    with open(f"{rig.tmp}/run/{rig.name}/ages", "rb") as f:
        return f.read()


def comes_back(rig, old, images, *args):
    """Nobody touches anything, and what was in memory is there again: stat of the pager, and the VM."""
    resident = resident_of(rig, images)
    check(resident * PAGE > 4 * MIB, f"{resident} pages were in memory, says the checkpoint")
    vm = rig.restore(old, *args, images=images, runs=False)
    paging = wait_for("what was in memory", 30, lambda: (s := rig.stat()) and not s["replaying"] and s)
    return resident, paging, vm


def goes_on(vm):
    vm.qmp("cont")
    vm.passes(3, 60)
    vm.runs_on()


@cases(stopped=(), zstd=("--compress", "zstd"), left=("-s",), background=("-R", "--background"))
def hot_comes_back(rig, *kind):
    old, images = hot_dump(rig, *kind)
    resident, s, vm = comes_back(rig, old, images, "--lazy-pages")
    check(s["replay_left"] == 0 and s["replayed"] + s["counts"]["faults_source"] * 256 * PAGE >= resident * PAGE * 0.9,
          f"of {resident * PAGE} bytes {s['replayed']} came back, {s['replay_left']} are left")
    check(s["memory"]["resident"] >= resident * PAGE * 0.9, f"{s['memory']['resident']} bytes are in memory, {resident * PAGE} were")
    rig.note = f"{resident * PAGE // MIB} MiB"
    goes_on(vm)


@test
def hot_in_less_memory(rig):
    """As much as there is room for, and nothing is paged out for it."""
    old, images = hot_dump(rig, budget=40)
    _, s, vm = comes_back(rig, old, images, *rig.small(BUDGET, swap=f"{rig.tmp}/swap/other"))
    check(12 * MIB < s["memory"]["resident"] <= BUDGET * MIB, f"{s['memory']['resident']} bytes are in memory")
    check(not s["counts"]["chunks_out"] and not s["memory"]["swapped"], f"something was paged out: {s['counts']}")
    goes_on(vm)


@test
def hot_is_placed(rig):
    """Restored as a whole into little memory: the hottest are in it, on their queues."""
    old, images = hot_dump(rig)
    vm = rig.restore(old, *rig.small(swap=f"{rig.tmp}/swap/other")[1:], images=images, runs=False)
    with open(f"{rig.tmp}/run/{rig.name}/hotness", "rb") as f:
        hotness = f.read()
    now = ages(rig)
    here, away = ([h for h, a in zip(hotness, now) if bool(a) == there] for there in (True, False))
    check(here and away and any(hotness), "all of it, or nothing, is in memory")
    cold = sum(h < max(away) for h in here)     # loading the device state touches some
    check(cold <= len(here) // 4, f"{cold} of {len(here)} chunks in memory are colder than one that is not: {here}, {away}")
    old_ages, new_ages = {h for h, a in zip(hotness, now) if h and a}, {a for h, a in zip(hotness, now) if h and a}
    check(len(old_ages) == 1 or len(new_ages) > 1, f"chunks of ages {old_ages} are all {new_ages} old now")
    goes_on(vm)


@test
def hot_is_merged(rig):
    """A merged chain has what its end has."""
    vm = rig.paged(budget=BUDGET, ram=RAM)
    rig.criu_vm("dump", str(vm.pid), "-D", f"{rig.tmp}/first", "-R", "--track-mem").check(0)
    vm.passes()
    rig.criu_vm("dump", str(vm.pid), "-D", f"{rig.tmp}/second", "--prev-images-dir", f"{rig.tmp}/first").check(0)
    rig.criu_vm("merge", f"{rig.tmp}/second", "-o", f"{rig.tmp}/merged").check(0)
    rig.criu_vm("verify", f"{rig.tmp}/merged").check(0)
    with open(f"{rig.tmp}/second/resident.img", "rb") as a, open(f"{rig.tmp}/merged/resident.img", "rb") as b:
        check(a.read() == b.read(), "what was in memory is not what the chain's end says")


@test
def hot_of_an_ordinary_vm(rig):
    """There is nothing to be said, and earlier versions can read the checkpoint."""
    rig.checkpoint()
    check(not os.path.exists(f"{rig.images()}/resident.img"), "all of its memory was memory")


@test
def hot_damaged(rig):
    """It is found before anything is restored."""
    old, images = hot_dump(rig)
    with open(f"{images}/resident.img", "r+b") as f:
        f.seek(60)
        byte = f.read(1)
        f.seek(60)
        f.write(bytes([byte[0] ^ 4]))
    rig.criu_vm("verify", images).check(1)
    rig.fails(*rig.restore_line("--lazy-pages", images=images), says=["resident.img"])
    old.wait_end()
