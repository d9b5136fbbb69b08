// SPDX-License-Identifier: GPL-2.0-only
// Tracepoints (USDT) of provider criu_vm: a nop and a note in the binary each, until perf, bpftrace or systemtap look at one. Arguments
// are evaluated always, so pass what is known anyway: integers, few, no bit fields. docs/paging.md lists all of them, by name and with
// their arguments; tests/docs.py holds that list against the binary. One stands in one place, and that in no inline function: perf
// knows but one of several that have the same name.
//
//	PROBE(drain_end, err, ns);
#pragma once
#define SDT_USE_VARIADIC
#define STAP_SDT_ARG_CONSTRAINT r // perf takes neither constants nor addresses with an index
#include <sys/sdt.h>

#define PROBE(name, ...) STAP_PROBEV(criu_vm, name, ##__VA_ARGS__)
