# SPDX-License-Identifier: GPL-2.0-only
"""A directory on a disk that misbehaves on command: see faultyfs.c for the commands."""
import os
import socket
import subprocess
import time


class FaultyFs:
    """Mounted at `path` for as long as the `with` lasts; what was written is in the directory `backing`."""

    def __init__(self, program, folder, **options):
        """folder is an existing one, on a disk, for all that this needs; options are Popen's."""
        self.program, self.options, self.process = program, options, None
        self.path, self.backing, self.control = (f"{folder}/{name}" for name in ("mnt", "backing", "control.sock"))

    def __enter__(self):
        for d in (self.path, self.backing):
            os.mkdir(d)
        self.process = subprocess.Popen([self.program, self.backing, self.path, self.control], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, **self.options)
        if self.process.stdout.readline() != b"mounted\n":
            self.__exit__()
            raise OSError(f"{self.program} does not mount")
        return self

    def __exit__(self, *_):
        """What is still held ends in an error."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        for _ in range(50):
            if subprocess.run(["umount", self.path], check=False, capture_output=True).returncode in (0, 32) and not self.mounted():
                return
            time.sleep(0.1)
        subprocess.run(["umount", "-l", self.path], check=False)

    def mounted(self):
        with open("/proc/mounts", encoding="latin-1") as f:
            return any(line.split()[1] == self.path for line in f)

    def __call__(self, command):
        """(reads, writes) that are held."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(self.control)
            s.sendall(f"{command}\n".encode())
            words = s.makefile().readline().split()
        if words[0] != "reads":
            raise ValueError(f"faultyfs: {command}: {' '.join(words)}")
        return int(words[1]), int(words[3])
