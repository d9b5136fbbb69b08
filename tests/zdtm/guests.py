# SPDX-License-Identifier: GPL-2.0-only
"""The guests that zdtm.py runs: what each is started with. A plain command line, as a user would write it."""
import glob
import os
import shutil
from dataclasses import dataclass, field

MIB = 1 << 20
# The QEMU to test with, from the environment or else the system's; and where it finds its modules, a copy of it too.
QEMU = shutil.which(os.environ.get("QEMU") or "qemu-system-x86_64") or "qemu-system-x86_64"


def modules_of(qemu):
    found = glob.glob(f"{os.path.dirname(os.path.realpath(qemu))}/../lib/*/qemu/*.so")
    return os.path.dirname(os.path.realpath(found[0])) if found else ""


QEMU_MODULES = modules_of(QEMU)
# KVM that runs inside another VM without its help interprets a guest's kernel code, a million instructions a second.
SLOW_KVM = os.path.exists("/sys/module/kvm_pvm")


@dataclass
class Guest:
    name: str
    about: str
    image: str                                      # of build/guest
    ram: int = 128                                  # MiB
    cpus: int = 1
    append: str = ""
    slow_append: str = ""                           # comes first, and so wins, where SLOW_KVM
    args: list = field(default_factory=list)        # {tmp}: the test's own folder, {ram}: MiB
    disk: int = 0                                   # MiB of tmp/disk.img
    in_flight: int = 0                              # MiB that DMA may need at once, beyond the budget
    accels: tuple = ("tcg", "kvm")
    boot_seconds: int = 20                          # an upper bound, on a busy machine
    heavy: bool = False                             # run only when asked for by name

    @property
    def linux(self):
        return self.image == "linux"

    @property
    def writes_disk(self):
        return bool(self.disk) and "-cdrom" not in self.args

    def kvm_reason(self):
        """Why it can't run under this host's KVM, or None."""
        if "kvm" not in self.accels:
            return "needs full speed"
        if self.linux and SLOW_KVM:
            return "this host's KVM boots no distribution kernel"
        return None

    def ram_mib(self, accel):
        return 32 if accel == "kvm" and SLOW_KVM else self.ram

    def command_line(self, accel, build, tmp):
        ram = self.ram_mib(accel)
        append = self.append
        line = [QEMU, "-accel", accel, "-m", f"{ram}M", "-smp", str(self.cpus), "-nodefaults", "-display", "none",
                "-serial", f"unix:{tmp}/serial.sock,server=on,wait=off", "-qmp", f"unix:{tmp}/qmp.sock,server=on,wait=off"]
        if self.linux:
            line += ["-kernel", f"{build}/guest/vmlinuz", "-initrd", f"{build}/guest/initramfs",
                     "-device", "virtio-serial", "-chardev", f"socket,id=check,path={tmp}/check.sock,server=on,wait=off",
                     "-device", "virtserialport,chardev=check,name=check"]
            append = "console=ttyS0 quiet panic=1 no_timer_check " + append    # slow TCG misses the check
        else:
            line += ["-kernel", f"{build}/guest/{self.image}.elf"]
            if accel == "kvm" and SLOW_KVM:
                line += ["-bios", "qboot.rom"]      # SeaBIOS would take seconds
                append = f"words=2 {self.slow_append} {append}"
        line += [a.format(tmp=tmp, ram=ram, half=ram // 2) for a in self.args]
        return line + (["-append", " ".join(append.split())] if append.strip() else [])


def disk(options="aio=native", device="virtio-blk-pci,drive=disk"):
    return ["-drive", "file={tmp}/disk.img,if=none,id=disk,format=raw,cache=none," + options, "-device", device]


def backend(kind):
    return ["-object", kind + ",id=ram0,size={ram}M", "-machine", "memory-backend=ram0"]


GUESTS = [
    Guest("memory", "anonymous memory, in order", "memory"),
    Guest("memory-random", "anonymous memory, scattered", "memory", append="random=1", accels=("tcg",)),
    Guest("memory-1g", "1 GiB", "memory", 1024, accels=("tcg",), heavy=True),
    Guest("memory-memfd", "shared memfd memory", "memory", args=backend("memory-backend-memfd,share=on"), accels=("tcg",)),
    Guest("memory-file", "memory in a shared file", "memory", accels=("tcg",),
          args=backend("memory-backend-file,share=on,mem-path={tmp}/ram.img")),
    Guest("memory-numa", "two NUMA nodes", "memory", cpus=2, accels=("tcg",),
          args=["-object", "memory-backend-ram,id=n0,size={half}M", "-object", "memory-backend-memfd,id=n1,size={half}M",
                "-numa", "node,memdev=n0,cpus=0", "-numa", "node,memdev=n1,cpus=1"]),
    Guest("memory-q35", "machine q35 with VGA, CD drive and network card", "memory", accels=("tcg",),
          args=["-machine", "q35", "-vga", "std", "-cdrom", "{tmp}/disk.img", "-nic", "user,model=e1000"], disk=1),
    Guest("touch", "a VM that does little", "touch", append="fill=50"),
    Guest("timer", "timer interrupts, time stamp counter", "timer"),
    Guest("smp", "several processors on the same memory", "smp", cpus=2),
    Guest("disk", "DMA, aio=native", "disk", 256, append="depth=64 disk=32M", args=disk(), disk=32, in_flight=16,
          slow_append="depth=8 disk=4M"),
    Guest("disk-threads", "DMA, aio=threads, q35", "disk", 256, append="depth=64 disk=32M", disk=32, in_flight=16, accels=("tcg",),
          args=["-machine", "q35"] + disk("aio=threads")),
    Guest("disk-uring", "DMA, aio=io_uring, an iothread", "disk", 256, append="depth=64 disk=32M", disk=32, in_flight=16,
          accels=("tcg",), args=["-object", "iothread,id=io0"] + disk("aio=io_uring", "virtio-blk-pci,drive=disk,iothread=io0")),
    Guest("disk-deep", "DMA, 64 MiB of it in the host kernel at once", "disk", 256, append="depth=256 disk=64M", disk=64,
          in_flight=64, accels=("tcg",), args=disk("aio=native", "virtio-blk-pci,drive=disk,queue-size=256")),
    Guest("disk-slow", "DMA that waits in QEMU for a second", "disk", 256, append="depth=256 disk=16M", disk=16, in_flight=64,
          accels=("tcg",), args=disk("aio=native,throttling.bps-total=67108864", "virtio-blk-pci,drive=disk,queue-size=256")),
    Guest("linux", "a distribution's kernel", "linux", 256, cpus=2, append="fill=60", boot_seconds=60),
    Guest("linux-disk", "scattered O_DIRECT requests, 64 MiB in flight", "linux", 512, cpus=2, append="fill=30 disk=/dev/vda depth=64",
          args=disk("aio=native", "virtio-blk-pci,drive=disk,queue-size=1024"), disk=128, in_flight=64, accels=("tcg",),
          boot_seconds=90),
    Guest("linux-disk-256", "scattered O_DIRECT requests, 256 MiB in flight", "linux", 1024, cpus=2,
          append="fill=30 disk=/dev/vda depth=256", args=disk("aio=native", "virtio-blk-pci,drive=disk,queue-size=1024"), disk=512,
          in_flight=256, accels=("tcg",), boot_seconds=180, heavy=True),
    Guest("linux-1g", "1 GiB, mostly filled", "linux", 1024, cpus=2, append="fill=75", boot_seconds=90, accels=("tcg",), heavy=True),
]
