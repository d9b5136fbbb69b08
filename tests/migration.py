#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""VMs migrate between two hosts, which are namespaces of this one. No wrong byte; one VM, never two and never none; nothing left.

    migration.py [--long] [-k SUBSTRING]... [-j N] [--keep] [--list] [--build DIR] [--criu-vm FILE] [--dir DIR]

Guests of zdtm's. --long: also the tests that `make check` has no time for: every stage's faults, twenty moves.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import suite                                            # noqa: E402
import migration_faults                                 # noqa: E402; they register their tests
import migration_lazy                                   # noqa: E402
import migration_lazy_cuts                              # noqa: E402
import migration_moves                                  # noqa: E402
import migration_network                                # noqa: E402
import migration_tls                                    # noqa: E402
import migration_trouble                                # noqa: E402
from migration_rig import MigrationRig                  # noqa: E402
from misuse_rig import TESTS                            # noqa: E402

MODULES = (migration_faults, migration_lazy, migration_lazy_cuts, migration_moves, migration_network, migration_tls, migration_trouble)
LONG = set().union(*(m.LONG for m in MODULES))

if __name__ == "__main__":
    parser = suite.parser(__doc__)
    parser.add_argument("--long", action="store_true", help="also tests that take long")
    opts = parser.parse_args()
    sys.exit(suite.run(opts, [t for t in TESTS if opts.long or t[0] not in LONG], MigrationRig))
