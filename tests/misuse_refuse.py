# SPDX-License-Identifier: GPL-2.0-only
"""VMs that cannot be dumped: the reason is told, in one line, before anything is touched."""
import os
import shutil
import socket
import subprocess
import sys

from misuse_rig import MIB, Qmp, Skip, cases, check, listens, test, wait_for


def refused(rig, vm, *says, runs=True, lines=1):
    result = rig.fails("dump", str(vm.pid), "-D", rig.images(), says=says)
    told = [line for line in result.err.splitlines() if line.strip()]
    check(len(told) == lines, f"{len(told)} lines, {lines} expected; {result}")
    check(lines == 0 or all(str(vm.pid) in line or "-" in line for line in told), f"which VM? {result}")
    check(not os.path.exists(rig.images()), "images were made")
    if runs:
        vm.runs_on()


def disk(rig, name="disk.img", mib=1):
    with open(f"{rig.tmp}/{name}", "wb") as f:
        f.write(os.urandom(mib * MIB))
    return f"{rig.tmp}/{name}"


MORE_MEMORY = ["-m", "32M,slots=4,maxmem=1G"]


@cases(
    nvdimm=(["-machine", "pc,nvdimm=on", *MORE_MEMORY, "-object", "memory-backend-ram,id=nv,size=16M",
             "-device", "nvdimm,id=nv0,memdev=nv"], "nvdimm"),
    virtio_pmem=([*MORE_MEMORY, "-object", "memory-backend-file,id=pm,share=on,mem-path={dir}/pmem,size=16M",
                  "-device", "virtio-pmem-pci,id=pm0,memdev=pm"], "pmem"),
    virtio_mem=([*MORE_MEMORY, "-object", "memory-backend-ram,id=vmem,size=128M", "-device", "virtio-mem-pci,id=vmem0,memdev=vmem"],
                "virtio-mem"),
    ivshmem=(["-object", "memory-backend-file,id=shared,share=on,mem-path={dir}/shared,size=1M",
              "-device", "ivshmem-plain,id=iv0,memdev=shared"], "ivshmem"),
    snapshot=(["-drive", "file={dir}/disk.img,if=virtio,format=raw", "-snapshot"], "-snapshot"),
    drive_snapshot=(["-drive", "file={dir}/disk.img,if=virtio,format=raw,snapshot=on"], "snapshot=on"),
    readconfig=(["-readconfig", "{dir}/config"], "-readconfig"),
)
def refuse_option(rig, args, says):
    folder = rig.folder("vm-")
    with open(f"{folder}/disk.img", "wb") as f:
        f.truncate(MIB)
    with open(f"{folder}/config", "w", encoding="ascii") as f:
        f.write('[rtc]\n  base = "utc"\n')
    vm = rig.vm(folder=folder, args=args)
    result = rig.fails("dump", str(vm.pid), "-D", rig.images(), says=[says])
    check(len(result.err.splitlines()) <= 2, f"more than two lines for one reason; {result}")
    check(not os.path.exists(rig.images()), "images were made")
    vm.runs_on()


@cases(netdev=["-netdev", "socket,id=n0,fd={fd}", "-device", "e1000,netdev=n0"], chardev=["-chardev", "socket,id=c0,fd={fd}"])
def refuse_descriptors(rig, args):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        vm = rig.vm(args=[a.replace("{fd}", str(theirs.fileno())) for a in args], options={"pass_fds": (theirs.fileno(),)})
        refused(rig, vm, "descriptor")


@test
def refuse_block_job(rig):
    path = disk(rig, mib=8)
    vm = rig.vm(args=["-drive", f"file={path},if=none,id=d0,format=raw", "-device", "virtio-blk-pci,drive=d0"])
    vm.qmp("drive-mirror", device="d0", target=f"{rig.tmp}/mirror.img", format="raw", sync="full", speed=1000, job_id="copying")
    result = rig.fails("dump", str(vm.pid), "-D", rig.images(), says=["copying"])
    check(len(result.err.splitlines()) <= 2, f"too many lines; {result}")
    vm.runs_on()


@test
def refuse_persistent_bitmap(rig):
    path = f"{rig.tmp}/disk.qcow2"
    if not shutil.which("qemu-img"):
        raise Skip("needs qemu-img")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "8M"], check=True)
    vm = rig.vm(args=["-drive", f"file={path},if=none,id=d0,format=qcow2", "-device", "virtio-blk-pci,drive=d0"])
    vm.qmp("block-dirty-bitmap-add", node="d0", name="backup", persistent=True)
    refused(rig, vm, "backup")


@test
def refuse_under_migration(rig):
    vm = rig.vm()
    with Qmp(vm.qmp_path) as q:
        q.call("migrate-set-parameters", max_bandwidth=4096)
        q.call("migrate", uri="exec:cat >/dev/null")
    wait_for("the migration", 10, lambda: vm.qmp("query-migrate").get("status") == "active")
    refused(rig, vm, "migration")
    vm.qmp("migrate_cancel")
    wait_for("the migration's end", 10, lambda: vm.qmp("query-migrate").get("status") == "cancelled")
    rig.dump(vm)


@test
def refuse_migration_blocker(rig):
    if not shutil.which("qemu-img"):
        raise Skip("needs qemu-img")
    path = f"{rig.tmp}/disk.qcow"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow", path, "8M"], check=True)
    vm = rig.vm(args=["-drive", f"file={path},if=virtio,format=qcow"])
    refused(rig, vm, "migration")


@test
def refuse_vhost_user(rig):
    if not shutil.which("qemu-storage-daemon"):
        raise Skip("needs qemu-storage-daemon")
    path, at = disk(rig), f"{rig.tmp}/vhost.sock"
    rig.start(["qemu-storage-daemon", "--blockdev", f"file,node-name=f,filename={path}",
               "--export", f"vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={at},writable=on"])
    wait_for("the back-end", 10, lambda: listens(at))
    vm = rig.vm(args=["-object", "memory-backend-memfd,id=ram0,size=32M,share=on", "-machine", "memory-backend=ram0",
                      "-chardev", f"socket,id=c,path={at}", "-device", "vhost-user-blk-pci,chardev=c,id=vub"])
    result = rig.fails("dump", str(vm.pid), "-D", rig.images(), says=["vhost-user"])
    check(len(result.err.splitlines()) <= 4, f"too many lines; {result}")
    vm.runs_on()


@test
def refuse_ram_that_others_map(rig):
    vm = rig.vm(args=["-object", "memory-backend-file,id=ram0,size=32M,share=on,mem-path={dir}/ram",
                      "-machine", "memory-backend=ram0"])
    code = f"import mmap; f = open('{vm.dir}/ram', 'r+b'); m = mmap.mmap(f.fileno(), 4096); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        refused(rig, vm, str(other.pid))
        other.stdin.close()
    rig.dump(vm)


@test
def refuse_run_state(rig):
    """Shut down, and kept: there is nothing to go on with."""
    vm = rig.vm(args=["-no-reboot", "-no-shutdown"])
    vm.qmp("system_reset")
    wait_for("the shutdown", 10, lambda: vm.status() == "shutdown")
    refused(rig, vm, "shutdown", runs=False)
    check(vm.status() == "shutdown", "it was touched")


@test
def refuse_paused(rig):
    """What is refused while it is paused stays paused."""
    vm = rig.vm()
    vm.qmp("object-add", qom_type="secret", id="added", data="x")
    vm.qmp("stop")
    refused(rig, vm, "added", runs=False)
    vm.stays_paused()
    vm.qmp("cont")
    vm.runs_on()
