// SPDX-License-Identifier: GPL-2.0-only
// What another host's description of a VM may make this host do.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/peer_vm.h"
#include "util/log.h"

#define ok(expr) ck_assert_int_eq(expr, 0)
#define NOBODY 65534

static char dir[] = "/tmp/test-peer-vm-XXXXXX", qemu[64], other[64];
static VmEntry vm;
static struct peer_vm_opts opts;

static void make_program(const char *path, mode_t mode)
{
	ok(close(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0700)));
	ok(chmod(path, mode));
}

// Root alone is told by others what it may run.
static bool we_are_root(void)
{
	return !geteuid();
}

static void make_dir(void)
{
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(qemu, sizeof qemu, "%s/qemu-system-x86_64", dir);
	snprintf(other, sizeof other, "%s/program", dir);
	make_program(qemu, 0755);
	make_program(other, 0755);
}

static void remove_dir(void)
{
	unlink(qemu);
	unlink(other);
	rmdir(dir);
}

static void setup(void)
{
	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false);
	vm_entry__init(&vm);
	vm.qemu_path = qemu;
	vm.cwd = strdup("/tmp");
	vm.uid = vm.gid = NOBODY;
	opts = (struct peer_vm_opts){ .give_qemu = "say which", .give_user = "say who" };
}

static void teardown(void)
{
	free(vm.cwd);
}

static int check_it(void)
{
	return peer_vm_check(&opts, &vm, "web");
}

START_TEST(one_that_is_good)
{
	ok(check_it());
	ck_assert_str_eq(vm.cwd, "/tmp");
	ck_assert_uint_eq(vm.uid, NOBODY);
}
END_TEST

START_TEST(who_is_root)
{
	static const struct {
		uid_t uid, gid;
	} roots[] = { { 0, 0 }, { 0, NOBODY }, { NOBODY, 0 }, { (uid_t)-1, NOBODY }, { NOBODY, (gid_t)-1 } };

	vm.uid = roots[_i].uid;
	vm.gid = roots[_i].gid;
	ck_assert_int_eq(check_it(), we_are_root() ? -EPERM : 0);
	ck_assert(!we_are_root() || strstr(log_last_error(), "say who"));
	opts.is_root = true;
	ok(check_it());
	ck_assert_uint_eq(vm.uid, roots[_i].uid);
}
END_TEST

START_TEST(the_user_that_was_said)
{
	const struct passwd *pw = getpwuid(0);

	vm.uid = 0;
	opts.user = "0";
	ok(check_it()); // somebody of this host has said so
	opts.user = pw->pw_name;
	vm.uid = NOBODY;
	ok(check_it());
	ck_assert_uint_eq(vm.uid, 0);
	for (const char *const *no = (const char *const[]){ "nosuchuser", "-1", "4294967295", "99999999999", "0x0", "0 ", "", NULL }; *no; no++) {
		opts.user = *no;
		ck_assert_int_eq(check_it(), -ENOENT);
	}
}
END_TEST

START_TEST(no_program_that_is_no_qemu)
{
	vm.qemu_path = other;
	ck_assert_int_eq(check_it(), we_are_root() ? -EPERM : 0);
	opts.qemu = other; // somebody of this host has named it
	ok(check_it());
	opts.qemu = NULL;
	vm.qemu_path = dir;
	ck_assert_int_eq(check_it(), -ENOENT);
	ok(chdir(dir));
	vm.qemu_path = "qemu-system-x86_64"; // of whichever folder we are in
	ck_assert_int_eq(check_it(), -ENOENT);
	vm.qemu_path = "/nonexistent/qemu-system-x86_64";
	ck_assert_int_eq(check_it(), -ENOENT);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "say which"));
}
END_TEST

START_TEST(no_qemu_that_others_may_write)
{
	vm.qemu_path = qemu;
	ok(chmod(qemu, 0775));
	ck_assert_int_eq(check_it(), we_are_root() ? -EPERM : 0);
	ok(chmod(qemu, 0755));
	ok(check_it());
	if (!we_are_root())
		return;
	ok(chown(qemu, NOBODY, NOBODY));
	ck_assert_int_eq(check_it(), -EPERM);
	ok(chown(qemu, 0, 0));
}
END_TEST

START_TEST(the_folder)
{
	ck_assert_ptr_null(peer_vm_fault(&vm));
	vm.cwd[0] = '.';
	ck_assert_ptr_nonnull(peer_vm_fault(&vm));
	free(vm.cwd);
	vm.cwd = strdup("/nonexistent");
	ok(check_it());
	ck_assert_str_eq(vm.cwd, "/");
	free(vm.cwd);
	vm.cwd = strdup(qemu); // no folder
	ok(check_it());
	ck_assert_str_eq(vm.cwd, "/");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("peer_vm");
	TCase *t = tcase_create("peer_vm");
	SRunner *r = srunner_create(s);
	int failed;

	tcase_add_unchecked_fixture(t, make_dir, remove_dir);
	tcase_add_checked_fixture(t, setup, teardown);
	tcase_add_test(t, one_that_is_good);
	tcase_add_loop_test(t, who_is_root, 0, 5);
	tcase_add_test(t, the_user_that_was_said);
	tcase_add_test(t, no_program_that_is_no_qemu);
	tcase_add_test(t, no_qemu_that_others_may_write);
	tcase_add_test(t, the_folder);
	suite_add_tcase(s, t);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
