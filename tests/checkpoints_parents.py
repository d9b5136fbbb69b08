# SPDX-License-Identifier: GPL-2.0-only
"""Increments: only of the last checkpoint of the same VM, and restored only over that."""
import contextlib
import glob
import json
import os
import re
import shutil
import threading

from checkpoints_running import BACKGROUND, ENDS, PRE_DUMP, RUNNING, TRACKED, line, memory_of, refused, restored, same_memory, save
from misuse_rig import cases, check, test, wait_for


def records(rig):
    return glob.glob(f"{rig.tmp}/run/.tracked-*")


def traces(vm):
    """What tracking leaves in QEMU: descriptors, and memory that a userfaultfd watches."""
    found = []
    for fd in os.listdir(f"/proc/{vm.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):    # closed meanwhile
            target = os.readlink(f"/proc/{vm.pid}/fd/{fd}")
            found += [target] if "userfaultfd" in target or "io_uring" in target else []
    with open(f"/proc/{vm.pid}/smaps", encoding="latin-1") as f:
        return found + re.findall(r"^VmFlags:.* (?:uw|um|ui)\b.*$", f.read(), re.M)


def no_trace(rig, vm):
    check(not traces(vm), f"left in QEMU: {traces(vm)}")
    check(f"{rig.tmp}/run/.tracked-{vm.pid}" not in records(rig), f"left: {records(rig)}")


def tracked(rig, vm):
    check(traces(vm) and len(records(rig)) == 1, f"it is not tracked: {traces(vm)}, {records(rig)}")


# ---- the wrong parent


@test
def parent_of_another_vm(rig):
    vm, other = rig.vm(), rig.vm()
    first, others = save(rig, vm, PRE_DUMP, "first"), save(rig, other, PRE_DUMP, "others")
    refused(rig, vm, PRE_DUMP, others, others)
    refused(rig, vm, ENDS, others, others)
    refused(rig, vm, RUNNING, others, others)
    save(rig, other, RUNNING, "second", others)
    restored(rig, vm, save(rig, vm, ENDS, "last", first))


@test
def parent_not_the_last(rig):
    """An older one of the chain. Its own would have done, and does."""
    vm = rig.vm()
    first = save(rig, vm, PRE_DUMP, "first")
    second = save(rig, vm, PRE_DUMP, "second", first)
    refused(rig, vm, PRE_DUMP, first, first)
    refused(rig, vm, TRACKED, first, first)
    restored(rig, vm, save(rig, vm, ENDS, "last", second))


@test
def parent_before_a_failure(rig):
    """What was written since may be forgotten: refused, unless it fails before anything is."""
    vm = rig.vm()
    small = rig.mount("tmpfs", 1)
    first = save(rig, vm, PRE_DUMP, "first")
    rig.fails(*line(vm, PRE_DUMP, f"{small}/images"), says=["space"])
    result = rig.criu_vm(*line(vm, TRACKED, f"{rig.tmp}/second", first))
    if result.status:
        result.check(1, first)
    else:
        first = f"{rig.tmp}/second"
    vm.runs_on()
    last = save(rig, vm, ENDS, "last", None if result.status else first)
    restored(rig, vm, last)


@test
def parent_of_a_vm_not_tracked(rig):
    """Never; no longer; or not since it was restored."""
    vm, other = rig.vm(), rig.vm()
    first = save(rig, other, PRE_DUMP, "first")
    refused(rig, vm, PRE_DUMP, first, first)
    second = save(rig, vm, RUNNING, "second")
    refused(rig, vm, PRE_DUMP, second, second)
    third = save(rig, vm, BACKGROUND, "third")
    refused(rig, vm, ENDS, third, third)
    no_trace(rig, vm)
    rig.criu_vm("pre-dump", "--untrack", str(other.pid)).check(0)
    fourth = save(rig, vm, ENDS, "fourth")
    copy = rig.restore(vm, images=fourth)
    refused(rig, copy, PRE_DUMP, fourth, fourth)


@test
def parent_impossible(rig):
    vm = rig.vm()
    first = save(rig, vm, PRE_DUMP, "first")
    for path in (f"{rig.tmp}/nowhere", rig.tmp, "/dev/null", vm.dir, f"{rig.tmp}/refused"):
        refused(rig, vm, PRE_DUMP, path, path)
    rig.fails(*line(vm, PRE_DUMP, f"{rig.tmp}/refused"), "--prev-images-dir", "")
    os.rename(first, f"{rig.tmp}/elsewhere")
    refused(rig, vm, TRACKED, first, first)
    os.rename(f"{rig.tmp}/elsewhere", first)
    restored(rig, vm, save(rig, vm, ENDS, "last", first))


@test
def parent_deleted(rig):
    """The VM can be saved whole, and tracked from then on."""
    vm = rig.vm()
    shutil.rmtree(first := save(rig, vm, PRE_DUMP, "first"))
    refused(rig, vm, TRACKED, first, first)
    restored(rig, vm, save(rig, vm, ENDS, "last", save(rig, vm, PRE_DUMP, "second")))


@test
def parent_replaced(rig):
    """By another checkpoint at its place: neither an increment is made over it, nor one restored."""
    vm = rig.vm()
    first = save(rig, vm, PRE_DUMP, "first")
    os.rename(first, f"{rig.tmp}/right")
    wrong = save(rig, vm, PRE_DUMP, "wrong")
    os.rename(wrong, first)
    vm.passes(1)
    last = save(rig, vm, ENDS, "last", first)           # by the path that it was not made at, and rightly
    os.rename(first, wrong)
    os.rename(f"{rig.tmp}/right", first)
    for flags in ([], ["--lazy-pages"]):
        rig.fails(*rig.restore_line(*flags, images=last), says=["/first", "another checkpoint"])
    rig.fails("verify", last, says=["/first", "another checkpoint"])
    rig.fails("merge", last, "-o", f"{rig.tmp}/one", says=["/first", "another checkpoint"])
    check(not os.path.exists(f"{rig.tmp}/one"), "something was made")
    shutil.rmtree(first)
    os.rename(wrong, first)
    restored(rig, vm, last)


@test
def parent_relative(rig):
    """Looked for where -D is, as CRIU does. The chain can be moved as a whole, and is found by another name."""
    vm = rig.vm()
    os.mkdir(f"{rig.tmp}/chain")
    save(rig, vm, PRE_DUMP, f"{rig.tmp}/chain/first")
    vm.passes(1)
    save(rig, vm, PRE_DUMP, f"{rig.tmp}/chain/second", "../first")
    vm.passes(1)
    save(rig, vm, ENDS, f"{rig.tmp}/chain/third", "../second")
    os.mkdir(f"{rig.tmp}/deep")
    os.rename(f"{rig.tmp}/chain", f"{rig.tmp}/deep/moved")
    restored(rig, vm, f"{rig.tmp}/deep/moved/third")
    os.symlink("moved/third", f"{rig.tmp}/deep/link")
    restored(rig, vm, f"{rig.tmp}/deep/link", "--lazy-pages")


@test
def parent_in_a_loop(rig):
    vm = rig.vm()
    first = save(rig, vm, PRE_DUMP, "first")
    second = save(rig, vm, PRE_DUMP, "second", first)
    third = save(rig, vm, ENDS, "third", second)
    right = os.readlink(f"{third}/parent")
    for link in (third, "../second/parent", "parent", "."):
        for path in (second, third):
            os.unlink(f"{path}/parent")
            os.symlink(link, f"{path}/parent")
        rig.fails(*rig.restore_line(images=third), says=["parent"])
        rig.fails("verify", third, says=["parent"])
        rig.fails("merge", third, "-o", f"{rig.tmp}/one", says=["parent"])
    for path, parent in ((second, first), (third, right)):
        os.unlink(f"{path}/parent")
        os.symlink(parent, f"{path}/parent")
    restored(rig, vm, third)


# ---- a long chain


def chain_of_six(rig, vm):
    """The last one, of the VM when it was paused, and what was in its memory."""
    path = None
    for i, kind in enumerate((PRE_DUMP, PRE_DUMP, TRACKED, PRE_DUMP, TRACKED)):
        path = save(rig, vm, kind, f"{i}", path)
        vm.passes(1)
    vm.qmp("stop")
    memory = memory_of(vm)
    return save(rig, vm, ENDS, "last", path), memory


@test
def long_chain(rig):
    """To the byte, eagerly and lazily, into a quarter of its memory, and as one."""
    vm = rig.vm(ram=64)
    last, memory = chain_of_six(rig, vm)
    answer = json.loads(rig.criu_vm("verify", last, "--json").check(0).out)
    check(len(answer["layers"]) == 6, f"verify says {answer}")
    for flags in ([], rig.lazy_small()):
        restored(rig, vm, last, *flags, memory=memory)
    one = f"{rig.tmp}/one"
    rig.criu_vm("merge", last, "-o", one).check(0)
    for path in (last, *(f"{rig.tmp}/{i}" for i in range(5))):
        shutil.rmtree(path)
    restored(rig, vm, one, *rig.lazy_small(), memory=memory)


@test
def parent_gone_beneath(rig):
    """While a VM gets its pages from it: it goes on. Its next pager does not find it, and says so; and then does."""
    vm = rig.vm(ram=64)
    last, memory = chain_of_six(rig, vm)
    copy = rig.restore(vm, *rig.lazy_small(), images=last, runs=False)
    os.rename(f"{rig.tmp}/1", f"{rig.tmp}/elsewhere")
    rig.kill(rig.pager())
    wait_for("a word of what is missing", 20, lambda: "/1" in str((a := rig.stat()).get("trouble") or a.get("message")))
    os.rename(f"{rig.tmp}/elsewhere", f"{rig.tmp}/1")
    rig.no_trouble()
    rig.served()
    same_memory(copy, memory)
    os.rename(f"{rig.tmp}/2", f"{rig.tmp}/elsewhere")
    copy.qmp("cont")
    copy.passes(3)


# ---- a VM that is not what it was


@test
def reset_between(rig):
    """Its firmware writes to memory that the guest never did."""
    vm = rig.vm()
    first = save(rig, vm, PRE_DUMP, "first")
    vm.qmp("system_reset")
    wait_for("the guest's start", 30, lambda: vm.console.readies or (vm.console.bad or "").startswith("BAD"))
    check("BAD" not in (vm.console.bad or ""), f"the guest says: {vm.console.bad}")
    vm.console.readies, vm.console.passes, vm.console.bad = 0, 0, None
    vm.passes()
    vm.qmp("stop")
    memory = memory_of(vm)
    restored(rig, vm, save(rig, vm, ENDS, "last", first), memory=memory)


@test
def memory_plugged_between(rig):
    """The parent has nothing of it: a whole one is needed."""
    vm = rig.vm(args=["-m", "32M,slots=2,maxmem=256M"])
    first = save(rig, vm, PRE_DUMP, "first")
    vm.qmp("object-add", qom_type="memory-backend-ram", id="more", size=64 << 20)
    vm.qmp("device_add", driver="pc-dimm", memdev="more", id="dimm0")
    refused(rig, vm, TRACKED, first, "first", "whole")
    second = save(rig, vm, TRACKED, "second")
    vm.passes(1)
    third = save(rig, vm, ENDS, "third", second)
    for path in (second, third):
        restored(rig, vm, path)


@test
def two_at_once(rig):
    """Of one VM. Both are right, or one is refused; the next increment is one of the last."""
    vm = rig.vm(ram=64)
    first = save(rig, vm, TRACKED, "first")
    for i in range(3):
        paths = [f"{rig.tmp}/{name}-{i}" for name in ("one", "other")]
        both = [rig.start_criu_vm(*line(vm, TRACKED, path, first)) for path in paths]
        results = [rig.end_criu_vm(process) for process in both]
        check(sorted(r.status for r in results) == [0, 1], f"{results[0]}; {results[1]}")
        first = paths[[r.status for r in results].index(0)]
        vm.runs_on()
    restored(rig, vm, save(rig, vm, ENDS, "last", first))


@cases(predump=(PRE_DUMP,), background=(BACKGROUND,))
def qemu_killed_meanwhile(rig, kind):
    """Nothing is left, and it says why."""
    for seconds in (0.05, 0.1, 0.2):
        vm = rig.vm(ram=64)
        path = f"{rig.tmp}/killed"
        process = rig.start_criu_vm(*line(vm, kind, path))
        threading.Event().wait(seconds)
        vm.kill()
        result = rig.end_criu_vm(process)
        if result.status:
            check(str(vm.pid) in result.err or "QEMU" in result.err, f"it does not say why; {result}")
            check(not os.path.exists(path), f"it is there; {result}")
        else:
            shutil.rmtree(path)
    other = rig.vm()        # that a VM has ended since its pre-dump is found by the next command
    rig.criu_vm("pre-dump", "--untrack", str(other.pid)).check(0)
    other.kill()
    rig.nothing_left()


# ---- tracked, and no longer


@test
def untrack(rig):
    vm = rig.vm()
    no_trace(rig, vm)
    first = save(rig, vm, PRE_DUMP, "first")
    tracked(rig, vm)
    rig.criu_vm("pre-dump", "--untrack", str(vm.pid)).check(0)
    no_trace(rig, vm)
    vm.runs_on()
    refused(rig, vm, PRE_DUMP, first, first)
    rig.criu_vm("pre-dump", "--untrack", str(vm.pid))   # there is nothing to do
    no_trace(rig, vm)
    for kind in (RUNNING, BACKGROUND):
        second = save(rig, vm, PRE_DUMP, f"second-{kind[-1]}")
        tracked(rig, vm)
        save(rig, vm, kind, f"third-{kind[-1]}", second if kind is RUNNING else None)
        no_trace(rig, vm)
    save(rig, vm, TRACKED, "fourth")
    tracked(rig, vm)
    vm.runs_on()
    save(rig, vm, ENDS, "fifth")
    check(not records(rig), f"left: {records(rig)}")


@test
def tracked_and_ended(rig):
    """The record of a VM that has ended goes; it is of no other one that gets its pid."""
    vm, other = rig.vm(), rig.vm()
    first = save(rig, vm, PRE_DUMP, "first")
    record = records(rig)[0]
    check(record.endswith(f"-{vm.pid}"), f"the record: {record}")
    vm.kill()
    os.rename(record, f"{rig.tmp}/run/.tracked-{other.pid}")
    refused(rig, other, PRE_DUMP, first, first)
    second = save(rig, other, PRE_DUMP, "second")
    third = save(rig, other, PRE_DUMP, "third", second)
    other.kill()
    new = rig.vm()
    save(rig, new, PRE_DUMP, "new")
    check([os.path.basename(r) for r in records(rig)] == [f".tracked-{new.pid}"], f"left: {records(rig)}; {third}")
    restored(rig, new, save(rig, new, ENDS, "last"))
