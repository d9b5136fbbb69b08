// SPDX-License-Identifier: GPL-2.0-only
// The checks behind qemu_refuse(). Each logs what it finds by refuse_because() and returns 0, or -errno (logged) when it
// cannot tell.
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "qemu/qmp.h"
#include "qemu/ramblock.h"
#include "qemu/refuse.h"
#include "qemu/vm.h"

struct refusal {
	struct qemu_vm *vm;
	const struct qemu_ramblock *blocks;
	size_t nr;
	const struct qemu_ours *ours;
	unsigned nr_reasons;
	bool paged; // somebody serves its page faults, and may have its RAM mapped for that
	json_t *fdsets; // {"/dev/fdset/1": path of the file}; NULL: not looked at
};

void refuse_because(struct refusal *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// The folder that its files are found from.
int refuse_folder(struct refusal *r);

// What other processes and the kernel hold of the VM's memory, from open files and mappings.
int refuse_open_files(struct refusal *r);
int refuse_shared_ram(struct refusal *r);

// A VM that is not what its command line says, after the differences that can be rebuilt were put into it (qemu/now.c). Only for
// command lines that qemu_cmdline_check() understands.
int refuse_devices(struct refusal *r);
int refuse_cpus(struct refusal *r);
int refuse_netdevs(struct refusal *r);
int refuse_disks(struct refusal *r);

// A multiset of names, for comparing what is with what should be. Zeroed to begin with.
struct names {
	char **v;
	size_t nr;
};

int names_add(struct names *n, const char *s);
bool names_take(struct names *n, const char *s); // false if it is not there
void names_fini(struct names *n);
