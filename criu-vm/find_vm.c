// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/find_vm.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/log.h"

static int find_name(const char *run_root, const char *name, char *spec, size_t size)
{
	struct vm_state s;
	struct run_dir rd;
	int r = run_dir_name_ok(name) ? run_dir_open(run_root, name, &rd) : -ENOENT;

	if (r)
		return r;
	r = vm_state_load(&rd, &s);
	if (!r && !vm_state_qemu_alive(&s, NULL)) {
		log_err("VM '%s' does not run: its QEMU has ended, or has not started yet", name);
		r = -ESRCH;
	}
	if (!r && s.arriving && !run_dir_has(&rd, "running")) {
		log_err("VM '%s' is arriving from another host, and does not run here yet", name);
		r = -ESRCH;
	}
	if (!r)
		run_dir_file(&rd, "commands.sock", spec, size);
	vm_state_fini(&s);
	run_dir_close(&rd);
	return r;
}

bool find_vm_name(const char *run_root, pid_t qemu, char name[RUN_DIR_NAME_MAX + 1])
{
	DIR *dir = opendir(run_root);
	const struct dirent *d;
	bool found = false;

	while (dir && !found && (d = readdir(dir))) {
		struct vm_state s;
		struct run_dir rd;

		if (!run_dir_name_ok(d->d_name) || run_dir_open(run_root, d->d_name, &rd))
			continue;
		found = !vm_state_load(&rd, &s) && s.qemu == qemu && vm_state_qemu_alive(&s, NULL);
		if (found)
			snprintf(name, RUN_DIR_NAME_MAX + 1, "%.*s", RUN_DIR_NAME_MAX, d->d_name);
		vm_state_fini(&s);
		run_dir_close(&rd);
	}
	if (dir)
		closedir(dir);
	return found;
}

int find_vm(const char *run_root, const char *vm, char *spec, size_t size)
{
	char name[RUN_DIR_NAME_MAX + 1];
	int r;

	snprintf(spec, size, "%s", vm);
	if (strchr(vm, '/'))
		return 0;
	if (vm[strspn(vm, "0123456789")] == '\0')
		return find_vm_name(run_root, atoi(vm), name) ? find_name(run_root, name, spec, size) : 0;
	r = find_name(run_root, vm, spec, size);
	if (r == -ENOENT && !access(vm, F_OK))
		return 0; // a socket in this folder
	if (r == -ENOENT)
		log_err("there is no VM '%s' in %s; give a name from criu-vm stat, a QEMU's pid, or the path of its QMP socket", vm, run_root);
	return r;
}
