# SPDX-License-Identifier: GPL-2.0-only
"""Checkpoints of VMs that run on: cut off, onto full disks, paused ones, of other users, with balloons, in private virtual memory."""
import dataclasses
import glob
import os
import random
import shutil
import signal
import time

from misuse_rig import MIB, NOBODY, Qmp, cases, check, test, wait_for

# Tests that a check has no time for.
LONG = {"running-cut-off-predump-sigint", "running-cut-off-running-sigint", "running-cut-off-background-sigint",
        "running-cut-off-stopped-sigint", "running-cut-off-stopped-sigkill", "full-disk-predump", "full-disk-running",
        "full-disk-increment", "full-disk-stopped", "disk-gets-full-predump", "disk-gets-full-running", "disk-gets-full-stopped",
        "running-of-nobody-started", "balloon-between-anonymous", "balloon-between-memfd", "balloon-in-background-anonymous",
        "balloon-in-background-memfd", "balloon-in-background-reporting", "balloon-in-background-memfd-reporting",
        "pager-killed-meanwhile-predump", "budget-changed-meanwhile-predump", "budget-changed-meanwhile-increment",
        "budget-changed-meanwhile-background"}

PRE_DUMP, RUNNING, TRACKED = ["pre-dump"], ["dump", "-R"], ["dump", "-R", "--track-mem"]
BACKGROUND, STOPPED, ENDS = ["dump", "-R", "--background"], ["dump", "-s"], ["dump"]
KINDS = {"predump": PRE_DUMP, "running": RUNNING, "increment": TRACKED, "background": BACKGROUND, "stopped": STOPPED}
MEMFD = ["-object", "memory-backend-memfd,id=ram0,size=256M,share=on", "-machine", "memory-backend=ram0"]


def line(vm, kind, path, parent=None):
    return [kind[0], str(vm.pid), "-D", path, *kind[1:], *(["--prev-images-dir", parent] if parent else [])]


def save(rig, vm, kind, path, parent=None):
    """Its directory. A dump that ends its VM has ended it."""
    path = path if "/" in path else f"{rig.tmp}/{path}"
    rig.criu_vm(*line(vm, kind, path, parent)).check(0)
    if kind is ENDS:
        vm.wait_end(5)
    return path


def refused(rig, vm, kind, parent, *says):
    """The increment is refused for a reason that names the parent, and nothing happens to the VM."""
    path = f"{rig.tmp}/refused"
    result = rig.fails(*line(vm, kind, path, parent), says=says)
    check(not os.path.lexists(path), f"{path} was made; {result}")
    vm.runs_on()
    return result


def memory_of(vm):
    """What a VM that is paused has in its RAM, in the guest's order."""
    with Qmp(vm.qmp_path) as q:
        size = q.call("query-memory-size-summary")["base-memory"]
        q.call("pmemsave", val=0, size=size, filename=f"{vm.dir}/memory")
    with open(f"{vm.dir}/memory", "rb") as f:
        memory = f.read()
    os.unlink(f"{vm.dir}/memory")
    check(len(memory) == size and any(memory), "the guest's memory cannot be looked at")
    return memory


def same_memory(vm, before):
    now = memory_of(vm)
    other = [i for i in range(0, len(before), 4096) if now[i:i + 4096] != before[i:i + 4096]] if now != before else []
    check(now == before, f"{len(other)} pages are not as they were, the first at {[hex(i) for i in other[:4]]}")


def restored(rig, vm, path, *args, memory=None):
    """A copy, after the VM has ended, makes some passes; with memory, it was paused, and has that. It ends."""
    copy = rig.restore(vm, *args, images=path, runs=False)
    if memory is not None:
        same_memory(copy, memory)
        copy.stays_paused()
        copy.qmp("cont")
    copy.passes(3)
    copy.kill()
    rig.nothing_left()


# ---- cut off


def partials(rig):
    return [f"{rig.tmp}/{e}" for e in os.listdir(rig.tmp) if e.endswith(".partial")]


def settled(rig, vm, signum):
    """After a dump was cut off: the VM runs on, and nothing is left but what a SIGKILL may leave."""
    if signum == signal.SIGKILL:
        wait_for("a QEMU that nobody holds", 5, lambda: vm.nobody_holds_it() is None)
        wait_for("the VM to run", 10, lambda: vm.status() == "running")
        check(len(partials(rig)) <= 1, f"left: {partials(rig)}")
        for path in partials(rig):
            shutil.rmtree(path)
    check(not partials(rig), f"left: {partials(rig)}")
    vm.runs_on()


class Heads:
    """Of a VM, the checkpoints to be restored when it has ended: soon after it was disturbed, before the guest has written to
    everything again. The last one may be the parent of the next."""

    def __init__(self, rig, vm, first):
        self.rig, self.vm, self.paths = rig, vm, [first]

    def last(self, kind):
        return self.paths[-1] if kind is TRACKED else None

    def next(self, name):
        """An increment of the last one, or the reason that it cannot be made. The VM is saved whole then."""
        path, parent = f"{self.rig.tmp}/{name}", self.paths[-1]
        result = self.rig.criu_vm(*line(self.vm, TRACKED, path, parent))
        if result.status:
            result.check(1, parent)
            check(not os.path.exists(path), f"it is there, and failed; {result}")
            save(self.rig, self.vm, TRACKED, path)
        self.paths.append(path)
        self.vm.runs_on()

    def restore(self):
        """Each of them, after a last one that ends the VM."""
        self.paths.append(save(self.rig, self.vm, ENDS, "last", self.paths[-1]))
        self.rig.nothing_left()
        for path in self.paths[1:]:
            if os.path.exists(f"{path}/device-state.img"):  # a pre-dump that nothing was built upon has none
                restored(self.rig, self.vm, path)


def writing(path):
    """Some of its pages have been written."""
    return any(os.stat(pages).st_blocks for pages in glob.glob(f"{path}.*.partial/pages-1.img"))


def cut(rig, vm, kind, path, parent, seconds, signum):
    """The checkpoint is whole or not there, and which it is. seconds: when, or None: in the midst of its pages."""
    process = rig.start_criu_vm(*line(vm, kind, path, parent))
    if seconds is None:
        wait_for("pages", 20, lambda: writing(path) or process.poll() is not None)
    else:
        time.sleep(seconds)
    if process.poll() is None:
        os.kill(process.pid, signum)
    result = rig.end_criu_vm(process)
    there = os.path.exists(path)
    if result.status != -signum:
        check(result.status == (0 if there else 1) and (there or "interrupted" in result.err), f"there: {there}; {result}")
    elif signum == signal.SIGINT:                       # it came before it could be caught
        check(not there, f"it is there; {result}")
    return there


@cases(**{f"{kind}_{name}": (kind, signum) for kind in KINDS for name, signum in (("sigint", signal.SIGINT), ("sigkill", signal.SIGKILL))})
def running_cut_off(rig, kind, signum):
    """At random moments, and while it writes pages. The VM runs on; another increment is right, or refused; a whole one is right."""
    vm, kind = rig.vm(), KINDS[kind]
    first = save(rig, vm, TRACKED, "first")
    begin = time.monotonic()
    save(rig, vm, kind, "measure", first if kind is TRACKED else None)
    seconds = time.monotonic() - begin
    if kind is STOPPED:
        vm.qmp("cont")
    heads = Heads(rig, vm, save(rig, vm, TRACKED, "second"))
    for i in range(rig.opts.rounds):
        path = f"{rig.tmp}/cut-{i}"
        if cut(rig, vm, kind, path, heads.last(kind), random.uniform(0, seconds * 1.1) if i % 2 else None, signum):
            rig.criu_vm("verify", path).check(0)
            heads.paths.append(path)
            if kind is STOPPED and vm.status() == "paused":
                vm.qmp("cont")
        settled(rig, vm, signum)
        heads.next(f"next-{i}")
    heads.restore()


# ---- disks that are full


@cases(**{name: (kind,) for name, kind in KINDS.items()})
def full_disk(rig, kind):
    where, vm = rig.mount("ext4", 24), rig.vm(ram=64)
    first = save(rig, vm, TRACKED, "first")
    vm.passes(8)                                        # it has written to all that it ever does
    result = rig.fails(*line(vm, kind, f"{where}/images", first if kind is TRACKED else None), says=[where])
    check("No space" in result.err or "free" in result.err, f"it doesn't say that the disk is full; {result}")
    check(os.listdir(where) == ["lost+found"], f"left: {os.listdir(where)}")
    vm.runs_on()
    restored(rig, vm, save(rig, vm, ENDS, "last"))


@cases(**{name: (kind,) for name, kind in KINDS.items()})
def disk_gets_full(rig, kind):
    """In the midst of it. The increment that follows is right, or refused."""
    fs, vm = rig.faulty(), rig.vm(ram=64)
    heads = Heads(rig, vm, save(rig, vm, TRACKED, "first"))
    path, under = f"{fs.path}/images", f"{fs.backing}/images"
    vm.passes(4)
    fs("delay-ms 20")
    process = rig.start_criu_vm(*line(vm, kind, path, heads.last(kind)))
    wait_for("pages", 20, lambda: writing(under))
    fs("write-errno ENOSPC")
    result = rig.end_criu_vm(process).check(1, path, "No space")
    check(not os.listdir(fs.backing), f"left: {os.listdir(fs.backing)}; {result}")
    vm.runs_on()
    heads.next("next")
    heads.restore()


# ---- paused ones


@test
def paused_stays_paused(rig):
    vm = rig.vm()
    vm.qmp("stop")
    memory = memory_of(vm)
    first = save(rig, vm, PRE_DUMP, "first")
    vm.stays_paused()
    paths = [save(rig, vm, RUNNING, "second", first)]
    vm.stays_paused()
    paths.append(save(rig, vm, BACKGROUND, "third"))
    vm.stays_paused()
    same_memory(vm, memory)
    vm.qmp("cont")
    vm.runs_on()
    vm.kill()
    for path in paths:
        restored(rig, vm, path, memory=memory)


@test
def left_stopped(rig):
    """Until `cont`. What is restored runs, as the VM did, unless it stood when it was dumped."""
    vm = rig.vm()
    first = save(rig, vm, STOPPED, "first")
    vm.stays_paused()
    vm.qmp("cont")
    vm.runs_on()
    second = save(rig, vm, STOPPED, "second")
    vm.stays_paused()
    memory = memory_of(vm)
    third = save(rig, vm, STOPPED, "third")
    vm.stays_paused()
    same_memory(vm, memory)
    vm.qmp("cont")
    vm.runs_on()
    vm.kill()
    for path in (first, second):
        restored(rig, vm, path)
    restored(rig, vm, third, memory=memory)


# ---- of other users


@cases(runas={"owner": NOBODY, "args": ["-runas", "nobody"]}, started={})
def running_of_nobody(rig, guest):
    """A QEMU that is not root is tracked and write-protected as well."""
    vm = rig.vm(**(guest or {"owner": NOBODY, "prefix": rig.as_user(NOBODY)}))
    check(os.stat(f"/proc/{vm.pid}").st_uid == NOBODY, "it runs as root")
    paths = [save(rig, vm, PRE_DUMP, "first")]
    vm.passes(1)
    paths.append(save(rig, vm, TRACKED, "second", paths[0]))
    vm.passes(1)
    paths.append(save(rig, vm, RUNNING, "third", paths[1]))
    vm.passes(1)
    paths.append(save(rig, vm, BACKGROUND, "fourth"))
    vm.runs_on()
    paths.append(save(rig, vm, ENDS, "fifth"))
    for path in paths[2:]:
        restored(rig, vm, path)


# ---- memory that is given back


def balloon(q, mib):
    q.call("balloon", value=mib * MIB)
    wait_for(f"a guest of {mib} MiB", 30, lambda: q.call("query-balloon")["actual"] == mib * MIB)


def balloon_vm(rig, memory, fill, reporting="on"):
    """It has a second monitor, for while the first is taken."""
    device = ["-device", f"virtio-balloon-pci,free-page-reporting={reporting}"]
    guest = dataclasses.replace(rig.linux(), append=f"fill={fill}", args=[*device, *memory])
    return rig.vm(guest=guest, args=["-qmp", "unix:{dir}/second.sock,server=on,wait=off"])


@cases(anonymous=([],), memfd=(MEMFD,))
def balloon_between(rig, memory):
    """What was given back is zero from then on, also if somebody has looked at it; what was taken again is as the guest wrote it."""
    vm = balloon_vm(rig, memory, 25)
    first = save(rig, vm, PRE_DUMP, "first")
    with Qmp(vm.qmp_path) as q:
        balloon(q, 160)
        q.call("stop")
    small = memory_of(vm)
    second = save(rig, vm, TRACKED, "second", first)
    with Qmp(vm.qmp_path) as q:
        q.call("cont")
        balloon(q, 256)
    rig.ask(vm, "fill 60")
    third = save(rig, vm, PRE_DUMP, "third", second)
    rig.ask(vm, "fill 20")                              # the rest is reported free, and so discarded
    with Qmp(vm.qmp_path) as q:
        balloon(q, 200)
        q.call("stop")
    large = memory_of(vm)
    fourth = save(rig, vm, ENDS, "fourth", third)
    for path, memory_then in ((second, small), (fourth, large)):
        copy = rig.restore(vm, *rig.small(64), images=path, runs=False)
        same_memory(copy, memory_then)
        copy.qmp("cont")
        rig.verified(copy)
        copy.kill()
        rig.nothing_left()


@cases(anonymous=([], "off"), memfd=(MEMFD, "off"), reporting=([], "on"), memfd_reporting=(MEMFD, "on"))
def balloon_in_background(rig, memory, reporting):
    """While its memory is saved as it was, it cannot be given back: the dump fails and the VM goes on, or all of it was saved before."""
    fs, vm = rig.faulty(), balloon_vm(rig, memory, 60, reporting)
    size = os.path.getsize(f"{save(rig, vm, BACKGROUND, 'before')}/pages-1.img")
    if reporting == "off":
        rig.ask(vm, "fill 10")                          # much is free that was something else
    fs("delay-ms 100")
    process = rig.start_criu_vm(*line(vm, BACKGROUND, f"{fs.path}/images"))
    wait_for("pages", 20, lambda: writing(f"{fs.backing}/images"))
    if reporting == "on":
        rig.ask(vm, "fill 10")
    else:
        with Qmp(f"{vm.dir}/second.sock") as q:
            q.call("balloon", value=60 * MIB)
    result = rig.end_criu_vm(process)
    if result.status:
        result.check(1, "memory", "without --background")
        check(not os.listdir(fs.backing), f"left: {os.listdir(fs.backing)}; {result}")
    else:
        now = os.path.getsize(f"{fs.path}/images/pages-1.img")
        check(now > 0.95 * size, f"{size} bytes of pages are {now}: what was given back is not as it was")
    fs("delay-ms 0")
    rig.verified(vm)
    path = save(rig, vm, BACKGROUND, "whole")
    rig.verified(vm)
    vm.kill()
    restored(rig, vm, path)


# ---- in private virtual memory


@cases(predump=(PRE_DUMP,), increment=(TRACKED,), background=(BACKGROUND,))
def pager_killed_meanwhile(rig, kind):
    """Another one serves the VM. What was being saved is right, or refused."""
    vm = rig.paged()
    first = save(rig, vm, TRACKED, "first")
    begin = time.monotonic()
    save(rig, vm, kind, "measure", first if kind is TRACKED else None)
    seconds = time.monotonic() - begin
    heads = Heads(rig, vm, save(rig, vm, TRACKED, "second"))
    for i in range(rig.opts.rounds):
        pager, path = rig.pager(), f"{rig.tmp}/cut-{i}"
        process = rig.start_criu_vm(*line(vm, kind, path, heads.last(kind)))
        time.sleep(random.uniform(0, seconds))
        rig.kill(pager)
        result = rig.end_criu_vm(process)
        check(result.status in (0, 1) and os.path.exists(path) == (result.status == 0), str(result))
        check(result.status == 0 or "pager" in result.err, f"it does not say what happened; {result}")
        if result.status == 0:
            heads.paths.append(path)
        rig.served(pager)
        check(not partials(rig), f"left: {partials(rig)}")
        vm.runs_on()
        heads.next(f"next-{i}")
    heads.restore()


@cases(predump=(PRE_DUMP,), increment=(TRACKED,), background=(BACKGROUND,))
def budget_changed_meanwhile(rig, kind):
    vm = rig.paged()
    heads = Heads(rig, vm, save(rig, vm, TRACKED, "first"))
    for i, mib in enumerate((40, 16, 64, 20)):
        path = f"{rig.tmp}/meanwhile-{i}"
        process = rig.start_criu_vm(*line(vm, kind, path, heads.last(kind)))
        time.sleep(random.uniform(0, 0.2))
        rig.criu_vm("set", rig.name, "--ram", f"{mib}M").check(0)
        rig.end_criu_vm(process).check(0)
        heads.paths.append(path)
        vm.runs_on()
        heads.next(f"next-{i}")
    heads.restore()
