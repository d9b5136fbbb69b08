// SPDX-License-Identifier: GPL-2.0-only
// A process that touches memory, and says how fast. A command a line comes by standard input, its answer is a line of JSON:
//
//	populate READ			writes all pages, then reads so many of them in order, so that others have been put out
//	touch PATTERN SECONDS WRITE	touches pages so long, WRITE percent of them to write; a pattern goes on where it was
//	pass WRITE			touches all pages once, in order
//	hot PAGES SCATTERED		touches random ones of so many pages, until its rate is steady; all pages once; and again the
//					hot ones until their rate is back; SCATTERED 1: not beside one another
//	latency NR PAUSE_US RANGE	touches NR random pages of the first RANGE that are not in memory, and as often reads 4 KiB of
//					the raw file, alternating, after a pause each
//	disk SECONDS THREADS		so many threads read 64 KiB at random places of the raw file, so long
//	dirty RATE FIRST		from now on another thread rewrites pages from FIRST on, in order, so many MiB a second; 0: none
//
//	workload --pages N [--memfd FD | --shared] [--sync FD] [--raw FILE]
//
// Without --memfd the memory is anonymous, and private unless --shared. To the sync socket goes struct sync, and nothing is touched
// before a byte has come from there.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench/paging/memory.h"
#include "bench/paging/pattern.h"
#include "bench/paging/sync.h"
#include "util/clock.h"
#include "util/size.h"

#define DISK_BLOCK (64 * KiB)
#define MAX_READERS 16
#define LOOK_TOUCHES 16 // between two looks at the clock
#define WINDOW_NS (50 * NSEC_PER_MSEC)
#define MAX_WINDOWS 1200
#define STEADY_WINDOWS 60
#define BACK 0.9 // of the steady rate

static struct memory mem;

static struct {
	_Atomic uint64_t rate, first; // MiB a second, 0: none
	_Atomic pid_t tid;
	_Atomic uint64_t written;
} dirtier;

static void die(const char *what)
{
	fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void sleep_ns(uint64_t ns)
{
	nanosleep(&(struct timespec){ .tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = (long)(ns % NSEC_PER_SEC) }, NULL);
}

static double seconds_since(uint64_t begun)
{
	return (double)(clock_now_ns() - begun) / NSEC_PER_SEC;
}

static void *dirty(void *arg)
{
	uint64_t begun = 0, written = 0, rate = 0, now;

	(void)arg;
	dirtier.tid = (pid_t)syscall(SYS_gettid);
	for (;;) {
		if (rate != dirtier.rate) {
			rate = dirtier.rate;
			begun = clock_now_ns();
			written = 0;
		}
		now = clock_now_ns() - begun;
		if (!rate || written * PAGE_SIZE / MiB * NSEC_PER_SEC > now * rate) {
			sleep_ns(NSEC_PER_MSEC);
			continue;
		}
		for (unsigned i = 0; i < LOOK_TOUCHES; i++, written++)
			memory_touch(&mem, dirtier.first + dirtier.written++ % (mem.nr_pages - dirtier.first), true);
	}
	return NULL;
}

static void do_populate(const char *args)
{
	uint64_t begun = clock_now_ns(), nr = strtoull(args, NULL, 10);

	for (uint64_t page = 0; page < mem.nr_pages; page++)
		memory_fill(&mem, page);
	for (uint64_t page = 0; page < nr && page < mem.nr_pages; page++)
		memory_touch(&mem, page, false);
	printf("{\"seconds\": %.3f}\n", seconds_since(begun));
}

// Touches until then; how many.
static uint64_t touch_until(struct pattern *p, uint64_t end_ns, unsigned write)
{
	uint64_t before = p->nr;

	while (clock_now_ns() < end_ns)
		for (unsigned i = 0; i < LOOK_TOUCHES; i++) {
			uint64_t page = p->next(p);

			memory_touch(&mem, page, write && pattern_mix(p->nr) % 100 < write);
		}
	return p->nr - before;
}

static void do_touch(const char *args)
{
	static struct pattern p;
	static char pattern[32];
	uint64_t begun, touches;
	unsigned write;
	double seconds;
	char name[32];

	if (sscanf(args, "%31s %lf %u", name, &seconds, &write) != 3)
		die(args);
	if (strcmp(name, pattern) && !pattern_init(&p, strcpy(pattern, name), mem.nr_pages))
		die(name);
	begun = clock_now_ns();
	touches = touch_until(&p, begun + (uint64_t)(seconds * NSEC_PER_SEC), write);
	printf("{\"touches\": %lu, \"seconds\": %.6f}\n", touches, seconds_since(begun));
}

static void do_pass(const char *args)
{
	uint64_t begun = clock_now_ns();

	for (uint64_t page = 0; page < mem.nr_pages; page++)
		memory_touch(&mem, page, atoi(args));
	printf("{\"seconds\": %.6f}\n", seconds_since(begun));
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

// Touches a second, in one window.
static double window(struct pattern *p)
{
	uint64_t begun = clock_now_ns(), touches = touch_until(p, begun + WINDOW_NS, 0);

	return (double)touches / seconds_since(begun);
}

// Rates of the hot set until it is steady; the median of the last ones.
static double steady_rate(struct pattern *p)
{
	double rate[STEADY_WINDOWS];

	for (unsigned i = 0; i < 2 * STEADY_WINDOWS; i++)
		rate[i % STEADY_WINDOWS] = window(p);
	qsort(rate, STEADY_WINDOWS, sizeof *rate, compare);
	return rate[STEADY_WINDOWS / 2];
}

static void do_hot(const char *args)
{
	double steady, now = 0, scan, back;
	unsigned scattered;
	uint64_t pages, begun;
	struct pattern p;

	if (sscanf(args, "%lu %u", &pages, &scattered) != 2 || pages > mem.nr_pages / 2)
		die(args);
	pattern_init_uniform(&p, scattered ? 0 : mem.nr_pages / 3, pages, scattered ? pattern_shuffled(mem.nr_pages) : NULL);
	for (uint64_t page = 0; page < 2 * pages; page++)
		memory_touch(&mem, pattern_page(&p, p.first + page % pages), false);
	steady = steady_rate(&p);
	begun = clock_now_ns();
	for (uint64_t page = 0; page < mem.nr_pages; page++)
		memory_touch(&mem, page, false);
	scan = seconds_since(begun);
	begun = clock_now_ns();
	for (unsigned i = 0; i < MAX_WINDOWS && now < BACK * steady; i++)
		now = window(&p);
	back = seconds_since(begun);
	printf("{\"steady\": %.0f, \"scan\": %.3f, \"back\": %.3f, \"last\": %.0f}\n", steady, scan, back, now);
}

// A random page of the first range pages that is in no memory.
static uint64_t absent_page(uint64_t *dice, uint64_t range)
{
	for (unsigned i = 0; i < 1000000; i++) {
		uint64_t page = pattern_mix((*dice)++) % range;

		if (!memory_is_resident(&mem, page))
			return page;
	}
	errno = ENODATA;
	die("all pages are in memory");
	return 0;
}

static void print_list(const char *name, const uint32_t *ns, uint64_t nr)
{
	printf("\"%s\": [", name);
	for (uint64_t i = 0; i < nr; i++)
		printf("%s%u", i ? ", " : "", ns[i]);
	printf("]");
}

static void do_latency(const char *args, int raw, uint64_t raw_pages)
{
	static char buf[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
	uint64_t nr, pause_us, range, dice = clock_now_ns(), page, begun;
	uint32_t *fault, *read;

	if (sscanf(args, "%lu %lu %lu", &nr, &pause_us, &range) != 3 || !raw_pages || range > mem.nr_pages)
		die(args);
	fault = calloc(nr + 1, sizeof *fault);
	read = calloc(nr + 1, sizeof *read);
	if (!fault || !read)
		die("memory");
	for (uint64_t i = 0; i < nr; i++) {
		page = absent_page(&dice, range);
		sleep_ns(pause_us * 1000);
		begun = clock_now_ns();
		memory_touch(&mem, page, false);
		fault[i] = (uint32_t)(clock_now_ns() - begun);
		sleep_ns(pause_us * 1000);
		page = pattern_mix(dice++) % raw_pages;
		begun = clock_now_ns();
		if (pread(raw, buf, PAGE_SIZE, (off_t)(page * PAGE_SIZE)) != PAGE_SIZE)
			die("raw read");
		read[i] = (uint32_t)(clock_now_ns() - begun);
	}
	printf("{");
	print_list("fault_ns", fault, nr);
	printf(", ");
	print_list("raw_ns", read, nr);
	printf("}\n");
	free(fault);
	free(read);
}

struct reader {
	pthread_t thread;
	int raw;
	uint64_t blocks, end_ns, nr;
};

static void *read_disk(void *arg)
{
	struct reader *r = arg;
	uint64_t dice = (uint64_t)(uintptr_t)r;
	void *buf = aligned_alloc(PAGE_SIZE, DISK_BLOCK);

	for (; buf && clock_now_ns() < r->end_ns; r->nr++)
		if (pread(r->raw, buf, DISK_BLOCK, (off_t)(pattern_mix(dice++) % r->blocks * DISK_BLOCK)) != DISK_BLOCK)
			die("disk");
	free(buf);
	return NULL;
}

static void do_disk(const char *args, int raw, uint64_t raw_pages)
{
	uint64_t begun = clock_now_ns(), nr = 0;
	struct reader r[MAX_READERS];
	unsigned threads;
	double seconds;

	if (sscanf(args, "%lf %u", &seconds, &threads) != 2 || threads > MAX_READERS || raw_pages < DISK_BLOCK / PAGE_SIZE)
		die(args);
	for (unsigned i = 0; i < threads; i++) {
		r[i] = (struct reader){ .raw = raw, .blocks = raw_pages * PAGE_SIZE / DISK_BLOCK,
					.end_ns = begun + (uint64_t)(seconds * NSEC_PER_SEC) };
		if (pthread_create(&r[i].thread, NULL, read_disk, &r[i]))
			die("thread");
	}
	for (unsigned i = 0; i < threads; i++) {
		pthread_join(r[i].thread, NULL);
		nr += r[i].nr;
	}
	printf("{\"bytes_s\": %.0f}\n", (double)(nr * DISK_BLOCK) / seconds_since(begun));
}

static void do_dirty(const char *args)
{
	uint64_t rate, first;

	if (sscanf(args, "%lu %lu", &rate, &first) != 2 || first >= mem.nr_pages)
		die(args);
	dirtier.first = first;
	dirtier.rate = rate;
	printf("{\"rewritten\": %lu}\n", dirtier.written);
}

// Waits until memory may be touched.
static void synchronize(int fd)
{
	struct sync s = { .hva = (uint64_t)(uintptr_t)mem.map };
	char byte;

	while (!dirtier.tid)
		sleep_ns(NSEC_PER_MSEC);
	s.tid[0] = getpid();
	s.tid[1] = dirtier.tid;
	if (fd >= 0 && (write(fd, &s, sizeof s) != sizeof s || read(fd, &byte, 1) != 1))
		die("sync");
}

static void do_command(const char *name, const char *args, int raw, uint64_t raw_pages)
{
	if (!strcmp(name, "populate"))
		do_populate(args);
	else if (!strcmp(name, "touch"))
		do_touch(args);
	else if (!strcmp(name, "pass"))
		do_pass(args);
	else if (!strcmp(name, "hot"))
		do_hot(args);
	else if (!strcmp(name, "latency"))
		do_latency(args, raw, raw_pages);
	else if (!strcmp(name, "disk"))
		do_disk(args, raw, raw_pages);
	else if (!strcmp(name, "dirty"))
		do_dirty(args);
	else
		die(name);
}

static void serve(int raw)
{
	off_t len = raw < 0 ? 0 : lseek(raw, 0, SEEK_END); // of a block device, too
	char line[256];

	while (fgets(line, sizeof line, stdin)) {
		char *args = line + strcspn(line, " \n");

		if (*args)
			*args++ = 0;
		do_command(line, args, raw, (uint64_t)len / PAGE_SIZE);
		fflush(stdout);
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "pages", required_argument, NULL, 'p' }, { "memfd", required_argument, NULL, 'm' },
		{ "sync", required_argument, NULL, 's' },  { "raw", required_argument, NULL, 'r' },
		{ "shared", no_argument, NULL, 'a' },	   { 0 },
	};
	uint64_t nr_pages = 0;
	int memfd = -1, sync = -1, raw = -1, o;
	bool shared = false;
	pthread_t thread;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (o == 'p')
			nr_pages = strtoull(optarg, NULL, 10);
		else if (o == 'm')
			memfd = atoi(optarg);
		else if (o == 's')
			sync = atoi(optarg);
		else if (o == 'a')
			shared = true;
		else if (o != 'r' || (raw = open(optarg, O_RDONLY | O_DIRECT | O_CLOEXEC)) < 0)
			die(o == 'r' ? optarg : "usage");
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	memory_map(&mem, memfd, shared, nr_pages);
	if (pthread_create(&thread, NULL, dirty, NULL))
		die("thread");
	synchronize(sync);
	serve(raw);
	_Exit(0); // the other thread may be in the middle of something
}
