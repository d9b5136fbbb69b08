# SPDX-License-Identifier: GPL-2.0-only
"""Lazy moves whose line is cut, whose pager, command or server is killed, whose source is lost: no wrong byte, and it ends, or waits."""
import json
import os
import random
import signal
import time

from migration_lazy_rig import SLOW, TRICKLE, Lazy, memfd, pages_in_memory, pages_with_content
from migration_rig import Command
from migration_wire import COMPLETE, FRAME_LEN, LINE, REFUSED, REFUSED_KEY, REFUSED_UNKNOWN, Client, Proxy, frame, preamble
from misuse_rig import MIB, cases, check, test, wait_for

LONG = {"lazy-cuts-fifty", "lazy-strangers", "lazy-cut-shortly", "lazy-shell-ends-guardian", "lazy-resumed-elsewhere", "lazy-ends-there-quits",
        "lazy-source-lost-waits", "lazy-pager-killed-twenty", "lazy-cut-for-long", "lazy-nobody-pages", "lazy-interrupted-sigterm",
        "lazy-line-spoiled-often", "lazy-all-at-once"}
SMALL = ["--ram", "16M"]
KEY_LEN = 16


def rewrites(rig, ram=64):
    """Verifies all of its memory, always, and rewrites it."""
    return rig.memory(ram)


def pulses(rig):
    """The same; and another processor, which needs no page of that, says that it runs."""
    return rig.memory(64, append="pulse=1", args=["-smp", "2"])


def seeded(rig):
    """What is random here can be had again."""
    seed = random.randrange(1 << 32)
    rig.note = f"seed {seed}"
    return random.Random(seed)


# ---- the line


def cut_at(rand, times, length):
    """Bytes between two cuts: anywhere in `length` bytes, some of them when a line has just been opened."""
    return [rand.choice((rand.randrange(1, 400), *[rand.randrange(4096, 2 * length // times)] * 3)) for _ in range(times)]


@cases(five=(5, 64), fifty=(50, 256))
def lazy_cuts(rig, times, ram):
    """All lines at once, wherever they are, in a frame or between two; whoever waits goes on with the next."""
    vm, rand = rewrites(rig, ram), seeded(rig)
    rig.b.serve()
    with Proxy(rig, rate=SLOW) as proxy:
        lazy = Lazy(rig, vm, "--ram", f"{ram // 4}M", through=proxy)
        lazy.is_missing()
        proxy.cuts = cut_at(rand, times, 16 * MIB)
        proxy.hurry()
        lazy.ends()
        check(not proxy.cuts, f"{times - len(proxy.cuts)} cuts instead of {times}")
    vm.at.passes(3, 60)


@test
def lazy_cut_shortly(rig):
    """For 3 s nobody gets through: the processor that needs a page waits, the other goes on, both sides say why; then all goes on."""
    vm = pulses(rig)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        before = vm.journey.pulses
        wait_for("pulses there", 10, lambda: vm.journey.pulses > before + 3)
        lazy.is_missing()
        with proxy.closed():
            begun, before = time.monotonic(), vm.journey.pulses
            there, here = lazy.no_line()
            vm.at.stands_still(max(0, begun + 3 - time.monotonic()))
            wait_for("the processor that needs no page", 5, lambda: vm.journey.pulses > before + 3)
            check(lazy.remote()["alone_s"] > 1 and lazy.remote()["waiting"] > 0, f"stat: {lazy.remote()}")
        proxy.hurry()
        lazy.ends()
    rig.note = f"there: {there['trouble']}; here: {here['trouble']}"


@test
def lazy_cut_for_long(rig):
    """The wire carries nothing any more, and nobody is told: silence is a loss, too."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        rig.cut()
        time.sleep(20)
        lazy.no_line()
        rig.mend()
        proxy.hurry()
        lazy.ends()


@cases(there=("there", 1), back=("back", 1), often=("there", 20))
def lazy_line_spoiled(rig, direction, times):
    """A bit of what is said on a line is another one on the way: that line is lost, and what was asked for is asked for again."""
    vm, rand = rewrites(rig), seeded(rig)
    rig.b.serve()
    with Proxy(rig, spoil=(LINE, direction, rand.randrange(2000, 1 << 18 if direction == "there" else 3000))) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        nr = 0
        while lazy.missing() and nr < times - 1:
            wait_for("a spoiled byte", 60, lambda: proxy.happened or not lazy.missing())
            nr += proxy.happened
            proxy.spoil, proxy.happened = (LINE, direction, rand.randrange(2000, 1 << 20)), False
        lazy.ends()
        nr += proxy.happened
        check(nr, "nothing was spoiled")
    vm.at.passes(3, 60)


@test
def lazy_strangers(rig):
    """Who does not know the key of the migration, or asks for another one, gets no line, and takes none from who has it."""
    vm = rewrites(rig, 48)
    rig.b.serve()
    with Proxy(rig, rate=SLOW / 2) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        for token, reason in ((proxy.token, REFUSED_KEY), (os.urandom(16), REFUSED_UNKNOWN)):
            for channel in (0, 1, 31):
                with Client(rig.a, rig.b, preamble(LINE, channel=channel) + os.urandom(KEY_LEN), token) as client:
                    said = client.read(FRAME_LEN)
                    check(len(said) == FRAME_LEN or channel, "it is closed without a reason")
                    check(not said or frame(said) == (REFUSED, reason) or channel == 31 and frame(said)[0] == REFUSED,
                          f"line {channel}: {frame(said)}, not reason {reason}")
                    check(client.is_closed(30), "it is not closed")
        openings = (preamble(LINE, channel=32) + bytes(16), preamble(LINE), preamble(LINE)[:20], preamble(LINE, flags=1) + os.urandom(99))
        for client in [Client(rig.a, rig.b, opening, proxy.token) for opening in openings]:
            with client:
                check(client.is_closed(30), "it is not closed")
        lazy.is_missing()
        check(lazy.all_lines() and lazy.server() == lazy.command.process.pid, f"it has lost lines: {lazy.remote()}")
        proxy.hurry()
        lazy.ends()


# ---- the destination's pager, and its server


@cases(three=(3, 64), twenty=(20, 256))
def lazy_pager_killed(rig, times, ram):
    """The next one gets the lines."""
    vm, rand = rewrites(rig, ram), seeded(rig)
    rig.b.serve()
    with Proxy(rig, rate=8 * SLOW) as proxy:
        lazy = Lazy(rig, vm, "--ram", f"{ram // 4}M", through=proxy)
        for _ in range(times):
            time.sleep(rand.uniform(0, 0.3))
            lazy.is_missing()
            proxy.rate = SLOW
            lazy.kill_pager()
            proxy.rate = 8 * SLOW
        proxy.hurry()
        lazy.ends()
    vm.at.passes(3, 60)


@test
def lazy_nobody_pages(rig):
    """Nobody is left to start a pager: the source is told to come again, and does."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        answer = rig.b.stat(vm.name)
        for key in ("supervisor_pid", "pager_pid"):
            os.kill(answer[key], signal.SIGKILL)
        wait_for("trouble at the source", 20, lambda: (said := rig.a.leaving()) and not said[0]["lines"] and said[0]["trouble"])
        vm.at.comes_to_rest()
        rig.b.criu_vm("lazy-pages", "--name", vm.name).check(0)
        proxy.hurry()
        lazy.ends()


@test
def lazy_server_killed(rig):
    """Lines are the pager's, and stay; new ones need a server."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        before = lazy.is_missing()
        rig.b.stop_server(signal.SIGKILL)
        wait_for("more pages", 20, lambda: lazy.is_missing() < before)
        proxy.close_all()
        lazy.no_line()
        vm.at.comes_to_rest()
        rig.b.serve_again()
        proxy.hurry()
        lazy.ends()


@test
def lazy_once(rig):
    """The server stays for as long as its VM's pages come: lines that are cut come back."""
    vm = rewrites(rig, 48)
    rig.b.serve("--once")
    server, rig.b.server = rig.b.server, None
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        proxy.close_all()
        wait_for("lines", 20, lazy.all_lines)
        lazy.is_missing()
        check(server.poll() is None, f"the server has ended: {rig.b.server_log()[-500:]}")
        proxy.hurry()
        lazy.ends()
    check(server.wait(150) == 0, f"the server's status is {server.returncode}: {rig.b.server_log()[-500:]}")
    vm.at.passes(2, 60)


# ---- the source's command


@test
def lazy_command_killed(rig):
    """Its guardian serves on in the background; who asks at a terminal is told so."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        lazy.kill_command()
        check(not lazy.was.can_run(), "the source's QEMU can be made to run")
        wait_for("lines", 20, lazy.all_lines)
        lazy.is_missing()
        result = rig.a.criu_vm("migrate", "--resume", str(lazy.was.pid))
        check(str(lazy.server()) in result.err + result.out, f"it does not say who serves; {result}")
        proxy.hurry()
        lazy.ends(command=False)


@cases(command=False, guardian=True)
def lazy_shell_ends(rig, killed):
    """QEMU is a job of a shell that ends: what is stopped by a signal then gets SIGHUP and SIGCONT from the kernel, and would end."""
    vm = rig.memory(64, shell=True)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        wait_for("the note that it has left", 10, rig.a.leaving)
        if killed:
            lazy.kill_command()
            wait_for("lines", 20, lazy.all_lines)
        with open(f"/proc/{lazy.was.pid}/stat", encoding="latin-1") as f:
            os.kill(int(f.read().rsplit(")", 1)[1].split()[1]), signal.SIGKILL)
        time.sleep(0.5)
        os.kill(lazy.was.pid, signal.SIGCONT)           # as who says `fg`
        time.sleep(0.5)
        check(lazy.was.alive() and all(lazy.was.held()), "the source's QEMU does not stand still")
        lazy.is_missing()
        proxy.hurry()
        lazy.ends(command=not killed)


@test
def lazy_left(rig):
    """What has left is neither moved nor dumped any more."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        wait_for("the note that it has left", 10, rig.a.leaving)
        rig.a.fails("migrate", str(lazy.was.pid), rig.b.where(), "--insecure", says=["runs at"])
        rig.a.fails("dump", str(lazy.was.pid), "-D", f"{rig.a.inside}/left", says=["runs at"])
        lazy.is_missing()
        proxy.hurry()
        lazy.ends()


@cases(sigint=signal.SIGINT, sigterm=signal.SIGTERM)
def lazy_interrupted(rig, signum):
    """What follows goes on in the background, and the message says so."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        lazy.kill_command(signum).check(3, "background", f"--resume {lazy.was.pid}")
        lazy.is_missing()
        proxy.hurry()
        lazy.ends(command=False)


@test
def lazy_resumed_by_hand(rig):
    """All who served are killed: nobody does, which stat says, until `migrate --resume` does, in the foreground."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        wait_for("the source to know that it has left", 10, rig.a.leaving)

        def nobody():
            for pid in rig.a.criu_vms():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.3)     # one that was becoming another program just then is not seen as ours
            return not rig.a.criu_vms()
        wait_for("the end of all who served", 10, nobody)
        lazy.command.end()
        check(lazy.server() == 0 and not lazy.was.can_run(), f"stat at the source: {rig.a.leaving()}")
        left = wait_for("no line", 20, lambda: not (r := lazy.remote())["lines"] and r["pages_left"])
        again = Command(rig, rig.a, ("migrate", "--resume", str(lazy.was.pid), "-vv"))
        wait_for("lines", 20, lambda: lazy.all_lines() and lazy.server() == again.process.pid)
        check(lazy.is_missing() <= left, f"more is missing than before: {left}, {lazy.missing()}")
        two = rig.a.criu_vm("migrate", "--resume", str(lazy.was.pid))
        check(str(again.process.pid) in two.err + two.out, f"{two}")
        proxy.hurry()
        again.end().check(0)
        lazy.ends(command=False)


@test
def lazy_resumed_elsewhere(rig):
    """The destination's address is gone, and it has another one; a host that it is not does not count."""
    vm = rewrites(rig)
    for host, n in ((rig.a, 1), (rig.b, 2)):
        host.run("ip", "address", "add", f"10.78.0.{n}/24", "dev", "wire")
    rig.a.serve()
    rig.b.serve(address="0.0.0.0")
    rig.b.listening["address"] = rig.b.address
    with Proxy(rig, rate=2 * SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        rig.b.run("ip", "address", "del", f"{rig.b.address}/24", "dev", "wire")
        proxy.shut = True
        proxy.close_all()
        resume = ("migrate", "--resume", str(lazy.was.pid))
        rig.a.criu_vm(*resume, rig.a.where(), "--insecure")
        wait_for("a refusal", 20, lambda: (said := rig.a.leaving()) and not said[0]["lines"] and "no VM" in (said[0]["trouble"] or ""))
        check(not lazy.was.can_run(), "the source's QEMU can be made to run")
        rig.a.criu_vm(*resume, f"10.78.0.2:{rig.b.listening['port']}", "--insecure").check(0)
        lazy.ends()


# ---- the end of one of the two


def kill_source(lazy):
    """Also what it has on its disk."""
    lazy.source_lost()
    there = wait_for("the destination to notice", 40, lambda: not (r := lazy.remote())["lines"] and r["trouble"] and r)
    check(there["pages_left"] > 0, f"stat: {there}")
    return there


@test
def lazy_source_lost(rig):
    """What is missing is listed, page by page, and nothing is invented: who needs none of it runs on."""
    vm = rig.memory(64, image="touch", append="fill=80", args=memfd(64))
    rig.b.serve()
    with Proxy(rig, background=TRICKLE) as proxy:
        lazy = Lazy(rig, vm, through=proxy)
        vm.at.passes(20, 60)                # all that it touches has come
        had = pages_with_content(lazy.was.pid, 64)
        there = kill_source(lazy)
    listed = lazy.listed()
    has = pages_in_memory(vm.at.pid, 64)
    check(len(listed) == lazy.missing() == there["pages_left"], f"{len(listed)} pages are listed, stat says {lazy.missing()}")
    check(not listed & has, f"{len(listed & has)} pages are listed, and are there")
    check(not (lost := had - has - listed), f"{len(lost)} pages are not there, and are not listed: {sorted(lost)[:10]}")
    check(len(listed & had) == len(had - has), f"{len(listed)} are listed, {len(had)} had content, {len(has)} are there")
    vm.at.passes(10)
    check(lazy.listed() == listed, "other pages are missing now")
    lazy.kill_pager()
    vm.at.passes(5)
    check(lazy.listed() == listed, "with another pager, other pages are missing")
    table = rig.b.criu_vm("stat", vm.name, "--missing").check(0).out
    check("ram0" in table or "ram0" in str(rig.b.stat(vm.name)), f"the list for people has no block: {table[:300]}")
    rig.note = f"{len(listed)} of {len(had)} pages; {there['trouble']}"


@test
def lazy_source_lost_waits(rig):
    """Who needs a page that is lost waits for it, for ever; the others go on."""
    vm = pulses(rig)
    rig.b.serve()
    with Proxy(rig, rate=SLOW) as proxy:
        lazy, before = Lazy(rig, vm, through=proxy), vm.journey.pulses
        wait_for("pulses there", 10, lambda: vm.journey.pulses > before + 3)
        kill_source(lazy)
    listed = lazy.listed()
    for _ in range(3):
        vm.at.stands_still(0.7)
        check(lazy.listed() == listed, "other pages are missing now")
    before = vm.journey.pulses
    wait_for("the processor that needs no page", 5, lambda: vm.journey.pulses > before + 3)
    check(lazy.remote()["waiting"] > 0, f"nobody waits: {lazy.remote()}")


@test
def lazy_source_vm_ended(rig):
    """The source's QEMU is killed, and with it what it had: nothing of that is invented by who serves, and both sides say so."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        os.kill(lazy.was.pid, signal.SIGKILL)
        proxy.hurry()
        wait_for("trouble on both sides", 20, lambda: (lazy.remote() or {}).get("trouble") and [v for v in rig.a.leaving() if v["trouble"]])
        vm.at.comes_to_rest()
        listed = lazy.listed()
        vm.at.stands_still(1)
        check(listed and lazy.listed() == listed, "pages still come, whoever they are from")
        vm.at.kill()
        lazy.command.end()
        lazy.over()


@cases(killed="killed", quits="quits")
def lazy_ends_there(rig, how):
    """The VM ends while pages are missing: nobody needs them any more, and the source ends too."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        if how == "killed":
            vm.at.kill()
        else:
            vm.at.qmp("quit")
        result = lazy.command.end().check(0)
        check(json.loads(result.out).get("ended"), f"it does not say that the VM has ended; {result}")
        lazy.over()


@test
def lazy_ended_unheard(rig):
    """The same while no line is there: the source hears of it with the next one."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, rate=SLOW) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        lazy.is_missing()
        with proxy.closed():
            vm.at.kill()
            rig.b.stop_server()
            check(lazy.was.alive() and lazy.command.runs(), "the source has ended, and cannot know")
        rig.b.serve_again()
        lazy.command.end().check(0)
        lazy.over()


@test
def lazy_complete_unheard(rig):
    """All pages have come, and the line is cut before the source hears of it; whoever is asked next knows, though the pager is another."""
    vm = rewrites(rig)
    rig.b.serve()
    with Proxy(rig, shut_at=COMPLETE) as proxy:
        lazy = Lazy(rig, vm, *SMALL, through=proxy)
        wait_for("the last page", 60, lambda: proxy.shut)
        wait_for("a VM that needs nothing", 20, lambda: lazy.remote() is None)
        lazy.kill_pager()
        check(lazy.was.alive() and lazy.command.runs() and lazy.server(), "the source has ended, and cannot know")
        check(not lazy.was.can_run(), "the source's QEMU can be made to run")
        proxy.shut_at, proxy.shut = None, False
        lazy.ends()


@test
def lazy_all_at_once(rig):
    """For a while anything happens: cuts, killed pagers, a killed server and a killed command."""
    vm, rand = rewrites(rig, 256), seeded(rig)
    rig.b.serve()
    with Proxy(rig, rate=8 * SLOW) as proxy:
        lazy = Lazy(rig, vm, "--ram", "64M", through=proxy)
        proxy.cuts = cut_at(rand, 10, 64 * MIB)
        for what in rand.sample(["pager", "server", "pager", "command", "pager", "cut", "server"], 7):
            time.sleep(rand.uniform(0, 0.5))
            lazy.is_missing()
            if what == "pager":
                lazy.kill_pager()
            elif what == "server":
                rig.b.stop_server(signal.SIGKILL)
                rig.b.serve_again()
            elif what == "command":
                lazy.kill_command()
            else:
                proxy.close_all()
        proxy.hurry()
        lazy.ends(command=False)
    vm.at.passes(3, 60)
