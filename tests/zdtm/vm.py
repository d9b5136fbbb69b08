# SPDX-License-Identifier: GPL-2.0-only
"""What a test knows of a VM: its serial line, its processes, the blocks of its memory."""
import fcntl
import json
import os
import re
import signal
import socket
import struct
import termios
import threading
import time

TAG = "CRIU_VM_ZDTM"    # in the environment of all that a test starts, with the test's folder: how its processes are known


PATIENCE = 5            # what takes a second where nothing else runs may take so many where others keep all processors busy


class TestFailed(Exception):
    pass


def wait_for(what, seconds, condition):
    """The seconds: on an idle machine, and generous there."""
    end = time.monotonic() + seconds * PATIENCE
    while not (result := condition()):
        if time.monotonic() > end:
            raise TestFailed(f"timed out after {seconds * PATIENCE} s: {what}")
        time.sleep(0.02)
    return result


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def processes_of(tmp):
    """Pids of what the test in the folder tmp started, daemons included."""
    mark = f"{TAG}={tmp}".encode()
    pids = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as f:
                if mark in f.read().split(b"\0"):
                    pids.append(int(pid))
        except OSError:
            pass
    return [p for p in pids if p != os.getpid() and alive(p)]


def kill_all(tmp):
    """Ends what a test left running; returns a description of it."""
    left = {}
    for _ in range(100):
        pids = processes_of(tmp)
        if not pids:
            break
        for pid in pids:
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    left[pid] = " ".join(f.read().decode(errors="replace").split("\0"))[:160]
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.05)
    return [f"process {pid}: {line}" for pid, line in left.items()]


def memfd_bytes(pid):
    """Bytes that the memfds held open by a process occupy."""
    blocks = {}
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            try:
                name = os.readlink(path)
                if name.startswith("/memfd:") and not name.startswith("/memfd:displaysurface"):     # QEMU's own, from 10 on
                    st = os.stat(path)
                    blocks[st.st_dev, st.st_ino] = st.st_blocks * 512
            except OSError:
                pass
    except OSError:
        pass
    return sum(blocks.values())


class ResidencySampler(threading.Thread):
    """Looks at a VM's memfds all the time, and keeps the most that was seen."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.now, self.samples = pid, 0, 0, 0
        self.ended = threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(0.005):
            self.now = memfd_bytes(self.pid)
            self.peak = max(self.peak, self.now)
            self.samples += 1

    def stop(self):
        self.ended.set()
        self.join()


class Console(threading.Thread):
    """Reads a guest's serial line. Comes back by itself when the socket is made anew. The guest has made `passes` before."""

    def __init__(self, path, log, passes=0):
        super().__init__(daemon=True)
        self.path, self.log = path, log
        self.passes, self.readies, self.bad, self.last = passes, 0, None, ""
        self.ended, self.socket = threading.Event(), None
        self.start()

    def run(self):
        with open(self.log, "a", encoding="latin-1", buffering=1) as log:
            while not self.ended.is_set():
                try:
                    with socket.socket(socket.AF_UNIX) as s:
                        s.settimeout(0.2)
                        s.connect(self.path)
                        log.write("-- connected\n")
                        self.socket = s
                        self.read(s, log)
                except OSError:
                    self.ended.wait(0.005)

    def read(self, s, log):
        rest = b""
        while not self.ended.is_set():
            try:
                data = s.recv(4096)
            except TimeoutError:
                continue
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                line = line.decode("latin-1").strip()
                log.write(line + "\n")
                self.line(line)

    def unread(self):
        """Bytes that it has said, and that have not been read yet."""
        try:
            return struct.unpack("i", fcntl.ioctl(self.socket, termios.FIONREAD, bytes(4)))[0] if self.socket else 0
        except (OSError, ValueError):       # it was closed
            return 0

    def line(self, line):
        if m := re.fullmatch(r"ok (\d+)( .*)?", line):
            n = int(m[1])
            if n <= self.passes and not self.bad:
                self.bad = f"pass {n} after pass {self.passes}"
            self.passes, self.last = n, line
        elif line.startswith("BAD") or "Kernel panic" in line:
            self.bad = self.bad or line
        elif line.startswith("ready "):
            self.readies += 1

    def check(self):
        if self.bad:
            raise TestFailed(f"the guest says: {self.bad}")
        if self.readies > 1:
            raise TestFailed("the guest started again from its beginning")

    def wait_passes(self, nr, seconds):
        """Until the guest is nr passes further than now."""
        target = self.passes + nr

        def there():
            self.check()
            return self.passes >= target
        wait_for(f"pass {target}; the guest's last line: '{self.last}'", seconds, there)

    def stop(self):
        self.ended.set()
        self.join()


def peer_pid(path):
    """Who listens on a socket, or None."""
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(path)
            return struct.unpack("3i", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except OSError:
        return None


def qmp(path, command):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(100)
        s.connect(path)
        f = s.makefile("rw")
        f.readline()
        for name in ("qmp_capabilities", command):
            f.write(json.dumps({"execute": name}) + "\n")
            f.flush()
            while True:
                answer = f.readline()
                if not answer:
                    return None         # "quit" may come before its answer
                answer = json.loads(answer)
                if "error" in answer:
                    raise TestFailed(f"QMP {name}: {answer['error']['desc']}")
                if "return" in answer:
                    break
        return answer["return"]


def ask(path, line, seconds):
    """One command to the Linux guest's checker; its answer as a dictionary."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(seconds)
        s.connect(path)
        time.sleep(0.1)                 # the guest learns of a connection by an interrupt
        f = s.makefile("rw")
        f.write(line + "\n")
        f.flush()
        try:
            words = f.readline().split()
        except TimeoutError:
            raise TestFailed(f"the guest did not answer '{line}' in {seconds} s") from None
        return dict(zip(words[::2], map(int, words[1::2])))


def spoil(pid, nr_pages):
    """Changes a word in each of some pages that hold a guest's pattern, in QEMU's memory. Returns how many."""
    step, left = 0x9e3779b97f4a7c15, nr_pages
    with open(f"/proc/{pid}/maps", encoding="ascii") as f:
        ranges = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in f if " rw-" in line]
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as mem:
        for start, end in ranges:
            for addr in range(start + (end - start) // 3 // 4096 * 4096, end if end - start > 16 << 20 else start, 7 * 4096):
                mem.seek(addr)
                first, second = struct.unpack("QQ", mem.read(16))
                if left and (second - first) % (1 << 64) == step:
                    mem.seek(addr)
                    mem.write(struct.pack("Q", first ^ 1))
                    left -= 1
    return nr_pages - left
