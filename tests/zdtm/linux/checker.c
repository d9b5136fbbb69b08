// SPDX-License-Identifier: GPL-2.0-only
// Checks memory and disk of a Linux guest. Memory: a share of it is filled with pages that follow from their number and
// generation; passes without end verify all of them, on all processors, and rewrite some. Disk: threads read and write with
// O_DIRECT between the disk and pages scattered over a buffer, one request of 1 MiB each in flight, and verify what they read.
// The console says "ready linux", "ok N" for each pass, "BAD WHERE EXPECTED GOT" on a mismatch, and after one no "ok" any more.
// The virtio-serial port named "check" takes commands, a line each, and answers by a line:
//
//	status		passes N errors M filled BYTES rewritten PAGES disk REQUESTS uptime SECONDS
//	verify		waits for a whole pass that begins now, then as status
//	fill PERCENT	fills that share of all memory anew, then as status
//	dirty PERCENT	of the pages are rewritten in each pass from now on
//	rest SECONDS	between two passes from now on
//	gap		gap US: the longest time between two ticks, one a millisecond, since this was last asked
//	reboot, poweroff, panic		status, and then does so
//
// Kernel command line: fill=PERCENT (75), dirty=PERCENT (10), rest=SECONDS (0), disk=DEVICE, depth=MIB in flight (64),
// tick=1: ticks are counted, for `gap`. What the pages hold differs from one boot to the next.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/sysinfo.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "../guest/pattern.h"

#define REQUEST_PAGES	256u

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t *mem;
	uint32_t *generation;		// of each page
	uint64_t nr_pages, begun, passes, rewritten, errors, requests;	// begun: passes
	unsigned dirty, rest, fill, refill;	// refill: percent to fill before the next pass, 0: none asked for
	bool hurry;			// somebody waits: no rest
	uint64_t life;			// differs in each boot
	uint64_t gap;			// of the ticks, the longest, in nanoseconds
} g = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .dirty = 10, .fill = 75 };

static pthread_barrier_t pass_begins, pass_ends;
static unsigned nr_workers;

static void die(const char *what)
{
	printf("BAD %s: %s\n", what, strerror(errno));
	pause();
	exit(1);
}

static void check(const uint64_t *page, uint64_t key)
{
	unsigned i = pattern_check(page, key, 1);

	if (i == PAGE_WORDS)
		return;
	if (__atomic_add_fetch(&g.errors, 1, __ATOMIC_SEQ_CST) <= 16)
		printf("BAD %p 0x%lx 0x%lx\n", (void *)&page[i], pattern_word(key, i), page[i]);
}

static uint64_t key_of(uint64_t where, uint32_t generation)
{
	return pattern_hash((where << 32 | generation) ^ g.life) | 1;
}

static uint64_t random_below(uint64_t *state, uint64_t n)
{
	return pattern_hash((*state)++) % n;
}

static void *verify(void *arg)
{
	uint64_t worker = (uintptr_t)arg, dice = (worker + 1) << 40, rewritten;

	for (;;) {
		pthread_barrier_wait(&pass_begins);
		rewritten = 0;
		for (uint64_t p = worker; p < g.nr_pages; p += nr_workers) {
			uint64_t *page = g.mem + p * PAGE_WORDS;

			check(page, key_of(p, g.generation[p]));
			if (random_below(&dice, 100) < g.dirty) {
				pattern_fill(page, key_of(p, ++g.generation[p]), 1);
				rewritten++;
			}
		}
		__atomic_add_fetch(&g.rewritten, rewritten, __ATOMIC_SEQ_CST);
		pthread_barrier_wait(&pass_ends);
	}
	return NULL;
}

static void fill(unsigned percent)
{
	struct sysinfo si;

	if (g.mem)
		munmap(g.mem, g.nr_pages * PAGE_SIZE);
	free(g.generation);
	sysinfo(&si);
	g.nr_pages = (uint64_t)si.totalram * si.mem_unit / PAGE_SIZE * percent / 100;
	g.generation = calloc(g.nr_pages, sizeof(*g.generation));
	g.mem = mmap(NULL, g.nr_pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!g.generation || g.mem == MAP_FAILED)
		die("fill");
	for (uint64_t p = 0; p < g.nr_pages; p++)
		pattern_fill(g.mem + p * PAGE_WORDS, key_of(p, 0), 1);
}

// While the workers wait for the next pass.
static void between_passes(void)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += g.rest;
	pthread_mutex_lock(&g.lock);
	while (g.rest && !g.hurry && !g.refill)
		if (pthread_cond_timedwait(&g.changed, &g.lock, &until))
			break;
	if (g.refill) {
		fill(g.refill);
		g.refill = 0;
		pthread_cond_broadcast(&g.changed);
	}
	g.hurry = false;
	g.begun++;
	pthread_mutex_unlock(&g.lock);
}

static void *run_passes(void *arg)
{
	(void)arg;
	for (;;) {
		between_passes();
		pthread_barrier_wait(&pass_begins);
		pthread_barrier_wait(&pass_ends);
		pthread_mutex_lock(&g.lock);
		g.passes++;
		pthread_cond_broadcast(&g.changed);
		pthread_mutex_unlock(&g.lock);
		if (g.errors)
			printf("BAD %lu pages\n", g.errors);
		else
			printf("ok %lu\n", g.passes);
	}
	return NULL;
}

struct disk_job {
	int fd;
	uint64_t first, nr_blocks, dice;	// the part of the disk that is this thread's
	uint32_t *generation;
	struct iovec pages[REQUEST_PAGES];
};

static void disk_request(struct disk_job *j, uint64_t at, bool write)
{
	ssize_t len = REQUEST_PAGES * PAGE_SIZE, done;

	for (unsigned i = 0; write && i < REQUEST_PAGES; i++)
		pattern_fill(j->pages[i].iov_base, key_of(j->first + at + i, ++j->generation[at + i]), 1);
	done = (write ? pwritev : preadv)(j->fd, j->pages, REQUEST_PAGES, (j->first + at) * PAGE_SIZE);
	if (done != len)
		die(write ? "disk write" : "disk read");
	for (unsigned i = 0; !write && i < REQUEST_PAGES; i++)
		check(j->pages[i].iov_base, key_of(j->first + at + i, j->generation[at + i]));
	__atomic_add_fetch(&g.requests, 1, __ATOMIC_SEQ_CST);
}

static void *disk_thread(void *arg)
{
	struct disk_job *j = arg;

	sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){ 0 });	// they are many, and the disk's speed is not the point
	for (uint64_t at = 0; at + REQUEST_PAGES <= j->nr_blocks; at += REQUEST_PAGES)
		disk_request(j, at, true);
	for (;;)
		disk_request(j, random_below(&j->dice, j->nr_blocks - REQUEST_PAGES + 1), !random_below(&j->dice, 8));
	return NULL;
}

static void start_thread(void *(*fn)(void *), void *arg)
{
	pthread_attr_t attr;
	pthread_t t;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	if (pthread_create(&t, &attr, fn, arg))
		die("pthread_create");
}

static void start_disk(const char *path, unsigned nr_threads)
{
	uint64_t bytes, nr_pages = nr_threads * REQUEST_PAGES, dice = 1;
	int fd = open(path, O_RDWR | O_DIRECT);
	char *buf, **pages = calloc(nr_pages, sizeof(*pages));
	struct disk_job *jobs = calloc(nr_threads, sizeof(*jobs));

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
		die(path);
	buf = mmap(NULL, nr_pages * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buf == MAP_FAILED || !pages || !jobs)
		die("disk buffers");
	for (uint64_t i = 0; i < nr_pages; i++) {	// shuffled
		uint64_t k = random_below(&dice, i + 1);

		pages[i] = pages[k];
		pages[k] = buf + i * PAGE_SIZE;
	}
	for (unsigned t = 0; t < nr_threads; t++) {
		struct disk_job *j = &jobs[t];

		*j = (struct disk_job){ .fd = fd, .nr_blocks = bytes / PAGE_SIZE / nr_threads, .dice = (uint64_t)t << 32 };
		j->nr_blocks -= j->nr_blocks % REQUEST_PAGES;
		j->first = t * j->nr_blocks;
		j->generation = calloc(j->nr_blocks, sizeof(*j->generation));
		if (j->nr_blocks < REQUEST_PAGES || !j->generation)
			die("disk too small: it needs 1 MiB for each MiB in flight");
		for (unsigned i = 0; i < REQUEST_PAGES; i++)
			j->pages[i] = (struct iovec){ pages[t * REQUEST_PAGES + i], PAGE_SIZE };
		start_thread(disk_thread, j);
	}
	free(pages);
}

static uint64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void *tick(void *arg)
{
	uint64_t before = now_ns(CLOCK_MONOTONIC), now;

	(void)arg;
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ 1 });
	for (;; before = now) {
		clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){ .tv_nsec = 1000000 }, NULL);
		now = now_ns(CLOCK_MONOTONIC);
		if (now - before > g.gap)
			__atomic_store_n(&g.gap, now - before, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

static void end(const char *how)
{
	int fd;

	if (!strcmp(how, "reboot"))
		reboot(RB_AUTOBOOT);
	else if (!strcmp(how, "poweroff"))
		reboot(RB_POWER_OFF);
	else if ((fd = open("/proc/sysrq-trigger", O_WRONLY)) < 0 || write(fd, "c", 1) < 0)
		die("panic");
}

static bool is_end(const char *line)
{
	return !strcmp(line, "reboot") || !strcmp(line, "poweroff") || !strcmp(line, "panic");
}

static void command(const char *line, char *answer, size_t size)
{
	unsigned n = 0;

	pthread_mutex_lock(&g.lock);
	if (!strcmp(line, "verify")) {
		uint64_t wanted = g.begun + 1;	// a pass that is under way does not count

		g.hurry = true;
		pthread_cond_broadcast(&g.changed);
		while (g.passes < wanted)
			pthread_cond_wait(&g.changed, &g.lock);
	} else if (sscanf(line, "fill %u", &n) == 1 && n > 0 && n <= 95) {
		g.refill = n;
		pthread_cond_broadcast(&g.changed);
		while (g.refill)
			pthread_cond_wait(&g.changed, &g.lock);
	} else if (sscanf(line, "dirty %u", &n) == 1) {
		g.dirty = n;
	} else if (sscanf(line, "rest %u", &n) == 1) {
		g.rest = n;
		g.hurry = true;
		pthread_cond_broadcast(&g.changed);
	} else if (!strcmp(line, "gap")) {
		snprintf(answer, size, "gap %lu\n", __atomic_exchange_n(&g.gap, 0, __ATOMIC_SEQ_CST) / 1000);
		pthread_mutex_unlock(&g.lock);
		return;
	} else if (strcmp(line, "status") && !is_end(line)) {
		snprintf(answer, size, "error: no such command\n");
		pthread_mutex_unlock(&g.lock);
		return;
	}
	snprintf(answer, size, "passes %lu errors %lu filled %lu rewritten %lu disk %lu uptime %lu\n",
		 g.passes, g.errors, g.nr_pages * PAGE_SIZE, g.rewritten, g.requests, now_ns(CLOCK_MONOTONIC) / 1000000000);
	pthread_mutex_unlock(&g.lock);
}

static int open_port(void)
{
	DIR *dir = opendir("/sys/class/virtio-ports");
	struct dirent *e;
	char path[512], name[64] = "";

	while (dir && (e = readdir(dir))) {
		int fd;

		snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", e->d_name);
		fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		name[0] = 0;
		if (read(fd, name, sizeof(name) - 1) > 0 && !strcmp(name, "check\n")) {
			snprintf(path, sizeof(path), "/dev/%s", e->d_name);
			close(fd);
			return open(path, O_RDWR);
		}
		close(fd);
	}
	return -1;
}

// Serves the port for ever; without a client, a read returns 0 at once.
static void serve(int port)
{
	char line[256], answer[256], c;
	size_t len = 0;

	for (;;) {
		ssize_t n = read(port, &c, 1);

		if (n <= 0) {
			len = 0;
			usleep(20000);
		} else if (c != '\n') {
			len = len < sizeof(line) - 1 ? len + 1 : len;
			line[len - 1] = c;
		} else {
			line[len] = 0;
			len = 0;
			command(line, answer, sizeof(answer));
			if (write(port, answer, strlen(answer)) < 0)
				continue;	// the client has gone
			if (is_end(line))
				end(line);
		}
	}
}

int main(void)
{
	char cmdline[4096] = "", disk[64] = "", *word;
	int fd = open("/proc/cmdline", O_RDONLY), port;
	unsigned depth = 64, ticks = 0;

	if (fd < 0 || read(fd, cmdline, sizeof(cmdline) - 1) < 0)
		die("/proc/cmdline");
	close(fd);
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (word = strtok(cmdline, " \n"); word; word = strtok(NULL, " \n")) {
		sscanf(word, "fill=%u", &g.fill);
		sscanf(word, "dirty=%u", &g.dirty);
		sscanf(word, "rest=%u", &g.rest);
		sscanf(word, "depth=%u", &depth);
		sscanf(word, "tick=%u", &ticks);
		sscanf(word, "disk=%63s", disk);
	}
	g.life = pattern_hash(now_ns(CLOCK_REALTIME));
	if (ticks)
		start_thread(tick, NULL);
	fill(g.fill);
	if (disk[0])
		start_disk(disk, depth);
	nr_workers = sysconf(_SC_NPROCESSORS_ONLN);
	pthread_barrier_init(&pass_begins, NULL, nr_workers + 1);
	pthread_barrier_init(&pass_ends, NULL, nr_workers + 1);
	for (uintptr_t w = 0; w < nr_workers; w++)
		start_thread(verify, (void *)w);
	printf("ready linux\n");
	start_thread(run_passes, NULL);
	port = open_port();
	if (port < 0)
		pause();
	serve(port);
	return 0;
}
