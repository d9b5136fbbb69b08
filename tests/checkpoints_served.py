# SPDX-License-Identifier: GPL-2.0-only
"""One checkpoint, served to many restores at once: lazy-pages --images, restore --page-server."""
import contextlib
import dataclasses
import json
import os
import random
import select
import signal
import subprocess
import time

from credentials import creds, psk
from misuse_rig import MIB, Vm, cases, check, test, wait_for

LONG = {"served-ten", "served-two-zstd", "served-killed-often"}


@dataclasses.dataclass
class Server:
    """Of a checkpoint; by loopback."""
    rig: object
    images: str
    args: tuple = ()
    process: subprocess.Popen = None
    port: int = 0

    def start(self):
        """Also again, on the same port."""
        where = ("--address", "127.0.0.1", "--port", str(self.port))
        line = self.rig.line("lazy-pages", "--images", self.images, *where, "--json", *self.args)
        with open(f"{self.rig.tmp}/server.log", "ab") as log:
            self.process = self.rig.start(line, stdout=subprocess.PIPE, stderr=log, text=True)
        check(select.select([self.process.stdout], [], [], 30)[0], "the server does not say where it listens")
        said = self.process.stdout.readline()
        check(said.strip(), f"the server has ended: {self.said()[-800:]}")
        self.port = json.loads(said)["listening"]["port"]
        return self

    def stop(self, signum=signal.SIGTERM):
        check(self.process.poll() is None, f"the server has ended by itself: {self.said()[-800:]}")
        self.process.send_signal(signum)
        status = self.process.wait(120)
        check(status in (0, -signal.SIGKILL), f"the server ended with status {status}: {self.said()[-800:]}")
        wait_for("the end of its children", 10, lambda: not self.family())

    def where(self):
        return f"127.0.0.1:{self.port}"

    def said(self):
        return self.rig.text_of(f"{self.rig.tmp}/server.log")

    def family(self):
        """Its process and its children, whoever of them lives."""
        pids = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as f:
                words = f.read().decode(errors="replace").split("\0")
                if "--images" in words and self.images in words:
                    pids.append(int(pid))
        return pids

    def bytes_read(self):
        """From the disk; its children that have ended count as its own."""
        total = 0
        for pid in self.family():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/io", encoding="ascii") as f:
                total += int(dict(line.split(": ") for line in f.read().splitlines())["read_bytes"])
        return total


def serve(rig, *dump_args, args=(), ram=64, images=None, **guest):
    """A checkpoint that is served, its guest's QEMU has ended."""
    images = images or rig.images()
    vm = rig.vm(ram=ram, **guest)
    rig.criu_vm("dump", str(vm.pid), "-D", images, *dump_args).check(0)
    vm.wait_end(5)
    return Server(rig, images, args).start()


def restore_line(rig, server, name, folder, *args):
    sockets = [word for what, option in (("serial", "-serial"), ("qmp", "-qmp"))
               for word in (option, f"unix:{folder}/{what}.sock,server=on,wait=off")]
    return ("restore", "--lazy-pages", "--page-server", server.where(), "--name", name, "--json", *args, "--", *sockets)


@dataclasses.dataclass
class Restored:
    vm: Vm
    name: str
    rig: object

    def remote(self):
        return self.rig.stat(self.name).get("remote")

    def waits(self, *words):
        """For a server, and stat says why."""
        def said():
            remote = self.remote()
            check(remote, "all pages have come already")
            return not remote["lines"] and remote["trouble"] and all(w in remote["trouble"] for w in words) and remote
        return wait_for(f"a VM that waits for its server, with {words}", 30, said)

    def kill_pager(self):
        self.rig.kill_pager(self.name)


def restore(rig, server, nr=1, *args):
    """So many VMs at once."""
    names, folders = [f"{rig.name}-{i}" for i in range(nr)], [rig.folder("restored-") for _ in range(nr)]
    running = [rig.start_criu_vm(*restore_line(rig, server, *which, *args)) for which in zip(names, folders)]
    results = [rig.end_criu_vm(p).check(0) for p in running]
    vms = [Restored(Vm(folder, json.loads(result.out)["qemu_pid"]), name, rig) for name, folder, result in zip(names, folders, results)]
    rig.vms += [v.vm for v in vms]
    return vms


def all_pass(vms, nr=2, seconds=60):
    """So many here, whatever they had made before."""
    for v in vms:
        if not v.vm.console.passes:
            v.vm.passes(1, seconds)
        v.vm.passes(nr, seconds)


def small(rig, mib=16):
    return ["--ram", f"{mib}M", "--swap", f"{rig.tmp}/swap"]


def forgotten(images):
    """By the kernel: who reads it reads the disk. How large it is."""
    total = 0
    for entry in os.scandir(images):
        if entry.is_file(follow_symlinks=False):
            fd = os.open(entry.path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            total += os.fstat(fd).st_size
            os.close(fd)
    return total


def read_once(server, size, before):
    read = server.bytes_read() - before
    check(0.9 * size <= read <= 1.1 * size, f"{read} bytes were read of {size}")
    return f"{read / size:.2f} of the checkpoint was read"


# ---- what it is for


@cases(raw=(), zstd=("--compress", "zstd"))
def served_two(rig, *dump_args):
    """At once; each page is read once, then the kernel has it."""
    server = serve(rig, *dump_args)
    before, size = server.bytes_read(), forgotten(server.images)
    vms = restore(rig, server, 2)
    all_pass(vms, 3)
    rig.note = read_once(server, size, before)
    for v in vms:
        check(v.remote()["lines"], f"it has no lines: {v.remote()}")
    rig.fails("dump", vms[0].name, "-D", f"{rig.tmp}/again", says=["127.0.0.1"])
    for v in vms:
        v.vm.kill()
    server.stop()


@test
def served_ten(rig):
    """The server killed and started again, and pagers, meanwhile."""
    server = serve(rig)
    before, size = server.bytes_read(), forgotten(server.images)
    vms = restore(rig, server, 10)        # in memory: soon, before the kernel forgets some of what it has read
    all_pass(vms, 2, 120)
    rig.note = read_once(server, size, before)
    for v in vms[:3]:
        v.kill_pager()
    server.stop(signal.SIGKILL)
    server.start()
    all_pass(vms, 2, 120)
    for v in vms:
        v.vm.kill()
    server.stop()


@test
def served_and_filled(rig):
    """--fill: when all has come, the server is needed no more."""
    server = serve(rig, image="touch", append="fill=80")
    vms = restore(rig, server, 2, "--fill", *small(rig))
    wait_for("all pages", 60, lambda: not any(v.remote() for v in vms))
    server.stop()
    all_pass(vms, 20)
    images = f"{rig.tmp}/again"
    rig.criu_vm("dump", vms[0].name, "-D", images).check(0)
    rig.criu_vm("verify", images).check(0)


@test
def served_chain(rig):
    """A checkpoint whose pages are its parents', too."""
    vm = rig.vm(ram=64)
    for nr in (1, 2):
        parent = ["--prev-images-dir", f"{rig.tmp}/pre-1"] if nr == 2 else []
        rig.criu_vm("pre-dump", str(vm.pid), "-D", f"{rig.tmp}/pre-{nr}", *parent).check(0)
        vm.passes(1)
    rig.fails("lazy-pages", "--images", f"{rig.tmp}/pre-1", "--address", "127.0.0.1", "--port", "0", says=["pre-dump"])
    rig.criu_vm("dump", str(vm.pid), "-D", rig.images(), "--prev-images-dir", f"{rig.tmp}/pre-2").check(0)
    vm.wait_end(5)
    server = Server(rig, rig.images()).start()
    all_pass(restore(rig, server, 2, *small(rig)), 10)


# ---- what may happen to it


@cases(sigkill=signal.SIGKILL, sigterm=signal.SIGTERM)
def served_again(rig, signum):
    """The server ends: the guests wait where they need a page; another one serves: they go on."""
    server = serve(rig)
    vms = restore(rig, server, 2, *small(rig))
    all_pass(vms, 1)
    server.stop(signum)
    for v in vms:
        v.waits()
        v.vm.comes_to_rest(0.5)
    vms[1].kill_pager()
    vms[1].vm.comes_to_rest(0.5)
    server.start()
    all_pass(vms)


@test
def served_killed_often(rig):
    """Pagers and the server's children, at random moments."""
    server, rand = serve(rig, ram=128), random.Random(seed := random.randrange(1 << 32))
    rig.note = f"seed {seed}"
    vms = restore(rig, server, 3, *small(rig, 32))
    for nr in range(30):
        time.sleep(rand.uniform(0, 0.3))
        if nr % 3 == 2:
            rand.choice(vms).kill_pager()
        elif children := [pid for pid in server.family() if pid != server.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rand.choice(children), signal.SIGKILL)
    all_pass(vms, 3)


@test
def served_another(rig):
    """A server of another checkpoint is not believed; one of the same is, wherever it is."""
    server = serve(rig)
    other = serve(rig, images=f"{rig.tmp}/other")
    one, = restore(rig, server, 1, *small(rig))
    all_pass([one], 1)
    server.stop()
    other.stop()
    other.port = server.port
    other.start()
    one.waits("checkpoint")
    one.vm.comes_to_rest()
    server.port = 0
    server.start()
    rig.criu_vm("lazy-pages", "--name", one.name, "--page-server", server.where()).check(0)
    one.vm.passes(3)
    other.stop()
    one.vm.passes(2)


@test
def served_damaged(rig):
    """A page that is not as it was is nobody's: who needs it waits, and the server says which file it is in."""
    server = serve(rig)
    pages = max((e.path for e in os.scandir(server.images) if "pages-" in e.name), key=os.path.getsize)
    with open(pages, "r+b") as f:
        f.seek(os.path.getsize(pages) * 3 // 4)
        byte = f.read(1)
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte[0] ^ 1]))
    one, = restore(rig, server)
    wait_for("trouble", 30, lambda: rig.stat(one.name).get("trouble") or (one.remote() or {}).get("trouble"))
    one.vm.comes_to_rest()
    check(os.path.basename(pages) in server.said(), f"the server does not name the file: {server.said()[-500:]}")
    with open(pages, "r+b") as f:
        f.seek(os.path.getsize(pages) * 3 // 4)
        f.write(byte)
    one.vm.passes(3, 60)


@test
def served_in_secret(rig):
    """By PSK; in the clear, or with another key, nobody gets a page."""
    folder, other = psk(f"{rig.tmp}/tls"), psk(f"{rig.tmp}/other")
    server = serve(rig, args=tuple(creds(folder)))
    for secure in ([], creds(other)):
        rig.fails(*restore_line(rig, server, rig.name, rig.folder("refused-"), *secure))
    rig.fails(*restore_line(rig, server, rig.name, rig.folder("refused-"), *creds(folder)), says=["--user"])
    two = restore(rig, server, 2, *creds(folder), "--user", "root", *small(rig))
    all_pass(two)
    two[0].kill_pager()
    all_pass(two)


@test
def served_or_refused(rig):
    """What does not go together, and who is asked for something else than he has."""
    server = serve(rig)
    vm = rig.vm()
    rig.fails("migrate", str(vm.pid), server.where(), says=["--images"])
    vm.runs_on()
    folder = rig.folder("refused-")
    line = restore_line(rig, server, rig.name, folder)
    rig.fails(*[word for word in line if word != "--lazy-pages"], says=["--lazy-pages"], status=2)
    rig.fails(*line[:2], "-D", server.images, *line[2:], status=2)
    for args in (["--once"], ["--name", "x"], ["--vm-ram", "1G"]):
        rig.fails("lazy-pages", "--images", server.images, "--address", "127.0.0.1", "--port", "0", *args, says=[args[0]], status=2)
    rig.fails("lazy-pages", "--images", f"{rig.tmp}/none", "--address", "127.0.0.1", "--port", "0", says=[f"{rig.tmp}/none"])
    server.stop()
    rig.fails(*line, says=[server.where()])
    plain = rig.start(rig.line("lazy-pages", "--address", "127.0.0.1", "--port", str(server.port), "--json", "--swap", f"{rig.tmp}/swap"),
                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    check(plain.stdout.readline().strip(), "the server does not listen")
    rig.fails(*line, says=["checkpoint"])
    plain.send_signal(signal.SIGTERM)
    plain.wait(120)


@test
def served_lost(rig):
    """The server is gone for good: what is there can be used, nothing is invented, and the VM can be ended."""
    server = serve(rig, image="touch", append="fill=80")
    one, = restore(rig, server)
    all_pass([one], 20)                 # all that it touches has come
    server.stop()
    one.waits()
    one.vm.passes(10)
    missing = rig.criu_vm("stat", one.name, "--missing", "--json").check(0).out
    check(json.loads(missing)["pages"] * 4096 > 30 * MIB, f"{missing[:300]}")
    one.vm.kill()
