# SPDX-License-Identifier: GPL-2.0-only
"""Bits are flipped and files cut short at random places of checkpoints: verify finds it, and restore, before anything runs."""
import os
import random

from checkpoints_merge import chain, flip_all_over
from misuse_rig import cases, check, wait_for


class Places:
    """Random places in the files of some directories: half of them in pages, half in what is not."""

    def __init__(self, dirs, seed):
        self.random = random.Random(seed)
        files = [f"{d}/{name}" for d in dirs for name in sorted(os.listdir(d)) if name.endswith(".img")]
        self.pages = [f for f in files if "/pages-" in f and os.path.getsize(f)]
        self.others = [f for f in files if "/pages-" not in f]

    def damage(self, i):
        """Does something to a file: what it was, and how it is undone."""
        path = self.random.choice(self.pages if i % 2 else self.others)
        size = os.path.getsize(path)
        at = self.random.randrange(size)
        with open(path, "r+b") as f:
            f.seek(at)
            if i % 7 == 0:
                rest = f.read()
                f.truncate(at)
                return f"{path} cut to {at} of {size}", lambda: self.write(path, at, rest)
            byte, bit = f.read(1), self.random.randrange(8)
            f.seek(at)
            f.write(bytes([byte[0] ^ 1 << bit]))
            return f"{path}, bit {bit} of byte {at} of {size}", lambda: self.write(path, at, byte)

    def write(self, path, at, data):
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(data)


def refused(rig, where, *line):
    result = rig.end_criu_vm(rig.start_criu_vm(*line))
    check(result.status == 1 and result.err.strip(), f"{where}: {result}")


@cases(raw=(False, ()), zstd=(False, ("--compress", "zstd")), chain=(True, ()), zstd_chain=(True, ("--compress", "zstd")))
def damage(rig, is_chain, args):
    vm = rig.vm(ram=16)
    if is_chain:
        dirs = chain(rig, vm, *args)
    else:
        dirs = [rig.images()]
        rig.criu_vm("dump", str(vm.pid), "-D", dirs[0], *args).check(0)
        vm.wait_end(5)
    newest, said = dirs[-1], rig.text_of(f"{vm.dir}/serial.log")
    places, needed = Places(dirs, 1), Places(dirs, 2)
    # Restore does not look at a parent's pages that nobody needs any more.
    needed.pages = [f"{newest}/pages-1.img"]
    for i in range(rig.opts.places):
        where, undo = places.damage(i)
        refused(rig, where, "verify", newest)
        undo()
        where, undo = needed.damage(i)
        refused(rig, where, *rig.restore_line(images=newest))
        undo()
    check(rig.text_of(f"{vm.dir}/serial.log") == said, "it ran")
    rig.nothing_left()
    rig.criu_vm("verify", newest).check(0)
    rig.restore(vm, images=newest)


@cases(raw=((), 2), zstd=(("--compress", "zstd"), 2), raw_parent=((), 0), zstd_parent=(("--compress", "zstd"), 0))
def damage_lazy(rig, args, which):
    """Found before a page is given to the guest: it waits, and goes on when the page can be read."""
    vm = rig.vm()
    dirs = chain(rig, vm, *args, paused=True)
    path = f"{dirs[which]}/pages-1.img"
    copy = rig.restore(vm, "--lazy-pages", images=dirs[-1], runs=False)
    flip_all_over(path)                                 # loading its device state needed some
    copy.qmp("cont")
    answer = wait_for("trouble", 30, lambda: (a := rig.stat()).get("trouble") and a)
    check("damaged" in answer["trouble"], f"trouble: {answer['trouble']}")
    copy.stands_still()
    flip_all_over(path)
    copy.passes(2)
    wait_for("the end of the trouble", 10, lambda: not rig.stat().get("trouble"))
