#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Checkpoints that are verified, merged, streamed and damaged, and those of VMs with disks.

    checkpoints.py [--places N] [-k SUBSTRING]... [-j N] [--keep] [--list] [--build DIR] [--criu-vm FILE] [--dir DIR]

Guests of zdtm's under TCG, each test with VMs, run directory and files of its own. --places: how many bits are flipped, and how many
truncations are made, in each kind of checkpoint.
"""
import sys

import suite
import checkpoints_damage       # noqa: F401; they register their tests
import checkpoints_disks        # noqa: F401
import checkpoints_merge        # noqa: F401
import checkpoints_stream       # noqa: F401
from life_rig import LifeRig
from misuse_rig import TESTS

if __name__ == "__main__":
    parser = suite.parser(__doc__)
    parser.add_argument("--places", type=int, default=100, metavar="N", help="damaged places of each kind of checkpoint (100)")
    sys.exit(suite.run(parser.parse_args(), TESTS, LifeRig))
