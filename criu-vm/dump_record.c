// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>

#include "criu-vm/dump_int.h"

int dump_write_vm(struct dump *d)
{
	VmEntry *vm = source_describe(&d->src);
	int r = vm ? img_writer_vm(d->writer, vm) : -ENOMEM;

	source_free_description(vm);
	return r;
}

int dump_write_device_state(struct dump *d)
{
	DeviceStateEntry ds;
	int r = source_device_state(&d->src, NULL, &ds);

	if (r)
		return r;
	r = img_writer_device_state(d->writer, &ds);
	source_free_device_state(&ds);
	return r;
}

int dump_write_first(struct dump *d)
{
	return d->o->dir ? 0 : dump_write_vm(d);
}
