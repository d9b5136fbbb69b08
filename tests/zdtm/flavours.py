# SPDX-License-Identifier: GPL-2.0-only
"""The ways that zdtm.py dumps and restores a guest."""
from dataclasses import dataclass, field

SMALL = ["--ram", "{ram}M", "--swap", "{tmp}/swap/{name}"]      # {ram}: MiB of the budget
LAZY_SMALL = ["--lazy-pages", *SMALL]
PRE_DUMP = ["pre-dump"]
RUNNING = ["dump", "-R", "--track-mem"]


@dataclass
class Flavour:
    about: str
    restore: list = field(default_factory=list)     # options
    dump: list = field(default_factory=list)        # options
    before: list = field(default_factory=list)      # commands, each making a parent of the next one, and of the dump
    merge: bool = False                             # the chain is merged, and deleted
    stream: bool = False                            # no images: through a pipe, kept in a file
    paged: bool = False                             # what is dumped is a VM in private virtual memory
    quits: bool = False                             # how the VM is ended: it is killed if not
    fill: bool = False                              # when all has come, the images are deleted, and the guest goes on
    dumps: bool = True                              # without criu-vm otherwise

    @property
    def runs_on(self):
        return "-R" in self.dump


FLAVOURS = {
    "eager": Flavour("all memory is restored at once", quits=True),
    "eager-small": Flavour("the same, into private virtual memory", SMALL),
    "lazy": Flavour("pages come from the images when they are touched", ["--lazy-pages"]),
    "lazy-small": Flavour("the same, into private virtual memory", LAZY_SMALL, quits=True),
    "fill": Flavour("and the images are deleted as soon as they are not needed", ["--fill", *LAZY_SMALL], fill=True),
    "predump": Flavour("two pre-dumps, then the dump", before=[PRE_DUMP, PRE_DUMP]),
    "predump-lazy": Flavour("the same, restored lazily", LAZY_SMALL, before=[PRE_DUMP, PRE_DUMP]),
    "running": Flavour("dump -R: the VM runs on, and so does its copy", dump=["-R"]),
    "running-chain": Flavour("an increment each, of a VM that runs on", LAZY_SMALL, ["-R"], [RUNNING, RUNNING]),
    "background": Flavour("dump -R --background", dump=["-R", "--background"]),
    "compressed": Flavour("zstd", LAZY_SMALL, ["--compress", "zstd"]),
    "compressed-chain": Flavour("zstd over a pre-dump that is not compressed", [], ["--compress", "zstd:3"], [PRE_DUMP]),
    "merged": Flavour("a chain made one", LAZY_SMALL, before=[PRE_DUMP, PRE_DUMP], merge=True),
    "streamed": Flavour("dump -R through a pipe", [], ["-R"], stream=True),
    "streamed-small": Flavour("dump -s through a pipe, into private virtual memory", SMALL, ["-s", "--compress", "zstd"], stream=True),
    "paged": Flavour("a VM in private virtual memory is dumped", LAZY_SMALL, paged=True),
    "paged-chain": Flavour("the same with two pre-dumps", LAZY_SMALL, before=[PRE_DUMP, PRE_DUMP], paged=True),
    "paged-running": Flavour("increments of a VM in private virtual memory that runs on", [], ["-R"], [RUNNING, RUNNING], paged=True),
    "paged-background": Flavour("dump -R --background of a VM in private virtual memory", LAZY_SMALL, ["-R", "--background"], paged=True),
    "plain": Flavour("the guest alone", dumps=False),
    "spoil": Flavour("the guest with a few of its pages changed by us, which it must notice", dumps=False),
}
DEFAULT_FLAVOURS = [f for f in FLAVOURS if f != "plain"]
