# SPDX-License-Identifier: GPL-2.0-only
"""Faults at each stage, on each side: afterwards one VM runs, never two, never none. Before the commit it is the source's, and nothing
is left at the destination; after it, the destination's, and the source's cannot be made to run."""
import os
import random
import signal
import time

from migration_rig import HELD_SECONDS, stages_done
from misuse_rig import TestFailed, alive, cases, check, test, wait_for
from vm import PATIENCE

LONG = {"walk-source-errno", "walk-source-delay", "walk-destination-errno", "walk-destination-delay",
        "killed-anywhere-server", "killed-anywhere-receiver", "killed-anywhere-command",
        "walk-lazy-source-kill", "walk-lazy-source-errno", "walk-lazy-source-delay",
        "walk-lazy-destination-kill", "walk-lazy-destination-errno", "walk-lazy-destination-delay",
        "cut-source", "cut-destination", "cut-source-shortly", "cut-destination-shortly"}
SMALL = ["--ram", "16M"]
LAZY = [*SMALL, "--lazy"]
# What the pager does at a commit; no stages of a table.
PAGER = ["pager-commit", "pager-committed", "pager-cont"]
DECISION_SECONDS = 40                                   # a lost line, and the guardian's questions


def guest(rig):
    return rig.memory(32)


def learn(rig, options=SMALL):
    """Names of the stages of both sides, from a migration that goes well."""
    vm = guest(rig)
    rig.b.serve()
    command = rig.start_migrate(vm, rig.b, *options)
    command.end().check(0)
    vm.at.wait_end()
    vm.arrived(rig.b)
    vm.at.passes(2)
    source = stages_done(command.said())
    destination = stages_done(rig.b.server_log() + rig.b.log_of(vm.name))
    check(len(source) > 3 and len(destination) > 5, f"stages of the source: {source}; of the destination: {destination}")
    vm.at.kill()
    rig.b.stop_server()
    rig.b.nothing_left()
    return source, destination + PAGER


class Outcome:
    """Waits until there is one VM, and proves that there is no other."""

    def __init__(self, rig, vm, to=None):
        self.rig, self.vm, self.source, self.to = rig, vm, vm.at, to or rig.b
        self.before = set(self.to.records())

    def record(self):
        """What was decided of this migration; None: nothing, or it has been forgotten."""
        texts = [text for token, text in self.to.records().items() if token not in self.before]
        check(len(texts) < 2, f"two records: {texts}")
        return texts[0].split()[0] if texts else None

    def there(self):
        """Whether it runs at the destination."""
        result = self.to.criu_vm("stat", self.vm.name, "--json")
        return result.status == 0 and '"running"' in result.out and not self.source.alive()

    def here(self):
        try:
            return not self.source.is_held() and self.source.status() == "running"
        except (OSError, ValueError, TypeError, TestFailed):
            return False

    def wait(self, seconds=DECISION_SECONDS):
        """"source" or "destination": where it runs now."""
        logged = len(self.rig.log)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.vm.journey.check()
            if not self.to.qemus() and self.here():
                del self.rig.log[logged:]
                return self.stayed()
            if self.source.ended or not self.source.alive():
                if self.there():
                    del self.rig.log[logged:]
                    return self.left()
            time.sleep(0.2)
        held = self.source.alive() and self.source.is_held()
        raise TestFailed(f"after {seconds} s no VM runs, or two could: source {'alive' if self.source.alive() else 'dead'}"
                         f"{' and held' if held else ''}, QEMUs at the destination: {self.to.qemus()}, record: {self.record()}")

    def stayed(self):
        check(self.record() != "committed", "it runs at the source, and it was committed")
        self.to.nothing_left()
        self.vm.runs_on()
        return "source"

    def left(self):
        check(self.record() != "aborted", "it runs at the destination, and it was aborted")
        self.vm.arrived(self.to)
        self.vm.at.passes(2)
        check(not self.source.alive(), "the source's QEMU lives")
        wait_for("the end of the source's record", 5, lambda: not self.source.host.source_records())
        return "destination"

    def not_two(self):
        """While nothing can be decided: the one runs, or the other, or none yet."""
        self.vm.journey.check()
        if self.record() == "committed" and self.source.alive():
            check(not self.source.can_run(), "it was committed, and the source's QEMU can be made to run")


def spoken(became):
    check(not (mute := [line for line in became if "without" in line]), f"it failed and does not say why: {mute}")


def clear(rig, vm):
    """For the next one: a guest that is still at the source is used again."""
    if vm.at.host is rig.a:
        return vm
    vm.at.kill()
    vm.at.host.nothing_left()
    return None


def silent(result):
    """Whoever fails says why."""
    return "" if result.status in (0, -signal.SIGKILL) or "error:" in result.err else " without a word"


def at_stage(rig, vm, side, stage, kind, options):
    """One migration with that fault; where the VM runs afterwards."""
    env = {"CRIU_VM_FAULT": f"{stage}:{kind}"}
    rig.b.serve(env=env if side == "destination" else None)
    outcome = Outcome(rig, vm)
    result = rig.start_migrate(vm, rig.b, *options, env=env if side == "source" else None).end()
    ran = outcome.wait()
    if side == "source":
        check(kind != "kill" or result.status == -signal.SIGKILL, f"it was not killed; {result}")
    if kind == "delay":
        check(ran == "destination" and result.status == 0, f"a delay is no error; {result}")
    elif result.status != -signal.SIGKILL:
        check((result.status == 0) <= (ran == "destination"), f"it says that all is well, and the VM runs at the {ran}; {result}")
        check(result.status != 1 or ran == "source", f"status 1: the VM is as before, but it runs at the {ran}; {result}")
    rig.b.stop_server()
    return ran + silent(result)


@cases(source_kill=("source", "kill"), source_errno=("source", "errno"), source_delay=("source", "delay"),
       destination_kill=("destination", "kill"), destination_errno=("destination", "errno"), destination_delay=("destination", "delay"),
       lazy_source_kill=("source", "kill", LAZY), lazy_source_errno=("source", "errno", LAZY),
       lazy_source_delay=("source", "delay", LAZY), lazy_destination_kill=("destination", "kill", LAZY),
       lazy_destination_errno=("destination", "errno", LAZY), lazy_destination_delay=("destination", "delay", LAZY))
def walk(rig, side, kind, options=SMALL):
    """Every stage of one side, one after another."""
    stages, vm, became = learn(rig, options)[side == "destination"], None, []
    for stage in stages:
        vm = vm or guest(rig)
        try:
            became.append(f"{stage} {at_stage(rig, vm, side, stage, kind, options)}")
        except TestFailed as e:
            raise TestFailed(f"{stage}:{kind} at the {side}: {e}; before that: {became}") from None
        vm = clear(rig, vm)
    if vm and vm.at.host is rig.a:                      # all was as if nothing had happened
        rig.b.serve()
        vm.move(*SMALL)
    spoken(became)
    where = [line.split()[1] for line in became if line.split()[0] not in PAGER]
    check(kind == "delay" or where == sorted(where, reverse=True), f"there is one commit point: {became}")
    check(kind == "delay" or "source" in where, f"no fault had a consequence: {became}")
    rig.note = ", ".join(f"{where.count(w)} at the {w}" for w in ("source", "destination") if w in where)


# ---- the wire is cut


def cut_at(rig, vm, stage, before, side, seconds):
    """When the stage before it is done, that one takes its time, and the wire is cut."""
    env = {"CRIU_VM_FAULT": f"{stage}:delay"}
    rig.b.serve(env=env if side == "destination" else None)
    outcome = Outcome(rig, vm)
    server, pager = len(rig.b.server_log()), len(rig.b.log_of(vm.name))
    command = rig.start_migrate(vm, rig.b, *SMALL, env=env if side == "source" else None)

    def said():
        return command.said() if side == "source" else rig.b.server_log()[server:] + rig.b.log_of(vm.name)[pager:]
    wait_for(f"the stage '{before}'", 30, lambda: before in stages_done(said()) or not command.runs())
    # The destination's last stages come when the source has nothing to do any more.
    check(command.runs() or not command.end().status, f"it has ended before '{stage}': {command.said()[-500:]}")
    time.sleep(0.3)
    rig.cut()
    if seconds:
        time.sleep(seconds)
    else:
        end = time.monotonic() + 25
        while command.runs() and time.monotonic() < end:
            outcome.not_two()
            time.sleep(0.5)
        outcome.not_two()
    rig.mend()
    result = command.end()
    ran = outcome.wait()
    check(result.status != 0 or ran == "destination", f"it says that all is well; {result}")
    rig.b.stop_server()
    return ran + silent(result)


def walk_cut(rig, side, seconds):
    stages, vm, became = learn(rig)[side == "destination"], None, []
    stages = [s for s in stages if s not in PAGER]
    for before, stage in zip(stages, stages[1:]):
        vm = vm or guest(rig)
        try:
            became.append(f"{stage} {cut_at(rig, vm, stage, before, side, seconds)}")
        except TestFailed as e:
            raise TestFailed(f"cut at '{stage}' of the {side}: {e}; before that: {became}") from None
        finally:
            rig.mend()
        vm = clear(rig, vm)
    spoken(became)
    rig.note = ", ".join(became)


@cases(source=("source", 0), destination=("destination", 0), source_shortly=("source", 3), destination_shortly=("destination", 3))
def cut(rig, side, seconds):
    walk_cut(rig, side, seconds)


# ---- what is left to whom


@test
def resumed_after_commit(rig):
    """All of criu-vm at the source is killed once it was committed: its QEMU does not run, and `migrate --resume` ends it."""
    vm = guest(rig)
    rig.b.serve(env={"CRIU_VM_FAULT": f"pager-committed:delay{HELD_SECONDS}"})
    outcome = Outcome(rig, vm)
    command = rig.start_migrate(vm, rig.b, *SMALL)
    wait_for("the commit", 30, lambda: outcome.record() == "committed" or not command.runs())
    for pid in rig.a.criu_vms():
        os.kill(pid, signal.SIGKILL)
    command.end()
    wait_for("the VM there", 20, lambda: '"running"' in rig.b.criu_vm("stat", vm.name, "--json").out)
    outcome.not_two()
    check(outcome.source.alive(), "who ended it?")
    check(not outcome.source.can_run(), "the source's QEMU can be made to run")
    rig.a.criu_vm("migrate", "--resume", str(outcome.source.pid), rig.b.where(), "--insecure").check(0)
    check(outcome.wait() == "destination", "it was committed")


@test
def resumed_before_commit(rig):
    """The same before: the destination gives up, and `migrate --resume` lets the source's go on."""
    vm = guest(rig)
    rig.b.serve(env={"CRIU_VM_FAULT": f"receive-load:delay{HELD_SECONDS}"})
    outcome = Outcome(rig, vm)
    command = rig.start_migrate(vm, rig.b, *SMALL)
    wait_for("the last pages", 30, lambda: "receive-serve" in stages_done(rig.b.server_log() + rig.b.log_of(vm.name)) or not command.runs())
    for pid in rig.a.criu_vms():
        os.kill(pid, signal.SIGKILL)
    command.end()
    rig.b.nothing_left()
    outcome.not_two()
    rig.a.criu_vm("migrate", "--resume", str(outcome.source.pid), rig.b.where(), "--insecure").check(0)
    check(outcome.wait() == "source", "it was not committed")


@cases(server=("b", 1), receiver=("b", 2), command=("a", 1))
def killed_anywhere(rig, host, what):
    """At random moments, by SIGKILL."""
    vm, became = guest(rig), []
    for _ in range(6):
        vm = vm or guest(rig)
        rig.b.serve()
        outcome = Outcome(rig, vm)
        command = rig.start_migrate(vm, rig.b, *SMALL)
        time.sleep(random.uniform(0, 1.0))
        pids = {1: [command.process.pid] if host == "a" else [rig.b.server.pid], 2: rig.b.criu_vms()[:1]}[what]
        for pid in pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        if host == "b" and what == 1:
            rig.b.server.wait()
            rig.b.server = None
        result = command.end()
        # A source in doubt needs somebody to ask.
        if not rig.b.server:
            rig.b.serve_again()
        ran = outcome.wait(60 * PATIENCE)
        check(result.status != 0 or ran == "destination", f"{result}")
        became.append(ran)
        rig.b.stop_server()
        vm = clear(rig, vm)
    rig.note = ", ".join(f"{became.count(w)} at the {w}" for w in ("source", "destination"))
