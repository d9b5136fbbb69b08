// SPDX-License-Identifier: GPL-2.0-only
// A pager as criu-vm has it, of a process that is no VM: the same planting, loop, engine and swap image, so that what is measured is
// the pager and not a CPU emulator. Its drains end at once, since there is no block I/O to wait for.
//
//	pager --ram MIB --budget MIB --swap FILE --control SOCKET [--paging KEY=VALUE,...] -- WORKLOAD ARGUMENTS
//
// Starts the workload with its own standard input and output, and ends when that has ended. On the control socket it answers "stat",
// as a VM's pager does, and {"execute": "set", "ram": BYTES}.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/paging/sync.h"
#include "lazy-pages/pager.h"
#include "mm/plant.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "pvmem/engine.h"
#include "pvmem/folio.h"
#include "util/io_ring.h"
#include "util/log.h"
#include "util/loop.h"
#include "util/size.h"

// As criu-vm restore has them.
#define RING_ENTRIES 128
#define RING_IDLE_MS 1
#define IO_ENTRIES 1024
#define UFFD_FEATURES \
	(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
	 UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_THREAD_ID)

#define MAX_ARGS 32

struct bench {
	uint64_t ram, budget;
	struct pv_tuning tuning;
	const char *swap_path, *control;
	char **workload;
	pid_t pid;
	int sync;
	struct sync said;
	struct pv_block block;
	struct pv_pages *pages;
	struct pv_swap swap;
	struct mm_plant plant;
	struct lp_pager *lp;
	struct loop_timer drained;
};

static void fail(const char *what, int err)
{
	fprintf(stderr, "pager: %s: %s\n", what, strerror(err < 0 ? -err : errno));
	exit(1);
}

static void drain_ended(struct loop_op *op, int res)
{
	struct bench *b = list_entry(op, struct bench, drained.op);

	(void)res;
	lp_pager_drained(b->lp, 0);
}

static void drain(void *ctx)
{
	struct bench *b = ctx;

	loop_timer(lp_pager_loop(b->lp), &b->drained, 1);
}

static void describe(void *ctx, json_t *answer)
{
	const struct bench *b = ctx;

	json_object_set_new(answer, "ring", json_boolean(b->plant.ring_fd >= 0));
}

static void source_done(void *ctx)
{
	(void)ctx; // there is none
}

static json_t *command(void *ctx, const char *name, const json_t *request)
{
	struct bench *b = ctx;
	int r = -ENOSYS;

	if (!strcmp(name, "set"))
		r = lp_pager_set_budget(b->lp, (uint64_t)json_integer_value(json_object_get(request, "ram")));
	return r ? json_pack("{s:s}", "error", strerror(-r)) : json_object();
}

static int listen_at(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4))
		fail(path, 0);
	return fd;
}

static void make_memory(struct bench *b)
{
	int r;

	b->block = (struct pv_block){ .len = b->ram, .memfd = memfd_create("bench", MFD_CLOEXEC) };
	if (b->block.memfd < 0 || ftruncate(b->block.memfd, (off_t)b->ram))
		fail("memfd", 0);
	r = pv_block_map(&b->block, b->tuning.folios && pv_folios_here(NULL) == PV_FOLIOS_YES);
	if (r)
		fail("memory", r);
	b->pages = mmap(NULL, b->ram / PV_CHUNK_SIZE * sizeof *b->pages, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (b->pages == MAP_FAILED)
		fail("page table", 0);
	for (uint64_t i = 0; i < b->ram / PAGE_SIZE; i++)
		pv_page_set_home(&b->pages[i / PV_CHUNK_PAGES], i % PV_CHUNK_PAGES, PV_HOME_ZERO);
}

static void exec_workload(const struct bench *b, int sync)
{
	char pages[24], memfd[12], to[12];
	char *argv[MAX_ARGS] = { NULL };
	size_t n = 0;

	snprintf(pages, sizeof pages, "%lu", b->ram / PAGE_SIZE);
	snprintf(memfd, sizeof memfd, "%d", b->block.memfd);
	snprintf(to, sizeof to, "%d", sync);
	for (; b->workload[n] && n < MAX_ARGS - 7; n++)
		argv[n] = b->workload[n];
	memcpy(argv + n, (char *[]){ "--pages", pages, "--memfd", memfd, "--sync", to }, 6 * sizeof *argv);
	fcntl(b->block.memfd, F_SETFD, 0);
	fcntl(sync, F_SETFD, 0);
	execv(argv[0], argv);
	fprintf(stderr, "pager: %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

static void start_workload(struct bench *b)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		fail("socketpair", 0);
	b->pid = fork();
	if (b->pid < 0)
		fail("fork", 0);
	if (!b->pid)
		exec_workload(b, pair[1]);
	close(pair[1]);
	b->sync = pair[0];
	if (recv(b->sync, &b->said, sizeof b->said, MSG_WAITALL) != sizeof b->said)
		fail("the workload does not start", -EPIPE);
	b->block.hva = b->said.hva;
}

static void plant(struct bench *b)
{
	struct mm_plant_opts o = { .ring_entries = RING_ENTRIES, .sq_idle_ms = RING_IDLE_MS, .target_uffd_dev = -1 };
	int r = mm_plant(b->pid, &o, &b->plant);

	if (!r)
		r = mm_uffd_api(b->plant.uffd, UFFD_FEATURES, NULL);
	if (!r)
		r = mm_uffd_register(b->plant.uffd, b->block.hva, b->block.len);
	if (r)
		fail("planting", r);
}

static void start_paging(struct bench *b)
{
	struct lp_opts o = { .qemu = b->pid, .qemu_pidfd = (int)syscall(SYS_pidfd_open, b->pid, 0), .control_fd = listen_at(b->control), .ctx = b,
			     .drain = drain, .describe = describe, .source_done = source_done, .command = command };
	struct lp_paging paging = { .plant = &b->plant, .blocks = &b->block, .nr_blocks = 1, .pages = b->pages, .swap = &b->swap,
				    .budget = b->budget, .tuning = b->tuning, .exact = true };
	int io_fd = io_ring_new(IO_ENTRIES), r;

	b->drained.op.done = drain_ended;
	if (o.qemu_pidfd < 0 || io_fd < 0)
		fail("descriptors", 0);
	if ((r = lp_pager_new(&o, &b->lp)) || (r = lp_pager_fence(b->lp, io_fd, IO_ENTRIES)) || (r = lp_pager_start(b->lp, &paging)) ||
	    (r = lp_pager_set_vcpus(b->lp, b->said.tid, ARRAY_SIZE(b->said.tid))))
		fail("paging", r);
	lp_pager_release(b->lp);
	if (write(b->sync, "", 1) != 1)
		fail("the workload", 0);
}

static void parse(struct bench *b, int argc, char **argv)
{
	static const struct option options[] = {
		{ "ram", required_argument, NULL, 'r' },     { "budget", required_argument, NULL, 'b' },
		{ "swap", required_argument, NULL, 's' },    { "control", required_argument, NULL, 'c' },
		{ "paging", required_argument, NULL, 'p' },  { 0 },
	};
	char why[128];
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 'r')
			b->ram = strtoull(optarg, NULL, 10) * MiB;
		else if (o == 'b')
			b->budget = strtoull(optarg, NULL, 10) * MiB;
		else if (o == 's')
			b->swap_path = optarg;
		else if (o == 'c')
			b->control = optarg;
		else if (o != 'p' || !pv_tuning_parse(optarg, &b->tuning, why))
			fail(o == 'p' ? why : "usage", -EINVAL);
	}
	b->workload = argv + optind;
	if (!b->ram || !b->budget || !b->swap_path || !b->control || !b->workload[0])
		fail("usage", -EINVAL);
}

int main(int argc, char **argv)
{
	struct bench b = { .swap = PV_SWAP_NONE, .tuning = PV_TUNING_DEFAULT };
	int r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	log_init(2, LOG_INFO, "pager", false);
	parse(&b, argc, argv);
	// As criu-vm's pager: what there is, all of it; what comes, as it is touched.
	if (mlockall(MCL_CURRENT) < 0 || mlockall(MCL_FUTURE | MCL_ONFAULT) < 0)
		fail("mlockall", 0);
	make_memory(&b);
	r = pv_swap_create(b.swap_path, b.ram, false, &b.swap);
	if (r)
		return 1;
	unlink(b.swap_path); // whatever becomes of us, it does not stay
	start_workload(&b);
	plant(&b);
	start_paging(&b);
	r = lp_pager_run(b.lp);
	kill(b.pid, SIGKILL);
	waitpid(b.pid, NULL, 0);
	lp_pager_free(b.lp);
	pv_swap_close(&b.swap);
	return r ? 1 : 0;
}
