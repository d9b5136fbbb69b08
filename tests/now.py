#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""VMs that are no longer what they were started as: dumped and restored as they are, or refused by name.

    now.py [-k SUBSTRING]... [-j N] [--keep] [--list] [--build DIR] [--criu-vm FILE] [--dir DIR]

Guests of zdtm's under TCG. What QEMU says of the VM's devices, memory, CPUs and disks is the same before and after.
"""
import json
import os
import socket
import subprocess
import sys

import suite
from misuse_rig import MIB, TESTS, Qmp, Rig, cases, check, test, wait_for


def disk(rig, name, mib=1):
    with open(f"{rig.tmp}/{name}", "wb") as f:
        f.write(os.urandom(mib * MIB))
    return f"{rig.tmp}/{name}"


def plain(value):
    """Without what QEMU makes up anew: names of nodes, places in its own tree."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in ("qdev", "actual-size", "hotplugged", "write_threshold", "node-name")}
    return [plain(v) for v in value] if isinstance(value, list) else value


def pci(devices):
    return [[(d["bus"], d["slot"], d["function"], d["qdev_id"], d["id"]), pci(d.get("pci_bridge", {}).get("devices", []))]
            for d in sorted(devices, key=lambda d: (d["slot"], d["function"]))]


def what_it_is(vm):
    with Qmp(vm.qmp_path) as q:
        return {"pci": [pci(bus["devices"]) for bus in q.call("query-pci")],
                "memory": plain(q.call("query-memory-devices")),
                "cpus": sorted(json.dumps(c["props"]) for c in q.call("query-hotpluggable-cpus") if "qom-path" in c),
                "usb": q.call("human-monitor-command", command_line="info usb"),
                "network": sorted(line for line in q.call("human-monitor-command", command_line="info network").splitlines()
                                  if "fd=" not in line and "ifname=" not in line),
                "blocks": sorted(json.dumps(plain(b), sort_keys=True) for b in q.call("query-block"))}


def there_and_back(rig, vm, *args):
    """Dumped and restored, and the restored one again: it stays what it is, and its guest has all its memory."""
    before = what_it_is(vm)
    for i in range(2):
        images = f"{rig.tmp}/images{i}"
        rig.dump(vm, images=images)
        rig.nothing_left()                              # the name is free again
        vm = rig.restore(vm, *args, images=images)
        after = what_it_is(vm)
        for key, value in before.items():
            check(after[key] == value, f"{key} was {value}, after restore {i} it is {after[key]}")
    return vm


def refused(rig, vm, *says):
    result = rig.fails("dump", str(vm.pid), "-D", rig.images(), says=says)
    check(len(result.err.splitlines()) <= 2, f"too many lines; {result}")
    check(not os.path.exists(rig.images()), "images were made")
    vm.runs_on()


# ---- hot-plug

@test
def plugged(rig):
    """One of each kind, on buses that were there and on one that was plugged in, too."""
    path = disk(rig, "plugged.img")
    vm = rig.vm(args=["-m", "32M,slots=4,maxmem=1G", "-smp", "1,maxcpus=4", "-device", "pci-bridge,id=bridge,chassis_nr=1",
                      "-device", "virtio-rng-pci", "-device", "qemu-xhci,id=usb"])
    with Qmp(vm.qmp_path) as q:
        q.call("netdev_add", type="user", id="net1")
        q.call("device_add", driver="virtio-net-pci", id="nic1", netdev="net1", bus="bridge", addr="5")
        q.call("blockdev-add", driver="file", **{"node-name": "disk1"}, filename=path)
        q.call("device_add", driver="virtio-scsi-pci", id="a-scsi-bus")
        q.call("device_add", driver="scsi-hd", id="a-disk", drive="disk1", bus="a-scsi-bus.0", lun=3, serial="1234,5")
        q.call("object-add", qom_type="memory-backend-ram", id="more", size=64 * MIB)
        q.call("device_add", driver="pc-dimm", memdev="more", id="dimm0")
        q.call("device_add", driver="usb-tablet", id="tablet")
        q.call("device_add", driver="virtio-balloon-pci")
        cpu = next(c for c in q.call("query-hotpluggable-cpus") if "qom-path" not in c)
        q.call("device_add", driver=cpu["type"], id="cpu-1", **cpu["props"])
    there_and_back(rig, vm)


@test
def plugged_lazy(rig):
    vm = rig.vm(ram=64)
    vm.qmp("device_add", driver="e1000", id="plugged")
    before = what_it_is(vm)
    rig.dump(vm)
    check(what_it_is(rig.restore(vm, *rig.lazy_small())) == before, "it is another VM")


@test
def unplugged(rig):
    """The places of those that stay are not taken by others."""
    vm = rig.vm(args=["-device", "qemu-xhci,id=usb", "-device", "usb-kbd,id=first", "-device", "usb-tablet,id=second",
                      "-device", "virtio-scsi-pci,id=scsi", "-device", "scsi-cd,id=cd1", "-device", "scsi-cd,id=cd2",
                      "-device", "virtio-rng-pci", "-device", "e1000,id=nic"])
    with Qmp(vm.qmp_path) as q:
        q.call("device_del", id="first")
        q.call("device_del", id="cd1")
    wait_for("the devices' end", 10, lambda: "Keyboard" not in vm.qmp("human-monitor-command", command_line="info usb") and
             len(vm.qmp("query-block")) == 1)
    there_and_back(rig, vm)


@test
def plugged_again(rig):
    """By the same name, another device: what the command line says of it is not true any more."""
    vm = rig.vm(args=["-device", "qemu-xhci,id=usb", "-device", "usb-kbd,id=it"])
    vm.qmp("device_del", id="it")
    wait_for("the device's end", 10, lambda: "Keyboard" not in vm.qmp("human-monitor-command", command_line="info usb"))
    vm.qmp("device_add", driver="usb-kbd", id="it", port="3")
    vm = there_and_back(rig, vm)
    check("Port 3" in vm.qmp("human-monitor-command", command_line="info usb"), "it is in another port")


@cases(secret=("object-add", {"qom_type": "secret", "id": "the-secret", "data": "x"}, "the-secret"),
       netdev=("netdev_add", {"type": "socket", "id": "the-net", "udp": "127.0.0.1:9", "localaddr": "127.0.0.1:0"}, "the-net"),
       node=("blockdev-add", {"driver": "null-co", "node_name": "the-node"}, "the-node"))
def refuse_added(rig, command, arguments, says):
    vm = rig.vm()
    vm.qmp(command, **arguments)
    refused(rig, vm, says)


# ---- disks

@cases(drive=["-drive", "file={disk},if=none,id=d0,format=raw", "-device", "virtio-blk-pci,drive=d0"],
       hda=["-hda", "{disk}"],
       blockdev=["-blockdev", "driver=file,node-name=d0,filename={disk}", "-device", "virtio-blk-pci,drive=d0,id=blk"])
def external_snapshot(rig, args):
    path = disk(rig, "disk.img")
    vm = rig.vm(args=[a.replace("{disk}", path) for a in args])
    where = {"node_name": "d0", "snapshot_node_name": "overlay"} if args[0] == "-blockdev" else \
            {"device": "d0" if args[0] == "-drive" else "ide0-hd0"}
    vm.qmp("blockdev-snapshot-sync", **where, snapshot_file=f"{rig.tmp}/overlay.qcow2", format="qcow2")
    vm = there_and_back(rig, vm)
    check("overlay.qcow2" in json.dumps(vm.qmp("query-block")), "it is on the base image")


@test
def refuse_snapshot_without_name(rig):
    """Its file does not say what is below it: opened by its name alone it would be another disk."""
    path, overlay = disk(rig, "disk.img"), f"{rig.tmp}/overlay.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, "1M"], check=True)
    vm = rig.vm(args=["-drive", f"file={path},if=none,id=d0,format=raw", "-device", "virtio-blk-pci,drive=d0"])
    vm.qmp("blockdev-snapshot-sync", device="d0", snapshot_file=overlay, format="qcow2", mode="existing")
    refused(rig, vm, overlay, path)


@cases(drive=["-drive", "file={disk},if=none,id=cd,media=cdrom,format=raw", "-device", "ide-cd,drive=cd,id=cdrom"],
       cdrom=["-cdrom", "{disk}"],
       blockdev=["-blockdev", "driver=file,node-name=cd,read-only=on,filename={disk}", "-device", "ide-cd,drive=cd,id=cdrom"])
def medium(rig, args):
    """Changed, ejected, and inserted again."""
    first, second = disk(rig, "first.iso"), disk(rig, "second.iso")
    vm = rig.vm(args=[a.replace("{disk}", first) for a in args])
    where = {"device": "ide1-cd0"} if args[0] == "-cdrom" else {"id": "cdrom"}
    vm.qmp("blockdev-change-medium", **where, filename=second, format="raw")
    vm = there_and_back(rig, vm)
    check("second.iso" in json.dumps(vm.qmp("query-block")), "it has the first medium")
    vm.qmp("eject", **where, force=True)
    vm.qmp("blockdev-remove-medium" if "id" in where else "eject", **where)
    before = what_it_is(vm)
    rig.dump(vm)
    rig.nothing_left()
    vm = rig.restore(vm)
    check(what_it_is(vm)["blocks"] == before["blocks"], "the ejected medium is in again")


@test
def refuse_two_without_id(rig):
    """Which of them is which could be mistaken."""
    vm = rig.vm(args=["-cdrom", disk(rig, "a.iso"), "-fda", disk(rig, "b.img")])
    vm.qmp("eject", device="ide1-cd0", force=True)
    vm.qmp("eject", device="floppy0", force=True)
    refused(rig, vm, "without id")


# ---- libvirt's style: JSON, and descriptors

def libvirt_line(paths, fds):
    return ["-name", "guest=it,debug-threads=on",
            "-object", f'{{"qom-type":"secret","id":"masterKey0","format":"raw","file":"{paths["key"]}"}}',
            "-overcommit", "mem-lock=off", "-rtc", "base=utc,driftfix=slew", "-global", "PIIX4_PM.disable_s3=1", "-boot", "strict=on",
            "-msg", "timestamp=on", "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-chardev", f"socket,id=charmonitor,fd={fds['monitor']},server=on,wait=off", "-mon", "chardev=charmonitor,id=mon2,mode=control",
            "-add-fd", f"set=1,fd={fds['disk']},opaque=disk", "-add-fd", f"set=2,fd={fds['log']},opaque=log",
            "-blockdev", '{"driver":"file","filename":"/dev/fdset/1","node-name":"libvirt-1-storage","discard":"unmap"}',
            "-blockdev", '{"node-name":"libvirt-1-format","read-only":false,"driver":"raw","file":"libvirt-1-storage"}',
            "-device", '{"driver":"virtio-blk-pci","addr":"0x9","drive":"libvirt-1-format","id":"virtio-disk0","bootindex":1}',
            "-device", '{"driver":"virtio-serial-pci","id":"virtio-serial0","addr":"0xa"}',
            "-chardev", f"socket,id=charchannel0,fd={fds['channel']},server=on,wait=off,logfile=/dev/fdset/2,logappend=on",
            "-device", '{"driver":"virtserialport","bus":"virtio-serial0.0","nr":1,"chardev":"charchannel0","id":"channel0","name":"a.b"}',
            "-audiodev", '{"id":"audio1","driver":"none"}',
            "-netdev", '{"type":"user","id":"hostnet0"}',
            "-device", '{"driver":"virtio-net-pci","netdev":"hostnet0","id":"net0","addr":"0xb"}']


@test
def libvirt_style(rig):
    paths = {"disk": disk(rig, "disk.img"), "key": f"{rig.tmp}/key", "monitor": f"{rig.tmp}/mon", "channel": f"{rig.tmp}/channel"}
    with open(paths["key"], "w", encoding="ascii") as f:
        f.write("k" * 32)
    sockets = {}
    for name in ("monitor", "channel"):
        sockets[name] = socket.socket(socket.AF_UNIX)
        sockets[name].bind(paths[name])
        sockets[name].listen()
    log = os.pipe()
    fds = {"monitor": sockets["monitor"].fileno(), "channel": sockets["channel"].fileno(), "log": log[1],
           "disk": os.open(paths["disk"], os.O_RDWR)}
    args = [a.replace("{", "{{").replace("}", "}}") for a in libvirt_line(paths, fds)]
    vm = rig.vm(args=args, options={"pass_fds": tuple(fds.values())})
    for s in sockets.values():
        s.close()
    for fd in (*log, fds["disk"]):
        os.close(fd)
    before = what_it_is(vm)
    rig.dump(vm)
    for path in (paths["key"], paths["monitor"], paths["channel"]):
        os.unlink(path)                                 # as libvirt does when a domain ends
    after = what_it_is(rig.restore(vm))
    for key in ("pci", "network", "cpus"):
        check(after[key] == before[key], f"{key} was {before[key]}, it is {after[key]}")
    check([b.replace("/dev/fdset/1", paths["disk"]) for b in before["blocks"]] == after["blocks"], f"{before} {after}")
    check(os.path.exists(paths["channel"]), "the guest's channel is not there")


if __name__ == "__main__":
    sys.exit(suite.run(suite.parser(__doc__).parse_args(), TESTS, Rig))
