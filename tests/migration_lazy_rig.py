# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of lazy moves share: a move whose pages come later, and what each side says of them meanwhile."""
import contextlib
import json
import os
import signal

from migration_rig import Command
from misuse_rig import MIB, TestFailed, check, wait_for

PAGE = 4096
SLOW = 2 * MIB              # a second, over all page lines: so that pages are missing for as long as a test needs
TRICKLE = 256 << 10         # over those for what nobody waits for


class Lazy:
    """A VM that moves before its pages do; it runs there when this has been made."""

    def __init__(self, rig, vm, *args, through=None, secure=("--insecure",), env=None, runs=True):
        self.rig, self.vm, self.was, self.to = rig, vm, vm.at, vm.other()
        if through:
            through.keep = vm.guest.ram * MIB // 2
        self.command = Command(rig, self.was.host, vm.migrate_line(through or self.to, "--lazy", *args, secure=secure), env)
        self.wait_there("running" if runs else "paused")
        vm.arrived(self.to)

    def wait_there(self, guest):
        def there():
            answer = self.to.asked(self.vm.name)
            check(self.command.runs() or answer.get("state") == "served", f"it has failed: {self.command.said()[-1000:]}")
            return answer.get("guest") == guest and not answer.get("arriving") and self.was.is_held()
        wait_for("the VM there", 60, there)

    # ---- what is missing

    def remote(self):
        """What stat says of it there, None: nothing is missing any more."""
        answer = self.to.asked(self.vm.name)
        check(answer, "stat does not know the VM")
        return answer.get("remote")

    def missing(self):
        remote = self.remote()
        return remote["pages_left"] if remote else 0

    def is_missing(self):
        """What is tested now needs that."""
        check(missing := self.missing(), "all pages have come already, this test is of when they have not")
        return missing

    def listed(self):
        """Numbers of the pages, as `stat --missing` lists them."""
        answer = json.loads(self.to.criu_vm("stat", self.vm.name, "--missing", "--json").check(0).out)
        pages = [p for part in answer["missing"] for p in range(part["offset"] // PAGE, (part["offset"] + part["length"]) // PAGE)]
        check(len(set(pages)) == len(pages) == answer["pages"], f"{answer['pages']} pages, and {len(pages)} are listed")
        return set(pages)

    def all_lines(self):
        remote = self.remote()
        return not remote or remote["lines"] == remote["lines_wanted"]

    def server(self):
        """Who serves the pages, as stat says at the source; 0: nobody."""
        entries = self.was.host.leaving()
        check(len(entries) == 1, f"stat at the source: {entries}")
        check(entries[0]["qemu_pid"] == self.was.pid, f"it is of QEMU {self.was.pid}: {entries}")
        return entries[0]["server_pid"]

    # ---- faults

    def no_line(self):
        """Waits until both sides say that there is none, and why."""
        def said():
            there, here = self.remote(), self.was.host.leaving()
            check(there and here, "all pages have come already")
            return not there["lines"] and there["trouble"] and here[0]["trouble"] and not here[0]["lines"] and (there, here[0])
        return wait_for("both sides to say that no line is left", 20, said)

    def kill_pager(self):
        """And there is another one."""
        pager = self.to.stat(self.vm.name)["pager_pid"]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pager, signal.SIGKILL)

        def another():
            answer = self.to.asked(self.vm.name)
            return answer.get("state") == "served" and answer["pager_pid"] != pager
        wait_for("another pager", 20, another)

    def kill_command(self, signum=signal.SIGKILL):
        """Of those who serve the pages the first, once it is noted that they do; the others see to it. Its result."""
        wait_for("the note that it has left", 10, self.was.host.leaving)
        os.kill(self.command.process.pid, signum)
        result = self.command.end()
        wait_for("somebody else to serve", 20, lambda: self.server() not in (0, self.command.process.pid))
        return result

    def source_lost(self):
        """The host with all that was there."""
        def all_gone():
            for pid in [*self.was.host.criu_vms(), *self.was.host.qemus()]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.was.host.criu_vms() and not self.was.host.qemus()
        wait_for("the end of the source host's processes", 10, all_gone)
        self.command.end()
        for path in self.was.host.source_records() + self.was.host.lazy_records():
            os.unlink(path)

    # ---- the end

    def ends(self, command=True, runs=True):
        """All pages have come; at the source nothing is left. What the command says of it."""
        result = self.command.end().check(0) if command else None
        wait_for("the last page", 120, lambda: self.remote() is None)
        self.over()
        if runs:
            self.vm.at.passes(2, 60)
        return json.loads(result.out) if result else None

    def over(self):
        """The source needs nothing any more, and has heard that."""
        wait_for(f"the end of the source's QEMU {self.was.pid}", 30, lambda: not self.was.alive())
        self.was.host.nothing_left()
        wait_for("the end of the destination's record", 10, lambda: not self.to.lazy_records())


def memory_of(pid, mib):
    """A file: that of a QEMU's memory."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith("/memfd:") and os.stat(path).st_size == mib * MIB:
                return path
    raise TestFailed(f"QEMU {pid} has no memory of {mib} MiB in a file")


def pages_with_content(pid, mib):
    """Numbers of those that are not all zero."""
    with open(memory_of(pid, mib), "rb", buffering=0) as f:
        return {nr for nr in allocated(f) if any(os.pread(f.fileno(), PAGE, nr * PAGE))}


def allocated(file):
    """Numbers of a sparse file's pages that are there."""
    pages, at = set(), 0
    with contextlib.suppress(OSError):          # ENXIO: nothing follows
        while True:
            at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            pages.update(range(at // PAGE, end // PAGE))
            at = end
    return pages


def pages_in_memory(pid, mib):
    """Numbers of those that are there, whatever is in them."""
    with open(memory_of(pid, mib), "rb", buffering=0) as f:
        return allocated(f)


def memfd(mib):
    """QEMU options: memory that the test can look at."""
    return ["-object", f"memory-backend-memfd,id=ram0,size={mib}M,share=on", "-machine", "memory-backend=ram0"]
