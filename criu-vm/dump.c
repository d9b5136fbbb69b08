// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/dump.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/progress.h"
#include "criu-vm/stages.h"
#include "images/writer.h"
#include "mm/read.h"
#include "qemu/devstate.h"
#include "qemu/freeze.h"
#include "qemu/qmp.h"
#include "qemu/ramblock.h"
#include "qemu/refuse.h"
#include "qemu/vm.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"
#include "util/zero.h"

#define CHUNK_SIZE (1 * MiB)
#define CHUNK_PAGES (CHUNK_SIZE / PAGE_SIZE)
#define FREEZE_TIMEOUT_MS 5000
#define KILL_TIMEOUT_NS (30 * NSEC_PER_SEC)
#define KILL_POLL_MS 1000
#define GO_ON_TIMEOUT_MS 120000
#define GUARDIAN_LINGER_S 5

struct dump {
	const struct dump_opts *o;
	struct qemu_vm *vm;
	struct qemu_ramblock *blocks;
	size_t nr_blocks, nr_guest; // guest RAM first
	struct img_writer *writer;
	uint8_t *state;
	size_t state_len;
	struct qemu_freezer *freezer;
	bool was_running, stuck; // stuck: it ran, and could not be made to run again
	pid_t guardian;
	int guardian_fd;
	uint64_t stopped_at_ns;
	struct img_times times;
	struct progress progress;
	struct dump_result *result;
};

static int attach(void *ctx)
{
	struct dump *d = ctx;
	int r = qemu_vm_open(d->o->vm, &d->vm);

	if (r)
		return r;
	d->was_running = !strcmp(d->vm->run_state, "running");
	d->result->pid = d->vm->pid;
	if ((r = qemu_ramblocks(d->vm, &d->blocks, &d->nr_blocks)) || (r = qemu_refuse(d->vm, d->blocks, d->nr_blocks)))
		return r;
	while (d->nr_guest < d->nr_blocks && d->blocks[d->nr_guest].guest_ram)
		d->result->ram += d->blocks[d->nr_guest++].len;
	if (!d->nr_guest) {
		log_err("QEMU %d has no guest RAM", d->vm->pid);
		return -EOPNOTSUPP;
	}
	return 0;
}

static int open_images(void *ctx)
{
	struct dump *d = ctx;

	return img_writer_open(d->o->dir, &d->writer);
}

static void close_images(void *ctx)
{
	struct dump *d = ctx;

	img_writer_free(d->writer);
	d->writer = NULL;
}

// Renaming is what makes a checkpoint: from then on its VM may not run on by itself.
static bool is_complete(const char *dir)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, "%s/inventory.img", dir);
	return !access(path, F_OK);
}

// A process that outlives us, also when we are killed: if the line to it is cut without a word, it lets the VM run on.
// It shares our connection to the monitor, since QEMU serves one.
static int start_guardian(struct dump *d)
{
	static const char cont[] = "{\"execute\":\"cont\"}\n";
	int line[2];
	char word;

	if (!d->was_running)
		return 0;
	if (pipe2(line, O_CLOEXEC) < 0)
		return -errno;
	d->guardian = fork();
	if (!d->guardian) {
		setsid();
		cmd_ignore_signals();
		close(line[1]);
		if (!read(line[0], &word, 1) && !is_complete(d->o->dir)) {
			fcntl(qmp_fd(d->vm->qmp), F_SETFL, 0);
			if (write(qmp_fd(d->vm->qmp), cont, sizeof cont - 1) > 0)
				sleep(GUARDIAN_LINGER_S); // QEMU forgets a command whose client has gone before it was run
		}
		_exit(0);
	}
	close(line[0]);
	d->guardian_fd = line[1];
	return d->guardian < 0 ? -errno : 0;
}

static void dismiss_guardian(struct dump *d)
{
	if (d->guardian <= 0)
		return;
	if (write(d->guardian_fd, "", 1) == 1)
		waitpid(d->guardian, NULL, 0);
	close(d->guardian_fd);
	d->guardian = 0;
}

// QEMU may be busy, with a slow disk for example; a VM that ran is not left behind before it runs.
static void go_on(void *ctx)
{
	struct dump *d = ctx;
	int r = 0;

	qmp_set_timeout(d->vm->qmp, GO_ON_TIMEOUT_MS);
	if (d->was_running)
		r = qmp_call(d->vm->qmp, "cont", NULL, NULL);
	if (r) {
		d->stuck = true;
		log_err("the VM, QEMU %d, is still stopped; say 'cont' to its monitor", d->vm->pid);
	}
	dismiss_guardian(d);
}

static int stop(void *ctx)
{
	struct dump *d = ctx;
	json_t *status = NULL;
	const char *state;
	int r = start_guardian(d);

	if (r) {
		log_err("cannot fork: %s", strerror(-r));
		return r;
	}
	d->stopped_at_ns = clock_now_ns();
	r = qmp_call(d->vm->qmp, "stop", NULL, NULL);
	if (!r)
		r = qmp_call(d->vm->qmp, "query-status", NULL, &status);
	state = json_string_value(json_object_get(status, "status"));
	if (!r && d->was_running && (!state || strcmp(state, "paused"))) {
		log_err("QEMU %d is '%s' instead of stopped: the guest ended, or something went wrong in it, just now", d->vm->pid, state ? state : "?");
		d->was_running = false; // cont would not be right
		r = -EAGAIN;
	}
	json_decref(status);
	if (r)
		go_on(d);
	return r;
}

static int save_state(void *ctx)
{
	struct dump *d = ctx;

	return qemu_devstate_save(d->vm->qmp, false, &d->state, &d->state_len);
}

// Between its device state and the standstill of its process nobody may have let it run.
static int still_stopped(struct dump *d)
{
	struct qmp_msg m;
	int r = 0;

	while (!qmp_receive(d->vm->qmp, &m)) {
		if (m.kind == QMP_EVENT && !strcmp(m.text, "RESUME"))
			r = -EBUSY;
		qmp_msg_fini(&m);
	}
	if (r)
		log_err("somebody let QEMU %d run while it was being dumped; nothing was dumped", d->vm->pid);
	return r;
}

static int freeze(void *ctx)
{
	struct dump *d = ctx;
	uint64_t begun = clock_now_ns();
	int r = qemu_freeze(d->vm->pid, FREEZE_TIMEOUT_MS, &d->freezer);

	d->times.freezing_us = (clock_now_ns() - begun) / 1000;
	if (!r && (r = still_stopped(d)))
		qemu_thaw(steal_ptr(&d->freezer));
	return r;
}

static void thaw(void *ctx)
{
	struct dump *d = ctx;

	qemu_thaw(d->freezer);
	d->freezer = NULL;
}

static int copy_chunks(struct dump *d, const struct qemu_ramblock *b, struct mm_source *s, char *buf)
{
	for (uint64_t off = 0, chunk = 0; off < b->len; off += CHUNK_SIZE, chunk++) {
		uint64_t len = b->len - off < CHUNK_SIZE ? b->len - off : CHUNK_SIZE, maybe[BITMAP_WORDS(CHUNK_PAGES)];
		int r;

		if (cmd_interrupted()) {
			log_err("interrupted; the VM goes on, nothing was dumped");
			return -EINTR;
		}
		r = mm_source_present(s, off, len, maybe);
		if (!r && !bitmap_empty(maybe, len / PAGE_SIZE)) {
			r = mm_source_read(s, off, maybe, len / PAGE_SIZE, buf);
			if (!r)
				r = img_writer_chunk(d->writer, chunk, buf, maybe);
		}
		if (r)
			return r;
		progress_add(&d->progress, len);
	}
	return 0;
}

static int copy_block(struct dump *d, uint32_t i, char *buf)
{
	const struct qemu_ramblock *b = &d->blocks[i];
	struct mm_source *s;
	int r = mm_source_open(d->vm->pid, b->hva, b->len, &s);

	if (r)
		return r;
	r = img_writer_begin_block(d->writer, i, b->len);
	if (!r)
		r = copy_chunks(d, b, s, buf);
	if (!r)
		r = img_writer_end_block(d->writer);
	mm_source_close(s);
	return r;
}

static int write_vm(struct dump *d)
{
	VmBlockEntry *entries = calloc(d->nr_guest, sizeof *entries), **list = calloc(d->nr_guest, sizeof *list);
	VmEntry vm = VM_ENTRY__INIT;
	int r = -ENOMEM;

	for (size_t i = 0; entries && list && i < d->nr_guest; i++) {
		const struct qemu_ramblock *b = &d->blocks[i];

		vm_block_entry__init(&entries[i]);
		entries[i].name = (char *)b->name;
		entries[i].len = b->len;
		entries[i].page_size = b->page_size;
		entries[i].backend_id = *b->backend_id ? (char *)b->backend_id : NULL;
		entries[i].has_shared = true;
		entries[i].shared = b->kind == QEMU_RAM_FILE_SHARED;
		list[i] = &entries[i];
	}
	if (entries && list) {
		vm.qemu_version = (char *)qmp_version(d->vm->qmp);
		vm.machine = d->vm->machine;
		vm.qemu_path = d->vm->exe;
		vm.n_argv = (size_t)d->vm->argc;
		vm.argv = d->vm->argv;
		vm.cwd = d->vm->cwd;
		vm.uid = d->vm->uid;
		vm.gid = d->vm->gid;
		vm.run_state = d->was_running ? "running" : "paused";
		vm.n_blocks = d->nr_guest;
		vm.blocks = list;
		vm.name = d->vm->name;
		r = img_writer_vm(d->writer, &vm);
	}
	free(entries);
	free(list);
	return r;
}

// A block's runs of pages that are not zero. Borrows data; *runs and what it points to are one allocation, the caller's.
static int runs_of(const uint8_t *data, uint64_t len, SmallBlockEntry *e)
{
	uint64_t nr_pages = DIV_ROUND_UP(len, PAGE_SIZE);
	SmallRunEntry *runs = NULL;

	e->runs = calloc(nr_pages, sizeof *e->runs);
	if (!e->runs || !(runs = calloc(nr_pages, sizeof *runs))) {
		free(e->runs);
		e->runs = NULL;
		return -ENOMEM;
	}
	e->runs[0] = runs; // freed by it, also when there is no run
	for (uint64_t off = 0; off < len; off += PAGE_SIZE) {
		size_t n = len - off < PAGE_SIZE ? len - off : PAGE_SIZE;
		SmallRunEntry *last = e->n_runs ? &runs[e->n_runs - 1] : NULL;

		if (mem_is_zero(data + off, n))
			continue;
		if (last && last->off + last->data.len == off) {
			last->data.len += n;
			continue;
		}
		small_run_entry__init(&runs[e->n_runs]);
		runs[e->n_runs].off = off;
		runs[e->n_runs].data = (ProtobufCBinaryData){ .len = n, .data = (uint8_t *)data + off };
		e->runs[e->n_runs] = &runs[e->n_runs];
		e->n_runs++;
	}
	return 0;
}

static int read_small(struct dump *d, const struct qemu_ramblock *b, uint8_t **data)
{
	uint64_t len = ROUND_UP(b->len, PAGE_SIZE), *present = calloc(BITMAP_WORDS(len / PAGE_SIZE), sizeof *present);
	struct mm_source *s = NULL;
	int r;

	*data = aligned_alloc(PAGE_SIZE, len);
	r = *data && present ? mm_source_open(d->vm->pid, b->hva, len, &s) : -ENOMEM;
	if (!r) {
		memset(*data, 0, len);
		r = mm_source_present(s, 0, len, present);
	}
	if (!r)
		r = mm_source_read(s, 0, present, len / PAGE_SIZE, *data);
	mm_source_close(s);
	free(present);
	return r;
}

static int write_device_state(struct dump *d)
{
	size_t nr = d->nr_blocks - d->nr_guest;
	SmallBlockEntry *entries = calloc(nr + 1, sizeof *entries), **list = calloc(nr + 1, sizeof *list);
	uint8_t **data = calloc(nr + 1, sizeof *data);
	DeviceStateEntry ds = DEVICE_STATE_ENTRY__INIT;
	int r = entries && list && data ? 0 : -ENOMEM;

	for (size_t i = 0; !r && i < nr; i++) {
		const struct qemu_ramblock *b = &d->blocks[d->nr_guest + i];

		small_block_entry__init(&entries[i]);
		entries[i].name = (char *)b->name;
		entries[i].len = b->len;
		list[i] = &entries[i];
		r = read_small(d, b, &data[i]);
		if (!r)
			r = runs_of(data[i], b->len, &entries[i]);
	}
	if (!r) {
		ds.stream = (ProtobufCBinaryData){ .len = d->state_len, .data = d->state };
		ds.n_blocks = nr;
		ds.blocks = list;
		r = img_writer_device_state(d->writer, &ds);
	}
	for (size_t i = 0; entries && data && i < nr; i++) {
		if (entries[i].runs)
			free(entries[i].runs[0]);
		free(entries[i].runs);
		free(data[i]);
	}
	free(entries);
	free(list);
	free(data);
	return r;
}

static int copy(void *ctx)
{
	struct dump *d = ctx;
	char *buf = aligned_alloc(PAGE_SIZE, CHUNK_SIZE);
	uint64_t begun = clock_now_ns();
	int r = buf ? 0 : -ENOMEM;

	progress_begin(&d->progress, "dumping memory", d->result->ram);
	for (uint32_t i = 0; !r && i < d->nr_guest; i++)
		r = copy_block(d, i, buf);
	progress_end(&d->progress);
	free(buf);
	d->times.memdump_us = d->times.memwrite_us = (clock_now_ns() - begun) / 1000;
	if (!r)
		r = write_device_state(d);
	return r ? r : write_vm(d);
}

static int commit(void *ctx)
{
	struct dump *d = ctx;
	int r;

	d->result->stopped_ns = clock_now_ns() - d->stopped_at_ns;
	d->times.frozen_us = d->result->stopped_ns / 1000;
	d->result->stored = img_writer_pages(d->writer) * PAGE_SIZE;
	r = img_writer_stats(d->writer, &d->times);
	return r ? r : img_writer_commit(d->writer);
}

// Not by `quit`: nothing of the guest, and no disk image, may change after the copy.
static int end_source(struct dump *d)
{
	struct pollfd p = { .fd = d->vm->pidfd, .events = POLLIN };
	uint64_t end = clock_now_ns() + KILL_TIMEOUT_NS;

	if (!syscall(SYS_pidfd_send_signal, d->vm->pidfd, SIGKILL, NULL, 0)) {
		thaw(d); // a thread that is traced ends only when it is let go
		while (clock_now_ns() < end) // it is too late for Ctrl-C
			if (poll(&p, 1, KILL_POLL_MS) > 0)
				return 0;
	}
	log_err("%s is complete, but QEMU %d could not be ended; it is stopped, and must not run on beside a restored copy", d->o->dir, d->vm->pid);
	return -ESTALE;
}

static const struct stage stages[] = {
	{ "attach", attach, NULL },
	{ "images", open_images, close_images },
	{ "stop", stop, go_on },
	{ "state", save_state, NULL },
	{ "freeze", freeze, thaw },
	{ "copy", copy, NULL },
	{ "commit", commit, NULL },
};

int dump_run(const struct dump_opts *o, struct dump_result *result)
{
	struct dump d = { .o = o, .result = result };
	int r;

	*result = (struct dump_result){ 0 };
	r = stages_run(stages, ARRAY_SIZE(stages), &d);
	if (!r) {
		dismiss_guardian(&d);
		r = end_source(&d);
	}
	if (d.stuck)
		r = -ESTALE;
	qemu_thaw(d.freezer);
	img_writer_free(d.writer);
	free(d.state);
	free(d.blocks);
	qemu_vm_close(d.vm);
	return r;
}
