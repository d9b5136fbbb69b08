// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/launch.h"
#include "criu-vm/vm_pager_int.h"
#include "pvmem/folio.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/process.h"

#define FIRST_RETRY_NS (10 * NSEC_PER_MSEC) // the dead one's last I/O lets go of its files only just after the fence
#define RETRY_NS NSEC_PER_SEC
#define END_TIMEOUT_MS 10000

void vm_pager_fill(struct vm_pager *v)
{
	vm_remote_begun(v);
	if (!v->state.fill || !(v->state.images || v->state.remote))
		return;
	log_info("what is left in %s comes in the background", v->state.images ? v->state.images : v->state.remote);
	lp_pager_fill(v->lp);
}

void vm_pager_source_done(struct vm_pager *v)
{
	char *dir = steal_ptr(&v->state.images), *remote = steal_ptr(&v->state.remote);

	if (vm_state_save(v->rd, &v->state)) { // the next pager looks for them, finds that it needs nothing, and is here again
		v->state.images = dir;
		v->state.remote = remote;
	} else {
		log_info("%s%s%s: no longer needed", dir ? dir : "", dir && remote ? ", " : "", remote ? remote : "");
		free(dir);
		free(remote);
	}
	img_dir_close(steal_ptr(&v->images));
	vm_remote_complete(v);
}

static void source_done(void *ctx)
{
	struct vm_pager *v = ctx;

	if (vm_arrival_is_pending(v))
		v->remote.is_done = true; // it has its source, should it not become this host's
	else
		vm_pager_source_done(v);
}

static void launch_readable(struct loop_op *op, int res)
{
	struct vm_pager *v = list_entry(op, struct vm_pager, launch_op);
	char msg[LAUNCH_MSG_MAX];
	ssize_t n;

	if (v->started || res < 0)
		return;
	n = recv(v->launch_fd, msg, sizeof msg - 1, 0);
	if (n <= 0 && v->committed) // it is nobody's any more
		return;
	if (n <= 0) {
		log_err("the %s was given up; ending the VM", v->state.arriving ? "migration" : "restore");
		lp_pager_stop(v->lp, -ECANCELED);
		return;
	}
	msg[n] = 0;
	if (!strcmp(msg, "run") && vm_monitor_start(v, false))
		vm_monitor_cannot_start(v, "no thread for its monitor");
	else if (!strcmp(msg, "arrived"))
		vm_arrival_serve(v);
	else if (!strcmp(msg, "commit"))
		vm_arrival_commit(v);
	loop_poll_in(lp_pager_loop(v->lp), op, v->launch_fd);
}

int vm_pager_open_swap(struct vm_pager *v)
{
	if (!v->state.swap_path || v->swap.fd >= 0)
		return 0;
	return pv_swap_open(v->state.swap_path, v->state.nr_chunks * PV_CHUNK_SIZE, v->state.swap_token, v->state.swap_sparse, &v->swap);
}

static int map_blocks(struct vm_pager *v)
{
	bool folios = v->state.tuning.folios && pv_folios_here(NULL) == PV_FOLIOS_YES;

	v->blocks = calloc(v->state.nr_blocks, sizeof *v->blocks);
	if (!v->blocks)
		return -ENOMEM;
	for (size_t i = 0; i < v->state.nr_blocks; i++)
		v->blocks[i].memfd = -1;
	for (size_t i = 0; i < v->state.nr_blocks; i++) {
		const struct vm_state_block *s = &v->state.blocks[i];
		struct pv_block *b = &v->blocks[i];
		char path[64];
		int r;

		*b = (struct pv_block){ .off = s->off, .len = s->len, .hva = s->hva };
		snprintf(path, sizeof path, "/proc/%d/fd/%d", v->state.qemu, s->memfd);
		b->memfd = open(path, O_RDWR | O_CLOEXEC);
		r = b->memfd < 0 ? -errno : pv_block_map(b, folios);
		if (r) {
			log_err("cannot map guest RAM (%s): %s", path, strerror(-r));
			return r;
		}
		if (v->plant.ring_fd < 0) // the other way of zapping leaves locked pages alone; it needs a host without swap
			pv_block_unlock(b);
	}
	return 0;
}

static int open_images(struct vm_pager *v)
{
	int r;

	if (!v->state.images || v->images)
		return 0;
	r = img_dir_open(v->state.images, &v->images);
	if (r || img_dir_id(v->images) == v->state.images_id)
		return r;
	log_err("%s is another checkpoint than the one that VM '%s' was restored from; give its directory with criu-vm lazy-pages --name %s "
		"--images-dir DIR",
		v->state.images, v->rd->name, v->rd->name);
	img_dir_close(v->images);
	v->images = NULL;
	return -ESTALE;
}

int vm_pager_start_paging(struct vm_pager *v)
{
	struct lp_paging paging;
	int r = vm_pager_open_swap(v);

	if (!r)
		r = open_images(v);
	if (!r)
		r = vm_remote_start(v);
	if (r)
		return r;
	paging = (struct lp_paging){ .plant = &v->plant, .blocks = v->blocks, .nr_blocks = v->state.nr_blocks, .pages = v->pages,
				     .swap = &v->swap, .images = v->images, .budget = v->state.budget, .tuning = v->state.tuning,
				     .exact = vm_arrival_is_pending(v) };
	vm_hot_describe_paging(v, &paging);
	r = vm_remote_describe_paging(v, &paging);
	return r ? r : lp_pager_start(v->lp, &paging);
}

static int attach_paging(struct vm_pager *v)
{
	const struct vm_state *s = &v->state;
	int r;

	r = mm_plant_fetch(s->qemu, s->target_uffd, s->target_ring, s->ring_entries, &v->plant);
	if (r || (r = mm_fetch_fd(s->qemu, s->target_io, "anon_inode:[io_uring]", &v->io_fd)))
		return r;
	if ((r = run_dir_map_pages(v->rd, s->nr_chunks, false, &v->pages)) || (r = map_blocks(v)))
		return r;
	vm_snapshot_of_the_dead(v);
	r = lp_pager_fence(v->lp, v->io_fd, s->io_entries);
	if (!r && vm_arrival_is_pending(v))
		return vm_remote_start(v);
	if (r)
		return r;
	r = vm_pager_start_paging(v);
	// A VM that runs is not given up because a disk is away.
	for (uint64_t ns = FIRST_RETRY_NS; r && v->launch_fd < 0 && r != -ESRCH && r != VM_PAGER_REPLACED; ns *= 2) {
		snprintf(v->waits_for, sizeof v->waits_for, "%s", log_last_error());
		r = lp_pager_wait(v->lp, ns < RETRY_NS ? ns : RETRY_NS, v->waits_for);
		if (!r)
			r = vm_pager_start_paging(v);
	}
	return r;
}

static int attach(struct vm_pager *v)
{
	int r = vm_state_load(v->rd, &v->state);
	struct lp_opts o;

	if (r)
		return r;
	if (!vm_state_qemu_alive(&v->state, &v->qemu_pidfd)) {
		log_err("its QEMU, pid %d, has ended", v->state.qemu);
		return -ESRCH;
	}
	if (v->qemu_pidfd < 0) {
		log_err("cannot watch QEMU, pid %d", v->state.qemu);
		return -EMFILE;
	}
	r = vm_arrival_recall(v);
	if (r)
		return r;
	v->control_fd = r = run_dir_listen(v->rd, "control.sock");
	if (r < 0)
		return r;
	o = (struct lp_opts){ .qemu = v->state.qemu, .qemu_pidfd = v->qemu_pidfd, .control_fd = v->control_fd, .ctx = v, .drain = vm_monitor_drain,
			      .describe = vm_commands_describe, .source_done = source_done, .command = vm_commands_do };
	r = lp_pager_new(&o, &v->lp);
	return r || !v->state.paging ? r : attach_paging(v);
}

static void detach(struct vm_pager *v)
{
	vm_remote_stop(v);
	lp_pager_free(v->lp);
	vm_remote_fini(v);
	vm_hot_fini(v);
	vm_snapshot_fini(v);
	qmp_close(v->qmp);
	mm_plant_fini(&v->plant);
	img_dir_close(v->images);
	pv_swap_close(&v->swap);
	for (size_t i = 0; v->blocks && i < v->state.nr_blocks; i++) {
		pv_block_unmap(&v->blocks[i]);
		if (v->blocks[i].memfd >= 0)
			close(v->blocks[i].memfd);
	}
	free(v->blocks);
	vm_monitor_end(v);
	if (v->pages)
		munmap(v->pages, v->state.nr_chunks * sizeof *v->pages);
	if (v->io_fd >= 0)
		close(v->io_fd);
	if (v->control_fd >= 0)
		close(v->control_fd);
	if (v->qemu_pidfd >= 0)
		close(v->qemu_pidfd);
	vm_state_fini(&v->state);
}

// What the pager needs while guest pages wait for it must not have to come from a disk itself; and the pages that it
// brings in stay in memory as long as they are on its books.
static void stay_in_memory(void)
{
	// What there is, all of it now; what comes, guest RAM among it, as it is touched.
	if (mlockall(MCL_CURRENT) < 0 || mlockall(MCL_FUTURE | MCL_ONFAULT) < 0)
		log_warn("cannot lock the pager in memory: %s; with swap on, the host may page guest RAM a second time", strerror(errno));
}

static int serve(struct vm_pager *v)
{
	if (v->launch_fd >= 0) {
		v->launch_op.done = launch_readable;
		loop_poll_in(lp_pager_loop(v->lp), &v->launch_op, v->launch_fd);
		launch_send(v->launch_fd, "pager %d", getpid());
		if (!vm_arrival_is_pending(v))
			launch_send(v->launch_fd, "serving");
		else if (vm_monitor_start(v, false)) // once it is open: "attached"
			vm_monitor_cannot_start(v, "no thread for its monitor");
	} else {
		vm_monitor_recall(v);
		log_info("serves VM '%s', whose QEMU is pid %d, from here on", v->rd->name, v->state.qemu);
		if (vm_monitor_start(v, false))
			log_err("cannot open QEMU's monitor; nothing can be paged out");
	}
	return lp_pager_run(v->lp);
}

// For whoever buries the VM, and was not QEMU's parent.
static void note_end(const struct vm_pager *v)
{
	int status = v->qemu_pidfd >= 0 ? process_exit_status(v->qemu_pidfd) : -1;
	char text[12];

	snprintf(text, sizeof text, "%d", status);
	if (status >= 0)
		run_dir_mark(v->rd, "status", text);
}

// A VM that was given up ends with its supervisor's help; without that, here. Whoever buries it waits until it has.
static int end_given_up(const struct vm_pager *v)
{
	if (v->qemu_pidfd < 0 || run_dir_is_held(v->rd, "supervisor"))
		return -ECANCELED;
	syscall(SYS_pidfd_send_signal, v->qemu_pidfd, SIGKILL, NULL, 0);
	return poll(&(struct pollfd){ .fd = v->qemu_pidfd, .events = POLLIN }, 1, END_TIMEOUT_MS) > 0 ? -ESRCH : -ECANCELED;
}

int vm_pager_run(struct run_dir *rd, int launch_fd)
{
	struct vm_pager v = { .rd = rd, .qemu_pidfd = -1, .control_fd = -1, .launch_fd = launch_fd, .started = launch_fd < 0, .io_fd = -1,
			      .plant = { .uffd = -1, .ring_fd = -1 }, .swap = PV_SWAP_NONE };
	int r;

	stay_in_memory();
	r = attach(&v);
	if (r && launch_fd >= 0)
		launch_send(launch_fd, "error the pager cannot attach: %s", log_last_error());
	else if (!r)
		r = serve(&v);
	if (r == -ECANCELED)
		r = end_given_up(&v);
	if (r == -ESRCH)
		r = 0;
	if (!r)
		note_end(&v);
	if (!r && launch_fd >= 0 && !v.started && !v.committed)
		launch_send(launch_fd, "error QEMU has ended; its output is in %s", v.state.log ? v.state.log : "the log");
	if (r < 0)
		log_err("the pager gives up%s", launch_fd < 0 || v.started || v.committed ? "; the guest waits for another one" : "");
	detach(&v);
	return r < 0 ? CMD_FAILED : r;
}
