// SPDX-License-Identifier: GPL-2.0-only
// Who has pages of a VM that has left: its record, the claim on it, what stat is told.
#include <signal.h>
#include <sys/wait.h>

#include "criu-vm/leaving.h"
#include "criu-vm/migrate_status.h"
#include "criu-vm/migration_source.h"
#include "qemu/ramblock.h"
#include "tests/unit/swap_fixture.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/process.h"

static uint8_t token[WIRE_TOKEN_LEN];
static char state[64];
static struct qemu_ramblock blocks[] = { { .name = "pc.ram \"x\"", .len = 1 << 20, .hva = 0x7f0000000000 }, { .name = "m", .len = 4096, .hva = ~4095UL } };

static void set_up(void)
{
	snprintf(state, sizeof state, "%s/state", dir);
	remove_dir();
	ck_assert_int_eq(mkdir(dir, 0700), 0);
	setenv("CRIU_VM_STATE_DIR", state, 1);
	ck_assert_int_eq(wire_token_new(token), 0);
}

static const char *file_of(const char *suffix)
{
	static char path[192];
	char text[WIRE_TOKEN_TEXT];

	snprintf(path, sizeof path, "%s/migrations/%s%s", state, wire_token_format(token, text), suffix);
	return path;
}

static struct migration_source source(pid_t pid)
{
	struct migration_source s = { .pid = pid, .start = process_start(pid), .vm = (char *)"/run/x", .name = (char *)"web", .host = (char *)"b:9723",
				      .lazy = true, .committed = true, .left_ns = clock_now_ns(), .lines = 3, .zstd = 7, .bandwidth = 1UL << 40,
				      .insecure = true, .there = (char *)"web-2", .run_root = (char *)"/run/criu-vm", .key = { 9, 8 },
				      .blocks = blocks, .nr_blocks = 2 };

	memcpy(s.token, token, sizeof token);
	return s;
}

START_TEST(all_of_it)
{
	struct migration_source s = source(getpid()), found;

	ck_assert_int_eq(migration_source_load(token, &found), -ENOENT);
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(migration_source_load(token, &found), 0);
	ck_assert(found.lazy && found.committed && found.insecure && !found.was_running);
	ck_assert_mem_eq(found.token, token, sizeof token);
	ck_assert_mem_eq(found.key, s.key, sizeof s.key);
	ck_assert_uint_eq(found.left_ns, s.left_ns);
	ck_assert_uint_eq(found.lines, 3);
	ck_assert_int_eq(found.zstd, 7);
	ck_assert_uint_eq(found.bandwidth, 1UL << 40);
	ck_assert_str_eq(found.there, "web-2");
	ck_assert_str_eq(found.run_root, "/run/criu-vm");
	ck_assert_uint_eq(found.nr_blocks, 2);
	for (unsigned i = 0; i < 2; i++) {
		ck_assert_str_eq(found.blocks[i].name, blocks[i].name);
		ck_assert_uint_eq(found.blocks[i].len, blocks[i].len);
		ck_assert_uint_eq(found.blocks[i].hva, blocks[i].hva);
	}
	migration_source_fini(&found);
	s.lazy = false;
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(migration_source_load(token, &found), 0);
	ck_assert(!found.lazy && !found.committed && !found.blocks);
	migration_source_fini(&found);
	migration_source_remove(token);
}
END_TEST

static void expect_damaged(const char *what, const char *instead)
{
	_cleanup_free_ char *text = NULL;
	struct migration_source s = source(getpid()), found;
	size_t len;
	char *at;
	FILE *f;

	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(io_read_file(file_of(".source"), 65536, &text, &len), 0);
	at = strstr(text, what);
	ck_assert_msg(at, "%s is not in %s", what, text);
	f = fopen(file_of(".source"), "we");
	ck_assert(f && fprintf(f, "%.*s%s%s", (int)(at - text), text, instead, at + strlen(what)) > 0 && !fclose(f));
	ck_assert_int_eq(migration_source_load(token, &found), -EBADMSG);
	migration_source_remove(token);
}

START_TEST(damaged)
{
	expect_damaged("\"lines\": 3", "\"lines\": 0");
	expect_damaged("\"lines\": 3", "\"lines\": 33");
	expect_damaged("\"len\": 4096", "\"len\": 4097");
	expect_damaged("\"len\": 4096", "\"len\": -4096");
	expect_damaged("\"len\": 4096", "\"len\": 0");
	expect_damaged("\"hva\"", "\"at\"");
	expect_damaged("\"key\": \"09", "\"key\": \"0");
	expect_damaged("\"blocks\"", "\"bricks\"");
}
END_TEST

// It is of the record, however often that is saved; looking at it takes nothing.
START_TEST(claim_stays)
{
	struct migration_source s = source(getpid());
	int fd, other;

	ck_assert(!migration_source_is_claimed(token));
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert(!migration_source_is_claimed(token));
	ck_assert_int_eq(migration_source_claim(token, &fd), 0);
	s.host = (char *)"c:1";
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert(migration_source_is_claimed(token));
	ck_assert_int_eq(migration_source_claim(token, &other), -EBUSY);
	close(fd);
	ck_assert(!migration_source_is_claimed(token));
	ck_assert_int_eq(migration_source_claim(token, &fd), 0);
	migration_source_remove(token);
	ck_assert_int_eq(migration_source_claim(token, &other), -ENOENT);
	close(fd);
	ck_assert_int_ne(access(file_of(".claim"), F_OK), 0);
}
END_TEST

// Of a process that has ended it stays as long as somebody serves what can be read.
START_TEST(served_after_its_end)
{
	pid_t pid = fork();
	struct migration_source s, found;
	char text[12];
	int fd;

	if (!pid) {
		pause();
		_exit(0);
	}
	snprintf(text, sizeof text, "%d", pid);
	s = source(pid);
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(migration_source_claim(token, &fd), 0);
	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	ck_assert_int_eq(migration_source_find(text, NULL, &found), 0);
	migration_source_fini(&found);
	close(fd);
	ck_assert_int_eq(migration_source_find(text, NULL, &found), -ENOENT);
	ck_assert_int_ne(access(file_of(".source"), F_OK), 0);
	ck_assert_int_ne(access(file_of(".claim"), F_OK), 0);
}
END_TEST

static json_t *only_one(json_t **list)
{
	ck_assert_int_eq(leaving_list(list), 0);
	ck_assert_uint_eq(json_array_size(*list), 1);
	ck_assert_str_eq(json_string_value(json_object_get(json_array_get(*list, 0), "name")), "web-2");
	return json_object_get(json_array_get(*list, 0), "leaving");
}

START_TEST(told_to_stat)
{
	struct migration_source s = source(getpid());
	struct migrate_status st = { .server = 4711, .pages_left = 5, .pages_served = 6, .bytes = 7, .lines = 2, .lines_wanted = 3, .trouble = "a \"b\"" }, was;
	json_t *list, *l;
	int fd;

	migrate_status_load(token, &was);
	ck_assert(!was.server && !*was.trouble);
	ck_assert_int_eq(migration_source_save(&s), 0);
	migrate_status_save(token, &st);
	l = only_one(&list); // nobody serves, whatever was said last
	ck_assert_int_eq(json_integer_value(json_object_get(l, "server_pid")), 0);
	ck_assert_int_eq(json_integer_value(json_object_get(l, "lines")), 0);
	ck_assert_int_eq(json_integer_value(json_object_get(l, "pages_left")), 5);
	ck_assert(json_is_string(json_object_get(l, "trouble")));
	json_decref(list);
	ck_assert_int_eq(migration_source_claim(token, &fd), 0);
	l = only_one(&list);
	ck_assert_int_eq(json_integer_value(json_object_get(l, "server_pid")), 4711);
	ck_assert_int_eq(json_integer_value(json_object_get(l, "pages_served")), 6);
	ck_assert_int_eq(json_integer_value(json_object_get(l, "bytes")), 7);
	ck_assert_int_eq(json_integer_value(json_object_get(l, "lines")), 2);
	ck_assert_str_eq(json_string_value(json_object_get(l, "trouble")), "a \"b\"");
	ck_assert_str_eq(json_string_value(json_object_get(l, "host")), "b:9723");
	json_decref(list);
	s.committed = false; // it runs here yet
	ck_assert_int_eq(migration_source_save(&s), 0);
	ck_assert_int_eq(leaving_list(&list), 0);
	ck_assert_uint_eq(json_array_size(list), 0);
	json_decref(list);
	close(fd);
	migration_source_remove(token);
	ck_assert_int_ne(access(file_of(".status"), F_OK), 0);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("source");
	Suite *s = suite_create("migration source");
	SRunner *r = srunner_create(s);
	int failed;

	make_dir();
	tcase_add_checked_fixture(t, set_up, NULL);
	tcase_add_test(t, all_of_it);
	tcase_add_test(t, damaged);
	tcase_add_test(t, claim_stays);
	tcase_add_test(t, served_after_its_end);
	tcase_add_test(t, told_to_stat);
	suite_add_tcase(s, t);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	remove_dir();
	return failed ? 1 : 0;
}
