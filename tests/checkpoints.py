#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Checkpoints that are verified, merged, streamed and damaged, those of VMs with disks, and of VMs that run on.

    checkpoints.py [--places N] [--rounds N] [--long] [-k SUBSTRING]... [-j N] [--keep] [--list] [--build DIR] [--criu-vm FILE] [--dir DIR]

Guests of zdtm's under TCG, each test with VMs, run directory and files of its own. --places: how many bits are flipped, and how many
truncations are made, in each kind of checkpoint. --rounds: how often a dump is cut off. --long: also the tests that `make check` has no
time for.
"""
import sys

import suite
import checkpoints_damage       # noqa: F401; they register their tests
import checkpoints_disks        # noqa: F401
import checkpoints_hot          # noqa: F401
import checkpoints_merge        # noqa: F401
import checkpoints_parents      # noqa: F401
import checkpoints_running
import checkpoints_served
import checkpoints_stream       # noqa: F401
from life_rig import LifeRig
from misuse_rig import TESTS

if __name__ == "__main__":
    parser = suite.parser(__doc__)
    parser.add_argument("--places", type=int, default=100, metavar="N", help="damaged places of each kind of checkpoint (100)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="dumps of each kind that are cut off (2)")
    parser.add_argument("--long", action="store_true", help="also tests that take long")
    opts = parser.parse_args()
    sys.exit(suite.run(opts, [t for t in TESTS if opts.long or t[0] not in checkpoints_running.LONG | checkpoints_served.LONG], LifeRig))
