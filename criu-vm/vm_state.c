// SPDX-License-Identifier: GPL-2.0-only
// The file `state` of a run directory.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/run_dir.h"
#include "pvmem/swap.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/process.h"
#include "util/size.h"

#define STATE_VERSION 3
#define STATE_MAX_LEN (1 << 20)
#define MAX_BLOCKS 256

enum field_type { INT, UNSIGNED, U64, BOOL, STRING, TUNING }; // STRING: allocated, or NULL

static const struct field {
	const char *name;
	enum field_type type;
	size_t at; // in struct vm_state
	bool added; // an earlier version did not write it
} fields[] = {
#define FIELD(name, type) { #name, type, offsetof(struct vm_state, name), false }
#define ADDED(name, type) { #name, type, offsetof(struct vm_state, name), true }
	{ "cgroup", STRING, offsetof(struct vm_state, cgroup.path[CGROUP_V2]), false },
	{ "cgroup_v1_memory", STRING, offsetof(struct vm_state, cgroup.path[CGROUP_V1_MEMORY]), false },
	{ "scope", STRING, offsetof(struct vm_state, cgroup.scope), false },
	FIELD(qemu, INT),	  FIELD(qemu_start, U64),   FIELD(run, BOOL),	       FIELD(paging, BOOL),	 FIELD(target_uffd, INT),
	FIELD(target_ring, INT),  FIELD(ring_entries, UNSIGNED), FIELD(target_io, INT), FIELD(io_entries, UNSIGNED), FIELD(budget, U64),
	FIELD(ram, U64),	  FIELD(nr_chunks, U64),    FIELD(swap_path, STRING),  FIELD(swap_sparse, BOOL), FIELD(swap_token, STRING),
	FIELD(images, STRING),    FIELD(images_id, U64),     FIELD(fill, BOOL),	 FIELD(log, STRING),
	ADDED(arriving, BOOL),	  ADDED(taps, STRING),	    ADDED(remote, STRING),     ADDED(remote_connects, BOOL), ADDED(remote_id, STRING),
	ADDED(remote_key, STRING), ADDED(remote_tls, STRING), ADDED(remote_lines, UNSIGNED),
	ADDED(remote_insecure, BOOL), ADDED(tuning, TUNING),
#undef FIELD
#undef ADDED
};

static json_t *tuning_to_json(const struct pv_tuning *t)
{
	char text[128];

	pv_tuning_print(t, text, sizeof text);
	return json_string(text);
}

static json_t *field_to_json(const struct vm_state *s, const struct field *f)
{
	const char *at = (const char *)s + f->at;

	switch (f->type) {
	case INT:
		return json_integer(*(const int *)at);
	case UNSIGNED:
		return json_integer(*(const unsigned *)at);
	case U64: // beyond 2^63 a JSON integer is negative
		return json_integer((json_int_t)*(const uint64_t *)at);
	case BOOL:
		return json_boolean(*(const bool *)at);
	case TUNING:
		return tuning_to_json((const struct pv_tuning *)at);
	default:
		return *(char *const *)at ? json_string(*(char *const *)at) : json_null();
	}
}

static bool has_type(const json_t *j, enum field_type type)
{
	switch (type) {
	case BOOL:
		return json_is_boolean(j);
	case STRING:
		return json_is_string(j) || json_is_null(j);
	case TUNING:
		return json_is_string(j);
	default:
		return json_is_integer(j);
	}
}

// What another version could choose, and this one cannot, is no reason to leave a guest without a pager.
static void tuning_from_json(const json_t *j, struct pv_tuning *t)
{
	struct pv_tuning read = PV_TUNING_DEFAULT;
	char why[128];

	if (pv_tuning_parse(json_string_value(j), &read, why))
		*t = read;
	else
		log_warn("the VM is paged as by default: %s", why);
}

static int field_from_json(struct vm_state *s, const struct field *f, const json_t *j)
{
	char *at = (char *)s + f->at;

	if (!j && f->added)
		return 0;
	if (!has_type(j, f->type))
		return -EPROTO;
	switch (f->type) {
	case INT:
		*(int *)at = (int)json_integer_value(j);
		break;
	case UNSIGNED:
		*(unsigned *)at = (unsigned)json_integer_value(j);
		break;
	case U64:
		*(uint64_t *)at = (uint64_t)json_integer_value(j);
		break;
	case BOOL:
		*(bool *)at = json_is_true(j);
		break;
	case TUNING:
		tuning_from_json(j, (struct pv_tuning *)at);
		break;
	default:
		*(char **)at = json_is_string(j) ? strdup(json_string_value(j)) : NULL;
		return json_is_string(j) && !*(char **)at ? -ENOMEM : 0;
	}
	return 0;
}

static json_t *to_json(const struct vm_state *s)
{
	json_t *j = json_pack("{s:i}", "version", STATE_VERSION), *blocks = json_array();

	for (size_t i = 0; i < ARRAY_SIZE(fields); i++)
		json_object_set_new(j, fields[i].name, field_to_json(s, &fields[i]));
	for (size_t i = 0; i < s->nr_blocks; i++)
		json_array_append_new(blocks, json_pack("{s:I s:I s:I s:i s:s*}", "off", (json_int_t)s->blocks[i].off, "len",
							(json_int_t)s->blocks[i].len, "hva", (json_int_t)s->blocks[i].hva, "memfd",
							s->blocks[i].memfd, "name", s->blocks[i].name));
	json_object_set_new(j, "blocks", blocks);
	return j;
}

int vm_state_save(const struct run_dir *rd, const struct vm_state *s)
{
	char tmp[PATH_MAX], path[PATH_MAX];
	json_t *j = to_json(s);
	int fd, r = -ENOMEM;

	run_dir_file(rd, "state.new", tmp, sizeof tmp);
	run_dir_file(rd, "state", path, sizeof path);
	fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		r = -errno;
	else if (j)
		r = json_dumpfd(j, fd, JSON_INDENT(1)) < 0 ? -EIO : rename(tmp, path) < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	json_decref(j);
	if (r)
		log_err("cannot write %s: %s", path, strerror(-r));
	return r;
}

static int blocks_from_json(const json_t *blocks, struct vm_state *s)
{
	s->nr_blocks = json_array_size(blocks);
	if (!json_is_array(blocks) || s->nr_blocks > MAX_BLOCKS)
		return -EPROTO;
	s->blocks = calloc(s->nr_blocks + 1, sizeof *s->blocks);
	if (!s->blocks)
		return -ENOMEM;
	for (size_t i = 0; i < s->nr_blocks; i++) {
		json_int_t off, len, hva;
		const char *name = NULL;

		if (json_unpack(json_array_get(blocks, i), "{s:I s:I s:I s:i s?s}", "off", &off, "len", &len, "hva", &hva, "memfd",
				&s->blocks[i].memfd, "name", &name))
			return -EPROTO;
		s->blocks[i].name = name ? strdup(name) : NULL;
		s->blocks[i].off = (uint64_t)off;
		s->blocks[i].len = (uint64_t)len;
		s->blocks[i].hva = (uint64_t)hva;
	}
	return 0;
}

static int from_json(const json_t *j, struct vm_state *s)
{
	int r = json_integer_value(json_object_get(j, "version")) == STATE_VERSION ? 0 : -EPROTO;

	for (size_t i = 0; !r && i < ARRAY_SIZE(fields); i++)
		r = field_from_json(s, &fields[i], json_object_get(j, fields[i].name));
	if (!r)
		r = blocks_from_json(json_object_get(j, "blocks"), s);
	if (r)
		return r;
	// Before there is a QEMU, not all is known.
	if (s->qemu && s->paging && (s->budget > s->ram || !s->nr_chunks || !s->nr_blocks))
		return -EPROTO;
	if (s->remote && (!s->remote_id || !s->remote_lines || (!s->remote_connects && !s->remote_key)))
		return -EPROTO;
	return s->swap_path && !s->swap_token ? -EPROTO : 0;
}

int vm_state_load(const struct run_dir *rd, struct vm_state *s)
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t len;
	json_t *j;
	int r;

	*s = VM_STATE_NONE;
	r = io_read_file(run_dir_file(rd, "state", path, sizeof path), STATE_MAX_LEN, &text, &len);
	if (r == -ENOENT)
		return r;
	if (!r) {
		j = json_loadb(text, len, 0, NULL);
		r = j ? from_json(j, s) : -EPROTO;
		json_decref(j);
	}
	if (r == -EPROTO)
		log_err("%s is damaged or of another version of criu-vm", path);
	else if (r)
		log_err("cannot read %s: %s", path, strerror(-r));
	if (r)
		vm_state_fini(s);
	return r;
}

void vm_state_fini(struct vm_state *s)
{
	free(s->swap_path);
	free(s->swap_token);
	free(s->images);
	free(s->log);
	free(s->taps);
	free(s->remote);
	free(s->remote_id);
	free(s->remote_key);
	free(s->remote_tls);
	for (size_t i = 0; s->blocks && i < s->nr_blocks; i++)
		free(s->blocks[i].name);
	free(s->blocks);
	cgroup_fini(&s->cgroup);
	*s = VM_STATE_NONE;
}

bool vm_state_qemu_alive(const struct vm_state *s, int *out)
{
	_cleanup_close_ int pidfd = s->qemu > 0 ? (int)syscall(SYS_pidfd_open, s->qemu, 0) : -1;
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	uint64_t start;

	if (s->qemu <= 0 || (pidfd < 0 && errno == ESRCH))
		return false;
	// Opened first, asked second: the answer is about the process that the pidfd holds. What cannot be asked is no answer.
	start = process_start(s->qemu);
	if (pidfd >= 0 && (poll(&p, 1, 0) > 0 || (start && start != s->qemu_start)))
		return false;
	if (out)
		*out = steal_fd(&pidfd);
	return true;
}

int vm_state_set_swap(struct vm_state *s, const struct pv_swap *swap)
{
	free(s->swap_path);
	free(s->swap_token);
	s->swap_path = strdup(swap->path); // absolute: the pager may be asked from anywhere
	s->swap_token = strdup(swap->token);
	s->swap_sparse = swap->sparse;
	return s->swap_path && s->swap_token ? 0 : -ENOMEM;
}
