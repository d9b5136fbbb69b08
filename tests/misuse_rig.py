# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of misuse.py share: a folder, VMs, criu-vm, and the proof that nothing was lost and nothing is left."""
import contextlib
import glob
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "zdtm"))
import leftovers                                        # noqa: E402
import vm as zdtm_vm                                    # noqa: E402
from guests import MIB, QEMU, QEMU_MODULES, Guest                           # noqa: E402
from vm import TestFailed, alive, memfd_bytes, peer_pid, processes_of     # noqa: E402,F401; for the tests

NOBODY = 65534
DETECTED = re.compile(r"(Address|Leak|Thread|Undefined\w+)Sanitizer|runtime error:|double free|stack smashing|Assertion .* failed")
stopping = threading.Event()                            # the run was interrupted: all that waits gives up

TESTS = []                                              # (name, function)


class Skip(Exception):
    pass


def test(function):
    TESTS.append((function.__name__.replace("_", "-"), function))
    return function


def cases(**table):
    """One test a case; the function gets what stands behind its name."""
    def add(function):
        for case, value in table.items():
            def run(rig, value=value):
                function(rig, *value if isinstance(value, tuple) else (value,))
            TESTS.append((f"{function.__name__}-{case}".replace("_", "-"), run))
        return function
    return add


def check(good, what):
    if not good:
        raise TestFailed(what)


def copy_program(source, target):
    """A copy that can be run at once. Were it written by this process, a child that another test's thread is just starting might
    hold it open for writing a moment longer."""
    subprocess.run(["cp", "--", source, target], check=True)
    return target


def make_script(path, text):
    """One that can be run at once."""
    with open(f"{path}.text", "w", encoding="ascii") as f:
        f.write(text)
    os.chmod(f"{path}.text", 0o755)
    copy_program(f"{path}.text", path)
    os.unlink(f"{path}.text")


def catches(pid, signum):
    """It has begun to."""
    with open(f"/proc/{pid}/status", encoding="latin-1") as f:
        return int(re.search(r"^SigCgt:\s*(\w+)", f.read(), re.M)[1], 16) >> (signum - 1) & 1


def listens(path):
    """Somebody does on that socket; it is not enough that it is there."""
    with open("/proc/net/unix", encoding="latin-1") as f:
        return any(words[-1] == path and words[3] == "00010000" for words in map(str.split, f))


def wait_for(what, seconds, condition):
    def there():
        check(not stopping.is_set(), "interrupted")
        return condition()
    return zdtm_vm.wait_for(what, seconds, there)


class Console(zdtm_vm.Console):
    def check(self):
        check(not stopping.is_set(), "interrupted")
        super().check()


class Qmp:
    """A client for as long as the `with` lasts: the socket serves one at a time."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(100)
        wait_for(f"room in the backlog of {path}", 10, lambda: self.socket.connect_ex(path) == 0)
        self.file = self.socket.makefile("rw")
        self.greeting = self.file.readline()
        self.call("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def call(self, command, **arguments):
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while line := self.file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise TestFailed(f"QMP {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        return None                                     # "quit" may come before its answer


class Vm:
    """A guest that runs somewhere: a QEMU of the test's own, or one that criu-vm restored."""

    def __init__(self, folder, pid, process=None):
        self.dir, self.pid, self.process, self.ended = folder, pid, process, False
        self.pidfd = os.pidfd_open(pid)
        self.qmp_path = f"{folder}/qmp.sock"
        self.console = Console(f"{folder}/serial.sock", f"{folder}/serial.log")

    def alive(self):
        """Any thread of it is."""
        if not self.ended and select.select([self.pidfd], [], [], 0)[0]:
            self.ended = True
            os.close(self.pidfd)
        return not self.ended

    def passes(self, nr=2, seconds=30):
        self.console.wait_passes(nr, seconds)

    def qmp(self, command, **arguments):
        with Qmp(self.qmp_path) as q:
            return q.call(command, **arguments)

    def status(self):
        return self.qmp("query-status")["status"]

    def held(self):
        """Whether a thread is traced or stopped, for each."""
        held = []
        for tid in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(OSError):          # it has ended since
                with open(f"/proc/{self.pid}/task/{tid}/status", encoding="latin-1") as f:
                    text = f.read()
                held.append("TracerPid:\t0\n" not in text or bool(re.search(r"^State:\t[tT]", text, re.M)))
        return held

    def nobody_holds_it(self):
        """Before long: whoever is killed lets go as it ends."""
        wait_for("a QEMU that nobody holds", 5, lambda: not any(self.held()))

    def stopped_or_gone(self):
        """Its monitor may go at any moment."""
        try:
            return not self.alive() or self.status() == "paused"
        except (OSError, ValueError, TypeError):
            return False

    def runs_on(self):
        check(self.alive(), "QEMU has ended")
        self.nobody_holds_it()
        check((status := self.status()) == "running", f"QEMU is {status}")
        self.passes()

    def stays_paused(self):
        check(self.alive(), "QEMU has ended")
        self.nobody_holds_it()
        check((status := self.status()) == "paused", f"QEMU is {status}, it was paused")
        self.stands_still()

    def stands_still(self, seconds=0.4):
        wait_for("all that was said before to be read", 5, lambda: not self.console.unread())
        time.sleep(0.1)                                 # and understood
        before = self.console.passes
        time.sleep(seconds)
        self.console.check()
        check(self.console.passes == before, f"the guest ran: pass {before} became {self.console.passes}")

    def comes_to_rest(self, seconds=1):
        """Before long: what it has at hand may carry it on for a moment, a longer one on a busy machine."""
        def rests():
            before = self.console.passes
            time.sleep(seconds)
            self.console.check()
            return self.console.passes == before
        wait_for("a guest that waits", 20, rests)
        self.stands_still(seconds)

    def kill(self):
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
        self.wait_end()

    def wait_end(self, seconds=15):
        wait_for(f"the end of QEMU {self.pid}", seconds, lambda: not self.alive())
        if self.console.is_alive():
            self.console.stop()
        if self.console.bad:
            raise TestFailed(f"the guest says: {self.console.bad}")


class Result:
    def __init__(self, line, status, out, err):
        self.line, self.status, self.out, self.err = line, status, out, err

    def __str__(self):
        return f"{' '.join(self.line)}: status {self.status}, said: {(self.err + self.out).strip()[:1500]}"

    def check(self, status, *words):
        check(self.status == status, f"expected status {status}; {self}")
        for word in words:
            check(word in self.err, f"'{word}' is missing in the message; {self}")
        return self


class Rig:
    def __init__(self, opts):
        self.opts, self.tmp = opts, tempfile.mkdtemp(prefix="misuse-", dir=opts.dir)
        os.chmod(self.tmp, 0o755)
        self.owner = leftovers.hold(self.tmp)
        self.vms, self.processes, self.mounts, self.log, self.left = [], [], [], [], []
        for d in ("run", "swap", "asan"):
            os.mkdir(f"{self.tmp}/{d}")
        os.chmod(f"{self.tmp}/asan", 0o1777)
        # The log is where it is by default: with -o, what criu-vm says to its user would go there too.
        self.name = f"{os.path.basename(self.tmp)}"
        self.pager_log = f"/var/log/criu-vm/{self.name}.log"

    # ---- processes

    def environment(self):
        sanitize = f"log_path={self.tmp}/asan/log"
        return {**os.environ, zdtm_vm.TAG: self.tmp, "ASAN_OPTIONS": sanitize, "UBSAN_OPTIONS": sanitize + ":print_stacktrace=1",
                "QEMU_MODULE_DIR": QEMU_MODULES, "CRIU_VM_STATE_DIR": f"{self.tmp}/state"}

    def start(self, line, **options):
        """A process that the test ends, or that is ended with it."""
        check(not stopping.is_set(), "interrupted")
        self.log.append("$ " + " ".join(line))
        options = {"stdin": subprocess.DEVNULL, "start_new_session": True, "env": self.environment(), **options}
        process = subprocess.Popen(line, **options)
        self.processes.append(process)
        return process

    def as_user(self, uid):
        return ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]

    def line(self, command, *args, user=None):
        """Of criu-vm, with the run directory of this test."""
        return [*(self.as_user(user) if user else []), self.opts.criu_vm, command, "--run-dir", f"{self.tmp}/run", *args]

    def start_criu_vm(self, *args, user=None):
        return self.start(self.line(*args, user=user), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")

    def end_criu_vm(self, process, seconds=300):
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise TestFailed(f"{' '.join(process.args)}: no end, or its output is held open, after {seconds} s") from None
        result = Result(process.args, process.returncode, out, err)
        self.log.append(f"  status {result.status}: {(err + out).strip()[:2000]}")
        if found := DETECTED.search(out + err):
            raise TestFailed(f"{found[0]}: {result}")
        # The second three: by a signal that the test sent, before it was caught or because it cannot be.
        check(process.returncode in (0, 1, 2, 3, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL), f"crashed: {result}")
        return result

    def criu_vm(self, *args, user=None):
        return self.end_criu_vm(self.start_criu_vm(*args, user=user))

    def fails(self, *args, says=(), status=1, user=None):
        result = self.criu_vm(*args, user=user).check(status, *says)
        check(result.err.strip() and not result.out.strip(), f"a failure is told on stderr, and nothing else; {result}")
        return result

    # ---- VMs

    def folder(self, prefix, owner=None):
        path = tempfile.mkdtemp(prefix=prefix, dir=self.tmp)
        if owner:
            os.chown(path, owner, owner)
        return path

    def command_line(self, folder, image="memory", ram=32, append="", args=(), qmp=True, qemu=None):
        line = Guest(image, "", image, ram, append=append).command_line("tcg", self.opts.build, folder)
        if not qmp:
            at = line.index("-qmp")
            del line[at:at + 2]
        return [qemu or line[0], *line[1:], *args]

    def vm(self, *, prefix=(), options=None, owner=None, folder=None, **guest):
        """A running guest that has made its first passes. Paths in its arguments may name {dir}."""
        folder = folder or self.folder("vm-", owner)
        guest["args"] = [a.format(dir=folder) for a in guest.get("args", ())]
        with open(f"{folder}/qemu.log", "wb") as log:
            process = self.start([*prefix, *self.command_line(folder, **guest)], stdout=log, stderr=log, **(options or {}))
        vm = Vm(folder, process.pid, process)
        self.vms.append(vm)

        def up():
            check(process.poll() is None, f"QEMU ended by itself: {self.text_of(folder + '/qemu.log')}")
            vm.console.check()
            return vm.console.passes > 1
        wait_for("the guest's first passes", 60, up)
        return vm

    def images(self):
        return f"{self.tmp}/images"

    def dump(self, vm, images=None, by=None):
        self.criu_vm("dump", by or str(vm.pid), "-D", images or self.images()).check(0)
        vm.wait_end(5)
        return images or self.images()

    def checkpoint(self, **guest):
        """A VM's folder and its checkpoint; the VM has ended."""
        vm = self.vm(**guest)
        self.dump(vm)
        return vm

    def restore_line(self, *args, images=None, name=None):
        return ("restore", "-D", self.images() if images is None else images, "--name", self.name if name is None else name, *args)

    def restore(self, old, *args, images=None, name=None, runs=True):
        result = self.criu_vm(*self.restore_line("--json", *args, images=images, name=name)).check(0)
        vm = Vm(old.dir, json.loads(result.out)["qemu_pid"])
        self.vms.append(vm)
        if runs:
            vm.passes()
        return vm

    def stat(self, name=None):
        result = self.criu_vm("stat", name or self.name, "--json").check(0)
        return json.loads(result.out)

    def lazy_small(self):
        """Options of a lazy restore of a VM of more than 16 MiB, with a swap image."""
        return ["--lazy-pages", "--ram", "16M", "--swap", f"{self.tmp}/swap/image"]

    # ---- file systems of a size

    def mount(self, kind, mib):
        where = self.folder("mnt-")
        if kind == "tmpfs":
            line = ["mount", "-t", "tmpfs", "-o", f"size={mib}M,mode=0755", "misuse", where]
        else:
            with open(f"{where}.img", "wb") as f:
                f.truncate(mib * MIB)
            quiet = ["-q", "-m", "0"] if kind == "ext4" else ["-q"]
            subprocess.run([f"mkfs.{kind}", *quiet, f"{where}.img"], check=True, stdin=subprocess.DEVNULL)
            line = ["mount", "-o", "loop", f"{where}.img", where]
        if subprocess.run(line, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode:
            raise Skip(f"cannot mount a {kind} here")
        self.mounts.append(where)
        return where

    # ---- the end

    def text_of(self, path):
        try:
            with open(path, encoding="latin-1") as f:
                return f.read()
        except OSError:
            return ""

    def residue(self):
        left = [f"process {p}" for p in processes_of(self.tmp) if p not in {p.pid for p in self.processes}]
        left += [f"{d}/{e}" for d in ("run", "swap") for e in os.listdir(f"{self.tmp}/{d}")]
        left += glob.glob(f"{self.tmp}/state/swap/*")
        for root, dirs, _ in os.walk(self.tmp):
            left += [f"{root}/{d}" for d in dirs if d.endswith(".partial")]
        with open("/proc/mounts", encoding="latin-1") as f:
            left += [line.strip() for line in f if self.tmp in line and line.split()[1] not in self.mounts]
        return left

    def nothing_left(self, seconds=15):
        try:
            wait_for("residue", seconds, lambda: not self.residue())
        except TestFailed:
            check(not stopping.is_set(), "interrupted")
            raise TestFailed("left behind: " + "; ".join(self.residue())) from None

    def detected(self):
        for e in os.listdir(f"{self.tmp}/asan"):
            raise TestFailed(f"a sanitizer says: {self.text_of(f'{self.tmp}/asan/{e}')[:3000]}")
        if found := DETECTED.search(self.text_of(self.pager_log)):
            raise TestFailed(f"the pager's log says {found[0]}")

    def finish(self):
        """When the test went well: its VMs end, and criu-vm leaves nothing."""
        for vm in self.vms:
            vm.kill()
        self.nothing_left()
        self.detected()

    def clean_up(self):
        self.left = zdtm_vm.kill_all(self.tmp)
        for vm in self.vms:
            if vm.console.is_alive():
                vm.console.stop()
        for process in self.processes:
            process.wait()
            for pipe in filter(None, (process.stdout, process.stderr)):
                pipe.close()
        leftovers.end(self.tmp)
        os.unlink(f"{self.tmp}/{leftovers.LOCK}")       # a folder that is kept is nobody's to sweep
        os.close(self.owner)
        if not self.opts.keep:
            leftovers.remove(self.tmp)
