# SPDX-License-Identifier: GPL-2.0-only
"""VMs that move before their memory does: the pages follow, each once, and what waits for one comes first."""
import os
import random
import re
import shutil

from credentials import creds, psk, x509
from migration_lazy_rig import PAGE, SLOW, TRICKLE, Lazy, memfd, pages_with_content
from migration_rig import stages_done
from migration_wire import Proxy
from misuse_rig import MIB, Skip, cases, check, test, wait_for

LONG = {"lazy-moves-zstd", "lazy-guests-disk", "lazy-auto-rewrites", "lazy-sent-once-no-round", "lazy-max-rounds", "lazy-moves-channels",
        "lazy-guests-linux", "lazy-guests-kvm-disk", "lazy-guests-kvm-smp", "lazy-guests-disk-deep", "lazy-guests-smp", "lazy-guests-q35", "lazy-tls-x509", "lazy-reboots", "lazy-to-and-fro",
        "lazy-from-images-another"}
SMALL = ["--ram", "16M"]
FILLED = 80                     # percent of an idle guest's memory


def idle(rig, ram=64, **more):
    return rig.memory(ram, image="touch", append=f"fill={FILLED}", args=memfd(ram), **more)


def sent(summary):
    return summary["bytes"] + summary["served_bytes"]


def said(summary):
    """For the reader."""
    return (f"{summary['later_pages']} pages later, {summary['served_pages']} served; ran there after {summary['switch_seconds']:.2f} s, "
            f"all there after {summary['seconds']:.2f} s, downtime {summary['downtime_ms']:.0f} ms")


def was_lazy(summary):
    check(summary["lazy"] and summary["later_pages"] > 0, f"its pages were to come later: {summary}")
    check(summary["served_pages"] + summary["served_zero_pages"] >= summary["later_pages"], f"fewer than were missing: {summary}")
    check(0 < summary["switch_seconds"] <= summary["seconds"], f"{summary}")


def within_budget(vm):
    memory = vm.at.host.stat(vm.at.name)["memory"]
    check(memory["memfd"] <= memory["budget"] + memory["overdraft_max"], f"{memory}")
    return memory


@cases(small=("memory", "", SMALL), plain=("rewrite", "rate=16M", []), zstd=("memory", "", [*SMALL, "--compress", "zstd"]),
       channels=("rewrite", "rate=16M", ["--channels", "4"]))
def lazy_moves(rig, image, append, options):
    """A guest that rewrites its memory, and verifies it, goes on at once, in a quarter of it or in as much."""
    vm = rig.memory(64, image=image, append=append)
    rig.b.serve()
    summary = Lazy(rig, vm, *options).ends()
    was_lazy(summary)
    memory = within_budget(vm)
    check("--ram" not in options or memory["swapped"] > 0, f"all of it is in memory: {memory}")
    vm.at.passes(4, 60)
    rig.note = said(summary)


@cases(disk=("disk", "tcg", 64), linux=("linux", "tcg", 64), disk_deep=("disk-deep", "tcg", 128), smp=("smp", "tcg", 32),
       kvm_disk=("disk", "kvm", 16), kvm_smp=("smp", "kvm", 16), q35=("memory-q35", "tcg", 32))
def lazy_guests(rig, name, accel, budget):
    """With DMA into pages that are not there yet, with processors that meet in them; and back."""
    if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Skip("no /dev/kvm")
    vm = rig.guest(name, accel=accel)
    rig.a.serve()
    rig.b.serve()
    was_lazy(Lazy(rig, vm, "--ram", f"{budget}M").ends())
    vm.at.passes(3, 60)
    was_lazy(Lazy(rig, vm).ends())
    vm.at.passes(3, 60)
    if name == "linux":
        vm.verified()


@test
def lazy_paused(rig):
    """It stays paused, and its pages come nevertheless."""
    vm = rig.memory(64)
    rig.b.serve()
    vm.at.qmp("stop")
    was_lazy(Lazy(rig, vm, *SMALL, runs=False).ends(runs=False))
    vm.at.stays_paused()
    vm.at.qmp("cont")
    vm.at.passes(3)


@test
def lazy_paused_disk(rig):
    """The disk is the source QEMU's until that ends: so it goes with all pages, and can go on there at once."""
    vm = rig.guest("disk")
    rig.b.serve()
    vm.at.qmp("stop")
    summary = vm.move("--lazy", runs=False)
    check(not summary["lazy"], f"it went lazily: {summary}")
    vm.at.qmp("cont")
    vm.at.passes(2)


@test
def lazy_reboots(rig):
    """While pages are missing: most of them are never asked for by the guest."""
    vm = idle(rig)
    rig.b.serve()
    with Proxy(rig, background=TRICKLE) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        vm.at.qmp("system_reset")
        vm.journey.next_life()
        proxy.hurry()
        lazy.ends()


@cases(two_rounds=2, no_round=0)
def lazy_sent_once(rig, rounds):
    """An idle VM: what was sent before is not sent again, what was not is sent once."""
    vm = idle(rig)
    rig.b.serve()
    content, before = len(pages_with_content(vm.at.pid, 64)) * PAGE, rig.bytes_sent()
    summary = Lazy(rig, vm, *SMALL, "--max-rounds", str(rounds)).ends()
    on_wire = rig.bytes_sent() - before
    # It writes to 20 pages a second at the most.
    dirtied = 20 * PAGE * (summary["switch_seconds"] + 1)
    check(on_wire <= 1.05 * (content + dirtied), f"{on_wire} bytes on the wire, of {content:.0f} and {dirtied:.0f} dirtied: {summary}")
    check(sent(summary) <= on_wire, f"it says {sent(summary)} bytes, {on_wire} were seen: {summary}")
    check(summary["lazy"] and (summary["later_pages"] < 1000) == (rounds > 0), f"{summary}")
    rig.note = f"{on_wire / content:.3f} of its content; {said(summary)}"


@test
def lazy_auto_idle(rig):
    """That converges: nothing comes later, and the source's part ends with the move."""
    vm = idle(rig)
    rig.b.serve()
    summary = vm.move(*SMALL, "--lazy=auto")
    check(not summary["lazy"] and not summary["served_pages"], f"{summary}")
    check(not rig.b.stat(vm.name).get("remote"), "it needs the source yet")
    rig.a.nothing_left()


@test
def lazy_auto_rewrites(rig):
    """It rewrites faster than the line carries: without, that fails (does-not-converge); with it, it says so and moves."""
    vm = rig.memory(32, image="rewrite", append="rate=48M")
    rig.b.serve()
    command = rig.start_migrate(vm, rig.b, "--max-bandwidth", "12M", "--downtime-limit", "100", "--lazy=auto")
    result = command.end().check(0)
    vm.at.wait_end()
    vm.arrived(rig.b)
    vm.at.passes(3, 60)
    says = r"warning: .* MiB/s.*a standstill of \d+ ms; what is left comes when it runs there"
    check(re.search(says, result.err), f"no forecast; {result}")
    check('"lazy": true' in result.out, f"{result}")
    rig.a.nothing_left()


@test
def lazy_max_rounds(rig):
    """Without --lazy: so many, and if what is left is too much for a standstill, it fails."""
    vm = rig.memory(32, image="rewrite", append="rate=48M")
    rig.b.serve()
    rig.a.fails(*vm.migrate_line(rig.b, "--max-rounds", "1", "--max-bandwidth", "12M", "--downtime-limit", "100"))
    vm.runs_on()
    rig.b.nothing_left()
    for bad in (["--max-rounds", "101"], ["--max-rounds", "x"], ["--lazy=maybe"]):
        result = rig.a.criu_vm(*vm.migrate_line(rig.b, *bad)).check(2)
        check(bad[-1].rpartition("=")[2] in result.err, f"{result}")


@test
def lazy_from_paged(rig):
    """Out of private virtual memory into less of it, and from there into plain memory."""
    vm = rig.memory(64)
    rig.a.serve()
    rig.b.serve()
    vm.move("--ram", "24M")
    vm.at.passes(2, 60)
    was_lazy(Lazy(rig, vm, *SMALL).ends())
    within_budget(vm)
    vm.at.passes(2, 60)
    was_lazy(Lazy(rig, vm).ends())
    vm.at.passes(3, 60)


@test
def lazy_to_and_fro(rig):
    """Again and again, and by turns not lazily."""
    vm = rig.memory(64)
    rig.a.serve()
    rig.b.serve()
    for i in range(12):
        options = ["--ram", f"{random.choice((16, 24, 40))}M"] if i % 3 else []
        if i % 4 == 3:
            vm.move(*options, "--lazy=auto")
        else:
            was_lazy(Lazy(rig, vm, *options, *(["--max-rounds", str(i % 4)] if i % 2 else [])).ends())
        vm.at.passes(1, 60)


# ---- from a checkpoint


def restored_lazily(rig, images):
    """An idle VM at host a whose pages are in a checkpoint there."""
    vm = idle(rig)
    rig.a.criu_vm("dump", str(vm.at.pid), "-D", images).check(0)
    vm.at.wait_end()
    rig.a.criu_vm("restore", "-D", images, "--name", vm.name, "--lazy-pages").check(0)
    vm.arrived(rig.a)
    vm.at.passes(3)
    return vm


@cases(reachable="reachable", not_reachable="not", another="another")
def lazy_from_images(rig, where):
    """The checkpoint is handed on where the other host sees it too, and its pages are not sent; else the source reads it."""
    images = f"{rig.shared}/images" if where == "reachable" else f"{rig.a.inside}/images"
    vm = restored_lazily(rig, images)
    if where == "another":
        other = rig.memory(32)
        rig.a.criu_vm("dump", str(other.at.pid), "-D", f"{rig.shared}/other").check(0)
        other.at.wait_end()
        shutil.copytree(f"{rig.shared}/other", f"{rig.b.dir}/images")
    rig.b.serve()
    before = rig.bytes_sent()
    summary = Lazy(rig, vm, *SMALL).ends()
    sent_bytes = rig.bytes_sent() - before
    check((sent_bytes < 8 * MIB) == (where == "reachable"), f"{sent_bytes} bytes were sent: {summary}")
    wait_for("the last page of the checkpoint", 20, lambda: not rig.b.stat(vm.name)["images"])
    os.rename(f"{rig.shared if where == 'reachable' else rig.a.dir}/images", f"{rig.shared}/gone")
    vm.at.passes(20, 60)
    rig.note = f"{sent_bytes / MIB:.1f} MiB sent"


# ---- while pages are missing


@test
def lazy_source_stands(rig):
    """Until the last page has come, the source's QEMU is stopped as a process, and its monitor cannot make it run."""
    vm = idle(rig)
    rig.b.serve()
    with Proxy(rig, background=TRICKLE) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        before = lazy.is_missing()
        for _ in range(5):
            with open(f"/proc/{lazy.was.pid}/status", encoding="latin-1") as f:
                state = next(line for line in f if line.startswith("State:"))
            check(re.search(r"\t[tT] ", state), f"{state}")
            check(not lazy.was.can_run(), "the source's QEMU can be made to run")
            vm.at.passes(1)
        left = lazy.is_missing()
        check(left < before, f"{before} pages were missing, {left} are")
        check(len(rig.a.leaving()) == 1 and lazy.server() == lazy.command.process.pid, f"stat at the source: {rig.a.leaving()}")
        for options in (["dump", vm.name, "-D", f"{rig.b.inside}/images"], [*vm.migrate_line(rig.b)]):
            rig.b.fails(*options, says=["have not all come"])
        proxy.hurry()
        lazy.ends()


@cases(small=SMALL, plain=[])
def lazy_faults_first(rig, options):
    """What the guest waits for does not wait for the background, which takes minutes here, whatever that has asked for already."""
    vm = idle(rig)
    rig.b.serve()
    with Proxy(rig, background=TRICKLE) as proxy:
        lazy = Lazy(rig, vm, *options, through=proxy)
        vm.at.passes(20, 10)                # all that it touches
        check(lazy.is_missing() > 5000, f"{lazy.missing()} pages are missing: this test is of many more")
        proxy.hurry()
        lazy.ends()


@cases(psk=psk, x509=x509)
def lazy_tls(rig, make):
    """The page lines, too; one that is cut is secret again."""
    vm = rig.memory(48)
    folder = make(f"{rig.tmp}/tls")
    rig.b.serve(secure=creds(folder))
    if make is x509:
        was_lazy(Lazy(rig, vm, *SMALL, secure=creds(folder)).ends())
        return
    with Proxy(rig, rate=4 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy, secure=creds(folder))
        lazy.is_missing()
        proxy.close_all()
        lazy.is_missing()
        proxy.hurry()
        lazy.ends()


@test
def lazy_stages(rig):
    """They are told apart in the log of -vv, and can be made to fail."""
    vm = idle(rig)
    rig.b.serve()
    lazy = Lazy(rig, vm, *SMALL)
    lazy.ends()
    done = stages_done(lazy.command.said())
    check({"later", "lines"} <= set(done) and done.index("lines") < done.index("stop"), f"{done}")
