#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The life of a VM under its pager: take-over, trouble, pressure, ends. No wrong byte, nothing left.

    life.py [--long] [-k SUBSTRING]... [-j N] [--keep] [--list] [--build DIR] [--criu-vm FILE] [--dir DIR]
    life.py kills [--rounds N] [-t GUEST]...    pagers killed at random under guests with DMA; the pause that their ticker saw
    life.py hog                                 the host swaps, and somebody takes all its memory
    life.py idle                                the CPU time that a VM costs which does nothing

Guests of zdtm's under TCG. --long: also what takes long and is much like what else is tested. `make faulty` builds the disk that misbehaves: it is looked for beside criu-vm.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import suite                                            # noqa: E402
import life_takeover        # noqa: E402,F401; they register their tests
import life_end             # noqa: E402,F401
import life_trouble         # noqa: E402,F401
import life_fence           # noqa: E402,F401
import life_pressure        # noqa: E402,F401
import life_paging          # noqa: E402,F401
import life_long            # noqa: E402
from life_rig import BY_NAME, LifeRig                   # noqa: E402
from misuse_rig import TESTS                            # noqa: E402

SUITE_KILLS = (["disk"], 3)
LONG = {"images-moved", "page-table-damaged", "set-with-dma", "fill-interrupted", "fenced-reads", "fenced-by-hand-writes", "trouble-and-drain",
        "swap-in-trouble-reads-enodev", "swap-in-trouble-writes", "starts-again-panic", "shrink-and-grow", "several-vms",
        "paging-method-2", "paging-minor", "paging-few-queues", "paging-many-queues", "paging-no-spin", "paging-no-folios"}


def main():
    parser = suite.parser(__doc__)
    parser.add_argument("command", nargs="?", choices=["kills", "hog", "idle"])
    parser.add_argument("--long", action="store_true", help="also tests that take long")
    parser.add_argument("--rounds", type=int, default=100, metavar="N", help="of kills, for each guest (100)")
    parser.add_argument("-t", dest="guest", action="append", choices=BY_NAME, metavar="GUEST", help="to be killed under")
    opts = parser.parse_args()
    tests = {None: TESTS + life_long.kill_tests(*SUITE_KILLS), "kills": life_long.kill_tests(opts.guest, opts.rounds),
             "hog": [("hog", life_long.hog)], "idle": [("idle", life_long.idle)]}
    if opts.command:
        opts.jobs = 1
    return suite.run(opts, [t for t in tests[opts.command] if opts.long or t[0] not in LONG], LifeRig)


if __name__ == "__main__":
    sys.exit(main())
