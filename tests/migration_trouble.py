# SPDX-License-Identifier: GPL-2.0-only
"""What a server meets that is no migration, or one that it cannot take; and a wire that spoils, cuts and stalls. Errors on both ends,
other VMs untouched."""
import json
import os
import random
import shutil
import socket
import struct
import time

from migration_faults import Outcome
from migration_guest import QuickQmp
from migration_rig import HELD_SECONDS, stages_done
from migration_wire import (ADMIT, ASK, COMMIT, CONTROL, DATA, DONE, HELLO, OFFER, PIECE, ROUND_BEGIN, ROUND_DONE, STATUS, Client, Proxy,
                            fields, hello, message, parse, preamble)
from misuse_rig import MIB, cases, check, test, wait_for

LONG = {"cut-in-the-middle-there", "cut-in-the-middle-back", "stalls-for-long", "slow-talker", "slow-clients", "stalls-data",
        "spoiled-data", "vm-ram", "too-little-memory-in-all"}
SMALL = ["--ram", "16M"]
SLOW_SECONDS = 10           # for a preamble
BOMB = struct.pack("<IQ", 0xffffffff, 0)
OPENINGS = {
    "nothing": b"", "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "short": preamble(CONTROL)[:20], "noise": os.urandom(4096),
    "no_kind": preamble(77), "zero_kind": preamble(0), "version": preamble(CONTROL, version=99),
    "magic": preamble(CONTROL, magic=b"CRIUVMW2"), "flags": preamble(CONTROL, flags=0xfe),
    "tls": preamble(CONTROL, flags=1) + os.urandom(600), "data": preamble(DATA, channel=3) + bytes(16),
    "data_channel": preamble(DATA, channel=255) + bytes(16), "ask_and_more": preamble(ASK) + os.urandom(100),
    "huge": preamble(CONTROL) + BOMB, "huge_and_more": preamble(CONTROL) + BOMB + bytes(1 << 20), "empty": preamble(CONTROL) + bytes(12),
    "no_message": preamble(CONTROL) + struct.pack("<IQ", 64, 0) + os.urandom(64),
}


def resident(pid):
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * 4096


def another(rig):
    """A VM that has arrived before, and is not to notice anything."""
    vm = rig.memory(32)
    rig.b.serve("--total-ram", "512M")
    vm.move(*SMALL)
    return vm


def still_good(rig, other):
    """The other VM runs, and one more can arrive."""
    vm = rig.memory(32)
    vm.move(*SMALL)
    for v in (vm, other):
        v.at.passes(2)
    check(resident(rig.b.server.pid) < 64 << 20, f"the server takes {resident(rig.b.server.pid) / MIB:.0f} MiB")


def receivers_gone(rig, before):
    wait_for("the end of those who heard it", 20, lambda: set(rig.b.criu_vms()) <= set(before))


@test
def no_migration_at_all(rig):
    """Each opening is answered by an end, soon, and costs nothing."""
    other = another(rig)
    before, run = rig.b.criu_vms(), os.listdir(f"{rig.b.dir}/run")
    clients = {name: Client(rig.a, rig.b, opening) for name, opening in OPENINGS.items()}
    begun = time.monotonic()
    for name, client in clients.items():
        with client:
            # A preamble has its time, and what follows one has that of a line.
            check(client.is_closed(max(0.1, begun + 30 - time.monotonic())), f"'{name}' is not closed")
    receivers_gone(rig, before)
    check(os.listdir(f"{rig.b.dir}/run") == run, f"left: {os.listdir(f'{rig.b.dir}/run')}")
    still_good(rig, other)


@test
def slow_clients(rig):
    """Hundreds who say nothing, or a byte now and then: a migration goes by them; they are not waited for."""
    vm = rig.memory(32)
    rig.b.serve()
    clients = []
    for i in range(200):
        client = Client(rig.a, rig.b, preamble(CONTROL)[:i % 24])
        clients.append(client)
    begun = time.monotonic()
    vm.move(*SMALL)
    took = time.monotonic() - begun
    for client in clients:
        left = begun + 3 * SLOW_SECONDS - time.monotonic()
        check(client.is_closed(max(0.1, left)), "a client that never says who it is is waited for")
        client.socket.close()
    nr = len(os.listdir(f"/proc/{rig.b.server.pid}/fd"))
    check(nr < 64, f"the server has {nr} descriptors open")
    vm.at.passes(2)
    rig.note = f"a migration beside them took {took:.1f} s"


@test
def slow_talker(rig):
    """After its preamble, too: a byte a second is no life sign for ever, and does not hold up others."""
    vm = rig.memory(32)
    rig.b.serve()
    talkers = [Client(rig.a, rig.b, preamble(CONTROL)) for _ in range(8)]
    for talker in talkers:
        talker.send(hello()[:3])
    vm.move(*SMALL)
    for talker in talkers:
        check(talker.is_closed(60), "it is still waited for")
        talker.socket.close()
    vm.at.passes(2)


DIALOGUES = {
    "version": (hello(99, 98), "version"), "version_zero": (hello(0, 0), ""), "offer_first": (message(OFFER), ""),
    "commit_first": (message(COMMIT), ""), "hello_twice": (hello() + hello(), ""), "no_offer": (hello() + message(COMMIT), ""),
    "round_first": (hello() + message(ROUND_BEGIN, fields(f1=1)), ""), "done": (hello() + message(DONE), ""),
    "unasked_admit": (hello() + message(ADMIT, fields(f1=b"x", f2=1, f3=1, f4=1, f5=bytes(16))), ""),
    "frames": (hello() + message(ROUND_DONE, fields(f1=1, f2=[1] * 5000)), ""),
    "piece_too_long": (hello() + message(PIECE, fields(f1=1, f2=1 << 62, f3=0, f4=b"x" * 1000)), ""),
}


def offer(name=b"innocent", ram=64 * MIB, blocks=((b"pc.ram", 64 * MIB),), channels=1, vm_len=100, **more):
    return message(OFFER, fields(f1=name, f2=ram, f3=[fields(f1=n, f2=length) for n, length in blocks], f6=channels, f8=1, f10=vm_len,
                                 **more))


OFFERS = {
    "name": offer(name=b"../../etc"), "long_name": offer(name=b"x" * 5000), "no_name": offer(name=b""), "ram": offer(ram=1 << 62),
    "no_ram": offer(ram=0, blocks=()), "sum": offer(blocks=((b"pc.ram", 1 << 62), (b"pc2.ram", 3 << 62))),
    "blocks": offer(blocks=((b"b", 4096),) * 9000),
    "odd": offer(ram=4097, blocks=((b"pc.ram", 4097),)), "channels": offer(channels=1000000), "no_channels": offer(channels=0),
    "budget": offer(f4=1), "budget_huge": offer(f4=1 << 63), "document": offer(vm_len=1 << 60), "swap": offer(f5=b"/etc/passwd"),
    "no_document": offer() + message(PIECE, fields(f1=1, f2=100, f3=0, f4=os.urandom(100))),
    "net": offer(f9=[fields(f1=b"n0", f2=b"x" * 300, f3=b"../..", f4=1 << 31)] * 300),
}


@test
def bad_dialogues(rig):
    """Messages that are none, or not now: an ABORT with a reason or an end, and nothing is left."""
    other = another(rig)
    before, run = rig.b.criu_vms(), os.listdir(f"{rig.b.dir}/run")
    for name, (said, word) in DIALOGUES.items():
        with Client(rig.a, rig.b, preamble(CONTROL) + said) as client:
            reason = client.aborted(*([word] if word else []))
            check(reason, f"'{name}' is refused without a reason")
    for name, said in OFFERS.items():
        with Client(rig.a, rig.b, preamble(CONTROL) + hello() + said) as client:
            answer = client.receive()
            check(answer and answer[0] == HELLO, f"no HELLO before '{name}': {answer}")
            if name in ("no_document", "swap"):
                client.socket.shutdown(socket.SHUT_WR)
            check(client.is_closed(60), f"'{name}' is not refused")
    receivers_gone(rig, before)
    check(os.listdir(f"{rig.b.dir}/run") == run, f"left: {os.listdir(f'{rig.b.dir}/run')}")
    still_good(rig, other)


@test
def asked_by_strangers(rig):
    """Whoever asks of a token that nobody has gets "aborted", which is true from then on."""
    vm = rig.memory(32)
    rig.b.serve()
    token = os.urandom(16)
    for _ in range(2):
        with Client(rig.a, rig.b, preamble(ASK), token) as client:
            said = client.receive()
            check(said and said[0] == STATUS and parse(said[1])[0] == 1 and said[1][1] == 2 and token in said[1], f"the answer is {said}")
    check(rig.b.records().get(token.hex()) == "aborted", f"records: {rig.b.records()}")
    vm.move(*SMALL)


@test
def asked_meanwhile(rig):
    """Who asks while the VM is on its way decides that it does not arrive: the source learns that when it comes to the commit."""
    vm = rig.memory(32)
    rig.b.serve()
    outcome = Outcome(rig, vm)
    with Proxy(rig) as proxy:
        command = through(rig, vm, proxy, "--max-bandwidth", "16M")
        wait_for("a VM on its way", 20, lambda: rig.b.qemus() and proxy.token)
        with Client(rig.a, rig.b, preamble(ASK), proxy.token) as client:
            said = client.receive()
            check(said and said[0] == STATUS and said[1][1] == 2, f"the answer is {said}")
        command.end().check(1)
    check(outcome.wait() == "source" and outcome.record() == "aborted", f"it was aborted, the record says {outcome.record()}")


# ---- what does not fit


@cases(total=(["--total-ram", "24M"], [], ["32"]), in_all=(["--total-ram", "48M"], ["--ram", "32M"], ["32"]),
       more_than_it_has=(["--total-ram", "1G"], ["--ram", "1M"], []))
def too_little_memory(rig, server, options, words):
    """Refused with the figures, before a byte of memory is sent."""
    vm, first = rig.memory(32), rig.memory(32)
    rig.b.serve(*server)
    if "48M" in server:
        first.move("--ram", "32M")
    before = rig.bytes_sent()
    result = rig.a.fails(*vm.migrate_line(rig.b, *options), says=words)
    check(rig.bytes_sent() - before < MIB, f"{rig.bytes_sent() - before} bytes were sent; {result}")
    vm.runs_on()
    if "48M" in server:
        vm.move("--ram", "16M")
        first.at.passes(2)


@test
def vm_ram(rig):
    """--vm-ram, as a size and as a share; migrate --ram asks for another."""
    for option, options, budget in (("25%", [], 16), ("20M", [], 20), ("50%", ["--ram", "24M"], 24)):
        vm = rig.memory(64)
        rig.b.serve("--vm-ram", option)
        vm.move(*options)
        check((has := rig.b.stat(vm.name)["memory"]["budget"]) == budget * MIB, f"--vm-ram {option} {options}: {has / MIB} MiB")
        vm.at.kill()
        rig.b.nothing_left()
        rig.b.stop_server()


@cases(reserved=([], ["64 MiB", "--swap"]), sparse=(["--swap-sparse"], ["space"]))
def full_disk(rig, options, words):
    """No room for the swap image: refused if space is reserved; else it fails when there is no more. The source runs on."""
    vm, small = rig.memory(64), rig.b.mount(32)
    rig.b.serve(*options, swap=small)
    result = rig.a.fails(*vm.migrate_line(rig.b, *SMALL), says=words)
    vm.runs_on()
    rig.b.nothing_left()
    rig.b.stop_server()
    rig.b.serve()
    vm.move(*SMALL)
    rig.note = next(line for line in result.err.splitlines() if "error:" in line)[:200]


@test
def no_such_disk(rig):
    """A disk that this host does not have: said by its name."""
    path = f"{rig.tmp}/a/only-here.img"
    with open(path, "wb") as f:
        f.truncate(MIB)
    vm = rig.memory(32, args=["-drive", f"file={rig.tmp}/host/only-here.img,if=none,id=d,format=raw", "-device", "virtio-blk-pci,drive=d"])
    rig.b.serve()
    result = rig.a.fails(*vm.migrate_line(rig.b), says=["only-here.img"])
    vm.runs_on()
    rig.b.nothing_left()
    check("--map" in result.err, f"it does not say what to do; {result}")


@test
def mapped(rig):
    """Disks are where --map says."""
    for name, folder in (("a", "here"), ("b", "there")):
        os.mkdir(f"{rig.tmp}/{name}/{folder}")
    target = f"{rig.shared}/mapped.img"
    with open(target, "wb") as f:
        f.truncate(32 * MIB)
    os.link(target, f"{rig.tmp}/a/here/disk.img")
    os.link(target, f"{rig.tmp}/b/there/disk.img")
    with open(f"{rig.tmp}/b/map", "w", encoding="ascii") as f:
        f.write(f"# of a test\ndisk {rig.tmp}/host/here/ {rig.tmp}/host/there/\n")
    vm = rig.memory(64, image="disk", append="depth=8 disk=8M", args=[
        "-drive", f"file={rig.tmp}/host/here/disk.img,if=none,id=d,format=raw,cache=none", "-device", "virtio-blk-pci,drive=d"])
    rig.b.serve("--map", f"{rig.b.inside}/map")
    vm.move("--ram", "32M")
    with open(f"/proc/{vm.at.pid}/cmdline", "rb") as f:
        check(b"/here/" not in (line := f.read()) and b"/there/disk.img" in line, f"{line}")
    vm.at.passes(4)


# ---- one in the middle


def through(rig, vm, proxy, *args):
    return rig.start_migrate(vm, proxy, *SMALL, *args)


@cases(data=DATA, control=CONTROL)
def spoiled(rig, kind):
    """A bit of what is sent is another one on the way: found, said, and the source runs on."""
    vm = rig.memory(32)
    rig.b.serve()
    for offset in (40, 200, random.randrange(1000, 100000), random.randrange(1 << 20, 20 << 20)) if kind == DATA else (40, 90, 1500, 5000):
        outcome = Outcome(rig, vm)
        with Proxy(rig, spoil=(kind, "there", offset)) as proxy:
            result = through(rig, vm, proxy, "--channels", "1").end()
            check(proxy.happened, f"nothing was spoiled; {result}")
        result.check(1)
        check(outcome.wait() == "source", "it failed")
        said = rig.b.server_log() + rig.b.log_of(vm.name)
        check("ERR" in said.upper() or "error" in said, f"the destination says nothing: {said[-500:]}")


@cases(there="there", back="back")
def cut_in_the_middle(rig, direction):
    """The control connection ends at any byte; a source in doubt asks, and whatever is decided, one VM runs."""
    vm, became = rig.memory(32), []
    rig.b.serve()
    with Proxy(rig) as proxy:
        through(rig, vm, proxy).end().check(0)
        whole = proxy.counts[CONTROL, direction]
    vm.at.wait_end()
    vm.arrived(rig.b)
    vm.at.kill()
    rig.b.nothing_left()
    vm = None
    # What decides is said at last, in few bytes.
    for offset in sorted({32, 60, *(random.randrange(32, whole) for _ in range(8)), *range(max(33, whole - 120), whole, 6)}):
        vm = vm or rig.memory(32)
        outcome = Outcome(rig, vm)
        with Proxy(rig, cut=(CONTROL, direction, offset)) as proxy:
            result = through(rig, vm, proxy).end()
            became.append(outcome.wait())
        check((result.status == 0) <= (became[-1] == "destination"), f"cut at byte {offset}: runs at the {became[-1]}; {result}")
        if became[-1] == "destination":
            vm.at.kill()
            rig.b.nothing_left()
            vm = None
    rig.note = f"of {whole} bytes: " + ", ".join(f"{became.count(w)} at the {w}" for w in ("source", "destination"))


@cases(data=(DATA, 1 << 20), control=(CONTROL, 3000))
def stalls(rig, kind, offset):
    """For a few seconds nothing passes: it goes on."""
    vm = rig.memory(32)
    rig.b.serve()
    with Proxy(rig, stall=(kind, "there", offset), stall_seconds=5) as proxy:
        through(rig, vm, proxy).end().check(0)
        check(proxy.happened, "nothing was held up")
    vm.at.wait_end()
    vm.arrived(rig.b)
    vm.at.passes(3)


@test
def stalls_for_long(rig):
    """A line on which nothing passes is lost, and the VM goes on."""
    vm = rig.memory(32)
    rig.b.serve()
    outcome = Outcome(rig, vm)
    with Proxy(rig, stall=(DATA, "there", 1 << 20), stall_seconds=30) as proxy:
        begun = time.monotonic()
        through(rig, vm, proxy).end().check(1)
        took = time.monotonic() - begun
        check(outcome.wait() == "source", "it failed")
    check(took < 29, f"it took {took:.0f} s to learn that nothing passes")


# ---- who may do what here


def held_before_commit(rig, vm, after):
    """So far it has come, and it is not that host's yet."""
    command = rig.start_migrate(vm, rig.b, *SMALL)
    wait_for(f"{after}", 30, lambda: after in stages_done(rig.b.server_log() + rig.b.log_of(vm.name)) or not command.runs())
    check(command.runs(), "it has ended already")
    return command


@cases(root="root", nobody="nobody")
def monitors_until_commit(rig, user):
    """Nobody reaches its monitors before it is the destination's; then they are where they were."""
    vm = rig.memory(32)
    folder, seen = vm.dir_at(rig.b), set()
    if user != "root":
        shutil.chown(folder, user)
    rig.b.serve(env={"CRIU_VM_FAULT": f"receive-load:delay{HELD_SECONDS}"}, user=user)
    command = held_before_commit(rig, vm, "receive-serve")
    rig.b.fails("dump", vm.name, "-D", f"{rig.b.dir}/images", says=["arriving"])
    while not os.path.exists(f"{folder}/own.sock") and command.runs():
        seen.update(os.listdir(folder))
        time.sleep(0.01)
    command.end().check(0)
    vm.at.wait_end()
    vm.arrived(rig.b)
    vm.at.passes(3)
    check("own.sock~criu-vm" in seen and "own.sock" not in seen, f"before the commit: {seen}")
    check("own.sock~criu-vm" not in os.listdir(folder), "its monitor has not got its name back")
    with QuickQmp(vm.at.qmp_path) as q:
        check(q.call("query-status")["status"] == "running", "its monitor says something else")


def say_cont_at(rig, vm):
    with QuickQmp(f"{vm.dir_at(rig.b)}/own.sock~criu-vm") as q:
        q.call("cont")


@test
def cont_before_load(rig):
    """Who finds that monitor, and has the VM run once it is loaded, does not: no pass is made twice."""
    vm = rig.memory(32)
    rig.b.serve(env={"CRIU_VM_FAULT": f"receive-load:delay{HELD_SECONDS},receive-ready:delay"})
    command = held_before_commit(rig, vm, "receive-serve")
    say_cont_at(rig, vm)
    command.end().check(0)
    vm.at.wait_end()
    vm.arrived(rig.b)
    vm.at.passes(3)


@test
def cont_before_commit(rig):
    """Once it is loaded it does run; then it is not made the destination's, and ends there."""
    vm = rig.memory(32)
    vm.at.qmp("stop")   # or there would be two for a moment
    rig.b.serve(env={"CRIU_VM_FAULT": f"receive-ready:delay{HELD_SECONDS}"})
    command = held_before_commit(rig, vm, "receive-load")
    say_cont_at(rig, vm)
    result = command.end().check(1)
    check("before it was this host's" in result.err, f"{result}")
    wait_for("nothing there", 10, lambda: not rig.b.residue())
    check(vm.at.qmp("query-status")["status"] == "paused", "it is not as it was")


@test
def root_is_not_given(rig):
    """Another host does not decide that its VM runs as root here."""
    vm = rig.memory(32)
    rig.b.serve(user=None)
    rig.a.fails(*vm.migrate_line(rig.b), says=["--user root"])
    vm.runs_on()
    wait_for("nothing there", 5, lambda: not rig.b.residue())
