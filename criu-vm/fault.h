// SPDX-License-Identifier: GPL-2.0-only
// Faults on purpose, for tests: CRIU_VM_FAULT=PLACE:KIND[,PLACE:KIND...] in the environment. PLACE is the name of a stage (stages.h) or of
// another place that calls this. KIND: kill (SIGKILL to the calling process), errno (-EIO), delay (3 s pass), delayN (N s).
#pragma once

// At the beginning of what has this name. 0, or -EIO, logged.
int fault_here(const char *name);
