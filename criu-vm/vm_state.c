// SPDX-License-Identifier: GPL-2.0-only
// The file `state` of a run directory.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/run_dir.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

#define STATE_VERSION 1
#define STATE_MAX_LEN (1 << 20)
#define MAX_BLOCKS 256

static json_t *string_or_null(const char *s)
{
	return s ? json_string(s) : json_null();
}

static json_t *to_json(const struct vm_state *s)
{
	json_t *blocks = json_array();

	for (size_t i = 0; i < s->nr_blocks; i++)
		json_array_append_new(blocks, json_pack("{s:I s:I s:I s:i}", "off", (json_int_t)s->blocks[i].off, "len", (json_int_t)s->blocks[i].len,
							"hva", (json_int_t)s->blocks[i].hva, "memfd", s->blocks[i].memfd));
	return json_pack("{s:i s:i s:I s:b s:b s:i s:i s:i s:I s:I s:I s:o s:b s:I s:I s:o s:o s:o}", "version", STATE_VERSION, "qemu", (int)s->qemu,
			 "qemu_start", (json_int_t)s->qemu_start, "run", s->run, "paging", s->paging, "target_uffd", s->target_uffd,
			 "target_ring", s->target_ring, "ring_entries", (int)s->ring_entries, "budget", (json_int_t)s->budget, "ram",
			 (json_int_t)s->ram, "nr_chunks", (json_int_t)s->nr_chunks, "swap", string_or_null(s->swap_path), "swap_sparse",
			 s->swap_sparse, "swap_ino", (json_int_t)s->swap_ino, "swap_born_ns",
			 (json_int_t)s->swap_born_ns, "images", string_or_null(s->images), "log", string_or_null(s->log), "blocks", blocks);
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

static int copy_string(const json_t *j, char **out)
{
	*out = json_is_string(j) ? strdup(json_string_value(j)) : NULL;
	return json_is_string(j) && !*out ? -ENOMEM : 0;
}

static int from_json(json_t *j, struct vm_state *s)
{
	json_int_t start, budget, ram, nr_chunks, swap_ino, swap_born_ns;
	json_t *swap, *images, *log, *blocks;
	int version, pid, run, paging, sparse, entries, r;

	if (json_unpack(j, "{s:i}", "version", &version) || version != STATE_VERSION)
		return -EPROTO;
	if (json_unpack(j, "{s:i s:I s:b s:b s:i s:i s:i s:I s:I s:I s:o s:b s:I s:I s:o s:o s:o}", "qemu", &pid, "qemu_start", &start, "run", &run,
			"paging", &paging, "target_uffd", &s->target_uffd, "target_ring", &s->target_ring, "ring_entries", &entries,
			"budget", &budget, "ram", &ram, "nr_chunks", &nr_chunks, "swap", &swap, "swap_sparse", &sparse, "swap_ino", &swap_ino,
			"swap_born_ns", &swap_born_ns, "images", &images, "log",
			&log, "blocks", &blocks) ||
	    json_array_size(blocks) > MAX_BLOCKS)
		return -EPROTO;
	s->qemu = pid;
	s->qemu_start = (uint64_t)start;
	s->run = run;
	s->paging = paging;
	s->ring_entries = (unsigned)entries;
	s->budget = (uint64_t)budget;
	s->ram = (uint64_t)ram;
	s->nr_chunks = (uint64_t)nr_chunks;
	s->swap_sparse = sparse;
	s->swap_ino = (uint64_t)swap_ino;
	s->swap_born_ns = (uint64_t)swap_born_ns;
	if ((r = copy_string(swap, &s->swap_path)) || (r = copy_string(images, &s->images)) || (r = copy_string(log, &s->log)))
		return r;
	s->nr_blocks = json_array_size(blocks);
	s->blocks = calloc(s->nr_blocks + 1, sizeof *s->blocks);
	if (!s->blocks)
		return -ENOMEM;
	for (size_t i = 0; i < s->nr_blocks; i++) {
		json_int_t off, len, hva;

		if (json_unpack(json_array_get(blocks, i), "{s:I s:I s:I s:i}", "off", &off, "len", &len, "hva", &hva, "memfd",
				&s->blocks[i].memfd))
			return -EPROTO;
		s->blocks[i].off = (uint64_t)off;
		s->blocks[i].len = (uint64_t)len;
		s->blocks[i].hva = (uint64_t)hva;
	}
	return 0;
}

int vm_state_load(const struct run_dir *rd, struct vm_state *s)
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t len;
	json_t *j;
	int r;

	*s = (struct vm_state){ .target_uffd = -1, .target_ring = -1 };
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
	free(s->images);
	free(s->log);
	free(s->blocks);
	*s = (struct vm_state){ .target_uffd = -1, .target_ring = -1 };
}

bool vm_state_qemu_alive(const struct vm_state *s, int *out)
{
	_cleanup_close_ int pidfd = s->qemu > 0 ? (int)syscall(SYS_pidfd_open, s->qemu, 0) : -1;
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	// Opened first, asked second: the answer is about the process that the pidfd holds.
	if (pidfd < 0 || poll(&p, 1, 0) != 0 || process_start(s->qemu) != s->qemu_start)
		return false;
	if (out)
		*out = steal_fd(&pidfd);
	return true;
}
