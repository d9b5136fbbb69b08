// SPDX-License-Identifier: GPL-2.0-only
//
// What criu-vm does to a QEMU, tried on a child that has a memfd mapped and touches it when told:
//
//   we:     plant, register, map all pages clean -> "write 3, 7" -> zap -> look: gone, data kept, 3 and 7 written -> "read 9"
//   child:                                           writes                                              waits in a MINOR fault
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/check.h"
#include "mm/pagemap.h"
#include "mm/plant.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "mm/zap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define PAGES 64 // one word of a bitmap
#define LEN (PAGES * PAGE_SIZE)
#define WRITTEN (1ULL << 3 | 1ULL << 7)
#define TIMEOUT_MS 2000
#define FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | \
		  UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_EVENT_REMOVE)

struct check_victim {
	pid_t pid;
	int memfd, line;
	uint64_t hva;
	struct mm_plant plant;
	bool plant_tried;
	int plant_err;	   // 0: planted and registered
	char plant_why[200];
	signed char zaps[2]; // by enum mm_zap_method: 0 not tried, 1 works, -1 does not
	char zap_why[2][200];
};

struct order {
	uint32_t page;
	bool write;
};

static void victim_main(int memfd, int line, pid_t parent)
{
	char *map = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	uint64_t hva = (uint64_t)(uintptr_t)map;
	struct order o;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || map == MAP_FAILED || io_write_full(line, &hva, sizeof hva))
		_exit(1);
	while (!io_read_full(line, &o, sizeof o)) {
		volatile char *at = map + o.page * PAGE_SIZE;
		char seen = *at;

		if (o.write)
			at[1]++;
		if (io_write_full(line, &seen, 1))
			break;
	}
	_exit(0);
}

// Page i begins with i + 1.
static int fill(int memfd)
{
	int r = ftruncate(memfd, (off_t)LEN) ? -errno : 0;

	for (unsigned i = 0; !r && i < PAGES; i++)
		r = io_pwrite_full(memfd, &(char){ (char)(i + 1) }, 1, i * PAGE_SIZE);
	return r;
}

static bool readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, TIMEOUT_MS) == 1 && (p.revents & POLLIN);
}

static struct check_victim *victim_new(void)
{
	struct check_victim *v = calloc(1, sizeof *v);
	int lines[2] = { -1, -1 };
	pid_t parent = getpid();

	if (!v)
		return NULL;
	*v = (struct check_victim){ .line = -1, .plant = { .uffd = -1, .ring_fd = -1 } };
	v->memfd = memfd_create("check", MFD_CLOEXEC);
	if (v->memfd < 0 || fill(v->memfd) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, lines))
		goto failed;
	v->line = lines[0];
	v->pid = fork();
	if (!v->pid) {
		close(lines[0]);
		victim_main(v->memfd, lines[1], parent);
	}
	close(lines[1]);
	if (v->pid > 0 && readable(v->line) && !io_read_full(v->line, &v->hva, sizeof v->hva))
		return v;
failed:
	check_victim_free(v);
	return NULL;
}

void check_victim_free(struct check_victim *v)
{
	if (!v)
		return;
	if (v->pid > 0) {
		kill(v->pid, SIGKILL);
		waitpid(v->pid, NULL, 0);
	}
	mm_plant_fini(&v->plant);
	if (v->memfd >= 0)
		close(v->memfd);
	if (v->line >= 0)
		close(v->line);
	free(v);
}

static struct check_victim *victim(struct check_ctx *c, struct check_answer *a)
{
	if (!c->victim)
		c->victim = victim_new();
	if (!c->victim)
		check_found(a, "not tried: cannot start a child to try it on");
	return c->victim;
}

bool check_pidfd_getfd(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	const struct check_victim *v = victim(c, a);
	_cleanup_close_ int pidfd = v ? pidfd_open(v->pid, 0) : -1;
	_cleanup_close_ int fd = pidfd < 0 ? -1 : pidfd_getfd(pidfd, v->memfd, 0);

	(void)item;
	if (v && fd < 0)
		check_found(a, "%s: %s", pidfd < 0 ? "pidfd_open" : "pidfd_getfd", strerror(errno));
	return fd >= 0;
}

// By a process that is not the child's ancestor, as it is with a QEMU: Yama tells these apart.
bool check_ptrace(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	const struct check_victim *v = victim(c, a);
	char scope[8] = "";
	int status = 0;
	pid_t tracer;

	(void)item;
	if (!v)
		return false;
	tracer = fork();
	if (!tracer)
		_exit(ptrace(PTRACE_SEIZE, v->pid, 0, 0) ? errno : 0); // its end detaches
	if (tracer < 0 || waitpid(tracer, &status, 0) != tracer) {
		check_found(a, "not tried: %s", strerror(errno));
		return false;
	}
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return true;
	check_found(a, "%s", strerror(WEXITSTATUS(status)));
	if (check_read_line("/proc/sys/kernel/yama/ptrace_scope", scope, sizeof scope) && *scope == '3')
		check_advise(a, "kernel.yama.ptrace_scope is 3, which only a reboot undoes: set it to 2 or less at boot");
	return false;
}

static void plant(struct check_victim *v)
{
	struct mm_plant_opts o = { .ring_entries = 8, .sq_idle_ms = 1, .target_uffd_dev = -1 };

	if (v->plant_tried)
		return;
	v->plant_tried = true;
	v->plant_err = mm_plant(v->pid, &o, &v->plant);
	if (!v->plant_err)
		v->plant_err = mm_uffd_api(v->plant.uffd, FEATURES, NULL);
	if (!v->plant_err)
		v->plant_err = mm_uffd_register(v->plant.uffd, v->hva, LEN);
	if (v->plant_err)
		snprintf(v->plant_why, sizeof v->plant_why, "%s", log_last_error());
}

static struct check_victim *planted(struct check_ctx *c, struct check_answer *a)
{
	struct check_victim *v = victim(c, a);

	if (v)
		plant(v);
	if (v && v->plant_err)
		check_found(a, "not tried: planting fails");
	return v && !v->plant_err ? v : NULL;
}

bool check_plant(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	struct check_victim *v = victim(c, a);

	(void)item;
	if (!v)
		return false;
	plant(v);
	if (v->plant_err)
		check_found(a, "%s", v->plant_why);
	else
		check_found(a, "it stands still for %.2f ms", (double)v->plant.window_ns / NSEC_PER_MSEC);
	return !v->plant_err;
}

bool check_sqpoll(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	const struct check_victim *v = planted(c, a);

	(void)item;
	if (v && v->plant.ring_fd < 0)
		check_found(a, "the kernel refuses a ring there");
	return v && v->plant.ring_fd >= 0;
}

// The child touches a page, and waits if it is not mapped.
static bool send_order(const struct check_victim *v, unsigned page, bool write)
{
	const struct order o = { page, write };

	return !io_write_full(v->line, &o, sizeof o);
}

static bool order_done(const struct check_victim *v, unsigned page)
{
	char seen = 0;

	return readable(v->line) && !io_read_full(v->line, &seen, 1) && seen == (char)(page + 1);
}

static bool next_event(const struct check_victim *v, struct uffd_msg *m)
{
	return readable(v->plant.uffd) && read(v->plant.uffd, m, sizeof *m) == (ssize_t)sizeof *m;
}

// Until the one zap is done; it may wait for its REMOVE event to be read.
static int finish_zap(const struct check_victim *v, struct mm_zapper *z)
{
	const uint64_t end = clock_now_ns() + TIMEOUT_MS * NSEC_PER_MSEC;
	struct uffd_msg m;
	uint64_t tag;
	int res;

	while (!mm_zap_reap(z, &tag, &res)) {
		struct pollfd p[] = { { .fd = mm_zap_fd(z), .events = POLLIN }, { .fd = v->plant.uffd, .events = POLLIN } };

		if (clock_now_ns() > end)
			return -ETIMEDOUT;
		poll(p, 2, 10);
		if ((p[1].revents & POLLIN) && read(v->plant.uffd, &m, sizeof m) < 0 && errno != EAGAIN)
			return -errno;
	}
	return res;
}

// NULL, or what is wrong.
static const char *look_after_zap(const struct check_victim *v)
{
	uint64_t present = 0, written = 0, done;
	struct mm_pagemap *pm;
	struct uffd_msg m;
	int r = mm_pagemap_open(v->pid, &pm);

	if (r)
		return log_last_error();
	r = mm_pagemap_scan(pm, v->hva, LEN, MM_SCAN_PRESENT, &present);
	if (!r)
		r = mm_pagemap_scan(pm, v->hva, LEN, MM_SCAN_WRITTEN, &written);
	mm_pagemap_close(pm);
	if (r)
		return log_last_error();
	if (present)
		return "pages stay mapped";
	if (written != WRITTEN)
		return "which pages were written is lost";
	if (!send_order(v, 9, false) || !next_event(v, &m) || m.event != UFFD_EVENT_PAGEFAULT)
		return "the next touch raises no fault";
	if (!(m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR))
		return "the data is gone from the memfd";
	if (mm_uffd_continue(v->plant.uffd, v->hva + 9 * PAGE_SIZE, PAGE_SIZE, true, true, &done) || !order_done(v, 9))
		return "a page that was taken away does not come back";
	return NULL;
}

static const char *zap_once(const struct check_victim *v, struct mm_zapper *z)
{
	int r = 0;

	for (uint64_t done, at = v->hva; at < v->hva + LEN; at += PAGE_SIZE) {
		r = mm_uffd_continue(v->plant.uffd, at, PAGE_SIZE, true, true, &done);
		if (r && r != -EEXIST)
			return "pages cannot be mapped in it";
	}
	for (unsigned i = 0; i < PAGES; i++)
		if ((WRITTEN >> i & 1) && (!send_order(v, i, true) || !order_done(v, i)))
			return "it does not come back from a write";
	r = mm_zap_queue(z, v->hva, LEN, 0);
	if (!r)
		r = mm_zap_submit(z);
	if (!r)
		r = finish_zap(v, z);
	return r ? strerror(-r) : look_after_zap(v);
}

static bool zap_works(struct check_victim *v, enum mm_zap_method method)
{
	struct mm_region region = { .hva = v->hva, .len = LEN };
	struct mm_zapper *z = NULL;
	const char *wrong;
	struct stat st;

	if (v->zaps[method])
		return v->zaps[method] > 0;
	if (fstat(v->memfd, &st))
		return false;
	region.dev = st.st_dev;
	region.ino = st.st_ino;
	wrong = mm_zapper_new(v->pid, &v->plant, &region, 1, method, &z) ? log_last_error() : zap_once(v, z);
	mm_zapper_free(z);
	if (wrong)
		snprintf(v->zap_why[method], sizeof v->zap_why[method], "%s", wrong);
	v->zaps[method] = wrong ? -1 : 1;
	return !wrong;
}

static bool check_method(struct check_ctx *c, enum mm_zap_method method, struct check_answer *a)
{
	struct check_victim *v = planted(c, a);

	if (!v)
		return false;
	if (zap_works(v, method))
		return true;
	check_found(a, "%s", v->zap_why[method]);
	return false;
}

bool check_zap_ring(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	(void)item;
	return check_method(c, MM_ZAP_RING, a);
}

bool check_zap_pageout(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	(void)item;
	if (!check_method(c, MM_ZAP_PAGEOUT, a))
		return false;
	check_found(a, "safe, this host has no swap");
	return true;
}

// The same choice as a restore makes: the ring, if there can be one.
bool check_zap(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	const struct check_victim *v = planted(c, a);
	enum mm_zap_method method = v && v->plant.ring_fd >= 0 ? MM_ZAP_RING : MM_ZAP_PAGEOUT;

	(void)item;
	if (!v || !check_method(c, method, a))
		return false;
	check_found(a, method == MM_ZAP_RING ? "by the ring" : "by process_madvise, there being no ring");
	return true;
}
