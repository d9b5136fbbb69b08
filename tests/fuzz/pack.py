#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes an input of fuzz_images out of a small checkpoint, and of its parent if it has one: pack.py DIR >INPUT"""
import os
import struct
import subprocess
import sys

FILES = ["inventory.img", "vm.img", "device-state.img", "stats-dump.img", "pagemap-1.img", "pagemap-2.img", "pages-1.img",
         None, "resident.img"]
PAGES, PARENT, RAW, FILE_8 = 6, 0x08, 0x10, 0x20
RECORD_MAX = 0xffff


def frames(data, magic_len):
    at = magic_len
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        yield data[at + 4:at + 4 + length]
        at += 4 + length


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7f) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            return value, at


def unpacked(entry):
    """A resident_entry with what it has packed as it is: its frame is made anew by who reads the input."""
    at = 0
    while entry[at] >> 3 != 3:
        _, at = varint(entry, at + 1)
    _, begin = varint(entry, at + 1)
    raw = subprocess.run(["zstd", "-dc"], input=entry[begin:], capture_output=True, check=True).stdout
    length, rest = b"", len(raw)
    while rest > 0x7f:
        length, rest = length + bytes([rest & 0x7f | 0x80]), rest >> 7
    return entry[:at + 1] + length + bytes([rest]) + raw


def records(folder, parent):
    for kind, name in enumerate(FILES):
        path = f"{folder}/{name}"
        if not name or not os.path.exists(path):
            continue
        with open(path, "rb") as f:
            data = f.read()
        if kind == PAGES:
            for at in range(0, len(data), 4096):
                yield kind | parent | RAW, data[at:at + 4096]
        else:
            for frame in frames(data, 4 if name == "inventory.img" else 8):
                if len(frame) > RECORD_MAX:
                    sys.exit(f"{path}: a message of more than {RECORD_MAX} bytes")
                yield kind % 8 | (FILE_8 if kind >= 8 else 0) | parent, unpacked(frame) if name == "resident.img" else frame


def main():
    folder = sys.argv[1]
    out = bytearray(b"\0")
    for which, data in [*records(f"{folder}/parent", PARENT), *records(folder, 0)]:
        out += struct.pack("<BH", which, len(data)) + data
    sys.stdout.buffer.write(out)


if __name__ == "__main__":
    main()
