// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: admission
//
//	promised to those that arrive + budgets of those that run + what is wanted  <=  --total-ram
//
// Without --total-ram the right side is what the host could give to VMs at this moment: what is available, and what VMs have of it already
// (their guest pages that are resident, no more than they may have). So a VM counts with all of its budget, however little of it it has
// taken, and what other programs take is not promised to anybody.
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "criu-vm/server_int.h"
#include "util/process.h"
#include "util/size.h"

struct use {
	uint64_t budgets;  // of VMs that run
	uint64_t promised; // to those that arrive
	uint64_t resident; // of both
};

// Guest pages that have memory: a memfd's blocks.
static uint64_t resident_of(const struct vm_state *v)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < v->nr_blocks; i++) {
		char path[64];
		struct stat st;

		snprintf(path, sizeof path, "/proc/%d/fd/%d", v->qemu, v->blocks[i].memfd);
		if (!stat(path, &st) && S_ISREG(st.st_mode))
			bytes += (uint64_t)st.st_blocks * 512;
	}
	return bytes < v->budget ? bytes : v->budget;
}

static const struct server_child *arriving(const struct server *s, const char *name)
{
	list_for_each(&s->children, node) {
		const struct server_child *c = list_entry(node, struct server_child, node);

		if (c->promised && !strcmp(c->name, name))
			return c;
	}
	return NULL;
}

static uint64_t add(uint64_t a, uint64_t b)
{
	return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

// Of a VM in the run directory, if there is one of that name with a living QEMU.
static void add_vm(const struct server *s, const char *name, struct use *u)
{
	struct run_dir rd;
	struct vm_state v;

	if (!run_dir_name_ok(name) || run_dir_open(s->o->run_dir, name, &rd))
		return;
	if (!vm_state_load(&rd, &v) && vm_state_qemu_alive(&v, NULL)) {
		u->resident = add(u->resident, resident_of(&v));
		if (!arriving(s, name)) // which is counted with what it was promised
			u->budgets = add(u->budgets, v.budget);
	}
	vm_state_fini(&v);
	run_dir_close(&rd);
}

static void measure(const struct server *s, const struct server_child *but, struct use *u)
{
	DIR *dir = opendir(s->o->run_dir);
	struct dirent *d;

	*u = (struct use){ .budgets = 0 };
	while (dir && (d = readdir(dir)))
		add_vm(s, d->d_name, u);
	if (dir)
		closedir(dir);
	list_for_each(&s->children, node) {
		const struct server_child *c = list_entry(node, struct server_child, node);

		if (c != but)
			u->promised = add(u->promised, c->promised);
	}
}

static bool name_is_used(const struct server *s, const char *name)
{
	struct run_dir rd;
	struct vm_state v;
	bool used;

	if (run_dir_open(s->o->run_dir, name, &rd))
		return false;
	vm_state_load(&rd, &v); // empty if there is none
	used = run_dir_is_locked(&rd) || vm_state_qemu_alive(&v, NULL);
	vm_state_fini(&v);
	run_dir_close(&rd);
	return used;
}

static int check_memory(const struct server *s, const struct server_child *c, const char *name, uint64_t bytes, char reason[SERVER_REASON])
{
	char want[16], limit[16], running[16], coming[16], left[16];
	uint64_t total = s->o->total_ram, used;
	struct use u;

	measure(s, c, &u);
	if (!total && host_memory_available(&total)) {
		snprintf(reason, SERVER_REASON, "cannot tell how much memory the host has available; start the server with --total-ram");
		return -ENOMEM;
	}
	if (!s->o->total_ram)
		total = add(total, u.resident);
	used = add(u.budgets, u.promised);
	if (used <= total && bytes <= total - used)
		return 0;
	snprintf(reason, SERVER_REASON,
		 "%s needs %s of memory and %s are left: of %s %s, VMs that run there have %s, and VMs that arrive %s; ask for less with --ram",
		 name, size_format(bytes, want), size_format(used < total ? total - used : 0, left), size_format(total, limit),
		 s->o->total_ram ? "(--total-ram)" : "that the host has for VMs", size_format(u.budgets, running), size_format(u.promised, coming));
	return -ENOMEM;
}

int server_promise(const struct server *s, struct server_child *c, const char *name, uint64_t bytes, char reason[SERVER_REASON])
{
	const struct server_child *other = arriving(s, name);
	int r = 0;

	if (!bytes) {
		snprintf(reason, SERVER_REASON, "%s: a VM cannot do without memory", name);
		r = -EINVAL;
	} else if ((other && other != c) || (!other && name_is_used(s, name))) {
		snprintf(reason, SERVER_REASON, "a VM '%s' %s there already; give this one another --name", name, other ? "arrives" : "runs");
		r = -EEXIST;
	} else {
		r = check_memory(s, c, name, bytes, reason);
	}
	c->promised = r ? 0 : bytes;
	snprintf(c->name, sizeof c->name, "%s", name);
	return r;
}
