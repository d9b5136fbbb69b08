// SPDX-License-Identifier: GPL-2.0-only
// What a run directory says of how its VM is paged: kept from pager to pager, of this version or another.
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/run_dir.h"
#include "util/size.h"

#define ALL "method=2,access=none,queue-bits=3,spin=off,folios=off"
#define DEFAULT "method=adaptive,access=auto,queue-bits=8,spin=auto,folios=auto"

static char root[] = "/tmp/test-vm-state-XXXXXX";
static struct run_dir rd;

static void setup(void)
{
	strcpy(root + sizeof root - 7, "XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(root));
	ck_assert(!run_dir_create(root, "vm", &rd));
}

static void teardown(void)
{
	run_dir_destroy(&rd);
	ck_assert(!rmdir(root));
}

// Of a VM that is paged as ALL says.
static void save(void)
{
	struct vm_state s = VM_STATE_NONE;
	char why[128];

	s.ram = s.budget = MiB;
	s.nr_chunks = 1;
	ck_assert(pv_tuning_parse(ALL, &s.tuning, why));
	ck_assert(!vm_state_save(&rd, &s));
}

// The state as it is on the disk, but for what it says of that; NULL: nothing.
static void rewrite(json_t *tuning)
{
	char path[128];
	json_t *j = json_load_file(run_dir_file(&rd, "state", path, sizeof path), 0, NULL);

	ck_assert_ptr_nonnull(json_object_get(j, "tuning"));
	json_object_del(j, "tuning");
	if (tuning)
		json_object_set_new(j, "tuning", tuning);
	ck_assert(!json_dump_file(j, path, 0));
	json_decref(j);
}

static void is_paged(const char *text)
{
	struct vm_state s;
	char buf[128];

	ck_assert(!vm_state_load(&rd, &s));
	ck_assert_uint_eq(s.ram, MiB);
	pv_tuning_print(&s.tuning, buf, sizeof buf);
	ck_assert_str_eq(buf, text);
	vm_state_fini(&s);
}

START_TEST(is_kept)
{
	save();
	is_paged(ALL);
}
END_TEST

START_TEST(earlier_version)
{
	save();
	rewrite(NULL);
	is_paged(DEFAULT);
}
END_TEST

START_TEST(later_version)
{
	save();
	rewrite(json_string("method=2,method=3"));
	is_paged(DEFAULT);
	rewrite(json_string(ALL ",taste=sweet"));
	is_paged(DEFAULT);
	rewrite(json_string("method=2"));
	is_paged("method=2,access=auto,queue-bits=8,spin=auto,folios=auto");
}
END_TEST

START_TEST(damaged)
{
	struct vm_state s;

	save();
	rewrite(json_integer(3));
	ck_assert_int_eq(vm_state_load(&rd, &s), -EPROTO);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("vm_state");
	TCase *tc = tcase_create("vm_state");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, is_kept);
	tcase_add_test(tc, earlier_version);
	tcase_add_test(tc, later_version);
	tcase_add_test(tc, damaged);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed > 0;
}
