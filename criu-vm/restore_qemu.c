// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/cmd.h"
#include "criu-vm/restore.h"
#include "criu-vm/uffd_dev.h"
#include "mm/maps.h"
#include "mm/plant.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "qemu/cmdline.h"
#include "qemu/qmp.h"
#include "qemu/vm.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/io_ring.h"
#include "util/log.h"
#include "util/process.h"

#define START_TIMEOUT_MS 60000
#define QMP_TIMEOUT_MS 120000
#define SERVE_TIMEOUT_MS 60000
#define RING_ENTRIES 128
#define RING_IDLE_MS 1
#define IO_ENTRIES 1024
#define UFFD_FEATURES \
	(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
	 UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_THREAD_ID)

// What QEMU said last, to the person who waits.
static void tell_output(const struct restore *r)
{
	_cleanup_close_ int fd = open(r->log, O_RDONLY | O_CLOEXEC);
	char text[2048] = "";
	size_t len = 0;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		log_err("QEMU has ended; its output went to %s, which cannot be read again", r->log);
		return;
	}
	len = (size_t)st.st_size < sizeof text - 1 ? (size_t)st.st_size : sizeof text - 1;
	if (io_pread_full(fd, text, len, (uint64_t)st.st_size - len))
		len = 0;
	while (len && text[len - 1] == '\n')
		text[--len] = 0;
	for (unsigned lines = 0; len && lines < 5;)
		lines += text[--len] == '\n';
	log_err("QEMU has ended; the end of %s:%s%s", r->log, text[len] == '\n' ? "" : "\n", text + len);
}

bool restore_qemu_ended(const struct restore *r)
{
	struct pollfd p = { .fd = r->launch.qemu_pidfd, .events = POLLIN };

	if (!poll(&p, 1, 0))
		return false;
	tell_output(r);
	return true;
}

bool restore_gives_up(const struct restore *r)
{
	if (!cmd_interrupted())
		return r->gives_up && r->gives_up((void *)r);
	log_err("interrupted; the new QEMU is ended");
	return true;
}

int restore_waiting_failed(const struct restore *r, uint64_t end, const char *what)
{
	if (restore_qemu_ended(r))
		return -ECHILD;
	if (restore_gives_up(r))
		return -EINTR;
	if (clock_now_ns() > end) {
		log_err("QEMU does not %s in time; its output is in %s", what, r->log);
		return -ETIMEDOUT;
	}
	return 0;
}

static int make_argv(struct restore *r, int qmp_fd, int commands_fd, char ***argv)
{
	_cleanup_free_ struct qemu_cmdline_ram *ram = calloc(r->nr_blocks, sizeof *ram);
	struct qemu_cmdline_opts o;

	if (!ram)
		return -ENOMEM;
	for (size_t i = 0; i < r->nr_blocks; i++)
		ram[i] = (struct qemu_cmdline_ram){ .backend_id = r->vm->blocks[i]->backend_id, .len = r->blocks[i].len, .fd = r->blocks[i].memfd };
	o = (struct qemu_cmdline_opts){ .qemu = restore_binary(r), .recorded = r->argv, .nr_recorded = r->argc,
					.replace = r->o->replace, .nr_replace = r->o->nr_replace, .machine = r->vm->machine, .qmp_fd = qmp_fd,
					.commands_fd = commands_fd,
					.ram = ram, .nr_ram = r->nr_blocks, .nets = r->nets, .nr_nets = r->nr_nets, .from_peer = r->from_peer,
					.as_root = !geteuid() && !r->vm->uid };
	return qemu_cmdline_rebuild(&o, argv);
}

// Our own listening socket takes the connection before QEMU runs: one is enough, however long it takes until QEMU greets.
static int open_qmp(struct restore *r)
{
	uint64_t end = clock_now_ns() + START_TIMEOUT_MS * NSEC_PER_MSEC;
	char path[PATH_MAX];
	int err, failed;

	run_dir_file(&r->rd, r->monitor, path, sizeof path);
	err = qmp_open_watching(path, START_TIMEOUT_MS, r->launch.qemu_pidfd, cmd_interrupted, &r->qmp);
	if (!err) {
		qmp_set_timeout(r->qmp, QMP_TIMEOUT_MS);
		return 0;
	}
	failed = restore_waiting_failed(r, end, "open its monitor");
	return failed ? failed : err;
}

// Room for all that QEMU inherits.
static int *new_fds(const struct restore *r)
{
	size_t nr = r->nr_blocks + 3;

	for (size_t i = 0; i < r->nr_nets; i++)
		nr += r->nets[i].nr_fds;
	return calloc(nr, sizeof(int));
}

static int start_qemu(struct restore *r)
{
	struct launch_opts o = { .root = r->rd.root, .name = r->name, .rd = &r->rd, .cwd = r->vm->cwd, .uid = r->vm->uid,
				 .gid = r->vm->gid, .log = r->log };
	_cleanup_free_ int *fds = new_fds(r);
	_cleanup_close_ int qmp_fd = -1, commands_fd = -1;
	char **argv;
	int err;

	if (!fds)
		return -ENOMEM;
	// Our own sockets, so that a QEMU of another user needs no way into the run directory.
	qmp_fd = err = run_dir_listen(&r->rd, "qmp.sock");
	if (err >= 0)
		commands_fd = err = run_dir_listen(&r->rd, "commands.sock");
	if (err < 0)
		return err;
	fds[o.nr_fds++] = qmp_fd;
	fds[o.nr_fds++] = commands_fd;
	for (size_t i = 0; i < r->nr_blocks; i++)
		fds[o.nr_fds++] = r->blocks[i].memfd;
	for (size_t i = 0; i < r->nr_nets; i++)
		for (unsigned k = 0; k < r->nets[i].nr_fds; k++)
			fds[o.nr_fds++] = r->nets[i].fds[k];
	// QEMU does not know what it holds; it keeps count of its pagers' I/O by that (util/io_ring.h).
	r->io_fd = io_ring_new(IO_ENTRIES);
	if (r->io_fd < 0) {
		log_err("cannot set up an io_uring: %s; is kernel.io_uring_disabled set?", strerror(-r->io_fd));
		return r->io_fd;
	}
	fds[o.nr_fds++] = r->io_fd;
	err = make_argv(r, qmp_fd, commands_fd, &argv);
	if (err)
		return err;
	o.argv = argv;
	o.fds = fds;
	if (r->from_peer)
		err = arrival_hide_monitors(&r->rd, o.uid, o.gid, argv);
	if (!err)
		err = launch_start(&o, &r->launch);
	qemu_cmdline_free(argv);
	return err;
}

int restore_start(void *ctx)
{
	int err = start_qemu(ctx);

	if (!err)
		err = open_qmp(ctx);
	if (err)
		restore_start_undo(ctx);
	return err;
}

void restore_start_undo(void *ctx)
{
	struct restore *r = ctx;

	qmp_close(r->qmp);
	r->qmp = NULL;
	cgroup_enter(&r->own, 0); // whoever cleans up finds it empty
	launch_abort(&r->launch);
}

static int plant(struct restore *r, struct mm_plant *p)
{
	struct mm_plant_opts o = { .ring_entries = RING_ENTRIES, .sq_idle_ms = RING_IDLE_MS };
	int err = uffd_dev_give(r->qmp, r->launch.qemu, &o.target_uffd_dev);

	if (err)
		return err;
	err = mm_plant(r->launch.qemu, &o, p);
	uffd_dev_take_back(r->qmp, o.target_uffd_dev);
	return err;
}

// Where QEMU has mapped the block.
static int locate(const struct restore *r, struct pv_block *b)
{
	_cleanup_free_ struct mm_region *regions = NULL;
	struct stat st;
	size_t nr;
	int err;

	if (fstat(b->memfd, &st) < 0)
		return -errno;
	err = mm_find_mappings(r->launch.qemu, st.st_dev, st.st_ino, &regions, &nr);
	if (err)
		return err;
	if (nr != 1 || regions[0].file_off || regions[0].len < b->len) {
		log_err("QEMU has not mapped guest RAM as was asked; was a memory option given behind '--'?");
		return -EINVAL;
	}
	b->hva = regions[0].hva;
	return 0;
}

int restore_plant(void *ctx)
{
	struct restore *r = ctx;
	struct mm_plant p = { .uffd = -1, .ring_fd = -1 };
	int err = 0;

	if (!r->paging)
		return 0;
	for (size_t i = 0; !err && i < r->nr_blocks; i++)
		err = locate(r, &r->blocks[i]);
	if (!err)
		err = plant(r, &p);
	if (err)
		return err;
	log_info("QEMU stood still for %lu us to be planted", p.window_ns / 1000);
	err = mm_uffd_api(p.uffd, UFFD_FEATURES, NULL);
	for (size_t i = 0; !err && i < r->nr_blocks; i++)
		err = mm_uffd_register(p.uffd, r->blocks[i].hva, r->blocks[i].len);
	r->state.target_uffd = p.target_uffd;
	r->state.target_ring = p.target_ring;
	r->state.ring_entries = p.ring.sq_entries;
	mm_plant_fini(&p);
	return err;
}

int restore_hand_over(struct restore *r)
{
	struct vm_state *s = &r->state;
	int err;

	s->qemu = r->launch.qemu;
	s->qemu_start = process_start(s->qemu);
	s->run = strcmp(r->vm->run_state, "paused") != 0;
	s->target_io = r->io_fd;
	s->io_entries = IO_ENTRIES;
	s->nr_blocks = r->nr_blocks;
	s->blocks = calloc(r->nr_blocks, sizeof *s->blocks);
	if (!s->blocks)
		return -ENOMEM;
	for (size_t i = 0; i < r->nr_blocks; i++)
		s->blocks[i] = (struct vm_state_block){ .off = r->blocks[i].off, .len = r->blocks[i].len, .hva = r->blocks[i].hva,
							.memfd = r->blocks[i].memfd, .name = strdup(r->vm->blocks[i]->name) };
	err = vm_state_save(&r->rd, s);
	if (!err)
		err = launch_tell(&r->launch, "go");
	if (!err)
		run_dir_let_go(&r->rd); // whoever cleans up, or serves next, must not wait for us
	return err;
}

int restore_serve(void *ctx)
{
	struct restore *r = ctx;
	int err;

	pv_swap_close(&r->swap); // its lock is the pager's from now on
	err = restore_hand_over(r);
	return err ? err : launch_wait(&r->launch, "serving", true, SERVE_TIMEOUT_MS);
}

int restore_go(void *ctx)
{
	struct restore *r = ctx;
	int err;

	if (r->peer) // of one that arrives, the pager does it
		arrival_show_monitors(&r->rd, r->launch.qemu);
	qmp_close(r->qmp); // it serves one client: the pager from now on
	r->qmp = NULL;
	err = launch_tell(&r->launch, "run");
	// No way back while it may be running already: it writes its disks.
	if (!err)
		err = launch_wait(&r->launch, "running", false, SERVE_TIMEOUT_MS);
	if (err == -EPIPE && run_dir_has(&r->rd, "running") && !restore_qemu_ended(r)) {
		log_warn("the pager was killed as the VM began to run; another goes on with it");
		err = 0;
	}
	return err;
}
