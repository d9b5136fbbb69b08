// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/peer_vm.h"
#include "criu-vm/server.h"
#include "util/size.h"

#define WHAT 256

// All of text.
static bool parse_number(const char *text, unsigned long most, unsigned long *n)
{
	char *end;

	errno = 0;
	*n = strtoul(text, &end, 10);
	return *text >= '0' && *text <= '9' && !*end && !errno && *n <= most;
}

static int set_port(struct server_opts *o, const char *value, char what[WHAT])
{
	unsigned long n;

	if (!parse_number(value, UINT16_MAX, &n)) {
		snprintf(what, WHAT, "--port %.100s is no port; 0 takes one that is free", value);
		return -EINVAL;
	}
	o->port = (uint16_t)n;
	return 0;
}

static int set_size(const char *name, uint64_t *size, const char *value, char what[WHAT])
{
	if (!size_parse(value, size) && *size)
		return 0;
	snprintf(what, WHAT, "--%s %.100s is no size; write for example 256M or 1.5G", name, value);
	return -EINVAL;
}

// SIZE or PCT%.
static int set_vm_ram(struct server_opts *o, const char *value, char what[WHAT])
{
	size_t len = strlen(value);
	unsigned long n = 0;
	char number[8];

	o->vm_ram = o->vm_percent = 0;
	if (!len || value[len - 1] != '%')
		return set_size("vm-ram", &o->vm_ram, value, what);
	snprintf(number, sizeof number, "%.*s", (int)len - 1, value);
	if (len > sizeof number || !parse_number(number, 100, &n) || !n) {
		snprintf(what, WHAT, "--vm-ram %.100s is no share; write for example 25%%", value);
		return -EINVAL;
	}
	o->vm_percent = (unsigned)n;
	return 0;
}

static int set_user(struct server_opts *o, const char *value, char what[WHAT])
{
	uid_t uid;
	gid_t gid;

	o->user = value;
	if (!peer_vm_user(value, &uid, &gid))
		return 0;
	snprintf(what, WHAT, "--user %.100s: this host has no such user", value);
	return -EINVAL;
}

static int set_qemu(struct server_opts *o, const char *value, char what[WHAT])
{
	struct stat st;

	o->qemu = o->qemu_path;
	if (!realpath(value, o->qemu_path) || stat(o->qemu, &st) || access(o->qemu, X_OK)) {
		snprintf(what, WHAT, "--qemu %.100s cannot be run: %s", value, strerror(errno));
		return -EINVAL;
	}
	if (S_ISREG(st.st_mode))
		return 0;
	snprintf(what, WHAT, "--qemu %.100s cannot be run: it is no file", value);
	return -EINVAL;
}

static int set_paging(struct server_opts *o, const char *value, char what[WHAT])
{
	char why[128];

	if (pv_tuning_parse(value, &o->tuning, why))
		return 0;
	snprintf(what, WHAT, "--paging: %s", why);
	return -EINVAL;
}

int server_option(struct server_opts *o, const char *name, const char *value, char what[256])
{
	if (!strcmp(name, "port"))
		return set_port(o, value, what);
	if (!strcmp(name, "total-ram"))
		return set_size(name, &o->total_ram, value, what);
	if (!strcmp(name, "vm-ram"))
		return set_vm_ram(o, value, what);
	if (!strcmp(name, "paging"))
		return set_paging(o, value, what);
	if (!strcmp(name, "user"))
		return set_user(o, value, what);
	if (!strcmp(name, "qemu"))
		return set_qemu(o, value, what);
	if (!strcmp(name, "address"))
		o->address = value;
	else if (!strcmp(name, "map"))
		o->map = value;
	else if (!strcmp(name, "images"))
		o->images = value;
	else if (!strcmp(name, "tls-creds"))
		o->tls_creds = value;
	else if (!strcmp(name, "swap-sparse"))
		o->swap_sparse = true;
	else if (!strcmp(name, "insecure"))
		o->insecure = true;
	else
		o->once = true;
	return 0;
}
