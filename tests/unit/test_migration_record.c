// SPDX-License-Identifier: GPL-2.0-only
// The records of migrations: one decision, whoever wants what, and whatever the disk does.
#include <dirent.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <time.h>

#include "criu-vm/arrival.h"
#include "criu-vm/migration_record.h"
#include "criu-vm/migration_source.h"
#include "tests/unit/swap_fixture.h"
#include "util/cleanup.h"
#include "util/process.h"

#define ROUNDS 1000

static uint8_t token[WIRE_TOKEN_LEN];
static char state[64], folder[96];

static void set_up(void)
{
	snprintf(state, sizeof state, "%s/state", dir);
	snprintf(folder, sizeof folder, "%s/migrations", state);
	remove_dir();
	ck_assert_int_eq(mkdir(dir, 0700), 0);
	setenv("CRIU_VM_STATE_DIR", state, 1);
	ck_assert_int_eq(wire_token_new(token), 0);
}

static const char *file_of(const char *suffix)
{
	static char path[192];
	char text[WIRE_TOKEN_TEXT];

	snprintf(path, sizeof path, "%s/%s%s", folder, wire_token_format(token, text), suffix);
	return path;
}

static unsigned nr_files(void)
{
	DIR *d = opendir(folder);
	const struct dirent *e;
	unsigned n = 0;

	ck_assert(d);
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n;
}

static void write_record(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	ck_assert(f && fputs(text, f) >= 0 && !fclose(f));
}

static void expect_decided(enum migration_decision want, const char *name)
{
	char is_named[RUN_DIR_NAME_MAX + 1] = "";
	enum migration_decision is;

	ck_assert_int_eq(migration_decided(token, &is, is_named), 0);
	ck_assert_int_eq(is, want);
	ck_assert_str_eq(is_named, name);
}

START_TEST(first_wins)
{
	enum migration_decision is;

	expect_decided(MIGRATION_UNDECIDED, "");
	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "vm-1", &is), 0);
	ck_assert_int_eq(is, MIGRATION_COMMITTED);
	ck_assert_int_eq(migration_decide(token, MIGRATION_ABORTED, NULL, &is), 0);
	ck_assert_int_eq(is, MIGRATION_COMMITTED);
	expect_decided(MIGRATION_COMMITTED, "vm-1");
	token[0] ^= 1;
	ck_assert_int_eq(migration_decide(token, MIGRATION_ABORTED, NULL, &is), 0);
	ck_assert_int_eq(is, MIGRATION_ABORTED);
	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "vm-1", &is), 0);
	ck_assert_int_eq(is, MIGRATION_ABORTED);
	expect_decided(MIGRATION_ABORTED, "");
	ck_assert_uint_eq(nr_files(), 2);
	migration_forget(token);
	migration_forget(token);
	expect_decided(MIGRATION_UNDECIDED, "");
	ck_assert_uint_eq(nr_files(), 1);
}
END_TEST

static void make_old(const char *path, time_t days)
{
	struct timespec times[2] = { { .tv_sec = time(NULL) - days * 24 * 3600 }, { .tv_sec = time(NULL) - days * 24 * 3600 } };

	ck_assert_int_eq(utimensat(AT_FDCWD, path, times, 0), 0);
}

static const struct swept {
	enum migration_decision is;
	time_t days;
	bool stays;
} swept[] = {
	{ MIGRATION_ABORTED, 29, true }, { MIGRATION_ABORTED, 31, false }, { MIGRATION_COMMITTED, 29, true }, { MIGRATION_COMMITTED, 3000, true },
};

START_TEST(sweep)
{
	const struct swept *c = &swept[_i];
	enum migration_decision is;

	ck_assert_int_eq(migration_decide(token, c->is, "vm-1", &is), 0);
	make_old(file_of(""), c->days);
	migration_sweep();
	ck_assert_int_eq(migration_decided(token, &is, NULL), 0);
	ck_assert_int_eq(is, c->stays ? c->is : MIGRATION_UNDECIDED);
	ck_assert_uint_eq(nr_files(), c->stays);
}
END_TEST

START_TEST(sweep_what_is_left)
{
	enum migration_decision is;
	char path[128];

	ck_assert_int_eq(migration_decide(token, MIGRATION_ABORTED, NULL, &is), 0); // makes the folder
	migration_forget(token);
	snprintf(path, sizeof path, "%s/.left", folder);
	write_record(path, "x");
	migration_sweep();
	ck_assert_uint_eq(nr_files(), 1);
	make_old(path, 1);
	write_record(file_of(".source"), "{}"); // of who is asking still, perhaps
	make_old(file_of(".source"), 31);
	migration_sweep();
	ck_assert_uint_eq(nr_files(), 1);
}
END_TEST

START_TEST(prepared)
{
	enum migration_decision is;

	ck_assert_int_eq(migration_prepare(token, "vm"), 0);
	expect_decided(MIGRATION_UNDECIDED, "");
	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "vm", &is), 0);
	ck_assert_int_eq(is, MIGRATION_COMMITTED);
	expect_decided(MIGRATION_COMMITTED, "vm");
	ck_assert_uint_eq(nr_files(), 1);
	token[0] ^= 1;
	ck_assert_int_eq(migration_prepare(token, "vm"), 0);
	ck_assert_int_eq(migration_decide(token, MIGRATION_ABORTED, NULL, &is), 0);
	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "vm", &is), 0);
	ck_assert_int_eq(is, MIGRATION_ABORTED);
	migration_unprepare(token);
	migration_unprepare(token);
	expect_decided(MIGRATION_ABORTED, "");
	ck_assert_uint_eq(nr_files(), 2);
}
END_TEST

// Both begin at once, and each says by its exit status what it was told.
static int race(enum migration_decision want, int start)
{
	enum migration_decision is;
	char go;

	if (read(start, &go, 1) != 0 || migration_decide(token, want, "vm", &is))
		return 100;
	return (int)is;
}

START_TEST(two_at_once)
{
	unsigned won[3] = { 0 };

	for (unsigned i = 0; i < ROUNDS; i++) {
		int start[2], status[2];
		pid_t pid[2];

		ck_assert_int_eq(wire_token_new(token), 0);
		if (i % 2)
			ck_assert_int_eq(migration_prepare(token, "vm"), 0);
		ck_assert_int_eq(pipe(start), 0);
		for (unsigned k = 0; k < 2; k++) {
			pid[k] = fork();
			if (!pid[k]) {
				close(start[1]);
				_exit(race(k == i / 2 % 2 ? MIGRATION_COMMITTED : MIGRATION_ABORTED, start[0]));
			}
		}
		close(start[0]);
		close(start[1]);
		for (unsigned k = 0; k < 2; k++)
			ck_assert_int_eq(waitpid(pid[k], &status[k], 0), pid[k]);
		ck_assert(WIFEXITED(status[0]) && WEXITSTATUS(status[0]) < 3);
		ck_assert_int_eq(WEXITSTATUS(status[0]), WEXITSTATUS(status[1]));
		ck_assert_int_ne(WEXITSTATUS(status[0]), MIGRATION_UNDECIDED);
		won[WEXITSTATUS(status[0])]++;
		expect_decided((enum migration_decision)WEXITSTATUS(status[0]), WEXITSTATUS(status[0]) == MIGRATION_COMMITTED ? "vm" : "");
		migration_unprepare(token);
		migration_forget(token);
		ck_assert_uint_eq(nr_files(), 0);
	}
	printf("committed %u times, aborted %u times\n", won[MIGRATION_COMMITTED], won[MIGRATION_ABORTED]);
	ck_assert(won[MIGRATION_COMMITTED] && won[MIGRATION_ABORTED]);
}
END_TEST

START_TEST(damaged)
{
	static const char *const wrong[] = { "", "committed", "committed \n", "committed ../x\n", "committed vm", "aborted", "aborted\nx", "commit vm\n",
					     "committed vm\n\n", "committed 0123456789012345678901234567890123456789012345678901234567890123456789\n" };
	enum migration_decision is;

	ck_assert_int_eq(migration_prepare(token, "vm"), 0);
	migration_unprepare(token);
	for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
		write_record(file_of(""), wrong[i]);
		ck_assert_int_eq(migration_decided(token, &is, NULL), -EBADMSG);
		ck_assert_int_eq(is, MIGRATION_UNDECIDED);
		ck_assert_int_eq(migration_decide(token, MIGRATION_ABORTED, NULL, &is), -EBADMSG);
		ck_assert_int_eq(is, MIGRATION_UNDECIDED);
	}
	migration_forget(token);
	ck_assert_int_eq(mkdir(file_of(""), 0700), 0);
	ck_assert_int_lt(migration_decide(token, MIGRATION_COMMITTED, "vm", &is), 0);
	ck_assert_int_eq(is, MIGRATION_UNDECIDED);
	ck_assert_int_eq(rmdir(file_of("")), 0);
	ck_assert_uint_eq(nr_files(), 0);
}
END_TEST

// In a child: the mount goes with its namespace.
static void on_full_disk(void)
{
	char path[160], junk[4096];
	enum migration_decision is;
	int fd;

	ck_assert_int_eq(unshare(CLONE_NEWNS), 0);
	ck_assert_int_eq(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	ck_assert_int_eq(mkdir(state, 0700), 0);
	ck_assert_int_eq(mount("none", state, "tmpfs", 0, "size=64k"), 0);
	ck_assert_int_eq(migration_prepare(token, "vm"), 0);
	snprintf(path, sizeof path, "%s/junk", state);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	memset(junk, 1, sizeof junk);
	while (write(fd, junk, sizeof junk) > 0)
		;
	// Without room nothing new can be decided, and that is said; what was prepared can.
	ck_assert_int_eq(migration_decide(token, MIGRATION_ABORTED, NULL, &is), -ENOSPC);
	ck_assert_int_eq(is, MIGRATION_UNDECIDED);
	expect_decided(MIGRATION_UNDECIDED, "");
	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "vm", &is), 0);
	ck_assert_int_eq(is, MIGRATION_COMMITTED);
	// And what was decided before can be read.
	migration_decide(token, MIGRATION_ABORTED, NULL, &is);
	ck_assert_int_eq(is, MIGRATION_COMMITTED);
	token[0] ^= 1;
	ck_assert_int_eq(migration_prepare(token, "vm"), -ENOSPC);
	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "vm", &is), -ENOSPC);
	ck_assert_int_eq(is, MIGRATION_UNDECIDED);
	close(fd);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(migration_decide(token, MIGRATION_ABORTED, NULL, &is), 0);
	ck_assert_uint_eq(nr_files(), 2);
}

START_TEST(full_disk)
{
	on_full_disk(); // Check runs each test in a process of its own
}
END_TEST

START_TEST(no_folder)
{
	enum migration_decision is;

	write_record(state, "a file");
	ck_assert_int_lt(migration_prepare(token, "vm"), 0);
	ck_assert_int_lt(migration_decide(token, MIGRATION_COMMITTED, "vm", &is), 0);
	ck_assert_int_eq(is, MIGRATION_UNDECIDED);
	ck_assert_int_lt(migration_decided(token, &is, NULL), 0);
	ck_assert_int_eq(unlink(state), 0);
}
END_TEST

static const char *own_pid(void)
{
	static char text[12];

	snprintf(text, sizeof text, "%d", getpid());
	return text;
}

static struct migration_source source(pid_t pid)
{
	struct migration_source s = { .pid = pid, .start = process_start(pid), .was_running = true, .vm = (char *)"/run/x \"y\"", .host = (char *)"[::1]:9723", .host_id = { 1, 2 } };

	memcpy(s.token, token, sizeof token);
	return s;
}

START_TEST(of_the_source)
{
	struct migration_source s = source(getpid()), found;

	ck_assert_int_eq(migration_source_find(own_pid(), NULL, &found), -ENOENT);
	ck_assert_int_eq(migration_source_save(&s), 0);
	s.tls = (char *)"/etc/tls";
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(migration_source_find("1", NULL, &found), -ENOENT);
	ck_assert_int_eq(migration_source_find(own_pid(), NULL, &found), 0);
	ck_assert_mem_eq(found.token, token, sizeof token);
	ck_assert_uint_eq(found.start, s.start);
	ck_assert(found.was_running && found.pid == getpid());
	ck_assert_str_eq(found.vm, s.vm);
	ck_assert_str_eq(found.host, s.host);
	ck_assert_str_eq(found.tls, s.tls);
	migration_source_fini(&found);
	migration_source_remove(token);
	migration_source_remove(token);
	ck_assert_int_eq(migration_source_find(own_pid(), NULL, &found), -ENOENT);
	ck_assert_uint_eq(nr_files(), 0);
}
END_TEST

// Only what the last migration left is there to be acted upon, by whatever name.
START_TEST(one_of_a_process)
{
	struct migration_source s = source(getpid()), found;
	uint8_t first[WIRE_TOKEN_LEN];

	memcpy(first, s.token, sizeof first);
	s.name = (char *)"web";
	ck_assert_int_eq(migration_source_save(&s), 0);
	s.token[0] ^= 1;
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(migration_source_find("web", first, &found), -ENOENT);
	ck_assert_int_eq(migration_source_find(s.vm, s.token, &found), 0);
	ck_assert_mem_eq(found.host_id, s.host_id, sizeof found.host_id);
	migration_source_fini(&found);
	ck_assert_int_eq(migration_source_find("web", NULL, &found), 0);
	ck_assert_mem_eq(found.token, s.token, sizeof found.token);
	migration_source_fini(&found);
	migration_source_remove(s.token);
}
END_TEST

START_TEST(claim)
{
	struct migration_source s = source(getpid());
	int fd, other;

	ck_assert_int_eq(migration_source_claim(token, &fd), -ENOENT);
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(migration_source_claim(token, &fd), 0);
	ck_assert_int_eq(migration_source_claim(token, &other), -EBUSY);
	close(fd);
	ck_assert_int_eq(migration_source_claim(token, &fd), 0);
	migration_source_remove(token);
	ck_assert_int_eq(migration_source_claim(token, &other), -ENOENT);
	close(fd);
}
END_TEST

START_TEST(host_id)
{
	uint8_t a[WIRE_TOKEN_LEN], b[WIRE_TOKEN_LEN];
	char path[128];

	ck_assert_int_eq(migration_host_id(a), 0);
	ck_assert_int_eq(migration_host_id(b), 0);
	ck_assert_mem_eq(a, b, sizeof a);
	snprintf(path, sizeof path, "%s/id", folder);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(migration_host_id(b), 0);
	ck_assert_mem_ne(a, b, sizeof a);
	write_record(path, "no id");
	ck_assert_int_lt(migration_host_id(b), 0);
	ck_assert_int_eq(unlink(path), 0);
}
END_TEST

START_TEST(of_a_source_that_has_ended)
{
	struct migration_source s = source(getpid()), found;

	s.start++; // another process with our pid
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(migration_source_find(own_pid(), NULL, &found), -ENOENT);
	ck_assert_uint_eq(nr_files(), 0);
	write_record(file_of(".source"), "no JSON"); // whose it is nobody knows
	ck_assert_int_eq(migration_source_find(own_pid(), NULL, &found), -ENOENT);
	ck_assert_uint_eq(nr_files(), 1);
	migration_source_remove(token);
}
END_TEST

START_TEST(of_an_arrival)
{
	uint8_t its[WIRE_TOKEN_LEN];
	enum migration_decision is;
	struct run_dir rd;
	char root[96];

	snprintf(root, sizeof root, "%s/run", dir);
	ck_assert_int_eq(run_dir_create(root, "vm", &rd), 0);
	ck_assert_int_eq(arrival_token(&rd, its), -ENOENT);
	ck_assert(!arrival_is_committed(&rd));
	ck_assert_int_eq(arrival_mark(&rd, token), 0);
	ck_assert_int_eq(arrival_token(&rd, its), 0);
	ck_assert_mem_eq(its, token, sizeof its);
	ck_assert(!arrival_is_committed(&rd));
	ck_assert_int_eq(migration_decide(token, MIGRATION_COMMITTED, "vm", &is), 0);
	ck_assert(arrival_is_committed(&rd));
	migration_forget(token);
	ck_assert_int_eq(migration_decide(token, MIGRATION_ABORTED, NULL, &is), 0);
	ck_assert(!arrival_is_committed(&rd));
	run_dir_destroy(&rd);
	ck_assert_int_eq(rmdir(root), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("migration record");
	TCase *t = tcase_create("all");
	int failed;

	make_dir();
	suite_add_tcase(s, t);
	tcase_add_checked_fixture(t, set_up, NULL);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, first_wins);
	tcase_add_loop_test(t, sweep, 0, (int)ARRAY_SIZE(swept));
	tcase_add_test(t, sweep_what_is_left);
	tcase_add_test(t, prepared);
	tcase_add_test(t, two_at_once);
	tcase_add_test(t, damaged);
	if (!geteuid())
		tcase_add_test(t, full_disk);
	tcase_add_test(t, no_folder);
	tcase_add_test(t, of_the_source);
	tcase_add_test(t, one_of_a_process);
	tcase_add_test(t, claim);
	tcase_add_test(t, host_id);
	tcase_add_test(t, of_a_source_that_has_ended);
	tcase_add_test(t, of_an_arrival);
	SRunner *r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	remove_dir();
	return failed ? 1 : 0;
}
