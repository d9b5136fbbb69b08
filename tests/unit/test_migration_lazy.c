// SPDX-License-Identifier: GPL-2.0-only
// A VM whose pages are not all here: what is recorded of it, what its source is told, and which pages are missing.
#include <sys/mman.h>
#include <time.h>

#include "criu-vm/arrival.h"
#include "criu-vm/cmd.h"
#include "criu-vm/migration_lazy.h"
#include "criu-vm/receive.h"
#include "criu-vm/stat_missing.h"
#include "criu-vm/stat_vm.h"
#include "tests/unit/swap_fixture.h"
#include "tests/unit/wire_pair.h"
#include "util/cleanup.h"
#include "util/clock.h"

static uint8_t token[WIRE_TOKEN_LEN];
static const uint8_t host_id[WIRE_TOKEN_LEN] = { 7, 8, 9 };
static const char key[] = "0123456789abcdef";
static char state[64], folder[96], root[64];

static void set_up(void)
{
	snprintf(state, sizeof state, "%s/state", dir);
	snprintf(folder, sizeof folder, "%s/migrations", state);
	snprintf(root, sizeof root, "%s/run", dir);
	remove_dir();
	ck_assert_int_eq(mkdir(dir, 0700), 0);
	ck_assert_int_eq(mkdir(root, 0700), 0);
	setenv("CRIU_VM_STATE_DIR", state, 1);
	ck_assert_int_eq(wire_token_new(token), 0);
	said_clear();
}

static const char *lazy_file(void)
{
	static char path[192];
	char text[WIRE_TOKEN_TEXT];

	snprintf(path, sizeof path, "%s/%s.lazy", folder, wire_token_format(token, text));
	return path;
}

static void save(enum wire_line_state is)
{
	struct migration_lazy l = { .state = is, .name = "web", .run_root = root };

	memcpy(l.host_id, host_id, sizeof l.host_id);
	memcpy(l.key, key, sizeof l.key);
	ck_assert_int_eq(migration_lazy_save(token, &l), 0);
}

// -1: there is none.
static int recorded(void)
{
	struct migration_lazy l;
	int r = migration_lazy_find(token, &l), is = (int)l.state;

	ck_assert(!r || r == -ENOENT);
	migration_lazy_fini(&l);
	return r ? -1 : is;
}

START_TEST(saved_and_found)
{
	static const enum wire_line_state states[] = { WIRE_LINE_WANTS, WIRE_LINE_COMPLETE, WIRE_LINE_ENDED };
	struct migration_lazy l;

	ck_assert_int_eq(recorded(), -1);
	migration_lazy_remove(token);
	for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
		save(states[i]);
		ck_assert_int_eq(migration_lazy_find(token, &l), 0);
		ck_assert_int_eq(l.state, states[i]);
		ck_assert_str_eq(l.name, "web");
		ck_assert_str_eq(l.run_root, root);
		ck_assert_mem_eq(l.host_id, host_id, sizeof host_id);
		ck_assert_mem_eq(l.key, key, sizeof l.key);
		migration_lazy_fini(&l);
	}
	token[0] ^= 1;
	ck_assert_int_eq(recorded(), -1);
	token[0] ^= 1;
	migration_lazy_remove(token);
	ck_assert_int_eq(recorded(), -1);
	ck_assert_str_eq(said_text, "");
}
END_TEST

static void replace_in_file(const char *path, const char *what, const char *by)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	char *at;
	FILE *f;

	ck_assert_int_eq(io_read_file(path, 1 << 16, &text, &len), 0);
	at = strstr(text, what);
	ck_assert_ptr_nonnull(at);
	f = fopen(path, "we");
	ck_assert(f && fprintf(f, "%.*s%s%s", (int)(at - text), text, by, at + strlen(what)) > 0 && !fclose(f));
}

static void be_of_another_boot(void)
{
	replace_in_file(lazy_file(), "\"boot\": \"", "\"boot\": \"x");
}

// A VM does not survive its host's end; what was complete before stays so.
START_TEST(another_boot)
{
	save(WIRE_LINE_WANTS);
	be_of_another_boot();
	ck_assert_int_eq(recorded(), WIRE_LINE_ENDED);
	save(WIRE_LINE_COMPLETE);
	be_of_another_boot();
	ck_assert_int_eq(recorded(), WIRE_LINE_COMPLETE);
}
END_TEST

static const struct {
	const char *what, *by;
} damage[] = {
	{ "{", "[" },		{ "wanted", "wante" },	     { "\"web\"", "\"../web\"" }, { "run_root\": \"/", "run_root\": \"" },
	{ "\"boot\"", "\"b\"" }, { "\"0708", "\"070" }, { "\"3031", "\"303" },	     { "\"state\"", "\"s\"" },	  { "\"web\"", "5" },
};

START_TEST(damaged)
{
	struct migration_lazy l;

	save(WIRE_LINE_WANTS);
	replace_in_file(lazy_file(), damage[_i].what, damage[_i].by);
	ck_assert_int_eq(migration_lazy_find(token, &l), -EBADMSG);
	migration_lazy_fini(&l);
	ck_said(".lazy");
}
END_TEST

static const struct {
	enum wire_line_state is;
	bool other_boot;
	time_t days;
	bool stays;
} swept[] = {
	{ WIRE_LINE_WANTS, false, 300, true },	   { WIRE_LINE_WANTS, true, 31, false }, { WIRE_LINE_COMPLETE, false, 29, true },
	{ WIRE_LINE_COMPLETE, false, 31, false }, { WIRE_LINE_ENDED, true, 31, false }, { WIRE_LINE_ENDED, false, 29, true },
};

START_TEST(sweep)
{
	struct timespec at = { .tv_sec = time(NULL) - swept[_i].days * 24 * 3600 }, times[2] = { at, at };

	save(swept[_i].is);
	if (swept[_i].other_boot)
		be_of_another_boot();
	ck_assert_int_eq(utimensat(AT_FDCWD, lazy_file(), times, 0), 0);
	migration_sweep();
	ck_assert_int_eq(access(lazy_file(), F_OK) == 0, swept[_i].stays);
}
END_TEST

// ---- the VM

static struct vm_state_block blocks[] = {
	{ .off = 0, .len = 2 * PV_CHUNK_SIZE + 3 * PAGE_SIZE, .memfd = 5, .name = (char *)"pc.ram" },
	{ .off = 3 * PV_CHUNK_SIZE, .len = PV_CHUNK_SIZE, .memfd = 6, .name = (char *)"dimm" },
};

static struct vm_state lazy_state(void)
{
	return (struct vm_state){ .nr_chunks = 4, .nr_blocks = 2, .blocks = blocks, .remote = (char *)"192.0.2.1", .remote_id = (char *)"id",
				  .remote_key = (char *)"key", .remote_tls = (char *)"/tls", .remote_lines = 5, .fill = true };
}

static void make_vm(struct run_dir *rd)
{
	ck_assert_int_eq(run_dir_create(root, "web", rd), 0);
	ck_assert_int_eq(arrival_mark(rd, token), 0);
}

START_TEST(state_round_trip)
{
	struct vm_state s = lazy_state(), found;
	struct run_dir rd;

	make_vm(&rd);
	ck_assert_int_eq(vm_state_save(&rd, &s), 0);
	ck_assert_int_eq(vm_state_load(&rd, &found), 0);
	ck_assert_str_eq(found.remote, s.remote);
	ck_assert_str_eq(found.remote_id, s.remote_id);
	ck_assert_str_eq(found.remote_key, s.remote_key);
	ck_assert_str_eq(found.remote_tls, s.remote_tls);
	ck_assert_uint_eq(found.remote_lines, 5);
	ck_assert(!found.remote_connects && found.fill);
	ck_assert_str_eq(found.blocks[1].name, "dimm");
	vm_state_fini(&found);
	s.remote = s.remote_key = s.remote_tls = NULL;
	blocks[1].name = NULL; // as an earlier version wrote it
	ck_assert_int_eq(vm_state_save(&rd, &s), 0);
	ck_assert_int_eq(vm_state_load(&rd, &found), 0);
	ck_assert(!found.remote && !found.remote_key && !found.blocks[1].name);
	vm_state_fini(&found);
	s.remote = (char *)"192.0.2.1";
	ck_assert_int_eq(vm_state_save(&rd, &s), 0);
	ck_assert_int_eq(vm_state_load(&rd, &found), -EPROTO); // nobody could tell its source from others
	run_dir_destroy(&rd);
}
END_TEST

static const struct {
	enum wire_line_state is;
	bool runs, committed;
	int becomes;
} ends[] = {
	{ WIRE_LINE_WANTS, true, false, WIRE_LINE_ENDED },    { WIRE_LINE_WANTS, false, true, WIRE_LINE_ENDED }, { WIRE_LINE_WANTS, false, false, -1 },
	{ WIRE_LINE_COMPLETE, true, true, WIRE_LINE_COMPLETE }, { WIRE_LINE_COMPLETE, false, false, -1 },
};

START_TEST(ended)
{
	enum migration_decision is;
	struct run_dir rd;

	make_vm(&rd);
	if (ends[_i].runs)
		ck_assert_int_eq(run_dir_mark(&rd, "running", ""), 0);
	if (ends[_i].committed)
		ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "web", &is), 0);
	save(ends[_i].is);
	run_dir_destroy(&rd);
	ck_assert_int_eq(recorded(), ends[_i].becomes);
}
END_TEST

// ---- which pages

static void expect_run(const json_t *missing, size_t i, const char *block, uint64_t off, uint64_t len)
{
	const json_t *run = json_array_get(json_object_get(missing, "missing"), i);

	ck_assert_str_eq(stat_string(run, "block"), block);
	ck_assert_uint_eq(stat_number(run, NULL, "offset"), off);
	ck_assert_uint_eq(stat_number(run, NULL, "length"), len);
}

static void make_table(const struct run_dir *rd, const uint64_t in_images[4][PV_WORDS])
{
	uint64_t all[PV_WORDS], few[PV_WORDS] = { 0x7 };
	struct pv_pages *pages;
	_cleanup_close_ int fd = openat(rd->fd, "in-images", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	ck_assert_int_eq(io_write_full(fd, in_images, 4 * sizeof *in_images), 0);
	memset(all, 0xff, sizeof all);
	ck_assert_int_eq(run_dir_map_pages(rd, 4, true, &pages), 0);
	for (unsigned i = 0; i < 4; i++)
		pv_pages_set_home(&pages[i], all, PV_HOME_ZERO);
	pv_page_set_home(&pages[0], 5, PV_HOME_SOURCE);
	bitmap_set(pages[0].valid, 7); // in memory, and there, too
	pv_page_set_home(&pages[0], 7, PV_HOME_SOURCE);
	pv_page_set_home(&pages[1], 255, PV_HOME_SOURCE);
	pv_pages_set_home(&pages[2], few, PV_HOME_SOURCE);
	pv_pages_set_home(&pages[3], all, PV_HOME_SOURCE);
	munmap(pages, 4 * sizeof *pages);
}

START_TEST(missing_pages)
{
	const uint64_t in_images[4][PV_WORDS] = { [3] = { 0, UINT64_MAX, 0, 0 } };
	struct vm_state s = lazy_state();
	struct run_dir rd;
	json_t *m;

	make_vm(&rd);
	make_table(&rd, in_images);
	ck_assert_int_eq(stat_missing(root, "other", &m), -ENOENT);
	ck_assert_int_eq(vm_state_save(&rd, &s), 0);
	ck_assert_int_eq(stat_missing(root, "web", &m), 0);
	ck_assert_uint_eq(stat_number(m, NULL, "pages"), 1 + 1 + 3 + 256);
	ck_assert_uint_eq(json_array_size(json_object_get(m, "missing")), 3);
	expect_run(m, 0, "pc.ram", 5 * PAGE_SIZE, PAGE_SIZE);
	expect_run(m, 1, "pc.ram", PV_CHUNK_SIZE + 255 * PAGE_SIZE, 4 * PAGE_SIZE);
	expect_run(m, 2, "dimm", 0, PV_CHUNK_SIZE);
	json_decref(m);
	s.images = (char *)"/images"; // which have some of them
	ck_assert_int_eq(vm_state_save(&rd, &s), 0);
	ck_assert_int_eq(stat_missing(root, "web", &m), 0);
	ck_assert_uint_eq(stat_number(m, NULL, "pages"), 1 + 1 + 3 + 192);
	expect_run(m, 2, "dimm", 0, 64 * PAGE_SIZE);
	expect_run(m, 3, "dimm", 128 * PAGE_SIZE, 128 * PAGE_SIZE);
	json_decref(m);
	s.remote = NULL; // all that is left is in the images
	ck_assert_int_eq(vm_state_save(&rd, &s), 0);
	ck_assert_int_eq(stat_missing(root, "web", &m), 0);
	ck_assert_uint_eq(stat_number(m, NULL, "pages"), 0);
	json_decref(m);
	run_dir_destroy(&rd);
}
END_TEST

// ---- a page line comes

static int server_fd; // receive_line()'s

static void *receive_one(void *ctx)
{
	struct receive_opts o = { .line = -1 };

	memcpy(o.token, token, sizeof o.token);
	*(int *)ctx = receive_line(&o, 3, server_fd);
	return NULL;
}

struct line {
	int fd, status;
	pthread_t thread;
};

static void line_open(struct line *l, const char *with_key)
{
	uint16_t port;
	int listener = pair_listen(AF_INET, &port);
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct timeval patience = { .tv_sec = PATIENCE_MS / 1000 };

	l->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(connect(l->fd, (struct sockaddr *)&at, sizeof at), 0);
	setsockopt(l->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	server_fd = accept(listener, NULL, NULL);
	close(listener);
	ck_assert_int_ge(server_fd, 0);
	ck_assert_int_eq(io_write_full(l->fd, with_key, WIRE_KEY_LEN), 0);
	l->status = -1;
	ck_assert_int_eq(pthread_create(&l->thread, NULL, receive_one, &l->status), 0);
}

static int line_end(struct line *l)
{
	pthread_join(l->thread, NULL);
	close(l->fd);
	return l->status;
}

static struct wire_frame line_hear(const struct line *l)
{
	uint8_t head[WIRE_FRAME_LEN];
	struct wire_frame f;
	uint64_t checksum;

	ck_assert_int_eq(io_read_full(l->fd, head, sizeof head), 0);
	ck_assert_int_eq(wire_frame_parse(head, &f, &checksum), 0);
	return f;
}

static void line_is_refused(enum wire_refusal why, const char *with_key)
{
	struct wire_frame f;
	struct line l;

	line_open(&l, with_key);
	f = line_hear(&l);
	ck_assert_int_eq(f.type, WIRE_REFUSED);
	ck_assert_int_eq(f.round, why);
	shutdown(l.fd, SHUT_RDWR);
	line_end(&l);
}

START_TEST(line_of_nobody)
{
	line_is_refused(WIRE_REFUSED_UNKNOWN, key);
}
END_TEST

// A real frame, through what a source sends with.
static void say(const struct line *l, enum wire_frame_type type)
{
	const uint8_t begins[] = { 'C', 'V', 'P', 'G', (uint8_t)type };
	struct wire_frame f = { .type = (uint8_t)type };
	struct pair p = { .host = NULL };
	struct wire_pages *pages;
	uint8_t head[WIRE_FRAME_LEN];

	pair_must_open(&p); // whose other end has the bytes
	ck_assert_int_eq(wire_pages_new(p.client, &pages), 0);
	ck_assert_int_eq(wire_pages_send(pages, &f, NULL, 0), 0);
	ck_assert_int_eq(wire_read(p.server, head, sizeof head), 0);
	ck_assert_mem_eq(head, begins, sizeof begins);
	wire_pages_free(pages);
	pair_close(&p);
	ck_assert_int_eq(io_write_full(l->fd, head, sizeof head), 0);
}

static void line_is_told(enum wire_line_state is)
{
	enum migration_decision decided;
	uint8_t id[WIRE_LINE_ID_LEN];
	struct wire_frame f;
	struct line l;

	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "web", &decided), 0);
	memcpy(id, token, sizeof token);
	memcpy(id + sizeof token, host_id, sizeof host_id);
	line_open(&l, key);
	f = line_hear(&l);
	ck_assert_int_eq(f.type, WIRE_LEFT);
	ck_assert_int_eq(f.block, is);
	ck_assert(wire_line_id_is(&f, id));
	close(l.fd); // lost: it comes again
	l.fd = -1;
	ck_assert_int_ne(line_end(&l), CMD_OK);
	ck_assert_int_eq(recorded(), is == WIRE_LINE_COMPLETE && recorded() == WIRE_LINE_WANTS ? WIRE_LINE_WANTS : (int)is);
	line_open(&l, key);
	f = line_hear(&l);
	say(&l, WIRE_ALIVE);
	say(&l, WIRE_OVER);
	ck_assert_int_eq(line_end(&l), CMD_OK);
	ck_assert_int_eq(recorded(), -1);
	ck_assert_int_eq(migration_decided(token, &decided, NULL), 0);
	ck_assert_int_eq(decided, MIGRATION_UNDECIDED); // forgotten, as the source knows
}

START_TEST(line_after_the_end)
{
	save(_i ? WIRE_LINE_ENDED : WIRE_LINE_COMPLETE);
	line_is_told(_i ? WIRE_LINE_ENDED : WIRE_LINE_COMPLETE);
}
END_TEST

// Who knows the token, and has seen it on the wire, has not got the key.
START_TEST(line_of_a_stranger)
{
	enum migration_decision is;

	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "web", &is), 0);
	save(WIRE_LINE_COMPLETE);
	line_is_refused(WIRE_REFUSED_KEY, "0123456789abcdeF");
	ck_assert_int_eq(recorded(), WIRE_LINE_COMPLETE);
	ck_assert_int_eq(migration_decided(token, &is, NULL), 0);
	ck_assert_int_eq(is, MIGRATION_COMMITTED);
}
END_TEST

// Who holds the line and says nothing, or never the last word, keeps nobody.
START_TEST(line_that_is_silent)
{
	uint64_t begun = clock_now_ns();
	struct line l;

	save(WIRE_LINE_COMPLETE);
	line_open(&l, key);
	line_hear(&l);
	if (_i) // half a frame
		ck_assert_int_eq(io_write_full(l.fd, "CVPG", 4), 0);
	pthread_join(l.thread, NULL);
	ck_assert_int_ne(l.status, CMD_OK);
	ck_assert_uint_lt(clock_now_ns() - begun, (WIRE_LINE_LOST_MS + 5000) * NSEC_PER_MSEC);
	close(l.fd);
	ck_assert_int_eq(recorded(), WIRE_LINE_COMPLETE);
}
END_TEST

struct pager {
	int listener, took; // line
	const char *answer;
	pthread_t thread;
};

static void *be_pager(void *ctx)
{
	struct pager *p = ctx;
	int fd;

	while ((fd = accept(p->listener, NULL, NULL)) >= 0) {
		char text[1024] = "";
		json_t *request;

		ck_assert_int_gt(read(fd, text, sizeof text - 1), 0);
		request = json_loads(text, 0, NULL);
		ck_assert_str_eq(stat_string(request, "execute"), "line");
		ck_assert_uint_eq(stat_number(request, NULL, "pid"), (uint64_t)getpid());
		ck_assert_uint_eq(stat_number(request, NULL, "fd"), (uint64_t)server_fd);
		p->took = (int)stat_number(request, NULL, "line");
		json_decref(request);
		ck_assert_int_eq(io_write_full(fd, p->answer, strlen(p->answer)), 0);
		close(fd);
	}
	return NULL;
}

static void pager_begin(struct pager *p, const struct run_dir *rd, const char *answer)
{
	*p = (struct pager){ .took = -1, .listener = run_dir_listen(rd, "control.sock"), .answer = answer };
	ck_assert_int_ge(p->listener, 0);
	fcntl(p->listener, F_SETFL, 0);
	ck_assert_int_eq(pthread_create(&p->thread, NULL, be_pager, p), 0);
}

// Which line it took, -1: none.
static int pager_end(struct pager *p)
{
	shutdown(p->listener, SHUT_RDWR);
	pthread_join(p->thread, NULL);
	close(p->listener);
	return p->took;
}

START_TEST(line_without_a_pager)
{
	struct run_dir rd;
	struct pager p;

	save(WIRE_LINE_WANTS);
	line_is_refused(WIRE_REFUSED_NOW, key); // no run directory: who knows
	make_vm(&rd);
	line_is_refused(WIRE_REFUSED_NOW, key);
	pager_begin(&p, &rd, "{}\n");
	token[0] ^= 1; // its VM is another one, which has the name
	save(WIRE_LINE_WANTS);
	line_is_refused(WIRE_REFUSED_NOW, key);
	ck_assert_int_eq(pager_end(&p), -1);
	ck_assert_int_eq(recorded(), WIRE_LINE_WANTS);
	run_dir_destroy(&rd);
}
END_TEST

START_TEST(line_for_a_pager)
{
	struct run_dir rd;
	struct pager p;
	struct line l;
	char byte;

	make_vm(&rd);
	save(WIRE_LINE_WANTS);
	pager_begin(&p, &rd, "{}\n");
	line_open(&l, key);
	ck_assert_int_eq(read(l.fd, &byte, 1) > 0, 0); // it is the pager's: nobody else says anything
	ck_assert_int_eq(line_end(&l), CMD_OK);
	ck_assert_int_eq(pager_end(&p), 3);
	pager_begin(&p, &rd, "{\"error\": \"not now\"}\n");
	line_is_refused(WIRE_REFUSED_NOW, key);
	ck_assert_int_eq(pager_end(&p), 3);
	pager_begin(&p, &rd, "{\"complete\": true}\n");
	line_is_told(WIRE_LINE_COMPLETE);
	ck_assert_int_eq(pager_end(&p), 3);
	run_dir_destroy(&rd);
}
END_TEST

// VM, pager and supervisor were killed at once: it ends here, too.
START_TEST(line_of_the_dead)
{
	struct vm_state s = lazy_state();
	struct run_dir rd;
	int held;

	make_vm(&rd);
	ck_assert_int_eq(run_dir_mark(&rd, "running", ""), 0);
	s.qemu = getpid();
	s.qemu_start = 1; // another process has its pid
	ck_assert_int_eq(vm_state_save(&rd, &s), 0);
	save(WIRE_LINE_WANTS);
	held = run_dir_hold(&rd, "supervisor");
	ck_assert_int_ge(held, 0);
	line_is_refused(WIRE_REFUSED_NOW, key); // it sees to that
	close(held);
	line_is_told(WIRE_LINE_ENDED);
	run_dir_destroy(&rd);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("migration_lazy");
	TCase *t = tcase_create("lazy");
	SRunner *runner;
	int failed;

	make_dir();
	tcase_add_checked_fixture(t, set_up, NULL);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, saved_and_found);
	tcase_add_test(t, another_boot);
	tcase_add_loop_test(t, damaged, 0, ARRAY_SIZE(damage));
	tcase_add_loop_test(t, sweep, 0, ARRAY_SIZE(swept));
	tcase_add_test(t, state_round_trip);
	tcase_add_loop_test(t, ended, 0, ARRAY_SIZE(ends));
	tcase_add_test(t, missing_pages);
	tcase_add_test(t, line_of_nobody);
	tcase_add_loop_test(t, line_after_the_end, 0, 2);
	tcase_add_test(t, line_of_a_stranger);
	tcase_add_loop_test(t, line_that_is_silent, 0, 2);
	tcase_add_test(t, line_without_a_pager);
	tcase_add_test(t, line_for_a_pager);
	tcase_add_test(t, line_of_the_dead);
	suite_add_tcase(s, t);
	runner = srunner_create(s);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	remove_dir();
	return failed ? 1 : 0;
}
