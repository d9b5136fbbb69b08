# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of life.py share, beyond misuse_rig: zdtm's guests, paged VMs, their pagers, a disk that misbehaves."""
import contextlib
import dataclasses
import os
import re
import signal
import statistics
import time

import misuse_rig
from faulty import FaultyFs
from guests import GUESTS, MIB
from misuse_rig import Skip, alive, check, leftovers, wait_for, zdtm_vm
from vm import ResidencySampler

BY_NAME = {g.name: g for g in GUESTS}
TROUBLE_SECONDS = 10
SAID_OF_STAT = ("state", "message", "trouble", "pager_pid", "supervisor_pid")


class LifeRig(misuse_rig.Rig):
    def __init__(self, opts):
        super().__init__(opts)
        self.disks, self.samplers = contextlib.ExitStack(), []
        self.note = ""                                  # what the test's line says beside that it went well
        os.mkdir(f"{self.tmp}/state")

    def environment(self):
        return {**super().environment(), "CRIU_VM_STATE_DIR": f"{self.tmp}/state"}

    # ---- guests

    def command_line(self, folder, guest=None, args=(), **simple):
        """guest is one of zdtm's; else as misuse_rig's."""
        if not guest:
            return super().command_line(folder, args=args, **simple)
        if guest.disk:
            with open(f"{folder}/disk.img", "wb") as f:
                f.truncate(guest.disk * MIB)
        return [*guest.command_line("tcg", self.opts.build, folder), *args]

    def zdtm_guest(self, name, append="", **changes):
        """A guest of zdtm's, its options with others before them."""
        guest = dataclasses.replace(BY_NAME[name], **changes)
        return dataclasses.replace(guest, append=f"{append} {guest.append}".strip())

    def dma(self):
        """A guest with DMA that is quick where the disk is not, as FUSE's: for 32 MiB."""
        return self.zdtm_guest("disk", "depth=16", ram=128, in_flight=4)

    def linux(self, append="", **changes):
        return self.zdtm_guest("linux", append, **changes)

    def paged(self, *args, budget=16, images=None, name=None, runs=True, swap=None, **guest):
        """A VM restored lazily into `budget` MiB, with a swap image."""
        guest = guest or {"ram": 64}
        old = self.vm(**guest)
        self.dump(old, images=images)
        return self.restore(old, *self.small(budget, swap, name), *args, images=images, name=name, runs=runs)

    def small(self, budget=16, swap=None, name=None):
        return ["--lazy-pages", "--ram", f"{budget}M", "--swap", swap or f"{self.tmp}/swap/{name or 'image'}"]

    def ask(self, vm, command, seconds=120):
        """The Linux guest's answer."""
        return zdtm_vm.ask(f"{vm.dir}/check.sock", command, seconds)

    def verified(self, vm, seconds=120):
        """A Linux guest finds all its memory as it should be, in a pass that begins now."""
        answer = self.ask(vm, "verify", seconds)
        check(answer.get("errors") == 0, f"the guest's answer to 'verify': {answer}")
        vm.console.check()

    def boots_again(self, vm, seconds=60):
        """A new life, which may count its passes from the beginning."""
        wait_for("the guest's next start", seconds, lambda: vm.console.readies or (vm.console.bad or "").startswith("BAD"))
        check("BAD" not in (vm.console.bad or ""), f"the guest says: {vm.console.bad}")
        vm.console.readies, vm.console.passes, vm.console.bad = 0, 0, None

    def watch_memory(self, vm):
        self.samplers.append(ResidencySampler(vm.pid))
        return self.samplers[-1]

    # ---- pagers

    def stat(self, name=None):
        """Its line in the log is a short one: it is asked often."""
        logged = len(self.log)
        answer = super().stat(name)
        self.log[logged:] = [f"  stat: {', '.join(f'{k} {answer[k]}' for k in SAID_OF_STAT if answer.get(k))}"]
        if self.log[-2:-1] == self.log[-1:]:
            self.log.pop()
        return answer

    def pager(self, name=None):
        return self.stat(name)["pager_pid"]

    def supervisor(self, name=None):
        return self.stat(name)["supervisor_pid"]

    def kill(self, pid, signum=signal.SIGKILL):
        os.kill(pid, signum)
        wait_for(f"the end of process {pid}", 10, lambda: not alive(pid))

    def served(self, but=None, seconds=20, name=None):
        """Waits until a pager serves, another one than `but`; what stat says then."""
        def there():
            answer = self.stat(name)
            return answer if serves(answer) and answer["pager_pid"] != but else None
        return wait_for(f"a pager that serves, not {but}", seconds, there)

    def in_state(self, state, seconds=10, name=None):
        return wait_for(f"a VM that is {state}", seconds, lambda: (a := self.stat(name))["state"] == state and a)

    def kill_pager(self, name=None):
        """And there is another one. Returns its pid."""
        pager = self.pager(name)
        self.kill(pager)
        return self.served(pager, name=name)["pager_pid"]

    def kill_both(self):
        """Nobody is left to start a pager."""
        answer = self.stat()
        self.kill(answer["supervisor_pid"])
        self.kill(answer["pager_pid"])

    def in_trouble(self, *words, seconds=20):
        """Waits until stat says why somebody waits."""
        def there():
            trouble = self.stat().get("trouble")
            return trouble and all(w in str(trouble) for w in words) and trouble
        return wait_for(f"trouble that says {words}", seconds, there)

    def no_trouble(self, seconds=20):
        wait_for("the end of the trouble", seconds, lambda: not self.stat().get("trouble"))

    # ---- a disk that misbehaves

    def faulty(self):
        program = f"{self.opts.tools}/faultyfs"
        if not os.access(program, os.X_OK) or not os.access("/dev/fuse", os.R_OK):
            raise Skip("no FUSE here" if os.access(program, os.X_OK) else f"{program} is not built")
        fs = self.disks.enter_context(FaultyFs(program, self.folder("disk-"), env=self.environment()))
        self.mounts.append(fs.path)
        self.processes.append(fs.process)
        return fs

    # ---- what the guest says of itself

    def lines(self, vm, pattern, begin=0):
        """Numbers of all lines of its serial log that match."""
        return [int(n) for n in re.findall(pattern, self.text_of(f"{vm.dir}/serial.log")[begin:], re.M)]

    def pulses(self, vm):
        return len(self.lines(vm, r"^pulse (\d+)"))

    def others_run(self, vm, seconds=10):
        """Whether the processor that needs no page goes on, where a test has given it pulse=1."""
        before, end = self.pulses(vm), time.monotonic() + seconds
        while self.pulses(vm) < before + 6 and time.monotonic() < end:
            time.sleep(0.1)
        return self.pulses(vm) >= before + 6

    # ---- the end

    def residue(self):
        left = super().residue() + [f"{root}/{f}" for root, _, files in os.walk(f"{self.tmp}/state") for f in files if f.endswith(".swap")]
        return left + leftovers.cgroups(self.tmp)

    def how_it_ended(self, seconds=15):
        """The log's last line, when nothing else is left."""
        self.nothing_left(seconds)
        lines = self.text_of(self.pager_log).splitlines() or [""]
        check("ended:" in lines[-1], f"the log does not say how it ended: {lines[-5:]}")
        return lines[-1]

    def finish(self):
        for sampler in self.samplers:
            sampler.stop()
        super().finish()
        self.disks.close()

    def clean_up(self):
        for sampler in self.samplers:
            sampler.stop()
        left = zdtm_vm.kill_all(self.tmp)
        self.disks.close()
        super().clean_up()
        self.left += left


def serves(answer):
    """As stat says; not a pager that waits before it begins."""
    return answer["state"] == "served" and (answer["paging"] or not answer.get("trouble"))


def spread(values):
    """Median and worst, of microseconds, as milliseconds."""
    return f"{statistics.median(values) / 1000:.1f} ms, at worst {max(values) / 1000:.1f} ms"
