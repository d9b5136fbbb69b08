# SPDX-License-Identifier: GPL-2.0-only
"""What a guest sends on its way, by the host's clock."""
import bisect
import contextlib
import os
import socket
import threading
import time

from runner import vm

PAGE = 4096


class Heard(threading.Thread):
    """Takes what a guest sends, wherever it runs: each of the sockets is connected to as often as it is made anew."""

    def __init__(self, *paths):
        super().__init__(daemon=True)
        self.paths, self.seen, self.sockets = paths, {}, []
        self.ended = threading.Event()
        self.start()

    def run(self):
        while not self.ended.wait(0.01):
            for path in self.paths:
                with contextlib.suppress(OSError):
                    self.look(path)

    def look(self, path):
        st = os.stat(path)
        if self.seen.get(path) == (st.st_ino, st.st_ctime_ns):
            return
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(path)         # refused, as long as nobody listens yet
        except OSError:
            s.close()
            raise
        self.seen[path] = (st.st_ino, st.st_ctime_ns)
        self.sockets.append(s)
        threading.Thread(target=self.read, args=(s, len(self.sockets) - 1), daemon=True).start()

    def read(self, s, nr):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))      # what is measured is the guest, not this
        with contextlib.suppress(OSError):
            while data := s.recv(4096):
                self.take(time.monotonic(), nr, data)

    def take(self, when, nr, data):
        """Of connection number nr."""
        raise NotImplementedError

    def stop(self):
        self.ended.set()
        self.join()
        for s in self.sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()


class Ticks(Heard):
    """The bytes that a guest sends at each of its ticks."""

    def __init__(self, *paths):
        self.ticks = []             # (when, number of the connection)
        super().__init__(*paths)

    def take(self, when, nr, data):
        self.ticks.append((when, nr))

    def wait_until(self, when, seconds):
        vm.wait_for("a tick of the guest", seconds, lambda: self.ticks and self.ticks[-1][0] > when)

    def wait_elsewhere(self, nr, seconds):
        """Until one has come over another connection than number nr."""
        vm.wait_for("a tick of the guest from where it is now", seconds, lambda: self.ticks and self.ticks[-1][1] > nr)

    def longest(self, begin, end):
        """Seconds, of the gaps that began in this time."""
        times = sorted(when for when, _ in list(self.ticks))
        return max((after - before for before, after in zip(times, times[1:]) if begin <= before < end), default=0.0)

    def switched(self, nr):
        """When connection nr gave its last tick, and the next one its first."""
        ticks = list(self.ticks)
        return max(when for when, of in ticks if of == nr), min(when for when, of in ticks if of > nr)


class Lines(Heard):
    """Of its serial port: verdicts, and how many pages it has rewritten."""

    def __init__(self, *paths):
        self.lines, self.pages, self.bad, self.rest = [], [], None, {}      # pages: (when, how many until then)
        self.latest = 0             # connection that something came from
        super().__init__(*paths)

    def take(self, when, nr, data):
        self.latest = nr
        *lines, self.rest[nr] = (self.rest.get(nr, b"") + data).split(b"\n")
        for line in lines:
            words = line.decode("latin-1").split()
            if words[:1] == ["BAD"]:
                self.bad = self.bad or " ".join(words)
            if words[:1] == ["pages"] and len(words) == 2:
                self.pages.append((when, int(words[1])))
            else:
                self.lines.append(words)

    def wait(self, word, seconds, send=b""):
        """For a line that begins so, and comes after this, where something is sent."""
        begin = len(self.lines) if send else 0

        def there():
            if self.bad:
                raise vm.TestFailed(f"the guest says: {self.bad}")
            return any(words[:1] == [word] for words in self.lines[begin:])
        if send:
            self.sockets[self.latest].sendall(send)
        vm.wait_for(f"the guest's word '{word}'", seconds, there)

    def rewritten(self, begin, end):
        """Bytes; between two of its reports as if evenly."""
        pages = list(self.pages)
        return (self.pages_at(pages, end) - self.pages_at(pages, begin)) * PAGE

    @staticmethod
    def pages_at(pages, when):
        after = bisect.bisect_left(pages, (when, 0))
        if after in (0, len(pages)):
            return pages[min(after, len(pages) - 1)][1]
        (t0, n0), (t1, n1) = pages[after - 1:after + 1]
        return n0 + (n1 - n0) * (when - t0) / (t1 - t0)

    def each_second(self, begin, end):
        """Bytes rewritten, in each whole second of this time."""
        return [self.rewritten(begin + i, begin + i + 1) for i in range(int(end - begin))]
