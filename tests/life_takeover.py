# SPDX-License-Identifier: GPL-2.0-only
"""A pager's end is not its VM's: another takes over, by its supervisor or by hand, of this binary or of a newer one."""
import json
import os
import re
import signal
import subprocess
import time

from misuse_rig import alive, cases, check, copy_program, test, wait_for

FLAGS = {"eager": ["--ram", "16M", "--swap", "{tmp}/swap/image"], "lazy": ["--lazy-pages"],
         "lazy-small": ["--lazy-pages", "--ram", "16M", "--swap", "{tmp}/swap/image"]}


def parent(pid):
    with open(f"/proc/{pid}/stat", encoding="latin-1") as f:
        return int(f.read().rpartition(")")[2].split()[1])


def status_of(pid, key):
    with open(f"/proc/{pid}/status", encoding="latin-1") as f:
        return int(re.search(rf"^{key}:\s+(-?\d+)", f.read(), re.M)[1])


def oom_score(pid):
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as f:
        return int(f.read())


def may_be_spared():
    """Root without CAP_SYS_RESOURCE may not."""
    try:
        subprocess.run(["choom", "-n", "-1000", "true"], check=True, capture_output=True)
        return True
    except subprocess.CalledProcessError:
        return False


@test
def who_is_who(rig):
    """QEMU and the pager are children of a supervisor which is small; both of the two are spared and locked in memory."""
    vm = rig.paged()
    answer = rig.stat()
    supervisor, pager = answer["supervisor_pid"], answer["pager_pid"]
    check(parent(vm.pid) == supervisor and parent(pager) == supervisor, f"{vm.pid} and {pager} are not children of {supervisor}")
    for pid in (supervisor, pager):
        check(oom_score(pid) == -1000 or not may_be_spared(), f"oom_score_adj of {pid} is {oom_score(pid)}")
        check(status_of(pid, "VmLck") > 0, f"{pid} is not locked in memory")
        check(os.getsid(pid) != os.getsid(0) and os.readlink(f"/proc/{pid}/fd/0") == "/dev/null", f"{pid} is not detached")
    check(oom_score(vm.pid) == oom_score(os.getpid()), "QEMU is spared by the OOM killer")
    check((kib := status_of(supervisor, "VmRSS")) < 16 << 10, f"the supervisor takes {kib} KiB")


@cases(eager="eager", lazy="lazy", lazy_small="lazy-small")
def pager_killed(rig, flavour):
    """Again and again; a fraction of a second later there is another one."""
    old = rig.checkpoint(ram=64)
    vm = rig.restore(old, *[f.format(tmp=rig.tmp) for f in FLAGS[flavour]], runs=False)
    took, begin = [], time.monotonic()
    rig.stat()
    asking = time.monotonic() - begin
    for _ in range(5):
        begin = time.monotonic()
        rig.kill_pager()
        took.append(time.monotonic() - begin)
        vm.passes(1)
    vm.passes()
    check(min(took) < 1 + 10 * asking, f"another pager serves after {took} s; to ask for it takes {asking} s")
    rig.note = f"another serves in {sorted(took)[2]:.2f} s"


@cases(sigsegv=signal.SIGSEGV, sigabrt=signal.SIGABRT, sigsys=signal.SIGSYS)
def pager_crashes(rig, signum):
    vm = rig.paged()
    pager = rig.pager()
    rig.kill(pager, signum)
    rig.served(pager)
    vm.passes(3)
    vm.runs_on()


@test
def supervisor_keeps_on(rig):
    """What a terminal or a service manager sends to all ends neither it nor its children."""
    vm = rig.paged()
    before = rig.stat()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGALRM):
        os.kill(before["supervisor_pid"], signum)
    vm.passes(3)
    after = rig.stat()
    check(all(before[k] == after[k] for k in ("supervisor_pid", "pager_pid")), f"they are others: {before}, {after}")
    rig.kill_pager()
    vm.runs_on()


@test
def pager_killed_at_once(rig):
    """The one that takes over is killed before it serves, too."""
    vm = rig.paged()
    for _ in range(10):
        pager = rig.pager()
        os.kill(pager, signal.SIGKILL)
        wait_for("another pager", 20, lambda: (rig.stat().get("pager_pid") or pager) != pager)
    rig.served()
    vm.passes(5)


@test
def pager_killed_vm_paused(rig):
    vm = rig.paged()
    vm.qmp("stop")
    rig.kill_pager()
    vm.stays_paused()
    vm.qmp("cont")
    vm.runs_on()


@test
def supervisor_killed(rig):
    """Nothing happens to the VM: its pager serves on."""
    vm = rig.paged()
    answer = rig.stat()
    rig.kill(answer["supervisor_pid"])
    vm.passes()
    check(rig.stat()["pager_pid"] == answer["pager_pid"] and alive(answer["pager_pid"]), "it is another pager")
    check(rig.stat()["state"] == "served", f"stat: {rig.stat()}")
    vm.runs_on()


@test
def supervisor_killed_by_hand(rig):
    """The VM gets a new one, and a new pager with it."""
    vm = rig.paged()
    answer = rig.stat()
    rig.kill(answer["supervisor_pid"])
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    check((a := rig.served(answer["pager_pid"]))["supervisor_pid"] not in (0, answer["supervisor_pid"]), f"supervisor {a['supervisor_pid']}")
    check(not alive(answer["pager_pid"]), "two pagers")
    rig.kill_pager()
    vm.runs_on()


@test
def supervisor_killed_while_asked(rig):
    """It was there, and was to start the pager that somebody waits for."""
    vm = rig.paged()
    answer = rig.stat()
    os.kill(answer["supervisor_pid"], signal.SIGSTOP)
    rig.kill(answer["pager_pid"])
    command = rig.start_criu_vm("lazy-pages", "--name", rig.name)
    time.sleep(1)
    check(command.poll() is None, "it did not wait")
    os.kill(answer["supervisor_pid"], signal.SIGKILL)
    rig.end_criu_vm(command).check(0)
    check((a := rig.stat())["state"] == "served" and a["supervisor_pid"] not in (0, answer["supervisor_pid"]), f"stat: {a}")
    vm.runs_on()


@test
def both_killed(rig):
    """The guest waits, and sees nothing wrong, until somebody starts a pager by hand; that one has a supervisor again."""
    vm = rig.paged()
    rig.kill_both()
    answer = rig.in_state("unserved")
    check(answer["message"], f"stat: {answer}")
    check("unserved" in rig.criu_vm("stat").check(0).out or "no pager" in rig.criu_vm("stat").check(0).out, "the table of all VMs")
    vm.comes_to_rest()
    rig.fails(*rig.restore_line(), says=[f"'{rig.name}'", "in use"])
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    check(rig.stat()["state"] == "served", f"it returned before it served: {rig.stat()}")
    vm.passes(3)
    rig.kill_pager()
    vm.runs_on()


@test
def both_killed_then_qemu(rig):
    """What is left is in nobody's way, and goes when the name is used again."""
    vm = rig.paged()
    rig.kill_both()
    vm.kill()
    check((answer := rig.stat())["state"] == "ended", f"stat: {answer}")
    rig.fails("lazy-pages", "--name", rig.name, says=[rig.name])
    rig.restore(vm, *rig.small()).kill()


@test
def by_hand_unknown(rig):
    rig.fails("lazy-pages", "--name", "nobody", says=["nobody"])
    rig.fails("lazy-pages", "--name", "../x", says=["../x"], status=2)


def another_binary(rig):
    return copy_program(rig.opts.criu_vm, f"{rig.tmp}/newer")


def take_over_by(rig, binary, *args):
    process = rig.start([binary, "lazy-pages", "--name", rig.name, "--run-dir", f"{rig.tmp}/run", *args], stdout=-1, stderr=-1, text=True)
    return rig.end_criu_vm(process)


@test
def newer_binary(rig):
    """A pager lives: it is replaced by one of the binary that was called, and so is whoever would start the next."""
    vm = rig.paged()
    pager, newer = rig.pager(), another_binary(rig)
    take_over_by(rig, newer).check(0)
    answer = rig.served(pager)
    check(not alive(pager), "two pagers")
    check(os.readlink(f"/proc/{answer['pager_pid']}/exe") == newer, "the pager is not of the binary that was called")
    vm.passes(3)
    pager = rig.kill_pager()
    check(os.readlink(f"/proc/{pager}/exe") == newer, "after a kill it is of the older binary again")
    vm.runs_on()


@test
def newer_binary_under_load(rig):
    """Again and again, under DMA."""
    vm = rig.paged(guest=rig.dma(), budget=32)
    for _ in range(5):
        take_over_by(rig, rig.opts.criu_vm).check(0)
        vm.passes(1)
    vm.passes(5)
    vm.runs_on()


@test
def binary_deleted(rig):
    """An upgrade has replaced the file that the VM was restored with; its pager is killed."""
    old = rig.checkpoint(ram=64)
    binary, rig.opts.criu_vm = rig.opts.criu_vm, another_binary(rig)
    try:
        vm = rig.restore(old, *rig.small())
        os.unlink(rig.opts.criu_vm)
    finally:
        rig.opts.criu_vm = binary
    rig.kill_pager()
    vm.runs_on()


@test
def two_take_over(rig):
    """At the same time: afterwards one pager serves."""
    vm = rig.paged()
    both = [rig.start_criu_vm("lazy-pages", "--name", rig.name) for _ in range(2)]
    results = [rig.end_criu_vm(p) for p in both]
    check(0 in [r.status for r in results], f"none of them: {results[0]}, {results[1]}")
    rig.served()
    vm.passes(3)
    wait_for("one supervisor and one pager", 10, lambda: sum(p.isdigit() and is_pager(rig, p) for p in os.listdir("/proc")) == 2)


def is_pager(rig, pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return b"lazy-pages" in (words := f.read().split(b"\0")) and rig.name.encode() in words
    except OSError:
        return False


@cases(version=(lambda s: s.update(version=999), "state"), no_version=(lambda s: s.pop("version"), "state"),
       no_blocks=(lambda s: s.pop("blocks"), "state"), budget=(lambda s: s.update(budget=-1), "state"),
       other_qemu=(lambda s: s.update(qemu=os.getpid()), "ended"))
def state_of_another_kind(rig, spoil, word):
    """Not understood: refused, with the reason. Right again: taken over."""
    vm = rig.paged()
    rig.kill_both()
    path = f"{rig.tmp}/run/{rig.name}/state"
    text = rig.text_of(path)
    state = json.loads(text)
    spoil(state)
    with open(path, "w", encoding="latin-1") as f:
        json.dump(state, f)
    rig.fails("lazy-pages", "--name", rig.name, says=[word])
    check(alive(vm.pid), "QEMU has ended")
    with open(path, "w", encoding="latin-1") as f:
        f.write(text)
    rig.criu_vm("lazy-pages", "--name", rig.name).check(0)
    vm.runs_on()


@test
def page_table_damaged(rig):
    """Cut short: nobody serves by it, a guess would be wrong pages. As it was: all goes on."""
    vm = rig.paged()
    rig.kill_both()
    path = f"{rig.tmp}/run/{rig.name}/pages"
    whole = os.path.getsize(path)
    with open(path, "rb") as f:
        content = f.read()
    os.truncate(path, whole // 2)
    result = rig.criu_vm("lazy-pages", "--name", rig.name)
    check(result.status == 3 and rig.pager_log in result.err, f"{result}")
    check(f"{path}: " in rig.text_of(rig.pager_log), "the log does not say what is wrong")
    with open(path, "r+b") as f:
        f.write(content)
    rig.served()
    vm.runs_on()
