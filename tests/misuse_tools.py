# SPDX-License-Identifier: GPL-2.0-only
"""The command line itself, show, lazy-pages."""
import json
import os
import subprocess

from misuse_rig import cases, check, test

COMMANDS = ["check", "dump", "restore", "migrate", "lazy-pages", "set", "stat", "show"]


def plain(rig, *args):
    """criu-vm with these arguments and no others."""
    p = rig.start([rig.opts.criu_vm, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return rig.end_criu_vm(p)


@test
def usage(rig):
    for args in ([], ["nonsense"], ["--nonsense"], ["-x"], [""], ["dumpx"], ["DUMP"]):
        result = plain(rig, *args).check(2)
        check("--help" in result.err and not result.out, f"{result}")
    for args in (["--help"], ["-h"], ["help"], ["-V"], ["--version"]):
        result = plain(rig, *args).check(0)
        check(result.out and not result.err, f"{result}")
    listed = plain(rig, "--help").out
    check(all(c in listed for c in COMMANDS), f"--help lists not all: {listed}")


@cases(**{c.replace("-", "_"): c for c in COMMANDS})
def usage_of(rig, command):
    for flag in ("--help", "-h"):
        result = plain(rig, command, flag).check(0)
        check(f"criu-vm {command}" in result.out and not result.err, f"{result}")
    for args in (["--nonsense"], ["-Z"], ["--run-dir"], ["-o"]):
        result = plain(rig, command, *args).check(2)
        check(result.err and not result.out, f"{result}")


@test
def usage_of_dump(rig):
    for args in ([], ["1"], ["-D", "x"], ["-t", "1"], ["1", "2", "-D", "x"], ["-t", "1", "1", "-D", "x"]):
        rig.fails("dump", *args, status=2)
    check(not os.path.exists("x"), "x was made")


@test
def usage_of_the_rest(rig):
    rig.fails("show", status=2)
    rig.fails("stat", "a", "b", status=2)
    rig.fails("lazy-pages", "nonsense", status=2)
    rig.fails("lazy-pages", "--port", "65536", status=2, says=["65536"])
    rig.fails("lazy-pages", "--vm-ram", "much", status=2, says=["much"])
    rig.fails("lazy-pages", "--paging", "method=3", status=2, says=["method=3"])
    rig.fails("lazy-pages", "--paging", "method=1", "--images", "x", status=2, says=["--paging", "--images"])
    rig.fails("lazy-pages", "--address", "0.0.0.0", "--port", "0", status=2, says=["--tls-creds", "--insecure"])
    for args in ([], ["1"], ["1", "localhost", "x"], ["--channels", "0", "1", "localhost"], ["--max-bandwidth", "fast", "1", "localhost"]):
        rig.fails("migrate", *args, status=2)
    rig.fails("migrate", "1", "192.0.2.1")
    rig.fails("lazy-pages", "--name", "../x", status=2)
    rig.fails("stat", "--rounds", "x", status=2)


@test
def lazy_pages_by_hand(rig):
    rig.fails("lazy-pages", "--name", "nobody", says=["'nobody'"])
    vm = rig.restore(rig.checkpoint(ram=64), *rig.lazy_small())
    swap = f"{rig.tmp}/swap/image"
    rig.fails("lazy-pages", "--name", rig.name, "--swap", "/dev/null", says=["/dev/null", f"'{rig.name}'"])
    rig.fails("lazy-pages", "--name", rig.name, "--images-dir", rig.tmp)
    rig.fails("lazy-pages", "--name", rig.name, "--swap", f"{swap}.no", says=[f"{swap}.no"])
    vm.runs_on()
    check(rig.stat()["state"] == "served", "it is not served any more")


@test
def show_all(rig):
    rig.checkpoint()
    files = sorted(os.listdir(rig.images()))
    check("vm.img" in files and "pages-1.img" in files, f"{files}")
    for name in files:
        if name.startswith("pages-"):
            continue
        text = rig.criu_vm("show", f"{rig.images()}/{name}").check(0)
        check(text.out and not text.err, f"{text}")
        check(json.loads(rig.criu_vm("show", "--json", f"{rig.images()}/{name}").check(0).out), f"{name}: empty")
    pages = f"{rig.images()}/pages-1.img"               # no messages in it, but it is known what it is
    check("pagemaps of pages_id 1" in (shown := rig.criu_vm("show", pages).check(0).out), f"show of the pages: {shown}")
    json.loads(rig.criu_vm("show", "--json", pages).check(0).out)
    all_of_them = rig.criu_vm("show", *(f"{rig.images()}/{n}" for n in files if not n.startswith("pages-"))).check(0)
    check(all(n in all_of_them.out for n in files if not n.startswith("pages-")), f"{all_of_them}")


@test
def show_damaged(rig):
    """A status of 1 and a reason; never a crash, and never what it cannot vouch for as if it were good."""
    rig.checkpoint()
    damaged = f"{rig.tmp}/damaged.img"
    for name in sorted(os.listdir(rig.images())):
        with open(f"{rig.images()}/{name}", "rb") as f:
            good = f.read(1 << 20)
        if name.startswith("pages-"):
            continue
        for bad in (good[:len(good) // 2], good[:-1], good[:9], good[:12] + b"\xff" * 4 + good[16:],
                    good[:8] + b"\xff\xff\xff\x7f" + good[12:]):
            with open(damaged, "wb") as f:
                f.write(bad)
            for flags in ([], ["--json"]):
                result = rig.criu_vm("show", *flags, damaged)
                check(result.status in (0, 1), f"{name}: {result}")
                check(result.status == 0 or damaged in result.err, f"{name}: {result}")
                if result.status == 0 and flags:
                    json.loads(result.out)
        with open(damaged, "wb") as f:
            f.write(good[:len(good) // 2])
        result = rig.criu_vm("show", damaged)
        check(result.status == 1 and damaged in result.err, f"{name}, cut in half: {result}")


@test
def show_no_image(rig):
    letter, fifo = f"{rig.tmp}/letter.txt", f"{rig.tmp}/fifo"
    with open(letter, "w", encoding="ascii") as f:
        f.write("dear reader, this is no image")
    with open(f"{rig.tmp}/empty", "wb"):
        pass
    os.mkfifo(fifo)
    for path in (letter, f"{rig.tmp}/empty", fifo, rig.tmp, f"{rig.tmp}/none", "/dev/zero", ""):
        for flags in ([], ["--json"]):
            rig.fails("show", *flags, path, says=[path])
    # One bad file does not hide the others.
    rig.checkpoint()
    result = rig.criu_vm("show", letter, f"{rig.images()}/vm.img").check(1, letter)
    check("qemu" in result.out, f"{result}")


@test
def show_to_a_full_disk(rig):
    rig.checkpoint()
    with open("/dev/full", "wb") as full:
        p = rig.start([rig.opts.criu_vm, "show", f"{rig.images()}/vm.img"], stdout=full, stderr=subprocess.PIPE, text=True)
        err = p.communicate(timeout=150)[1]
    check(p.returncode == 1 and err, f"status {p.returncode}, said: {err}")


@test
def output_to_a_closed_pipe(rig):
    """`criu-vm restore | head -0`: the VM is there all the same."""
    rig.checkpoint()
    read, write = os.pipe()
    os.close(read)
    p = rig.start(rig.line(*rig.restore_line("--lazy-pages")), stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    p.communicate(timeout=150)
    check(p.returncode >= 0, f"status {p.returncode}")
    if p.returncode == 0:
        check(rig.stat()["state"] == "served", "no VM")
        os.kill(rig.stat()["qemu_pid"], 9)
