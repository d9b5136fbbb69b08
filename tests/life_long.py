# SPDX-License-Identifier: GPL-2.0-only
"""What life.py runs as commands of their own: many kills, a host that swaps, a VM that idles."""
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time

from guests import MIB
from life_rig import spread
from misuse_rig import Skip, check, wait_for

KILLED_GUESTS = ["memory-random", "disk", "disk-deep", "linux-disk"]
GAP = r"^gap (\d+)$"            # what a guest with tick=1 says each second


# ---- kills


def ticking(rig, name):
    """The guest, with a tick each millisecond, in a quarter of its memory."""
    guest = rig.zdtm_guest(name, "tick=1")
    return guest, rig.paged(guest=guest, budget=guest.ram // 4, runs=False)


def gaps(rig, vm, guest, seconds):
    """The longest time without a tick while the seconds go by, in microseconds."""
    if guest.linux:
        rig.ask(vm, "gap")
        return lambda: (time.sleep(seconds), rig.ask(vm, "gap")["gap"])[1]
    begin = len(rig.text_of(f"{vm.dir}/serial.log"))

    def longest():
        time.sleep(seconds)             # and until that has been told
        before = len(rig.lines(vm, GAP, begin))
        wait_for("the guest's ticker", 60, lambda: len(rig.lines(vm, GAP, begin)) > before)
        return max(rig.lines(vm, GAP, begin))
    return longest


def kills(rig, name, rounds):
    """Pagers die at random instants under a guest that verifies itself; what its own ticker saw of it."""
    guest, vm = ticking(rig, name)
    sampler = rig.watch_memory(vm)
    vm.passes(2, 300)
    usual = [gaps(rig, vm, guest, 1)() for _ in range(5)]
    seen = []
    for _ in range(rounds):
        time.sleep(random.uniform(0, 1))
        pager, longest = rig.pager(), gaps(rig, vm, guest, 1)
        os.kill(pager, signal.SIGKILL)
        rig.served(pager)
        seen.append(longest())
        vm.console.check()
    vm.passes(2, 300)                   # all of it, by a pass that began after the last kill
    if guest.linux:
        rig.verified(vm, 300)
    allowed = (guest.ram // 4 + guest.in_flight) * MIB
    check(sampler.peak <= allowed, f"{sampler.peak / MIB:.1f} MiB were in memory, {allowed / MIB} are allowed")
    rig.note = f"{rounds} of {rounds} kills, no wrong byte; pause {spread(seen)}; without a kill {spread(usual)}"


def kill_tests(names, rounds):
    return [(f"kills-{name}", lambda rig, name=name: kills(rig, name, rounds)) for name in names or KILLED_GUESTS]


# ---- hog


SWAP_MIB = 4096
HOG_MIB = 1024                  # until so much is in the host's swap
OVERHEAD_MIB = 192              # of the VM's cgroup: QEMU's own memory, pager, supervisor, page tables
HOG = """
import mmap, sys, time
def swapped():
    kib = dict(line.split()[:2] for line in open("/proc/meminfo"))
    return (int(kib["SwapTotal:"]) - int(kib["SwapFree:"])) >> 10
kept = []
while swapped() < int(sys.argv[1]):
    kept.append(mmap.mmap(-1, 64 << 20))
    kept[-1].write(b"hog!" * (16 << 20))
print("full", flush=True)
time.sleep(1000)
"""


@contextlib.contextmanager
def host_swap(rig):
    path = f"{rig.tmp}/host-swap"
    subprocess.run(["fallocate", "-l", f"{SWAP_MIB}M", path], check=True)
    os.chmod(path, 0o600)
    subprocess.run(["mkswap", "-q", path], check=True)
    if subprocess.run(["swapon", path], check=False, capture_output=True).returncode:
        raise Skip("this host allows no swapon")
    try:
        yield
    finally:
        subprocess.run(["swapoff", path], check=True)
        os.unlink(path)


@contextlib.contextmanager
def memory_hog(rig):
    hog = rig.start([sys.executable, "-c", HOG, str(HOG_MIB)], stdout=subprocess.PIPE,
                    preexec_fn=lambda: open("/proc/self/oom_score_adj", "w", encoding="ascii").write("1000"))
    try:
        check(hog.stdout.readline() == b"full\n", "the hog was killed")
        yield
    finally:
        hog.kill()
        hog.wait()


def status_kib(pid, key):
    with open(f"/proc/{pid}/status", encoding="latin-1") as f:
        return int(re.search(rf"^{key}:\s+(\d+)", f.read(), re.M)[1])


def cgroup_bytes(path):
    for name in ("memory.current", "memory.usage_in_bytes"):
        if os.path.exists(f"{path}/{name}"):
            with open(f"{path}/{name}", encoding="ascii") as f:
                return int(f.read())
    raise Skip("no memory controller here")


def hog(rig):
    """The host swaps: what is the VM's is not in its swap, and the VM takes no more than its budget and a bit."""
    guest, budget = rig.zdtm_guest("disk"), 64
    vm, other = rig.paged(guest=guest, budget=budget), rig.vm(image="touch", ram=512, append="fill=90")
    answer, peak = rig.stat(), 0
    pids = {k: answer[k] for k in ("qemu_pid", "supervisor_pid", "pager_pid")}
    with host_swap(rig), memory_hog(rig):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            swapped = {k: kib for k, pid in pids.items() if (kib := status_kib(pid, "VmSwap"))}
            check(not swapped, f"in the host's swap, KiB: {swapped}")
            if answer.get("cgroup"):
                peak = max(peak, cgroup_bytes(answer["cgroup"]))
            vm.console.check()
            time.sleep(0.2)
        check((others := status_kib(other.pid, "VmSwap")), "memory was not short: nothing of a plain QEMU beside it is swapped")
    vm.passes(3, 120)
    check(peak <= (budget + guest.in_flight + OVERHEAD_MIB) * MIB, f"its cgroup took {peak / MIB:.1f} MiB")
    vm.runs_on()
    group = f"its cgroup took {peak / MIB:.1f} MiB" if answer.get("cgroup") else "no cgroup here"
    rig.note = (f"VmSwap 0 of QEMU, supervisor and pager, {others >> 10} MiB of a plain QEMU beside them; {group}, "
                f"{budget} MiB are the budget")


# ---- idle


IDLE_SECONDS = 20
IDLE_SHARE = 0.001


def cpu_ns(pid, only=""):
    """What each of the threads of a process whose names begin with `only` has run."""
    ran = {}
    for tid in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):      # it has ended
            with open(f"/proc/{pid}/task/{tid}/comm", encoding="latin-1") as f:
                name = f.read()
            with open(f"/proc/{pid}/task/{tid}/schedstat", encoding="ascii") as f:
                if name.startswith(only):
                    ran[tid] = int(f.read().split()[0])
    return ran


def cpu_shares(what, seconds):
    """Of a CPU, what the threads take in that time; one that ends is seen up to a moment before."""
    def look():
        return {(k, tid): ns for k, (pid, only) in what.items() for tid, ns in cpu_ns(pid, only).items()}
    begin, first = time.monotonic(), look()
    last = dict(first)
    while time.monotonic() - begin < seconds:
        time.sleep(0.2)
        last.update(look())
    took = time.monotonic() - begin
    return {k: sum(ns - first.get(t, 0) for t, ns in last.items() if t[0] == k) / 1e9 / took for k in what}


def idle(rig):
    """A guest that rests, half of it swapped: what serving it costs."""
    old = rig.vm(guest=rig.linux())
    rig.ask(old, "rest 3600")
    rig.dump(old)
    vm = rig.restore(old, *rig.small(96), runs=False)
    rig.verified(vm)
    time.sleep(5)                       # what that leaves to do
    answer = rig.stat()
    shares = cpu_shares({"pager": (answer["pager_pid"], ""), "supervisor": (answer["supervisor_pid"], ""),
                         "rings in QEMU": (vm.pid, "iou-")}, IDLE_SECONDS)
    said = ", ".join(f"{k} {100 * share:.3f} %" for k, share in shares.items())
    check(sum(shares.values()) <= IDLE_SHARE, f"of a CPU: {said}")
    rig.note = f"of a CPU: {said}"
