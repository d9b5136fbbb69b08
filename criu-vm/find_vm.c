// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/find_vm.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/run_dir.h"
#include "util/log.h"

int find_vm(const char *run_root, const char *vm, char *spec, size_t size)
{
	struct vm_state s;
	struct run_dir rd;
	int r;

	snprintf(spec, size, "%s", vm);
	if (vm[strspn(vm, "0123456789")] == '\0' || strchr(vm, '/'))
		return 0;
	r = run_dir_name_ok(vm) ? run_dir_open(run_root, vm, &rd) : -ENOENT;
	if (!r) {
		r = vm_state_load(&rd, &s);
		if (!r && !vm_state_qemu_alive(&s, NULL)) {
			log_err("VM '%s' does not run: its QEMU has ended, or has not started yet", vm);
			r = -ESRCH;
		}
		if (!r)
			snprintf(spec, size, "%d", s.qemu);
		vm_state_fini(&s);
		run_dir_close(&rd);
	}
	if (r == -ENOENT && !access(vm, F_OK))
		return 0; // a socket in this folder
	if (r == -ENOENT)
		log_err("there is no VM '%s' in %s; give a name from criu-vm stat, a QEMU's pid, or the path of its QMP socket", vm, run_root);
	return r;
}
