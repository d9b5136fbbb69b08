#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes an input of fuzz_images out of a small checkpoint, and of its parent if it has one: pack.py DIR >INPUT"""
import os
import struct
import sys

FILES = ["inventory.img", "vm.img", "device-state.img", "stats-dump.img", "pagemap-1.img", "pagemap-2.img", "pages-1.img"]
PAGES, PARENT, RAW = 6, 0x08, 0x10
RECORD_MAX = 0xffff


def frames(data, magic_len):
    at = magic_len
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        yield data[at + 4:at + 4 + length]
        at += 4 + length


def records(folder, parent):
    for kind, name in enumerate(FILES):
        path = f"{folder}/{name}"
        if not os.path.exists(path):
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
                yield kind | parent, frame


def main():
    folder = sys.argv[1]
    out = bytearray(b"\0")
    for which, data in [*records(f"{folder}/parent", PARENT), *records(folder, 0)]:
        out += struct.pack("<BH", which, len(data)) + data
    sys.stdout.buffer.write(out)


if __name__ == "__main__":
    main()
