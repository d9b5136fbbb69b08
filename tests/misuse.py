#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Bad input, refusals, failures and kills: the message helps, the VM is as before, nothing is left and nothing is lost.

    misuse.py [-k SUBSTRING]... [-j N] [--keep] [--list] [--build DIR] [--criu-vm FILE] [--dir DIR]

Guests of zdtm's under TCG, each test with VMs, run directory and files of its own. A criu-vm with sanitizers may be given:
what they detect fails the test.
"""
import sys

import suite
import misuse_dump          # noqa: F401; they register their tests
import misuse_refuse        # noqa: F401
import misuse_restore       # noqa: F401
import misuse_kill          # noqa: F401
import misuse_start         # noqa: F401
import misuse_stat          # noqa: F401
import misuse_tools         # noqa: F401
import misuse_users         # noqa: F401
from misuse_rig import TESTS, Rig

if __name__ == "__main__":
    sys.exit(suite.run(suite.parser(__doc__).parse_args(), TESTS, Rig))
