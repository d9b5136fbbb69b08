# SPDX-License-Identifier: GPL-2.0-only
"""The workload in a Linux guest: restored into private virtual memory, or with its QEMU in a control group and the kernel's swap."""
import contextlib
import json
import os
import shutil
import socket

from paging_rigs import POPULATE_CLUSTER, SWAP_FILE, Workload, page_cluster, processor_time
from runner import MIB, vm
from two_hosts import SmallMemory
from guests import QEMU, SLOW_KVM     # runner says where it is

MORE_RAM = 512              # MiB that the guest has beside what the workload touches
QEMU_MEMORY = 128           # MiB that QEMU may take in the control group beside guest RAM
BOOT_SECONDS = 120
ANSWER_SECONDS = 900
NAME = "bench-paging"


class Guest(Workload):
    """disk: MiB of a disk of its own."""

    def __init__(self, runner, opts, disk=0, criu_vm=None):
        super().__init__(runner, opts)
        self.ram, self.disk, self.serial, self.rest = opts.size + MORE_RAM, disk, None, b""
        self.criu_vm = criu_vm or runner.criu_vm_file

    def command_line(self):
        tmp, build = self.runner.tmp, self.opts.build
        line = [QEMU, "-accel", "tcg" if SLOW_KVM or not os.path.exists("/dev/kvm") else "kvm", "-m", f"{self.ram}M", "-smp", "2",
                "-nodefaults", "-display", "none", "-serial", f"unix:{tmp}/serial.sock,server=on,wait=off",
                "-qmp", f"unix:{tmp}/qmp.sock,server=on,wait=off",
                "-kernel", f"{build}/guest/vmlinuz", "-initrd", f"{build}/guest/initramfs-paging",
                "-append", f"console=ttyS0 quiet panic=1 no_timer_check pages={self.pages}{' raw=/dev/vda' if self.disk else ''}"]
        if self.disk:
            with open(f"{tmp}/disk.img", "wb") as f:
                for _ in range(self.disk):
                    f.write(os.urandom(MIB))
            line += ["-drive", f"file={tmp}/disk.img,if=none,id=disk,format=raw,cache=none,aio=native",
                     "-device", "virtio-blk-pci,drive=disk"]
        return line

    def boot(self, line):
        self.process = self.runner.start(line)
        self.connect()
        self.line(BOOT_SECONDS, lambda text: text.endswith(b"ready"))

    def connect(self):
        self.serial, self.rest = socket.socket(socket.AF_UNIX), b""
        vm.wait_for("the guest's serial port", 30, lambda: self.serial.connect_ex(f"{self.runner.tmp}/serial.sock") == 0)

    def line(self, seconds, wanted):
        """The first one of what the guest says that is so."""
        self.serial.settimeout(seconds)
        while True:
            *lines, self.rest = self.rest.split(b"\n")
            for i, text in enumerate(lines):
                if wanted(text.strip()):
                    self.rest = b"\n".join(lines[i + 1:] + [self.rest])
                    return text.strip()
            data = self.serial.recv(4096)
            if not data:
                raise vm.TestFailed("the guest has ended")
            self.rest += data

    def ask(self, *words):
        self.serial.sendall(" ".join(map(str, words)).encode() + b"\n")
        answer = json.loads(self.line(ANSWER_SECONDS, lambda text: text.startswith(b"{")))
        if "wrong" in answer:
            raise vm.TestFailed(f"{' '.join(map(str, words))}: {answer['wrong']}")
        return answer

    def ended(self):
        if self.serial:
            self.serial.close()
        vm.kill_all(self.runner.tmp)
        if self.process:
            self.process.wait(60)


class OurGuest(Guest):
    name = "criu-vm"

    def command(self, *args):
        return self.runner.command(self.criu_vm, *args, "--run-dir", f"{self.runner.tmp}/run")[1]

    @contextlib.contextmanager
    def made(self):
        """Populated already, since that is not to be paged."""
        images = f"{self.runner.tmp}/images"
        try:
            self.boot(self.command_line())
            super().populate(0)
            self.serial.close()
            self.command("dump", str(self.process.pid), "-D", images)
            self.process.wait(60)
            self.command("restore", "-D", images, "--name", NAME, "-o", f"{self.runner.tmp}/log", "--lazy-pages", "--fill",
                         "--ram", f"{self.ram // 3}M", "--swap", f"{self.runner.tmp}/swap",
                         *(["--paging", self.opts.paging] if self.opts.paging else []))
            self.connect()
            vm.wait_for("a VM that needs no images", 300, lambda: not self.stat()["memory"]["source"])
            yield self
        finally:
            self.ended()
            shutil.rmtree(images, ignore_errors=True)

    def populate(self, read):
        """Done."""

    def stat(self):
        return json.loads(self.command("stat", NAME, "--json"))

    def counts(self):
        return self.stat()["counts"]

    def processor_time(self):
        stat = self.stat()
        return {**super().processor_time(), "pager": processor_time(stat["pager_pid"]), "workload": processor_time(stat["qemu_pid"])}


class KernelGuest(Guest):
    name = "kernel"

    @contextlib.contextmanager
    def made(self, cluster, shared=False):
        """shared: of no effect; QEMU's memory is private."""
        memory = SmallMemory(self.runner, (self.ram // 3 + QEMU_MEMORY) * MIB, SWAP_FILE)
        with memory.made(), page_cluster(cluster):
            try:
                self.boot(memory.inside(self.command_line()))
                yield self
            finally:
                self.ended()

    def populate(self, read):
        with page_cluster(POPULATE_CLUSTER):
            self.ask("populate", read)

    def processor_time(self):
        return {**super().processor_time(), "workload": processor_time(self.process.pid)}
