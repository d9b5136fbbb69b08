#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The unit test of control groups on hosts of every kind: each is a Linux guest (TCG, some seconds) with swap.

    cgroup_guest.py [-k SUBSTRING]... [--build DIR] [--dir DIR] [--keep]

v2, v1, both (the memory controller in v1), and systemd as process 1 with v2 and with both. systemd is this machine's own.
"""
import argparse
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TIMEOUT = 180
SYSTEMD = "/usr/lib/systemd/systemd"

# How /sys/fs/cgroup is made (systemd does it by itself), what goes onto the kernel's command line, tests that must have run.
V1 = "mount -t tmpfs groups /sys/fs/cgroup; mkdir -p /sys/fs/cgroup/memory; mount -t cgroup -o memory groups /sys/fs/cgroup/memory"
V2 = "mkdir -p {0}; mount -t cgroup2 groups {0}"
HOSTS = {
    "v2": (V2.format("/sys/fs/cgroup"), "", {"promise", "destroy_from_inside"}),
    "v1": (V1, "", {"destroy_from_inside"}),
    "both": (f"{V1}; {V2.format('/sys/fs/cgroup/unified')}", "", {"destroy_from_inside"}),
    "systemd": (None, "systemd.unified_cgroup_hierarchy=1", {"promise", "same_name"}),
    "systemd-both": (None, "systemd.unified_cgroup_hierarchy=0", {"same_name"}),
}

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
{then}
"""
RUN = """#!/bin/busybox sh
ip link set lo up
mkswap /dev/nvme0n1 >/dev/null && swapon /dev/nvme0n1
CK_VERBOSITY=verbose /test_cgroup
echo "test_cgroup: status $?"
poweroff -f
"""
UNITS = {
    "default.target": "[Unit]\nDefaultDependencies=no\nRequires=test.service\n",
    "dbus.socket": "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    "dbus.service": "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n[Service]\nType=notify\n"
                    "ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n",
    "test.service": "[Unit]\nDefaultDependencies=no\nRequires=dbus.service\nAfter=dbus.service\n[Service]\nType=oneshot\n"
                    "StandardOutput=tty\nStandardError=tty\nTTYPath=/dev/console\nExecStart=/run_test\n",
}


def add(tree, path):
    """A file of this machine, at its place in the guest."""
    target = f"{tree}/{path}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not os.path.exists(target):
        shutil.copy(path, target)


def write(tree, path, text, mode=0o644):
    target = f"{tree}/{path}"
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w", encoding="ascii") as f:
        f.write(text)
    os.chmod(target, mode)


def add_program(tree, path):
    add(tree, path)
    for library in re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout):
        add(tree, library)


def add_systemd(tree):
    for program in (SYSTEMD, "/usr/bin/dbus-daemon"):
        add_program(tree, program)
    for path in ["/usr/share/dbus-1/system.conf", "/etc/os-release", *glob.glob("/usr/share/dbus-1/system.d/*systemd1.conf")]:
        add(tree, path)
    write(tree, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    write(tree, "/etc/group", "root:x:0:\nmessagebus:x:100:\nnogroup:x:65534:\n")
    write(tree, "/etc/passwd", "root:x:0:0::/:/bin/sh\nmessagebus:x:100:100::/:/bin/false\nnobody:x:65534:65534::/:/bin/false\n")
    for name, text in UNITS.items():
        write(tree, f"/etc/systemd/system/{name}", text)


def make_initramfs(opts, tmp, make_groups):
    tree = f"{tmp}/tree"
    for folder in ("proc", "sys", "dev", "run", "tmp", "bin"):
        os.makedirs(f"{tree}/{folder}")
    os.chmod(f"{tree}/tmp", 0o1777)
    shutil.copy("/bin/busybox", f"{tree}/bin")
    add_program(tree, opts.test)
    os.rename(f"{tree}/{opts.test}", f"{tree}/test_cgroup")
    if make_groups is None:
        add_systemd(tree)
    write(tree, "/init", INIT.format(then=f"{make_groups}; exec /run_test" if make_groups else f"exec {SYSTEMD}"), 0o755)
    write(tree, "/run_test", RUN, 0o755)
    with open(f"{tmp}/initramfs", "wb") as out:
        subprocess.run("find . | cpio --quiet -o -H newc", shell=True, cwd=tree, stdout=out, check=True)


def boot(opts, tmp, words):
    """All that the guest wrote to its console."""
    with open(f"{tmp}/swap", "wb") as f:
        f.truncate(256 << 20)
    command = ["qemu-system-x86_64", "-accel", "tcg", "-smp", "2", "-m", "512", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
               "-drive", f"file={tmp}/swap,format=raw,if=none,id=swap", "-device", "nvme,drive=swap,serial=swap",
               "-kernel", f"{opts.build}/guest/vmlinuz", "-initrd", f"{tmp}/initramfs", "-append", f"console=ttyS0 quiet panic=1 {words}"]
    with open(f"{tmp}/console", "wb") as out:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as qemu:
            try:
                qemu.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                out.write(f"\nno end after {TIMEOUT} s\n".encode())
            finally:
                qemu.kill()
    with open(f"{tmp}/console", encoding="utf-8", errors="replace") as f:
        return f.read().replace("\r", "")


def test(opts, name):
    """(result, reason, the guest's output)"""
    make_groups, words, must_run = HOSTS[name]
    missing = [p for p in (SYSTEMD, "/usr/bin/dbus-daemon") if make_groups is None and not os.path.exists(p)]
    if missing:
        return "skip", f"{missing[0]} is not installed", ""
    tmp = tempfile.mkdtemp(prefix=f"cgroup-{name}-", dir=opts.dir)
    try:
        make_initramfs(opts, tmp, make_groups)
        out = boot(opts, tmp, words)
    finally:
        if not opts.keep:
            shutil.rmtree(tmp)
    passed = set(re.findall(r":P:(\w+):", out))
    if "test_cgroup: status 0\n" not in out:
        return "FAIL", "", out
    if not must_run <= passed:
        return "FAIL", f"not run: {', '.join(must_run - passed)}", out
    return "ok", f"{len(passed)} tests", out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", action="append", metavar="SUBSTRING", help="only hosts whose name contains it; may be repeated")
    parser.add_argument("--build", default=f"{ROOT}/build", metavar="DIR", help="where unit tests and guests are built (build)")
    parser.add_argument("--test", metavar="FILE", help="the test (DIR/tests/unit/test_cgroup)")
    parser.add_argument("--dir", default="/var/tmp", help="where the guests' files go (/var/tmp)")
    parser.add_argument("--keep", action="store_true", help="keep them")
    opts = parser.parse_args()
    opts.test = os.path.abspath(opts.test or f"{opts.build}/tests/unit/test_cgroup")
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)
    count = {"ok": 0, "FAIL": 0, "skip": 0}
    for name in HOSTS:
        if opts.k and not any(k in name for k in opts.k):
            continue
        result, reason, out = test(opts, name)
        count[result] += 1
        print(f"{result:4} {name}{f' ({reason})' if reason else ''}", flush=True)
        if result == "FAIL":
            print(out)
    print(f"{count['ok']} passed, {count['FAIL']} failed, {count['skip']} skipped")
    return 1 if count["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
