// SPDX-License-Identifier: GPL-2.0-only
// What a killed process has in flight is counted, lands, and is waited for; what it had only prepared is never done.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mm/plant.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/io_ring.h"
#include "util/log.h"
#include "util/size.h"

#define ENTRIES 64
#define NR 64 // requests of one MiB each
#define LEN (NR * MiB)
#define PATIENCE_NS (20 * NSEC_PER_SEC)

enum byte { IN_FILE = 0x11, WRITTEN = 0x22, OURS = 0x33 };

// One process after the other uses the ring.
struct line {
	int ring_fd, file, pipe[2];
	unsigned nr;
	bool reads;
	char *buf;          // LEN, shared
	_Atomic bool ready; // the child has done what it was to do, and waits for its end
};

static void set_up(struct line *l)
{
	char path[] = "/var/tmp/criu-vm-test.XXXXXX"; // not in memory

	*l = (struct line){ .ring_fd = io_ring_new(ENTRIES), .file = mkostemp(path, O_DIRECT | O_CLOEXEC), .nr = NR };
	ck_assert(l->ring_fd >= 0 && l->file >= 0 && !unlink(path) && !pipe2(l->pipe, O_CLOEXEC));
	l->buf = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert(l->buf != MAP_FAILED);
	memset(l->buf, IN_FILE, LEN);
	ck_assert_int_eq(io_pwrite_full(l->file, l->buf, LEN, 0), 0);
}

static void take_down(struct line *l)
{
	munmap(l->buf, LEN);
	close(l->ring_fd);
	close(l->file);
	for (unsigned i = 0; i < 2; i++)
		if (l->pipe[i] >= 0)
			close(l->pipe[i]);
}

// Shared, as its child tells when it is ready.
static struct line *new_line(void)
{
	struct line *l = mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	ck_assert(l != MAP_FAILED);
	set_up(l);
	return l;
}

static void map(int fd, struct io_uring *ring)
{
	int r = io_ring_map(fd, ENTRIES, ring);

	ck_assert_msg(!r, "%s", strerror(-r));
}

// A child does the job, and is killed.
static void killed_after(struct line *l, void (*job)(struct line *l, struct io_uring *ring))
{
	pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		struct io_uring ring;

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		map(l->ring_fd, &ring);
		job(l, &ring);
		l->ready = true;
		for (;;)
			pause();
	}
	while (!l->ready) {
		ck_assert_int_eq(waitpid(pid, &status, WNOHANG), 0);
		usleep(100);
	}
	l->ready = false;
	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
}

static unsigned submit(struct io_uring *ring)
{
	int r = io_uring_submit(ring);

	ck_assert_msg(r >= 0, "%s", strerror(-r));
	return (unsigned)r;
}

static struct io_uring_sqe *get_sqe(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	if (!sqe) {
		submit(ring);
		sqe = io_uring_get_sqe(ring);
	}
	ck_assert_ptr_nonnull(sqe);
	return sqe;
}

static void job_disk(struct line *l, struct io_uring *ring)
{
	for (size_t i = 0; i < l->nr; i++)
		if (l->reads)
			io_uring_prep_read(get_sqe(ring), l->file, l->buf + i * MiB, MiB, i * MiB);
		else
			io_uring_prep_write(get_sqe(ring), l->file, l->buf + i * MiB, MiB, i * MiB);
	submit(ring);
}

// Reads that no data comes for: in flight until the pipe is closed.
static void job_pipe(struct line *l, struct io_uring *ring)
{
	for (size_t i = 0; i < l->nr; i++)
		io_uring_prep_read(get_sqe(ring), l->pipe[0], l->buf + i, 1, 0);
	submit(ring);
}

// All there is to the fence; how many there were to wait for.
static unsigned fence(struct io_uring *ring)
{
	uint64_t end = clock_now_ns() + PATIENCE_NS;
	unsigned left = io_ring_abandoned(ring), first = left;

	for (; left; left = io_ring_abandoned(ring)) {
		ck_assert_msg(left <= first, "%u are in flight, there were %u", left, first);
		ck_assert_msg(clock_now_ns() < end, "%u never end", left);
		usleep(200);
	}
	return first;
}

// One request of our own, by a ring that is ours now.
static void expect_works(struct line *l, struct io_uring *ring)
{
	struct io_uring_cqe *cqe;
	char *page = aligned_alloc(PAGE_SIZE, PAGE_SIZE);

	for (unsigned i = 0; i < 3 * ENTRIES; i++) {
		struct io_uring_sqe *sqe = get_sqe(ring);

		io_uring_prep_read(sqe, l->file, page, PAGE_SIZE, i * PAGE_SIZE);
		sqe->user_data = 0x1000 + i;
		ck_assert_uint_eq(submit(ring), 1);
		ck_assert_int_eq(io_uring_wait_cqe(ring, &cqe), 0);
		ck_assert_uint_eq(cqe->user_data, 0x1000 + i);
		ck_assert_int_eq(cqe->res, PAGE_SIZE);
		io_uring_cqe_seen(ring, cqe);
		ck_assert_int_eq(io_uring_peek_cqe(ring, &cqe), -EAGAIN);
	}
	ck_assert_uint_eq(io_ring_abandoned(ring), 0);
	free(page);
}

static bool is_all(const char *p, size_t len, enum byte byte)
{
	return *p == (char)byte && !memcmp(p, p + 1, len - 1);
}

static unsigned count(const char *p, enum byte byte)
{
	unsigned n = 0;

	for (size_t i = 0; i < NR; i++)
		n += is_all(p + i * MiB, MiB, byte);
	return n;
}

static void write_all(const struct line *l, enum byte byte)
{
	memset(l->buf, byte, LEN);
	ck_assert_int_eq(io_pwrite_full(l->file, l->buf, LEN, 0), 0);
}

static char *read_all(const struct line *l)
{
	char *copy = aligned_alloc(MiB, LEN);

	ck_assert_ptr_nonnull(copy);
	ck_assert_int_eq(io_pread_full(l->file, copy, LEN, 0), 0);
	return copy;
}

// Whatever has not landed by the second look was in flight at the first; and behind the fence nothing comes any more.
static unsigned reads_of_the_dead(struct line *l, struct io_uring *ring)
{
	unsigned in_flight, landed;

	l->reads = true;
	memset(l->buf, 0, LEN);
	killed_after(l, job_disk);
	map(l->ring_fd, ring);
	in_flight = io_ring_abandoned(ring);
	landed = count(l->buf, IN_FILE);
	ck_assert_msg(landed + in_flight >= NR, "%u have landed, and only %u are in flight", landed, in_flight);
	fence(ring);
	ck_assert_uint_eq(count(l->buf, IN_FILE), NR);
	memset(l->buf, OURS, LEN);
	usleep(100000);
	ck_assert_uint_eq(count(l->buf, OURS), NR);
	return in_flight;
}

static unsigned writes_of_the_dead(struct line *l, struct io_uring *ring)
{
	unsigned in_flight;
	char *copy;

	l->reads = false;
	memset(l->buf, WRITTEN, LEN);
	killed_after(l, job_disk);
	map(l->ring_fd, ring);
	in_flight = fence(ring);
	copy = read_all(l);
	ck_assert_uint_eq(count(copy, WRITTEN), NR);
	free(copy);
	write_all(l, OURS);
	usleep(100000);
	copy = read_all(l);
	ck_assert_uint_eq(count(copy, OURS), NR);
	free(copy);
	write_all(l, IN_FILE);
	return in_flight;
}

static unsigned (*const disk_io[])(struct line *l, struct io_uring *ring) = { reads_of_the_dead, writes_of_the_dead };

START_TEST(disk)
{
	struct line *l = new_line();
	unsigned in_flight = 0;
	struct io_uring ring;

	for (unsigned round = 0; round < 200 && (round < 3 || !in_flight); round++) {
		in_flight += disk_io[_i](l, &ring);
		expect_works(l, &ring);
		io_ring_unmap(&ring);
	}
	ck_assert_msg(in_flight, "everything had ended by the time of each kill: nothing was tested");
	take_down(l);
}
END_TEST

// Counted one by one, whoever looks, and for as long as it takes.
START_TEST(pending)
{
	struct line *l = new_line();
	struct io_uring ring, second;

	l->nr = 40;
	killed_after(l, job_pipe);
	for (unsigned i = 0; i < 3; i++) {
		map(l->ring_fd, &ring);
		ck_assert_uint_eq(io_ring_abandoned(&ring), 40);
		io_ring_unmap(&ring);
		usleep(20000);
	}
	killed_after(l, job_pipe); // the second of two that are killed one after the other, and did not wait for the first
	map(l->ring_fd, &ring);
	map(l->ring_fd, &second);
	ck_assert_uint_eq(io_ring_abandoned(&ring), 80);
	ck_assert_uint_eq(io_ring_abandoned(&second), 80);
	close(l->pipe[1]);
	l->pipe[1] = -1;
	fence(&ring);
	ck_assert_uint_eq(io_ring_abandoned(&second), 0);
	io_ring_unmap(&second);
	expect_works(l, &ring);
	io_ring_unmap(&ring);
	take_down(l);
}
END_TEST

// More completions than the queue has room for.
START_TEST(overflow)
{
	struct line *l = new_line();
	struct io_uring ring;

	l->nr = 20 * ENTRIES;
	killed_after(l, job_pipe);
	map(l->ring_fd, &ring);
	ck_assert_uint_lt(*ring.cq.kring_entries, l->nr);
	ck_assert_uint_eq(io_ring_abandoned(&ring), l->nr);
	close(l->pipe[1]);
	l->pipe[1] = -1;
	fence(&ring);
	ck_assert_uint_eq(*ring.cq.koverflow, 0);
	expect_works(l, &ring);
	io_ring_unmap(&ring);
	take_down(l);
}
END_TEST

static void no_job(struct line *l, struct io_uring *ring)
{
	(void)l;
	(void)ring;
}

static void job_end_elsewhere(struct line *l, struct io_uring *ring)
{
	(void)l;
	for (unsigned i = 0; i < ENTRIES + ENTRIES / 2 + 7; i++) {
		io_uring_prep_nop(get_sqe(ring));
		submit(ring);
	}
}

static void prepare_writes(struct line *l, struct io_uring *ring)
{
	memset(l->buf, WRITTEN, LEN);
	for (size_t i = 0; i < ENTRIES / 2; i++)
		io_uring_prep_write(get_sqe(ring), l->file, l->buf + i * MiB, MiB, i * MiB);
}

// Killed before it has told the kernel, and between telling the kernel and entering it.
static void job_prepared(struct line *l, struct io_uring *ring)
{
	job_end_elsewhere(l, ring);
	prepare_writes(l, ring);
}

static void job_published(struct line *l, struct io_uring *ring)
{
	job_prepared(l, ring);
	__atomic_store_n(ring->sq.ktail, ring->sq.sqe_tail, __ATOMIC_RELEASE);
}

static void (*const stale_jobs[])(struct line *l, struct io_uring *ring) = { no_job, job_end_elsewhere, job_prepared, job_published };

START_TEST(stale)
{
	struct line *l = new_line();
	struct io_uring ring;
	char *copy;

	killed_after(l, stale_jobs[_i]);
	map(l->ring_fd, &ring);
	ck_assert_int_eq(io_uring_enter((unsigned)l->ring_fd, ENTRIES, 0, 0, NULL), 0);
	ck_assert_uint_eq(io_ring_abandoned(&ring), 0);
	expect_works(l, &ring);
	io_ring_unmap(&ring);
	copy = read_all(l);
	ck_assert_uint_eq(count(copy, IN_FILE), NR);
	free(copy);
	take_down(l);
}
END_TEST

// What the kernel takes off the queue without doing it has no completion.
static void job_dropped(struct line *l, struct io_uring *ring)
{
	(void)l;
	for (unsigned i = 0; i < 5; i++) {
		io_uring_prep_nop(get_sqe(ring));
		ring->sq.array[(ring->sq.sqe_tail - 1) & *ring->sq.kring_mask] = i & 1 ? 5 * ENTRIES : i;
		submit(ring);
	}
}

START_TEST(dropped)
{
	struct line *l = new_line();
	struct io_uring ring;

	killed_after(l, job_dropped);
	map(l->ring_fd, &ring);
	ck_assert_uint_eq(*ring.sq.kdropped, 2);
	ck_assert_uint_eq(io_ring_abandoned(&ring), 0);
	expect_works(l, &ring);
	io_ring_unmap(&ring);
	take_down(l);
}
END_TEST

// Each fetches it from a process that knows nothing of it, as pagers do; between two of them nobody else has it open.
START_TEST(held_by_another)
{
	struct line *l = new_line();
	struct io_uring ring;
	int held = l->ring_fd, left;
	pid_t holder = fork();

	ck_assert_int_ge(holder, 0);
	if (!holder) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	for (unsigned round = 0; round < 3; round++) {
		close(l->ring_fd);
		ck_assert_int_eq(mm_fetch_fd(holder, held, "anon_inode:[io_uring]", &l->ring_fd), 0);
		reads_of_the_dead(l, &ring);
		expect_works(l, &ring);
		io_ring_unmap(&ring);
		l->nr = 20;
		killed_after(l, job_pipe);
		l->nr = NR;
		close(l->ring_fd);
		ck_assert_int_eq(mm_fetch_fd(holder, held, "anon_inode:[io_uring]", &l->ring_fd), 0);
		map(l->ring_fd, &ring);
		ck_assert_uint_eq(io_ring_abandoned(&ring), 20);
		ck_assert_int_eq(write(l->pipe[1], l->buf, 20), 20);
		fence(&ring);
		io_ring_unmap(&ring);
		ck_assert(!ioctl(l->pipe[0], FIONREAD, &left) && read(l->pipe[0], l->buf, (size_t)left) == left); // none of the dead took it
	}
	kill(holder, SIGKILL);
	waitpid(holder, NULL, 0);
	take_down(l);
}
END_TEST

START_TEST(not_such_a_ring)
{
	_cleanup_close_ int other = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct line *l = new_line();
	struct io_uring ring;

	log_init(-1, LOG_ERROR, NULL, false);
	ck_assert_int_lt(io_ring_map(other, ENTRIES, &ring), 0);
	ck_assert_int_lt(io_ring_map(-1, ENTRIES, &ring), 0);
	ck_assert_int_eq(io_ring_map(l->ring_fd, ENTRIES / 2, &ring), -EBADF);
	ck_assert_int_lt(io_ring_map(l->ring_fd, ENTRIES * 2, &ring), 0);
	take_down(l);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("io_ring");
	TCase *t = tcase_create("io_ring");
	SRunner *sr;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, disk, 0, ARRAY_SIZE(disk_io));
	tcase_add_test(t, pending);
	tcase_add_test(t, overflow);
	tcase_add_loop_test(t, stale, 0, ARRAY_SIZE(stale_jobs));
	tcase_add_test(t, dropped);
	if (!geteuid())
		tcase_add_test(t, held_by_another);
	tcase_add_test(t, not_such_a_ring);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
