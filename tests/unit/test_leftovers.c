// SPDX-License-Identifier: GPL-2.0-only
// The swap images of this host: where they are registered, and which of them the first command after a reboot deletes.
#include <sys/file.h>

#include "criu-vm/leftovers.h"
#include "criu-vm/run_dir.h"
#include "criu-vm/swap_registry.h"
#include "tests/unit/swap_fixture.h"
#include "util/cleanup.h"

static char registry[64], said[64];

static void make_registry(void)
{
	make_dir();
	snprintf(registry, sizeof registry, "%s/state/deep/swap", dir);
	snprintf(said, sizeof said, "%s/said", dir);
}

static void empty_registry(void)
{
	char state[64];

	snprintf(state, sizeof state, "%s/state/deep", dir);
	remove_dir();
	ck_assert_int_eq(mkdir(dir, 0700), 0);
	setenv("CRIU_VM_STATE_DIR", state, 1);
	ck_assert_int_eq(swap_registry_make(), 0);
	log_init(open(said, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), LOG_WARN, NULL, false);
}

static const char *in(const char *where, const char *name)
{
	static char path[4][256];
	static unsigned next;
	char *p = path[next++ % 4];

	snprintf(p, sizeof path[0], "%s/%s", where, name);
	return p;
}

static bool is_there(const char *path)
{
	struct stat st;

	return !lstat(path, &st);
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "we");

	ck_assert(f && fputs(text, f) >= 0 && !fclose(f));
}

// The first command after a reboot, as far as the registry knows.
static void first_command(void)
{
	write_file(in(registry, ".clean"), "00000000-1111-2222-3333-444444444444");
	leftovers_remove();
}

static void expect_told(const char *what, bool told)
{
	_cleanup_free_ char *text = NULL;
	size_t len;

	ck_assert_int_eq(io_read_file(said, MiB, &text, &len), 0);
	ck_assert_msg(told == (strstr(text, what) != NULL), "%s", text);
}

static void make_image(const char *path, bool old, struct pv_swap *s)
{
	ck_assert_int_eq(pv_swap_create(path, LEN, true, s), 0);
	if (old)
		forge(path, LEN, of_another_boot);
}

static const char *link_of(const char *name, const struct pv_swap *s)
{
	static char file[64];

	snprintf(file, sizeof file, "%s-%.16s.swap", name, s->token);
	return in(registry, file);
}

START_TEST(registered)
{
	char target[256] = "", buf[PATH_MAX];
	struct pv_swap here, there;

	ck_assert_str_eq(swap_registry_dir(buf), registry);
	make_image(in(registry, "vm.swap"), false, &here);
	swap_registry_add("vm", here.path, here.token);
	ck_assert(!is_there(link_of("vm", &here))); // it is there itself
	make_image(in(dir, "vm.swap"), false, &there);
	swap_registry_add("vm", there.path, there.token);
	ck_assert_int_gt(readlink(link_of("vm", &there), target, sizeof target - 1), 0);
	ck_assert_str_eq(target, there.path);
	swap_registry_add("vm", "/elsewhere", there.token); // it was moved
	memset(target, 0, sizeof target);
	ck_assert_int_gt(readlink(link_of("vm", &there), target, sizeof target - 1), 0);
	ck_assert_str_eq(target, "/elsewhere");
	swap_registry_add("vm", in(registry, "vm.swap"), there.token);
	ck_assert(!is_there(link_of("vm", &there)));
	swap_registry_add("vm", in(registry, "folder/vm.swap"), there.token); // leftovers_remove() does not look into it
	ck_assert(is_there(link_of("vm", &there)));
	swap_registry_add("vm", in(registry, "vm.swap"), there.token);
	swap_registry_add("vm", in(dir, "state/deep/swap2"), there.token);
	ck_assert(is_there(link_of("vm", &there)));
	swap_registry_remove("vm", there.token);
	swap_registry_remove("vm", there.token);
	ck_assert(!is_there(link_of("vm", &there)));
	expect_told("", true);
	expect_told("swap", false);
	pv_swap_close(&here);
	pv_swap_close(&there);
}
END_TEST

START_TEST(cannot_register)
{
	setenv("CRIU_VM_STATE_DIR", "/proc/nowhere", 1);
	ck_assert_int_lt(swap_registry_make(), 0);
	swap_registry_add("vm", "/a/b", "0123456789abcdef0123456789abcdef");
	expect_told("/a/b", true);
	expect_told("by hand", true);
	leftovers_remove(); // nothing there, nothing to say
}
END_TEST

// Each image that only the last boot knew goes, with its link; the VMs of this boot keep theirs.
START_TEST(after_reboot)
{
	struct pv_swap old_here, old_there, here, there, held;

	make_image(in(registry, "old.swap"), true, &old_here);
	make_image(in(dir, "old-there"), true, &old_there);
	swap_registry_add("old", old_there.path, old_there.token);
	make_image(in(registry, "new.swap"), false, &here);
	make_image(in(dir, "new-there"), false, &there);
	swap_registry_add("new", there.path, there.token);
	make_image(in(registry, "held.swap"), true, &held);
	pv_swap_close(&old_here);
	close(old_there.fd);
	close(here.fd);
	close(there.fd);

	first_command();
	ck_assert(!is_there(in(registry, "old.swap")));
	ck_assert(!is_there(in(dir, "old-there")) && !is_there(link_of("old", &old_there)));
	ck_assert(is_there(in(registry, "new.swap")));
	ck_assert(is_there(in(dir, "new-there")) && is_there(link_of("new", &there)));
	ck_assert(is_there(in(registry, "held.swap")));
	expect_told(in(registry, "old.swap"), true);
	expect_told("old-there (8 MiB)", true);
	expect_told("new", false);
	expect_told("held", false);
	expect_told("forgetting", false);
	pv_swap_close(&held);
	first_command();
	ck_assert(!is_there(in(registry, "held.swap")));
	free(old_there.path);
	free(here.path);
	free(there.path);
}
END_TEST

// What is not ours stays, whatever it looks like.
START_TEST(of_others)
{
	static const char *const names[] = { "letter.txt", "vm.swap", "vm-0123456789abcdef.swap" };
	struct pv_swap s, damaged;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		write_file(in(registry, names[i]), "dear reader");
	ck_assert_int_eq(mkdir(in(registry, "folder"), 0700), 0);
	ck_assert_int_eq(mkfifo(in(registry, "fifo"), 0600), 0);
	make_image(in(dir, "theirs"), true, &s);
	pv_swap_close(&s);
	ck_assert_int_eq(symlink(in(dir, "theirs"), in(registry, "link")), 0);
	ck_assert_int_eq(symlink(in(dir, "theirs"), in(registry, "vm-0123456789abcdeF.swap")), 0);
	ck_assert_int_eq(symlink(in(dir, "theirs"), in(registry, "-0123456789abcdef.swap")), 0);
	ck_assert_int_eq(symlink("/nowhere", in(registry, "dangling.swap")), 0);
	make_image(in(registry, "damaged.swap"), true, &damaged);
	put_page(&damaged, LEN, 0);
	pv_swap_close(&damaged);

	first_command();
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		ck_assert(is_there(in(registry, names[i])));
	ck_assert(is_there(in(registry, "folder")) && is_there(in(registry, "fifo")) && is_there(in(registry, "link")));
	ck_assert(is_there(in(registry, "vm-0123456789abcdeF.swap")) && is_there(in(registry, "-0123456789abcdef.swap")));
	ck_assert(is_there(in(registry, "dangling.swap")) && is_there(in(registry, "damaged.swap")) && is_there(in(dir, "theirs")));
	expect_told("swap", false);
}
END_TEST

// A link that leads to no image, or to another one than it says, goes; what it leads to does not.
START_TEST(wrong_links)
{
	struct pv_swap s;

	ck_assert_int_eq(symlink("/nowhere", in(registry, "gone-0123456789abcdef.swap")), 0);
	write_file(in(dir, "letter"), "dear reader");
	ck_assert_int_eq(symlink(in(dir, "letter"), in(registry, "vm-1123456789abcdef.swap")), 0);
	make_image(in(dir, "other"), true, &s);
	ck_assert_int_eq(symlink(s.path, in(registry, "vm-2123456789abcdef.swap")), 0);
	pv_swap_close(&s);

	first_command();
	ck_assert(!is_there(in(registry, "gone-0123456789abcdef.swap")));
	ck_assert(!is_there(in(registry, "vm-1123456789abcdef.swap")) && is_there(in(dir, "letter")));
	ck_assert(!is_there(in(registry, "vm-2123456789abcdef.swap")) && is_there(in(dir, "other")));
	expect_told("/nowhere", true);
}
END_TEST

// Later commands do not look at images: their disks may not answer.
START_TEST(only_once)
{
	struct pv_swap s;

	first_command();
	make_image(in(registry, "old.swap"), true, &s);
	pv_swap_close(&s);
	leftovers_remove();
	ck_assert(is_there(in(registry, "old.swap")));
	ck_assert_int_eq(unlink(in(registry, ".clean")), 0);
	leftovers_remove();
	ck_assert(!is_there(in(registry, "old.swap")) && is_there(in(registry, ".clean")));
}
END_TEST

// At its end a VM takes its own image with it, wherever that is now, and nobody else's that has its path.
START_TEST(end_of_a_vm)
{
	struct run_dir rd = RUN_DIR_NONE;
	struct pv_swap s, other;

	for (unsigned is_other = 0; is_other < 2; is_other++) {
		struct vm_state state = { .nr_chunks = LEN / PV_CHUNK_SIZE };

		make_image(in(dir, "image"), false, &s);
		swap_registry_add("vm", s.path, s.token);
		ck_assert_int_eq(run_dir_create(in(dir, "run"), "vm", &rd), 0);
		state.swap_path = s.path;
		state.swap_token = s.token;
		ck_assert_int_eq(vm_state_save(&rd, &state), 0);
		if (is_other) {
			unlink(s.path);
			make_image(s.path, false, &other);
			pv_swap_close(&other);
		}
		run_dir_destroy(&rd);
		ck_assert_int_eq(is_there(s.path), is_other);
		ck_assert(!is_there(link_of("vm", &s)) && !is_there(in(dir, "run/vm")));
		pv_swap_close(&s);
	}
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("leftovers");

	tcase_add_unchecked_fixture(t, make_registry, remove_dir);
	tcase_add_checked_fixture(t, empty_registry, NULL);
	tcase_add_test(t, registered);
	tcase_add_test(t, cannot_register);
	tcase_add_test(t, after_reboot);
	tcase_add_test(t, of_others);
	tcase_add_test(t, wrong_links);
	tcase_add_test(t, only_once);
	tcase_add_test(t, end_of_a_vm);
	return run_suite("leftovers", t);
}
