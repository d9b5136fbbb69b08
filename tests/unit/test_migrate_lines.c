// SPDX-License-Identifier: GPL-2.0-only
// Page lines of a VM that has left: over TCP, who asks is the test; the VM is a process that has memory, and does nothing.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "criu-vm/migrate_lines.h"
#include "tests/unit/wire_pair.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/size.h"

#define LEN WIRE_CHUNK_SIZE
#define WRITTEN 3 // pages of each block that the process has written to, with its own byte
#define FOREVER 60000

enum { ANON, MEMFD, FILE_OF_ITS_OWN, NAMED, NR_BLOCKS };

static const uint8_t token[WIRE_TOKEN_LEN] = { 1 }, host_id[WIRE_TOKEN_LEN] = { 2 }, key[WIRE_KEY_LEN] = { 3 };
static struct qemu_ramblock blocks[NR_BLOCKS];
static pid_t vm;
static int vm_fd = -1, listen_fd = -1;
static uint16_t port;
static struct ram *ram;
static struct lines *lines;
static struct asker {
	struct wire_conn *c;
	struct wire_pages *pages;
} asker;
static char answer[WIRE_CHUNK_SIZE];

// ---- the VM

static char *map_file(bool named, int flags)
{
	char path[] = "/var/tmp/criu-vm-test.XXXXXX";
	int fd = named ? mkstemp(path) : memfd_create("vm", MFD_CLOEXEC);
	char *map;

	ck_assert(fd >= 0 && !ftruncate(fd, LEN));
	for (unsigned i = 0; named && i < WIRE_CHUNK_PAGES; i++) // what must not be taken for its memory
		ck_assert_int_eq(pwrite(fd, "file", 4, (off_t)(i * PAGE_SIZE)), 4);
	map = mmap(NULL, LEN, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (named && flags == MAP_PRIVATE)
		unlink(path);
	close(fd);
	return map;
}

static char named_path[64];

static char *map_named(void)
{
	int fd;
	char *map;

	unlink(named_path); // of a test that has failed
	fd = open(named_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ck_assert(fd >= 0 && !ftruncate(fd, LEN));
	map = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return map;
}

static void stop_vm(void)
{
	int status;

	ck_assert_int_eq(kill(vm, SIGSTOP), 0);
	ck_assert_int_eq(waitpid(vm, &status, WUNTRACED), vm);
	ck_assert(WIFSTOPPED(status));
}

static void start_vm(void)
{
	char *maps[NR_BLOCKS] = { mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), map_file(false, MAP_SHARED),
				  map_file(true, MAP_PRIVATE), map_named() };
	int ready[2];
	char byte;

	ck_assert_int_eq(pipe(ready), 0);
	for (unsigned i = 0; i < NR_BLOCKS; i++) {
		ck_assert_ptr_ne(maps[i], MAP_FAILED);
		blocks[i] = (struct qemu_ramblock){ .len = LEN, .hva = (uintptr_t)maps[i] };
		snprintf(blocks[i].name, sizeof blocks[i].name, "block-%u", i);
	}
	vm = fork();
	if (!vm) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned i = 0; i < NR_BLOCKS; i++)
			for (unsigned page = 0; page < WRITTEN; page++)
				memset(maps[i] + page * PAGE_SIZE, (int)(0x10 * (i + 1) + page), PAGE_SIZE);
		if (write(ready[1], "", 1) == 1)
			pause();
		_exit(0);
	}
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	vm_fd = (int)syscall(SYS_pidfd_open, vm, 0);
	stop_vm();
	for (unsigned i = 0; i < NR_BLOCKS; i++) // they are its alone
		munmap(maps[i], LEN);
}

static void end_vm(void)
{
	if (vm > 0) {
		kill(vm, SIGKILL);
		waitpid(vm, NULL, 0);
	}
	vm = 0;
}

// ---- who asks

static void accept_line(void)
{
	uint8_t buf[WIRE_PREAMBLE_LEN], its[WIRE_KEY_LEN];
	struct wire_preamble p;
	int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);

	ck_assert_int_eq(io_read_full(fd, buf, sizeof buf), 0);
	ck_assert_int_eq(wire_preamble_parse(buf, &p), 0);
	ck_assert(p.kind == WIRE_LINE && !p.channel && !memcmp(p.token, token, sizeof token));
	ck_assert_int_eq(wire_accept(fd, NULL, PATIENCE_MS, &asker.c), 0);
	ck_assert_int_eq(wire_read(asker.c, its, sizeof its), 0);
	ck_assert_mem_eq(its, key, sizeof key);
	ck_assert_int_eq(wire_pages_new(asker.c, &asker.pages), 0);
}

static void say(enum wire_line_state state, uint64_t missing)
{
	uint8_t id[WIRE_LINE_ID_LEN];

	memcpy(id, token, sizeof token);
	memcpy(id + sizeof token, host_id, sizeof host_id);
	ck_assert_int_eq(wire_line_left(asker.pages, state, missing, id), 0);
}

static void hang_up(void)
{
	wire_pages_free(asker.pages);
	wire_close(asker.c);
	asker = (struct asker){ NULL };
}

static void want(uint32_t block, uint64_t pages)
{
	ck_assert_int_eq(wire_line_want(asker.pages, block, 0, (uint64_t[4]){ pages }), 0);
}

// The next frame but ALIVE.
static int next_frame(struct wire_frame *f)
{
	int r;

	do
		r = wire_pages_receive(asker.pages, f, answer);
	while (!r && f->type == WIRE_ALIVE);
	return r;
}

// Its first pages, which it has written to, and one that it has not; known: that is zero.
static void expect_pages(uint32_t block, bool known)
{
	struct wire_frame f;

	want(block, known ? 15 : 7);
	ck_assert_int_eq(next_frame(&f), 0);
	ck_assert_int_eq(f.type, WIRE_PAGES);
	ck_assert_uint_eq(f.present[0], 7);
	ck_assert_uint_eq(f.zero[0], known ? 8 : 0);
	for (unsigned page = 0; page < WRITTEN; page++)
		for (size_t i = 0; i < PAGE_SIZE; i++)
			ck_assert_uint_eq((uint8_t)answer[page * PAGE_SIZE + i], 0x10 * (block + 1) + page);
}

static void expect_cannot(uint32_t block)
{
	struct wire_frame f;

	want(block, 15);
	ck_assert_int_eq(next_frame(&f), 0);
	ck_assert_int_eq(f.type, WIRE_CANNOT);
}

static void open_lines(uint16_t to)
{
	struct lines_opts o = { .token = token, .host_id = host_id, .key = key, .host = "127.0.0.1", .port = to, .nr = 1, .ram = ram, .pidfd = vm_fd,
				.blocks = blocks, .nr_blocks = NR_BLOCKS };

	ck_assert_int_eq(lines_open(&o, &lines), 0);
}

static void set_up(void)
{
	struct ram_opts o = { .blocks = blocks, .nr_blocks = NR_BLOCKS };

	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false);
	said_clear();
	start_vm();
	o.pid = vm;
	ck_assert_int_eq(ram_open(&o, &ram), 0);
	listen_fd = pair_listen(AF_INET, &port);
	open_lines(port);
}

static void tear_down(void)
{
	lines_close(lines);
	lines = NULL;
	hang_up();
	ram_close(ram);
	end_vm();
	close(vm_fd);
	close(listen_fd);
}

// ---- tests

START_TEST(held)
{
	accept_line();
	say(WIRE_LINE_WANTS, 20);
	ck_assert_int_eq(lines_wait(lines, FOREVER, NULL, NULL), 0);
	want(ANON, 7);
	for (struct wire_frame f; wire_poll(asker.c, 500) > 0;) {
		ck_assert_int_eq(wire_pages_receive(asker.pages, &f, answer), 0);
		ck_assert_int_eq(f.type, WIRE_ALIVE);
	}
	lines_hold(lines, false);
	for (struct wire_frame f = { .type = WIRE_ALIVE }; f.type == WIRE_ALIVE;)
		ck_assert_int_eq(next_frame(&f), 0);
	for (uint32_t b = 0; b < NR_BLOCKS; b++)
		expect_pages(b, b != FILE_OF_ITS_OWN);
}
END_TEST

// Nothing is made up: of what has gone with the process nothing is said; of what has not, what it was.
START_TEST(vm_ends)
{
	struct lines_status s;

	accept_line();
	say(WIRE_LINE_WANTS, 20);
	lines_hold(lines, false);
	expect_pages(ANON, true);
	end_vm();
	expect_cannot(ANON);
	expect_cannot(FILE_OF_ITS_OWN);
	expect_cannot(NAMED); // the next VM may have it by now
	lines_status(lines, &s);
	ck_assert_ptr_ne(strstr(s.trouble, "ended"), NULL);
	ck_assert_uint_eq(s.provided.failed, 3);
	ck_assert_uint_eq(s.provided.pages, 3);
	expect_pages(MEMFD, true);
}
END_TEST

// What is read while it runs may be of a life that it has had since it left.
START_TEST(vm_runs)
{
	struct lines_status s;
	int status;

	accept_line();
	say(WIRE_LINE_WANTS, 20);
	lines_hold(lines, false);
	expect_pages(ANON, true);
	ck_assert_int_eq(kill(vm, SIGCONT), 0);
	ck_assert_int_eq(waitpid(vm, &status, WCONTINUED), vm);
	for (uint32_t b = 0; b < NR_BLOCKS; b++)
		expect_cannot(b);
	lines_status(lines, &s);
	ck_assert_ptr_ne(strstr(s.trouble, "stand still"), NULL);
	stop_vm();
	expect_pages(ANON, true);
}
END_TEST

START_TEST(cut)
{
	struct lines_status s;

	accept_line();
	say(WIRE_LINE_WANTS, 20);
	ck_assert_int_eq(lines_wait(lines, FOREVER, NULL, NULL), 0);
	lines_hold(lines, false);
	expect_pages(ANON, true);
	want(MEMFD, 7);
	hang_up();
	accept_line();
	say(WIRE_LINE_WANTS, 17);
	expect_pages(MEMFD, true);
	lines_status(lines, &s);
	ck_assert_uint_eq(s.nr, 1);
	ck_assert_uint_eq(s.provided.missing, 17);
	ck_assert_str_eq(s.trouble, "");
}
END_TEST

// However long the pause is by now.
START_TEST(redirected)
{
	uint16_t other = 0, dead = 0;
	int was = listen_fd, gone = pair_listen(AF_INET, &dead);
	uint64_t begun, end;
	struct lines_status s;

	close(gone);
	accept_line();
	lines_redirect(lines, "127.0.0.1", dead);
	hang_up();
	close(was);
	listen_fd = pair_listen(AF_INET, &other);
	usleep(3500000); // 0.2, 0.4, 0.8, 1.6, 3.2 s
	for (end = clock_now_ns() + 20 * NSEC_PER_SEC; clock_now_ns() < end; usleep(1000)) {
		lines_status(lines, &s);
		if (!s.nr && strstr(s.trouble, "no server"))
			break;
	}
	ck_assert_uint_eq(s.nr, 0);
	ck_assert_ptr_ne(strstr(s.trouble, "no server"), NULL);
	begun = clock_now_ns();
	lines_redirect(lines, "127.0.0.1", other);
	accept_line();
	ck_assert_uint_lt(clock_now_ns() - begun, 2 * NSEC_PER_SEC);
}
END_TEST

static void expect_end(bool over)
{
	struct wire_frame f;
	int r = next_frame(&f);

	if (over) {
		ck_assert_int_eq(r, 0);
		ck_assert_int_eq(f.type, WIRE_OVER);
	} else {
		ck_assert_int_ne(r, 0);
	}
}

START_TEST(complete)
{
	struct provided all;
	struct lines_status s;

	accept_line();
	say(WIRE_LINE_WANTS, 20);
	lines_hold(lines, false);
	expect_pages(ANON, true);
	lines_wait_change(lines, 1);
	lines_status(lines, &s);
	ck_assert_int_eq(s.state, WIRE_LINE_WANTS);
	say(_i ? WIRE_LINE_ENDED : WIRE_LINE_COMPLETE, 0);
	lines_wait_change(lines, FOREVER);
	lines_status(lines, &s);
	ck_assert_int_eq(s.state, _i ? WIRE_LINE_ENDED : WIRE_LINE_COMPLETE);
	ck_assert_int_eq(wire_poll(asker.c, 300), 0); // not before nothing is held
	lines_over(lines, &all);
	lines = NULL;
	expect_end(true);
	ck_assert_uint_eq(all.pages, 3);
	ck_assert_uint_gt(all.bytes, 3 * PAGE_SIZE);
}
END_TEST

// What is held here may take long to go.
START_TEST(alive_until_over)
{
	struct wire_frame f;

	accept_line();
	say(WIRE_LINE_WANTS, 20);
	say(WIRE_LINE_COMPLETE, 0);
	lines_wait_change(lines, FOREVER);
	for (unsigned i = 0; i < 2; i++) {
		ck_assert_int_gt(wire_poll(asker.c, WIRE_LINE_ALIVE_MS * 2), 0);
		ck_assert_int_eq(wire_pages_receive(asker.pages, &f, answer), 0);
		ck_assert_int_eq(f.type, WIRE_ALIVE);
	}
	hang_up(); // before it was said: it comes again
	accept_line();
	say(WIRE_LINE_COMPLETE, 0);
	usleep(300000);
	lines_over(lines, NULL);
	lines = NULL;
	expect_end(true);
}
END_TEST

// A migration that is given up says nothing of the kind.
START_TEST(closed)
{
	accept_line();
	say(WIRE_LINE_WANTS, 20);
	say(WIRE_LINE_COMPLETE, 0);
	lines_wait_change(lines, FOREVER);
	lines_close(lines);
	lines = NULL;
	expect_end(false);
}
END_TEST

static int says_no(void *ctx)
{
	return ++*(int *)ctx < 3 ? 0 : -EPROTO;
}

START_TEST(not_taken)
{
	int times = 0;

	ck_assert_int_eq(lines_wait(lines, FOREVER, says_no, &times), -EPROTO);
	ck_assert_int_eq(times, 3);
	ck_assert_int_eq(lines_wait(lines, 300, NULL, NULL), -ETIMEDOUT);
	ck_said("page line 0 was not taken");
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("lines");
	Suite *s = suite_create("migrate lines");
	SRunner *r = srunner_create(s);
	int failed;

	snprintf(named_path, sizeof named_path, "/dev/shm/criu-vm-test.%d", getpid());
	tcase_add_checked_fixture(t, set_up, tear_down);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, held);
	tcase_add_test(t, vm_ends);
	tcase_add_test(t, vm_runs);
	tcase_add_test(t, cut);
	tcase_add_test(t, redirected);
	tcase_add_loop_test(t, complete, 0, 2);
	tcase_add_test(t, alive_until_over);
	tcase_add_test(t, closed);
	tcase_add_test(t, not_taken);
	suite_add_tcase(s, t);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	unlink(named_path);
	return failed ? 1 : 0;
}
