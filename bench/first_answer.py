#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How long after `criu-vm restore --lazy-pages` a guest answers, for VMs of several sizes.

    bench/first_answer.py [--rounds N] [MIB...]        default: 256 1024 2048 4096 8192

Each VM is half full, and restored into an eighth of its memory (64 MiB at least). The sizes alternate; medians and ranges in
milliseconds. "runs": restore has ended; "answer": a byte sent on the serial line has been answered.
"""
import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, f"{ROOT}/tests/zdtm")
import vm  # noqa: E402


def serial(path):
    def connect():
        s = socket.socket(socket.AF_UNIX)
        try:
            s.connect(path)
            return s
        except OSError:
            s.close()
            return None
    return vm.wait_for(path, 20, connect)


def read_until(s, word, seconds):
    s.settimeout(seconds)
    text = b""
    while word not in text:
        part = s.recv(4096)
        if not part:
            raise vm.TestFailed("the guest's serial line is closed")
        text += part
    return text


def one(size, tmp, build):
    criu_vm = f"{build}/criu-vm"
    qemu = subprocess.Popen(["qemu-system-x86_64", "-accel", "tcg", "-m", f"{size}M", "-nodefaults", "-display", "none",
                             "-serial", f"unix:{tmp}/serial.sock,server=on,wait=off", "-qmp", f"unix:{tmp}/qmp.sock,server=on,wait=off",
                             "-kernel", f"{build}/guest/touch.elf", "-append", "fill=50"])
    try:
        with serial(f"{tmp}/serial.sock") as s:
            read_until(s, b"ok ", 120)
        subprocess.run([criu_vm, "dump", str(qemu.pid), "-D", f"{tmp}/images", "--run-dir", f"{tmp}/run"], check=True, stdout=subprocess.DEVNULL)
        qemu.wait()
        begun = time.monotonic()
        out = subprocess.run([criu_vm, "restore", "-D", f"{tmp}/images", "--name", "bench", "--run-dir", f"{tmp}/run", "-o", f"{tmp}/log",
                              "--lazy-pages", "--ram", f"{max(size // 8, 64)}M", "--swap", f"{tmp}/swap", "--json"],
                             check=True, stdout=subprocess.PIPE).stdout
        runs = time.monotonic() - begun
        with serial(f"{tmp}/serial.sock") as s:
            s.sendall(b"?")
            read_until(s, b"pong", 60)
        answer = time.monotonic() - begun
        pid = json.loads(out)["qemu_pid"]
        os.kill(pid, 9)
        vm.wait_for("the pager's end", 300, lambda: not vm.processes_of(tmp))
        return runs * 1e3, answer * 1e3
    finally:
        vm.kill_all(tmp)
        qemu.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", nargs="*", type=int, default=[256, 1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", default=f"{ROOT}/build")
    opts = parser.parse_args()
    results = {size: [] for size in opts.size}
    for _ in range(opts.rounds):
        for size in opts.size:
            tmp = tempfile.mkdtemp(prefix="first-answer-", dir="/var/tmp")
            try:
                results[size].append(one(size, tmp, opts.build))
            finally:
                shutil.rmtree(tmp, ignore_errors=True)
    print(f"{'MiB':>6} {'runs ms':>8} {'range':>12} {'answer ms':>10} {'range':>12}")
    for size, pairs in results.items():
        columns = [f"{statistics.median(v):.0f}" for v in zip(*pairs)]
        ranges = [f"{min(v):.0f}-{max(v):.0f}" for v in zip(*pairs)]
        print(f"{size:6} {columns[0]:>8} {ranges[0]:>12} {columns[1]:>10} {ranges[1]:>12}")


if __name__ == "__main__":
    main()
