# SPDX-License-Identifier: GPL-2.0-only
"""VMs that move: into plain memory and into little, back again, together, slowly."""
import json
import os
import random
import re
import signal
import time

from misuse_rig import MIB, NOBODY, Skip, cases, check, test, wait_for

LONG = {"guests-linux", "guests-disk-deep", "guests-smp", "guests-kvm-smp", "guests-timer", "guests-memfd", "guests-numa", "guests-q35",
        "away-again-running", "cut-off-sigterm", "on-one-host", "dumped-there", "paused-small", "moves-channels", "moves-small-zstd",
        "to-and-fro-memory"}
SMALL = ["--ram", "16M"]


def said(summary):
    """For the reader."""
    return ", ".join(f"{k} {v}" for k, v in summary.items() if isinstance(v, (int, float)))[:300]


def untouched(summary):
    """Nothing was paged at the destination before the VM ran."""
    for key in ("page_ins", "page_outs"):
        check(summary.get(key) == 0, f"{key} is not 0 in the summary: {summary}")


def in_swap(vm):
    """Whether some of it is there, and no more in memory than allowed."""
    memory = vm.at.host.stat(vm.at.name)["memory"]
    check(memory["swapped"] > 0 and memory["memfd"] <= memory["budget"] + memory["overdraft_max"], f"{memory}")


@cases(plain=([], False), small=(SMALL, True), zstd=(["--compress", "zstd"], False), small_zstd=([*SMALL, "--compress", "zstd:3"], True),
       channels=(["--channels", "4"], False), small_channels=([*SMALL, "--channels", "4"], True))
def moves(rig, options, small):
    vm = rig.memory(64)
    rig.b.serve()
    summary = vm.move(*options)
    untouched(summary)
    if small:
        in_swap(vm)
    vm.at.passes(4)
    rig.note = said(summary)


@test
def hot_there_too(rig):
    """Its pager there knows what was hot here."""
    vm = rig.memory(64)
    rig.a.serve()
    rig.b.serve()
    vm.move("--ram", "24M")
    vm.at.passes(3, 60)
    vm.move("--ram", "24M")
    host = vm.at.host
    ages = host.run("od", "-An", "-v", "-w1", "-tu1", f"{host.inside}/run/{vm.at.name}/hotness").split()
    check(len(ages) == 64, f"it knows of {len(ages)} chunks, not of 64")
    check("0" in ages and len(set(ages)) > 2, f"all are equally hot, says {host}: {ages}")
    vm.at.passes(2, 60)


@test
def paged_as_the_server_says(rig):
    """Also what has moved on to another server, which says nothing."""
    vm = rig.memory(64)
    rig.a.serve()
    rig.b.serve("--paging", "method=1,queue-bits=5,folios=off")
    for paging in ({"method": "1", "access": "auto", "queue_bits": 5, "spin": True, "folios": False},
                   {"method": "adaptive", "access": "auto", "queue_bits": 8, "spin": True, "folios": True}):
        vm.move(*SMALL)
        vm.at.passes(3)
        check((says := vm.at.host.stat(vm.at.name)["tuning"]) == paging, f"it is paged with {says}, not {paging}")


@cases(linux=("linux", "tcg", 64), disk=("disk", "tcg", 64), disk_deep=("disk-deep", "tcg", 128),
       kvm_disk=("disk", "kvm", 16), kvm_smp=("smp", "kvm", 16),
       smp=("smp", "tcg", 32), timer=("timer", "tcg", 32), memfd=("memory-memfd", "tcg", 32), numa=("memory-numa", "tcg", 32),
       q35=("memory-q35", "tcg", 32))
def guests(rig, name, accel, budget):
    """Into little memory, and back into plain."""
    if accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise Skip("no /dev/kvm")
    vm = rig.guest(name, accel=accel)
    rig.a.serve()
    rig.b.serve()
    patient = ["--downtime-limit", "2000"]      # some write as fast as a busy host carries it away
    untouched(vm.move("--ram", f"{budget}M", *patient))
    vm.at.passes(3, 60)
    untouched(vm.move(*patient))
    vm.at.passes(3, 60)
    if name == "linux":
        vm.verified()


@cases(running=0, paused=1)
def away_again(rig, paused):
    """Little memory, then less; then enough. The source brings no page in for that: it is paused, so nobody else does."""
    vm = rig.memory(64)
    rig.a.serve()
    rig.b.serve()
    vm.move("--ram", "24M")
    if paused:
        vm.at.qmp("stop")
    for options in (SMALL, []):
        before = vm.at.host.stat(vm.at.name)["counts"]["pages_in_swap"]
        at, counts, move = vm.at, [], rig.in_background(lambda o=options: vm.move(*o, "--max-bandwidth", "30M", runs=not paused))
        while move.is_alive():
            result = at.host.criu_vm("stat", at.name, "--json")
            if not result.status and "counts" in (answer := json.loads(result.out)):
                counts.append(answer["counts"]["pages_in_swap"])
            time.sleep(0.2)
        untouched(move.result())
        check(len(counts) > 1, f"the pager did not answer while its VM was sent: {counts}")
        if paused:
            check(set(counts) == {before}, f"pages were brought in, to be sent: {before} became {counts}")
    check(not vm.at.host.stat(vm.at.name)["paging"], "it is still in private virtual memory")
    if paused:
        vm.at.stays_paused()
        vm.at.qmp("cont")
    vm.at.passes(4)


@cases(plain=[], small=SMALL)
def paused(rig, options):
    """A VM that does not run is not made to."""
    vm = rig.memory(64)
    rig.b.serve()
    vm.at.qmp("stop")
    untouched(vm.move(*options, runs=False))
    vm.at.stays_paused()
    vm.at.qmp("cont")
    vm.at.passes(3)


@test
def together(rig):
    """Two from one host and one from the other, at once; one of them goes to where another one comes from."""
    vms = [rig.memory(64), rig.memory(48), rig.memory(64, host=rig.b)]
    rig.a.serve()
    rig.b.serve()
    moves_ = [rig.in_background(lambda vm=vm: vm.move(*SMALL)) for vm in vms]
    for move in moves_:
        untouched(move.result())
    for vm in vms:
        vm.at.passes(3)


@test
def slowly(rig):
    """--max-bandwidth is kept: by the bytes on the wire, and their time."""
    vm = rig.memory(32, image="touch", append="fill=80")
    rig.b.serve()
    rate, before, begun = 16 * MIB, rig.bytes_sent(), time.monotonic()
    vm.move("--max-bandwidth", "16M", "--downtime-limit", "1000")
    sent, took = rig.bytes_sent() - before, time.monotonic() - begun
    # What goes in the stop is not held back.
    check(sent > 16 * MIB and took >= 0.7 * sent / rate, f"{sent / MIB:.1f} MiB in {took:.2f} s, at {rate / MIB:.0f} MiB/s")
    rig.note = f"{sent / MIB:.1f} MiB in {took:.2f} s, at {rate / MIB:.0f} MiB/s"


@test
def does_not_converge(rig):
    """It rewrites faster than the line carries: fails, says what would be needed, and the VM has not been stopped for it."""
    vm = rig.memory(32, image="rewrite", append="rate=48M")
    rig.b.serve()
    line = vm.migrate_line(rig.b, "--max-bandwidth", "12M", "--downtime-limit", "100")
    result = vm.at.host.fails(*line, says=["--downtime-limit", "--lazy"])
    last = next(line for line in result.err.splitlines() if "error:" in line)
    check(re.search(r"--downtime-limit \d+", last) and re.search(r"\d+ [KMG]iB a second", last), f"no forecast; {result}")
    vm.runs_on()
    rig.b.nothing_left()
    rig.note = last[:300]


def of_file(rig, content, *options):
    """A guest whose RAM is a private mapping of a file, of which it writes to little. What it costs to move."""
    with open(f"{rig.shared}/template", "wb") as f:
        f.write(content * (64 * MIB // len(content)))
    time.sleep(0.2)                 # the file is older than the kernel's clock tick
    vm = rig.memory(64, image="touch", args=["-object", "memory-backend-file,id=t,size=64M,mem-path={shared}/template,share=off",
                                             "-machine", "memory-backend=t"])
    rig.b.serve()
    summary = vm.move(*options)
    vm.at.passes(3)
    return summary


@test
def private_file(rig):
    """Pages that are the file's are sent once, though they always count as written."""
    summary = of_file(rig, random.randbytes(MIB), "--downtime-limit", "200", "--max-bandwidth", "60M")
    check(summary["rounds"] <= 4 and 60 * MIB < summary["bytes"] < 80 * MIB, f"{summary}")
    rig.note = said(summary)


@test
def compressed_slowly(rig):
    """--max-bandwidth is of what is on the wire."""
    summary = of_file(rig, b"criu-vm " * 512, "--compress", "zstd", "--max-bandwidth", "4M")
    check(summary["bytes"] < 8 * MIB and summary["seconds"] < 8, f"{summary}")
    rig.note = said(summary)


@test
def gives_memory_back(rig):
    """A balloon and memory in a file: all of it is looked at in the standstill, which is short nevertheless."""
    vm = rig.memory(512, image="touch", append="fill=80", args=["-object", "memory-backend-memfd,id=m,size=512M",
                                                               "-machine", "memory-backend=m", "-device", "virtio-balloon-pci"])
    rig.b.serve()
    summary = vm.move()
    check(summary["pages"] > 100000 and summary["zero_pages"] < 1000, f"{summary}")
    rig.note = said(summary)


@test
def limit_too_low(rig):
    """Not even an idle VM is that fast, which is said at once; a paused one does not need to be."""
    vm = rig.memory(64)
    rig.b.serve()
    rig.a.fails(*vm.migrate_line(rig.b, "--downtime-limit", "5"), says=["idle VM"])
    vm.runs_on()
    rig.b.nothing_left()
    vm.at.qmp("stop")
    vm.move("--downtime-limit", "5", runs=False)
    vm.at.qmp("cont")
    vm.at.passes(3)


@cases(sigint=signal.SIGINT, sigterm=signal.SIGTERM)
def cut_off(rig, signum):
    """In the rounds, and at any moment: either it has arrived, or it is as before."""
    vm = rig.memory(64)
    rig.b.serve()
    for slow in (["--max-bandwidth", "8M"], [], [], []):
        if vm.at.host is rig.b:
            break
        command = rig.a.start_criu_vm(*vm.migrate_line(rig.b, *slow))
        time.sleep(random.uniform(0.05, 1.2) if not slow else 2)
        if command.poll() is None:
            os.kill(command.pid, signum)
        result = rig.end_criu_vm(command)
        if result.status == 0:
            check(not slow, f"it cannot be there already; {result}")
            vm.at.wait_end()
            vm.arrived(rig.b)
            vm.at.passes(3)
        else:
            check(result.status in (1, -signum), f"{result}")
            check("interrupted" in result.err or result.status == -signum and not slow, f"{result}")    # so soon it is not caught yet
            vm.runs_on()
            rig.b.nothing_left()
            check(not rig.a.source_records(), f"left: {rig.a.source_records()}")


@test
def name_is_taken(rig):
    """Two of one name: the second is refused, the first not disturbed."""
    first, second = rig.memory(48), rig.memory(48)
    rig.b.serve()
    first.move(*SMALL)
    result = rig.a.fails(*second.migrate_line(rig.b, "--name", first.name), says=[first.name])
    second.runs_on()
    first.at.passes(3)
    second.move()
    check(result.status == 1, f"{result}")


@cases(memory=("memory", 20), memory_short=("memory", 5))
def to_and_fro(rig, name, times):
    """With little and with enough memory by turns, one channel and four."""
    vm = rig.guest(name, ram=64)
    rig.a.serve()
    rig.b.serve()
    for i in range(times):
        untouched(vm.move(*(["--ram", f"{random.choice((16, 24, 40))}M"] if i % 3 else []), *(["--channels", "4"] if i % 2 else [])))
    vm.at.passes(3)


# ---- the VM is a VM like others there


@test
def reboots_there(rig):
    """The firmware has come along."""
    vm = rig.memory(48)
    rig.b.serve()
    vm.move(*SMALL)
    vm.at.qmp("system_reset")
    vm.journey.next_life()
    vm.at.passes(3, 60)


@test
def dumped_there(rig):
    vm = rig.memory(48)
    rig.b.serve()
    vm.move(*SMALL)
    images = f"{rig.tmp}/images"
    rig.b.criu_vm("dump", vm.name, "-D", images).check(0)
    vm.at.wait_end()
    rig.b.nothing_left()
    rig.b.criu_vm("restore", "-D", images, "--name", vm.name).check(0)
    vm.arrived(rig.b)
    vm.at.passes(3)


@test
def on_one_host(rig):
    """Loopback is secure enough by itself; the VM gets another name there."""
    vm = rig.memory(48)
    rig.a.serve(secure=(), address="127.0.0.1")
    vm.move(*SMALL, to=rig.a, secure=())
    vm.at.passes(3)
    vm.move("--name", f"{vm.name}-x", to=rig.a, secure=())
    vm.at.passes(3)


@test
def as_user(rig):
    """QEMU runs as --user says, whoever it was at the source."""
    vm = rig.memory(32)
    os.chown(vm.dir_at(rig.b), NOBODY, NOBODY)
    rig.b.serve(user="nobody")
    vm.move(*SMALL)
    with open(f"/proc/{vm.at.pid}/status", encoding="latin-1") as f:
        uids = next(line.split()[1:] for line in f if line.startswith("Uid:"))
    check(set(uids) == {str(NOBODY)}, f"it runs as {uids}")
    vm.at.passes(3)


# ---- the server's end


@cases(arrives=True, fails=False)
def once(rig, arrives):
    """--once: one VM, and the server's exit status says whether it runs. It outlives the server."""
    vm = rig.memory(32)
    rig.b.serve("--once", *([] if arrives else ["--total-ram", "16M"]))
    server, rig.b.server = rig.b.server, None
    if arrives:
        vm.move(*SMALL)
    else:
        rig.a.fails(*vm.migrate_line(rig.b))
    status = server.wait(150)
    check(status == (0 if arrives else 1), f"the server's status is {status}: {rig.b.server_log()[-500:]}")
    vm.at.passes(3)


@test
def server_ends(rig):
    """A VM that is arriving is given up, one that has arrived runs on; and another server takes VMs for it."""
    first, second = rig.memory(32), rig.memory(64)
    rig.b.serve()
    first.move(*SMALL)
    before = set(rig.b.processes())
    command = rig.start_migrate(second, rig.b, "--ram", "24M", "--max-bandwidth", "8M")
    wait_for("a VM on its way", 10, lambda: len(rig.b.qemus()) > 1)
    rig.b.stop_server()
    command.end().check(1)
    second.runs_on()
    wait_for("the end of what arrived", 10, lambda: set(rig.b.processes()) == before)
    first.at.passes(3)
    rig.b.serve()
    second.move(*SMALL)
    for vm in (first, second):
        vm.at.passes(2)
