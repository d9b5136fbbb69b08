# SPDX-License-Identifier: GPL-2.0-only
"""What the benches share: commands that are run, and printed once each; fio; medians with their spread."""
import json
import os
import re
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, f"{ROOT}/tests/zdtm")
import vm  # noqa: E402

MB, MIB = 10**6, 1 << 20


class Runner:
    """opts: build, criu_vm. tmp: a folder on the disk to measure, by which its processes are known, too."""

    def __init__(self, opts, tmp):
        self.opts, self.tmp, self.commands = opts, tmp, []
        self.criu_vm_file = os.path.abspath(opts.criu_vm or f"{opts.build}/criu-vm")
        self.words = {tmp: "TMP", f"{ROOT}/": ""}       # what is printed for what differs from run to run

    def said(self, command):
        """Prints each command once."""
        text = " ".join(command)
        for this, word in self.words.items():
            text = text.replace(this, word)
        text = re.sub(r"(dump|migrate|-t) \d+\b", r"\1 PID", text)
        if text not in self.commands:
            self.commands.append(text)
            print(f"$ {text}", file=sys.stderr, flush=True)

    def environment(self):
        return {**os.environ, vm.TAG: self.tmp, "CRIU_VM_STATE_DIR": f"{self.tmp}/state"}

    def command(self, *line, env=None):
        """(seconds, output)"""
        self.said(line)
        begin = time.monotonic()
        p = subprocess.run(line, env=env or self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           text=True, timeout=900, check=False)
        if p.returncode:
            raise vm.TestFailed(f"{' '.join(line)}: exit status {p.returncode}\n{p.stdout}")
        return time.monotonic() - begin, p.stdout

    def start(self, line, **how):
        self.said(line)
        return subprocess.Popen(line, **{"env": self.environment(), "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL,
                                         "start_new_session": True, **how})

    def fio(self, rw, name, size):
        """fio's own figure, as seconds for so many bytes."""
        out = self.command("fio", f"--name={rw}", f"--filename={self.tmp}/{name}", f"--rw={rw}", "--bs=1M", f"--size={size}",
                           "--direct=1", "--ioengine=io_uring", "--iodepth=16", "--end_fsync=1", "--output-format=json")[1]
        job = json.loads(out[out.index("{"):])["jobs"][0][rw]
        return size / job["bw_bytes"]


def spread(values, digits=0):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
