# SPDX-License-Identifier: GPL-2.0-only
"""A guest with a network card and a disk: its connections live on wherever it is."""
import contextlib
import json
import os
import random
import socket
import subprocess
import threading
import time

from misuse_rig import TestFailed, check, test, wait_for

LONG = {"twenty-moves", "tap-after-a-failure"}
GUEST, PEER = "10.88.0.10", "10.88.0.1"
BLOCK = 16 << 10
RARP = socket.htons(0x8035)
MTU = 1600                  # of a tap: another one than the default, and not too small for the guest
SILENCE_SECONDS = 20        # of a connection: TCP's own retries after a move, on a busy machine


def lan(rig):
    """A bridge on each host, joined by a second wire."""
    ends = [str(h.pid) for h in rig.hosts.values()]
    subprocess.run(["ip", "link", "add", "lan", "netns", ends[0], "type", "veth", "peer", "name", "lan", "netns", ends[1]],
                   check=True, capture_output=True)
    for host in rig.hosts.values():
        mac = f"02:00:00:00:00:0{1 + (host is rig.b)}"     # its own, so that it is not that of a tap which comes and goes
        for line in (f"link add br0 address {mac} type bridge", "link set lan master br0", "link set lan up", "link set br0 up"):
            host.run("ip", *line.split())
    rig.a.run("ip", "address", "add", f"{PEER}/24", "dev", "br0")
    for host in rig.hosts.values():
        host.links = host.net()


def join(host, name):
    host.run("ip", "link", "set", name, "master", "br0", "mtu", str(MTU))
    host.run("ip", "link", "set", name, "up")


def link(host, name):
    """As the kernel describes it; None: there is none."""
    found = [i for i in json.loads(host.run("ip", "-json", "-details", "link")) if i["ifname"] == name]
    return found[0] if found else None


def taps(host):
    return [i["ifname"] for i in json.loads(host.run("ip", "-json", "-details", "link")) if i.get("linkinfo", {}).get("info_kind") == "tun"]


class Talk(threading.Thread):
    """One connection to the guest, who sends back what it gets; all of it is compared."""

    def __init__(self, host, seconds=60):
        super().__init__(daemon=True)
        self.socket, self.error, self.bytes, self.longest, self.ended = None, None, 0, 0.0, threading.Event()
        end = time.monotonic() + seconds
        while not self.socket:
            s = host.socket()
            s.settimeout(2)
            try:
                s.connect((GUEST, 7))
                self.socket = s
            except OSError as e:
                s.close()
                if time.monotonic() > end:
                    raise TestFailed(f"the guest has no network: {e}") from None
        self.socket.settimeout(SILENCE_SECONDS)
        self.start()

    def run(self):
        try:
            while not self.ended.is_set():
                data, begun = random.randbytes(random.randrange(1, BLOCK)), time.monotonic()
                self.socket.sendall(data)
                back = b""
                while len(back) < len(data):
                    more = self.socket.recv(len(data) - len(back))
                    if not more:
                        raise TestFailed("the guest has closed the connection")
                    back += more
                if back != data:
                    raise TestFailed("what came back is not what was sent")
                self.bytes += len(data)
                self.longest = max(self.longest, time.monotonic() - begun)
                self.ended.wait(0.01)
        except (OSError, TestFailed) as e:
            self.error = e

    def check(self, nr_bytes=1):
        """It goes on: that many bytes more."""
        target = self.bytes + nr_bytes
        wait_for("bytes from the guest", SILENCE_SECONDS, lambda: self.error or self.bytes >= target)
        check(not self.error, f"the connection: {self.error!r}, after {self.bytes} bytes")

    def stop(self):
        self.ended.set()
        self.join()
        self.socket.close()


class Rarp(threading.Thread):
    """Counts the announcements that come by on a host's bridge: frames of reverse ARP."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.nr, self.ended = 0, threading.Event()
        self.socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, RARP)
        self.socket.bind(("br0", socket.ntohs(RARP)))
        self.socket.settimeout(0.2)
        self.start()

    def run(self):
        while not self.ended.is_set():
            with contextlib.suppress(TimeoutError):
                self.nr += len(self.socket.recv(2000)) > 0

    def stop(self):
        self.ended.set()
        self.join()
        self.socket.close()


def networked(rig, extra=(), append=""):
    lan(rig)
    vm = rig.guest("linux", f"net={GUEST}/24 {append}", args=["-netdev", "tap,id=n0,ifname=vmtap0,script=no,downscript=no",
                                                              "-device", "virtio-net-pci,netdev=n0", *extra])
    join(rig.a, "vmtap0")
    return vm


def is_described(rig, host, summary):
    """The tap at the destination: its bridge, its MTU, up."""
    names = taps(host)
    check(len(names) == 1, f"taps on host {host.letter}: {names}; {summary}")
    desc = link(host, names[0])
    check(desc.get("master") == "br0" and desc["mtu"] == MTU and "UP" in desc["flags"], f"{desc}")
    others = [h for h in rig.hosts.values() if h is not host]
    check(not taps(others[0]), f"taps of a VM that is not there: {taps(others[0])}")


@test
def tap(rig):
    """The tap is made as the source's was, and up once the VM runs; the other one goes. A connection lives on."""
    vm = networked(rig)
    talk, rarp = Talk(rig.a), Rarp(rig.a)
    rig.a.serve()
    rig.b.serve()
    for options in (["--ram", "64M"], []):
        talk.check(200000)
        before = rarp.nr
        summary = vm.move(*options)
        is_described(rig, vm.at.host, summary)
        wait_for("an announcement", 5, lambda n=before: rarp.nr > n)
        talk.check(200000)
    rarp.stop()
    vm.verified()
    talk.stop()
    rig.note = f"{talk.bytes >> 10} KiB to and fro, longest silence {talk.longest:.2f} s"


@test
def tap_after_a_failure(rig):
    """The source's is as it was; the destination has none."""
    vm = networked(rig)
    talk = Talk(rig.a)
    for stage in ("receive-start", "receive-load", "receive-ready"):
        rig.b.serve(env={"CRIU_VM_FAULT": f"{stage}:errno"})
        result = rig.a.criu_vm(*vm.migrate_line(rig.b, "--ram", "64M"))
        check(result.status == 1, f"it did not fail at '{stage}': {result}")
        talk.check(100000)
        rig.b.nothing_left()
        check("UP" in link(rig.a, "vmtap0")["flags"], "the source's tap is down")
        rig.b.stop_server()
    vm.runs_on()
    talk.stop()


@test
def no_bridge(rig):
    """Refused, and what to do is said; with --map it goes."""
    vm = networked(rig)
    rig.b.run("ip", "link", "set", "br0", "down")
    rig.b.run("ip", "link", "set", "br0", "name", "brother")
    rig.b.links = rig.b.net()
    rig.b.serve()
    rig.a.fails(*vm.migrate_line(rig.b, "--ram", "64M"), says=["br0", "--map"])
    vm.runs_on()
    rig.b.nothing_left()
    rig.b.stop_server()
    rig.b.run("ip", "link", "set", "brother", "up")
    with open(f"{rig.b.dir}/map", "w", encoding="ascii") as f:
        f.write("bridge br0 brother\n")
    rig.b.serve("--map", f"{rig.b.inside}/map")
    talk = Talk(rig.a)
    vm.move("--ram", "64M")
    check(link(rig.b, taps(rig.b)[0]).get("master") == "brother", "its bridge is another one")
    talk.check(100000)
    talk.stop()


def still_talks(vm, talk, what):
    """If not: what the guest does instead."""
    try:
        talk.check(50000)
    except TestFailed as e:
        before = vm.journey.passes
        time.sleep(3)
        stat = vm.at.host.stat(vm.at.name)
        raise TestFailed(f"after {what}: {e}; {vm.journey.passes - before} passes in 3 s, trouble {stat.get('trouble')}, "
                         f"faults that wait {stat.get('faults_waiting')}, guest {stat.get('guest')}") from None


def to_and_fro(rig, times):
    """A verifying Linux guest, its disk a qcow2 file under DMA that both hosts have, a connection that never ends."""
    disk = f"{rig.shared}/disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "128M"], check=True)
    vm = networked(rig, append="disk=/dev/vda depth=16", extra=[
        "-drive", f"file={disk},if=none,id=disk,format=qcow2,cache=none,aio=native", "-device", "virtio-blk-pci,drive=disk,queue-size=256"])
    talk, downtimes = Talk(rig.a), []
    rig.a.serve()
    rig.b.serve()
    for i in range(times):
        requests = vm.ask("status")["disk"]
        options = (["--ram", "96M"], [], ["--ram", "160M", "--channels", "4"], ["--compress", "zstd"])[i % 4]
        summary = vm.move(*options, "--downtime-limit", "1000")
        check(summary["page_ins"] == summary["page_outs"] == 0, f"move {i}: {summary}")
        downtimes.append(summary["downtime_ms"])
        still_talks(vm, talk, f"move {i} {options}")
        wait_for("requests of the guest to its disk", 60, lambda n=requests: vm.ask("status")["disk"] > n)
    vm.verified()
    talk.check(100000)
    talk.stop()
    vm.at.qmp("stop")
    vm.at.kill()
    result = subprocess.run(["qemu-img", "check", "-q", disk], capture_output=True, text=True, check=False)
    check(not result.returncode, f"qemu-img check: {result.stdout}{result.stderr}")
    check(os.path.getsize(disk) > 1 << 20, "the disk was never written to")
    rig.note = (f"{times} moves, downtime at worst {max(downtimes)} ms, {talk.bytes >> 10} KiB to and fro, "
                f"longest silence {talk.longest:.2f} s")


@test
def four_moves(rig):
    to_and_fro(rig, 4)


@test
def twenty_moves(rig):
    to_and_fro(rig, 20)
