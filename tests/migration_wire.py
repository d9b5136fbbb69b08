# SPDX-License-Identifier: GPL-2.0-only
"""Who else may be on the wire of a migration: a client that is none, and one in the middle that spoils, cuts and stalls."""
import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
import time

from misuse_rig import check

CONTROL, DATA, ASK, LINE, IMAGES, IMAGE_LINE = 1, 2, 3, 4, 5, 6
PREAMBLE_LEN = 32
FRAME_LEN = 96
TOKEN = b"token of a test!"       # stands for one that is made anew for each conversation
HELLO, OFFER, ADMIT, PIECE, ROUND_BEGIN, ROUND_DONE, COMMIT, DONE, ABORT, STATUS = 1, 2, 3, 4, 5, 6, 9, 12, 13, 14
DRIP = 256 << 10                    # bytes a second
REFUSED = 8                       # a frame's type
COMPLETE = b"CVPG" + struct.pack("<BBHI", 6, 0, 0, 1)   # how a LEFT begins that says so
REFUSED_UNKNOWN, REFUSED_KEY = 2, 3
WITH_TOKEN = {}                   # messages that hold it, by their checksums
XXH3 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
XXH3.argtypes, XXH3.restype = [ctypes.c_char_p, ctypes.c_size_t], ctypes.c_uint64


def preamble(kind, token=None, version=1, magic=b"CRIUVMW1", flags=0, channel=0):
    return magic + struct.pack("<HBBB3x", version, kind, flags, channel) + (token or TOKEN)


def varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes(out + bytes([n]))


def fields(**values):
    """Protobuf: f1=5, f2=b"text", f3=[5, 6]."""
    out = b""
    for key, value in values.items():
        for v in value if isinstance(value, list) else [value]:
            nr = int(key[1:])
            out += varint(nr << 3) + varint(v) if isinstance(v, int) else varint(nr << 3 | 2) + varint(len(v)) + v
    return out


def message(kind, content=b""):
    body = fields(**{f"f{kind}": content})
    checksum = struct.pack("<Q", XXH3(body, len(body)))
    if TOKEN in body:
        WITH_TOKEN[checksum] = body
    return struct.pack("<I", len(body)) + checksum + body


def with_token(data, token):
    """The same bytes in a conversation that has this token: messages that hold it have another checksum, too."""
    for checksum, body in WITH_TOKEN.items():
        new = body.replace(TOKEN, token)
        data = data.replace(checksum + body, struct.pack("<Q", XXH3(new, len(new))) + new)
    return data.replace(TOKEN, token)


def hello(version=1, version_min=1, features=0):
    return message(HELLO, fields(f1=version, f2=version_min, f3=features, f4=b"a test", f5=TOKEN))


def parse(data):
    """Kind and content of a message: its first field."""
    def number(at):
        n = shift = 0
        while True:
            n, shift, at = n | (data[at] & 127) << shift, shift + 7, at + 1
            if data[at - 1] < 128:
                return n, at
    key, at = number(0)
    length, at = number(at)
    return key >> 3, data[at:at + length]


def frame(data):
    """Type and round of a frame."""
    magic, kind, _, nr = struct.unpack_from("<4sBBH", data)
    check(magic == b"CVPG", f"this is no frame: {data[:16]}")
    return kind, nr


class Client:
    """Speaks with the server of a host, from the other one, and says what it likes."""

    def __init__(self, host, to, first=b"", token=None):
        self.token = token or os.urandom(16)
        self.socket = host.socket()
        self.socket.connect((to.listening["address"], to.listening["port"]))
        self.send(first)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        """An end that has closed its side has said what it thinks of it."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(with_token(data, self.token))

    def read(self, nr):
        data = b""
        while len(data) < nr and (more := self.socket.recv(nr - len(data))):
            data += more
        return data

    def receive(self):
        """The next message but keepalives, as (kind, content); None: it was closed."""
        while True:
            try:
                head = self.read(12)
                body = self.read(struct.unpack("<IQ", head)[0]) if len(head) == 12 else b""
            except ConnectionError:
                return None
            if not body:
                return None
            if (said := parse(body))[0] != 15:
                return said

    def is_closed(self, seconds):
        """Before long, whatever is said before that. True if in time."""
        self.socket.settimeout(seconds)
        try:
            while self.socket.recv(65536):
                pass
            return True
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def aborted(self, *words):
        """With a reason, and closed."""
        said = self.receive()
        while said and said[0] != ABORT:
            said = self.receive()
        check(said, "it was closed without a word")
        reason = parse(said[1])[1].decode(errors="replace")
        for word in words:
            check(word in reason, f"'{word}' is missing in the reason: {reason}")
        check(self.is_closed(30), "it is not closed after an ABORT")
        return reason


class Proxy(threading.Thread):
    """In the middle between host a, on which it listens, and the server of host b.

    spoil: {kind: (direction, offset)}: a bit of the byte at that offset of a connection of that kind is flipped, once. cut: the same,
    and all connections are closed there. stall: seconds for which nothing passes, from that offset on. counts: bytes so far. token:
    that of whoever came last. Of all page lines together: rate: bytes a second, None: as many as come; may be changed; background: the
    same of all but the first, for which the rate is then. keep: how many bytes may pass so; then, DRIP at the most until there is no
    rate any more: on a host so slow that a test's steps take minutes, pages are missing for as long. cuts: numbers of bytes after each
    of which all connections are cut. shut_at: what is not passed on, nor anything else from then on.
    """

    def __init__(self, rig, spoil=None, cut=None, stall=None, stall_seconds=0, rate=None, background=None, cuts=(), shut_at=None):
        super().__init__(daemon=True)
        self.rate, self.background, self.cuts, self.shut_at, self.shut = rate, background, list(cuts), shut_at, False
        self.paces, self.keep = {False: threading.Lock(), True: threading.Lock()}, None
        self.rig, self.spoil, self.cut, self.stall, self.stall_seconds = rig, spoil, cut, stall, stall_seconds
        self.happened, self.counts, self.lock, self.pairs, self.open, self.token = False, {}, threading.Lock(), [], True, None
        self.listener = rig.a.socket()
        self.listener.bind((rig.a.address, 0))
        self.listener.listen(64)
        self.listener.settimeout(0.2)
        self.listening = dict(zip(("address", "port"), self.listener.getsockname()))
        self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open = False
        self.join()
        self.listener.close()

    def where(self):
        return f"{self.listening['address']}:{self.listening['port']}"

    def run(self):
        while self.open:
            try:
                near, _ = self.listener.accept()
            except TimeoutError:
                continue
            far = self.rig.a.socket()
            try:
                far.connect((self.rig.b.listening["address"], self.rig.b.listening["port"]))
            except OSError:
                near.close()
                far.close()
                continue
            threading.Thread(target=self.carry, args=(near, far), daemon=True).start()
            self.pairs += [near, far]
            if self.shut:
                self.close_all()

    def close_all(self):
        pairs, self.pairs = self.pairs, []
        for s in pairs:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def closed(self):
        """Nobody gets through."""
        self.shut = True
        self.close_all()
        yield
        self.shut = False

    def hurry(self):
        self.rate = self.background = None

    def pace(self, channel, length):
        slow = bool(channel and self.background)
        with self.paces[slow]:
            rate = self.background if slow else self.rate
            if rate and self.keep is not None:
                self.keep -= length
                rate = rate if self.keep > 0 else min(rate, DRIP)
            time.sleep(length / rate if rate else 0)

    def lined(self, channel, data):
        """How many of a page line's bytes go on, and whether all is cut behind them."""
        self.pace(channel, len(data))
        with self.lock:
            if self.shut_at and self.shut_at in data:
                self.shut = True
            if self.shut:
                return 0, True
            if not self.cuts:
                return len(data), False
            self.cuts[0] -= len(data)
            return (len(data), False) if self.cuts[0] > 0 else (len(data) + self.cuts.pop(0), True)

    def due(self, what, kind, direction, begin, length):
        """Offset in this piece at which that is to happen, or None."""
        if not what or what[0] != kind or what[1] != direction or self.happened or not begin <= what[2] < begin + length:
            return None
        self.happened = True
        return what[2] - begin

    def treat(self, kind, direction, begin, data):
        """The piece as it goes on, or None: all is cut."""
        with self.lock:
            if (at := self.due(self.spoil, kind, direction, begin, len(data))) is not None:
                return data[:at] + bytes([data[at] ^ 4]) + data[at + 1:]
            if self.due(self.cut, kind, direction, begin, len(data)) is not None:
                return None
            if self.due(self.stall, kind, direction, begin, len(data)) is not None:
                time.sleep(self.stall_seconds)          # all others wait for the lock
        return data

    def carry(self, near, far):
        with near, far:
            for s in (near, far):
                s.settimeout(60)
            kind, channel, done = None, 0, {near: 0, far: 0}
            with contextlib.suppress(OSError):
                while self.open:
                    for s in select.select([near, far], [], [], 0.5)[0]:
                        data = s.recv(65536)
                        if not kind and len(data) >= PREAMBLE_LEN:
                            kind, channel, self.token = data[10], data[12], data[16:32]
                        direction = "there" if s is near else "back"
                        piece = self.treat(kind, direction, done[s], data) if data else None
                        done[s] += len(data)
                        with self.lock:
                            self.counts[kind, direction] = max(done[s], self.counts.get((kind, direction), 0))
                        if data and piece is None:
                            self.close_all()
                            return
                        if not data:
                            return
                        length, cut = self.lined(channel, piece) if kind == LINE else (len(piece), False)
                        (far if s is near else near).sendall(piece[:length])
                        if cut:
                            self.close_all()
                            return
