# SPDX-License-Identifier: GPL-2.0-only
"""What runs left behind that were killed, and could not clean up: swept by the next run."""
import contextlib
import fcntl
import glob
import os
import shutil
import subprocess

import vm as zdtm_vm

LOCK = "owner"          # in the folder, locked by a run for as long as it lives


def hold(folder):
    """Says that a run owns the folder, which nobody else sweeps until the descriptor returned is closed or the run ends."""
    # It gets its name when it is locked: who finds it unlocked finds a dead owner's.
    fd = os.open(f"{folder}/.{LOCK}", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.rename(f"{folder}/.{LOCK}", f"{folder}/{LOCK}")
    return fd


def below(folder, table, column):
    """The paths in that column of one of the kernel's tables that lie in the folder, the last first."""
    with open(table, encoding="latin-1") as f:
        return [path for line in reversed(f.readlines()) if (path := line.split()[column]).startswith(f"{folder}/")]


def cgroups(folder):
    name = os.path.basename(folder)
    return [f"{root}/{d}" for root, dirs, _ in os.walk("/sys/fs/cgroup", topdown=False) for d in dirs if name in d]


def end(folder):
    """Ends what runs for a test, its swap, mounts and cgroups; returns a description of what was running."""
    left = zdtm_vm.kill_all(folder)
    for path in below(folder, "/proc/swaps", 0):
        subprocess.run(["swapoff", path], check=False)      # it says why not
    for path in below(folder, "/proc/mounts", 1):
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)
    for group in cgroups(folder):
        with contextlib.suppress(OSError):      # not empty yet: it stays, and holds nothing
            os.rmdir(group)
    return left


def remove(folder):
    for log in glob.glob(f"/var/log/criu-vm/{os.path.basename(folder)}*.log"):
        os.unlink(log)
    shutil.rmtree(folder, ignore_errors=True)


def sweep(where, *prefixes):
    """Ends and removes the folders of those names whose owners were killed."""
    for lock in [path for p in prefixes for path in glob.glob(f"{where}/{p}*/{LOCK}")]:
        with contextlib.suppress(OSError), open(lock, "rb") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print(f"removing {os.path.dirname(lock)}, whose run was killed", flush=True)
            end(os.path.dirname(lock))
            remove(os.path.dirname(lock))
