// SPDX-License-Identifier: GPL-2.0-only
// Groups for VMs in the hierarchies that this host has: v1, v2 or both, by hand or by systemd. tests/cgroup_guest.py runs it on each.
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mntent.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "criu-vm/cgroup.h"
#include "tests/unit/skip.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define MANY 8
#define SHARE (16 * MiB)
#ifdef __SANITIZE_THREAD__
#define BEYOND_TOUCHED 6 // shares; the sanitizer notes who touched what
#else
#define BEYOND_TOUCHED 1
#endif

static char name[32];          // nobody else's
static char *roots[CGROUP_NR]; // of the hierarchies where groups are made by hand
static bool v2_counts;         // the memory controller is there, not in v1
static int said = -1;          // what is logged

static void listen_to_log(void)
{
	said = memfd_create("log", MFD_CLOEXEC);
	log_init(said, LOG_WARN, NULL, false);
}

// All that was logged so far.
static const char *log_text(void)
{
	static char text[4096];
	ssize_t n = pread(said, text, sizeof text - 1, 0);

	text[n > 0 ? n : 0] = 0;
	return text;
}

static unsigned log_lines(void)
{
	unsigned n = 0;

	for (const char *p = log_text(); (p = strchr(p, '\n')); p++)
		n++;
	return n;
}

// A process that does nothing, for so long or until it is ended; it does not outlive this one.
static pid_t idler(unsigned ms)
{
	pid_t parent = getpid(), pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	if (!ms)
		pause();
	usleep(ms * 1000);
	_exit(0);
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

// By what the kernel says of the process: NUMBER:CONTROLLERS:PATH.
static bool is_in(const struct cgroup *cg, unsigned which, pid_t pid)
{
	static const char *const controllers[CGROUP_NR] = { "::", ":memory:" };
	char file[64], line[PATH_MAX], *path;
	_cleanup_fclose_ FILE *f = NULL;
	size_t len;

	snprintf(file, sizeof file, "/proc/%d/cgroup", pid);
	f = fopen(file, "re");
	while (f && fgets(line, sizeof line, f)) {
		path = strstr(line, controllers[which]);
		if (!path)
			continue;
		path += strlen(controllers[which]);
		len = strcspn(path, "\n");
		path[len] = 0; // the end of the folder's path
		return len > 1 && len < strlen(cg->path[which]) && !strcmp(cg->path[which] + strlen(cg->path[which]) - len, path);
	}
	return false;
}

static unsigned in_how_many(const struct cgroup *cg, pid_t pid)
{
	unsigned n = 0;

	for (unsigned i = 0; i < CGROUP_NR; i++)
		n += cg->path[i] && is_in(cg, i, pid);
	return n;
}

static unsigned nr_paths(const struct cgroup *cg)
{
	return !!cg->path[CGROUP_V2] + !!cg->path[CGROUP_V1_MEMORY];
}

// What a file of the group says, "" if there is none.
static const char *read_group(const struct cgroup *cg, unsigned which, const char *file)
{
	static char text[256];
	char path[PATH_MAX];
	FILE *f;

	*text = 0;
	snprintf(path, sizeof path, "%s/%s", cg->path[which] ? cg->path[which] : "", file);
	f = fopen(path, "re");
	if (f) {
		text[fread(text, 1, sizeof text - 1, f)] = 0;
		fclose(f);
	}
	return text;
}

// systemd takes a moment.
static bool is_gone(const struct cgroup *cg)
{
	for (unsigned i = 0; i < CGROUP_NR; i++)
		for (unsigned waits = 0; cg->path[i] && !access(cg->path[i], F_OK); waits++) {
			if (!cg->scope || waits == 200)
				return false;
			usleep(10000);
		}
	return true;
}

static struct cgroup copy(const struct cgroup *cg)
{
	struct cgroup c = CGROUP_NONE;

	for (unsigned i = 0; i < CGROUP_NR; i++)
		c.path[i] = cg->path[i] ? strdup(cg->path[i]) : NULL;
	c.scope = cg->scope ? strdup(cg->scope) : NULL;
	return c;
}

static struct cgroup make(const char *called, pid_t first)
{
	struct cgroup cg;

	ck_assert_int_eq(cgroup_create(called, first, &cg), 0);
	ck_assert_msg(nr_paths(&cg), "no group: %s", log_text());
	ck_assert_str_eq(log_text(), "");
	ck_assert_int_eq(!!cg.scope, sd_booted());
	ck_assert_uint_eq(in_how_many(&cg, first ? first : getpid()), nr_paths(&cg));
	return cg;
}

static void expect_gone(struct cgroup *cg)
{
	struct cgroup was = copy(cg);

	cgroup_destroy(cg);
	ck_assert_uint_eq(nr_paths(cg), 0);
	ck_assert_msg(is_gone(&was), "still there: %s", log_text());
	ck_assert_str_eq(log_text(), "");
	cgroup_fini(&was);
}

static uint64_t charged(const struct cgroup *cg)
{
	uint64_t bytes = 0;

	ck_assert_int_eq(cgroup_memory_current(cg, &bytes), 0);
	return bytes;
}

static char *touch(size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_ptr_ne(p, MAP_FAILED);
	for (size_t i = 0; i < len; i++)
		p[i] = (char)rand();
	return p;
}

// This process is in it, by what cgroup_own() says.
static bool is_own(const struct cgroup *cg)
{
	struct cgroup own;
	bool same = true;

	cgroup_own(&own);
	for (unsigned i = 0; i < CGROUP_NR; i++)
		same &= !cg->path[i] || (own.path[i] && !strcmp(own.path[i], cg->path[i]));
	cgroup_fini(&own);
	return same;
}

// As a restore does: it enters, its children are born inside, it goes back.
START_TEST(enter_and_leave)
{
	struct cgroup own, cg;
	uint64_t before;
	pid_t child;

	cgroup_own(&own);
	ck_assert_uint_gt(nr_paths(&own), 0);
	cg = make(name, 0);
	ck_assert(is_own(&cg) && !is_own(&own));
	child = idler(0);
	ck_assert_uint_eq(in_how_many(&cg, child), nr_paths(&cg));
	before = charged(&cg);
	touch(SHARE);
	ck_assert_uint_ge(charged(&cg), before + SHARE - SHARE / 8); // the kernel charges some pages ahead
	ck_assert_uint_lt(charged(&cg), before + (BEYOND_TOUCHED + 1) * SHARE);
	ck_assert_int_eq(cgroup_enter(&own, 0), 0);
	ck_assert_uint_eq(in_how_many(&cg, getpid()), 0);
	ck_assert(is_own(&own) && !is_own(&cg));
	ck_assert_uint_eq(in_how_many(&cg, child), nr_paths(&cg));
	end(child);
	expect_gone(&cg);
	cgroup_fini(&own);
}
END_TEST

START_TEST(others)
{
	pid_t first = idler(0), second = idler(0);
	struct cgroup cg = make(name, first), none = CGROUP_NONE;
	uint64_t bytes;

	ck_assert_uint_eq(in_how_many(&cg, getpid()) + in_how_many(&cg, second), 0);
	ck_assert_int_eq(cgroup_enter(&cg, second), 0);
	ck_assert_uint_eq(in_how_many(&cg, second), nr_paths(&cg));
	end(first);
	ck_assert_uint_eq(in_how_many(&cg, second), nr_paths(&cg)); // a scope stays for it, too
	end(second);
	expect_gone(&cg);
	ck_assert_int_eq(cgroup_enter(&none, 0), 0);
	ck_assert_int_eq(cgroup_memory_current(&none, &bytes), -ENOENT);
}
END_TEST

START_TEST(no_swap)
{
	pid_t first = idler(0);
	struct cgroup cg = make(name, first);

	ck_assert_str_eq(v2_counts ? read_group(&cg, CGROUP_V2, "memory.swap.max") : read_group(&cg, CGROUP_V1_MEMORY, "memory.swappiness"), "0\n");
	end(first);
	expect_gone(&cg);
}
END_TEST

static size_t swapped(void)
{
	_cleanup_free_ char *text = NULL;
	size_t len;

	ck_assert_int_eq(io_read_file("/proc/self/status", MiB, &text, &len), 0);
	return strtoul(strstr(text, "VmSwap:") + strlen("VmSwap:"), NULL, 10) * KiB;
}

// The promise of v2, with the kernel told to swap.
START_TEST(promise)
{
	char *outside, *inside;
	struct cgroup cg;
	size_t before;

	if (!v2_counts)
		SKIP_CASE("the memory controller is not in cgroup v2 here");
	if (!host_has_swap())
		SKIP_CASE("this host has no swap");
	outside = touch(SHARE);
	ck_assert_int_eq(madvise(outside, SHARE, MADV_PAGEOUT), 0);
	before = swapped();
	ck_assert_msg(before >= SHARE / 2, "only %zu KiB went to swap where they may", before / KiB);
	cg = make(name, 0);
	inside = touch(SHARE);
	ck_assert_int_eq(madvise(inside, SHARE, MADV_PAGEOUT), 0);
	ck_assert_msg(swapped() <= before, "%zu KiB of the group went to swap", (swapped() - before) / KiB);
	cgroup_destroy(&cg);
}
END_TEST

static const char *last_of(const struct cgroup *cg)
{
	return strrchr(cg->path[cg->path[CGROUP_V2] ? CGROUP_V2 : CGROUP_V1_MEMORY], '/') + 1;
}

START_TEST(same_name)
{
	pid_t first = idler(0), second = idler(0), third = idler(0);
	struct cgroup a = make(name, first), b = make(name, second), c;
	char expected[64];

	snprintf(expected, sizeof expected, a.scope ? "criu-vm-%s.scope" : "%s", name);
	ck_assert_str_eq(last_of(&a), expected);
	snprintf(expected, sizeof expected, a.scope ? "criu-vm-%s-2.scope" : "%s-2", name);
	ck_assert_str_eq(last_of(&b), expected);
	end(first);
	snprintf(expected, sizeof expected, "%s", last_of(&a));
	expect_gone(&a);
	c = make(name, third);
	ck_assert_str_eq(last_of(&c), expected);
	end(second);
	expect_gone(&b);
	end(third);
	expect_gone(&c);
}
END_TEST

static int be_a_vm(int go)
{
	struct cgroup cg;
	char byte, self[16];
	int alone = true;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (read(go, &byte, 1) || cgroup_create(name, 0, &cg) || !nr_paths(&cg))
		return 1;
	usleep(50000);
	snprintf(self, sizeof self, "%d\n", getpid());
	for (unsigned i = 0; i < CGROUP_NR; i++)
		alone &= !cg.path[i] || !strcmp(read_group(&cg, i, "cgroup.procs"), self);
	cgroup_destroy(&cg);
	return alone ? 0 : 2;
}

// Many restores with one name: each VM has a group to itself.
START_TEST(at_once)
{
	for (unsigned round = 0; round < (sd_booted() ? 2 : 25); round++) {
		pid_t vms[MANY];
		int status, go[2];

		ck_assert_int_eq(pipe(go), 0);
		for (unsigned i = 0; i < MANY; i++) {
			vms[i] = fork();
			if (!vms[i]) {
				close(go[1]);
				_exit(be_a_vm(go[0]));
			}
		}
		close(go[1]); // now all go
		for (unsigned i = 0; i < MANY; i++) {
			ck_assert_int_eq(waitpid(vms[i], &status, 0), vms[i]);
			ck_assert_msg(!status, "round %u: %d; %s", round, WEXITSTATUS(status), log_text());
		}
		close(go[0]);
	}
}
END_TEST

// The last process of a VM cleans up.
START_TEST(destroy_from_inside)
{
	struct cgroup cg = make(name, 0);

	expect_gone(&cg);
}
END_TEST

START_TEST(destroy_waits)
{
	uint64_t start = clock_now_ns();
	pid_t last = idler(150);
	struct cgroup cg = make(name, last);

	expect_gone(&cg);
	ck_assert_uint_ge(clock_now_ns() - start, 150 * NSEC_PER_MSEC);
	ck_assert_int_eq(waitpid(last, NULL, 0), last);
}
END_TEST

// Another process, which knows no more than the strings, has more luck later.
START_TEST(destroy_names_who_stays)
{
	pid_t stays = idler(0);
	struct cgroup cg = make(name, stays), later = copy(&cg);
	uint64_t start = clock_now_ns();
	char expected[32];

	snprintf(expected, sizeof expected, "in it: %d (", stays);
	cgroup_destroy(&cg);
	ck_assert_uint_lt(clock_now_ns() - start, 10 * NSEC_PER_SEC);
	ck_assert_uint_eq(log_lines(), nr_paths(&later));
	ck_assert_msg(strstr(log_text(), expected), "%s", log_text());
	end(stays);
	ck_assert_int_eq(ftruncate(said, 0) + (int)lseek(said, 0, SEEK_SET), 0);
	expect_gone(&later);
	expect_gone(&later); // there is none any more
}
END_TEST

START_TEST(no_such_process)
{
	pid_t dead = idler(0);
	struct cgroup cg = make(name, dead), was = copy(&cg);

	end(dead);
	expect_gone(&cg);
	ck_assert_int_eq(cgroup_create(name, dead, &cg), -ESRCH);
	ck_assert(!nr_paths(&cg) && is_gone(&was));
	ck_assert_uint_eq(log_lines(), sd_booted()); // systemd's refusal
	ck_assert_int_eq(cgroup_enter(&was, 0), -ENOENT);
	cgroup_fini(&was);
}
END_TEST

// Not an error, and one warning, since the VM lives without.
static void expect_none(const char *why)
{
	struct cgroup cg;

	ck_assert_int_eq(cgroup_create(name, 0, &cg), 0);
	ck_assert(!nr_paths(&cg) && !cg.scope);
	ck_assert_msg(strstr(log_text(), why), "%s", log_text());
	ck_assert_uint_eq(log_lines(), 1 + sd_booted());
	cgroup_destroy(&cg);
}

START_TEST(no_right)
{
	ck_assert_int_eq(setuid(65534), 0);
	expect_none(strerror(EACCES));
}
END_TEST

START_TEST(no_hierarchy)
{
	struct cgroup own;
	struct mntent *m;
	FILE *f;

	ck_assert(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	f = setmntent("/proc/self/mounts", "r");
	while ((m = getmntent(f)))
		if (!strncmp(m->mnt_type, "cgroup", strlen("cgroup")))
			ck_assert_int_eq(umount2(m->mnt_dir, MNT_DETACH), 0);
	endmntent(f);
	expect_none("no hierarchy is mounted");
	cgroup_own(&own);
	ck_assert_uint_eq(nr_paths(&own), 0);
}
END_TEST

// systemd is process 1, it seems, but nobody is on the bus.
START_TEST(no_bus)
{
	struct cgroup cg;

	ck_assert(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) && !mount("run", "/run", "tmpfs", 0, NULL));
	ck_assert(!mkdir("/run/systemd", 0755) && !mkdir("/run/systemd/system", 0755));
	ck_assert_int_eq(cgroup_create(name, 0, &cg), 0);
	ck_assert(nr_paths(&cg) && !cg.scope);
	ck_assert_uint_eq(in_how_many(&cg, getpid()), nr_paths(&cg));
	ck_assert_uint_eq(log_lines(), 1);
	ck_assert_ptr_nonnull(strstr(log_text(), "systemd does not start criu-vm-test-"));
	cgroup_destroy(&cg);
}
END_TEST

// As in a container without a namespace for its groups: the mount's root is another than the paths'.
START_TEST(part_of_a_hierarchy)
{
	struct cgroup cg = make(name, 0), own;
	char part[] = "/tmp/criu-vm-test.XXXXXX";
	unsigned which = cg.path[CGROUP_V2] ? CGROUP_V2 : CGROUP_V1_MEMORY;

	ck_assert_ptr_nonnull(mkdtemp(part));
	ck_assert(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	ck_assert_int_eq(mount(cg.path[which], part, NULL, MS_BIND, NULL), 0);
	for (unsigned i = 0; i < CGROUP_NR; i++)
		if (roots[i])
			ck_assert_int_eq(umount2(roots[i], MNT_DETACH), 0);
	cgroup_own(&own);
	ck_assert_pstr_eq(own.path[which], part);
	ck_assert_int_eq(cgroup_enter(&own, 0), 0);
	umount2(part, MNT_DETACH);
	rmdir(part);
	cgroup_fini(&own);
	cgroup_fini(&cg); // main() removes it
}
END_TEST

// What tests that failed have left.
static void sweep(void)
{
	for (unsigned i = 0; i < CGROUP_NR; i++) {
		_cleanup_free_ char *folder = NULL;
		DIR *dir = roots[i] && asprintf(&folder, "%s/criu-vm", roots[i]) > 0 ? opendir(folder) : NULL;
		struct dirent *d;

		while (dir && (d = readdir(dir)))
			if (!strncmp(d->d_name, name, strlen(name)))
				unlinkat(dirfd(dir), d->d_name, AT_REMOVEDIR);
		if (dir)
			closedir(dir);
	}
}

static void prepare(void)
{
	sweep();
	listen_to_log();
}

// Why nothing can be tested here, or NULL. Learns the roots.
static const char *missing_here(void)
{
	pid_t first = idler(0);
	struct cgroup cg;
	uint64_t bytes;
	bool made, counted;

	listen_to_log();
	cgroup_create(name, first, &cg);
	made = nr_paths(&cg);
	counted = !cgroup_memory_current(&cg, &bytes);
	v2_counts = *read_group(&cg, CGROUP_V2, "memory.swap.max");
	for (unsigned i = 0; !cg.scope && i < CGROUP_NR; i++)
		if (cg.path[i])
			roots[i] = strndup(cg.path[i], (size_t)(strstr(cg.path[i], "/criu-vm/") - cg.path[i]));
	kill(first, SIGKILL);
	waitpid(first, NULL, 0);
	cgroup_destroy(&cg);
	return geteuid() ? "needs root" : !made ? log_text() : !counted ? "there is no memory controller" : NULL;
}

static void add(Suite *s, const TTest *test)
{
	TCase *t = tcase_create(test->name);

	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, prepare, NULL);
	tcase_add_test(t, test);
	suite_add_tcase(s, t);
}

int main(void)
{
	Suite *s = suite_create("cgroup");
	const char *missing;
	SRunner *sr;
	int failed;

	snprintf(name, sizeof name, "test-%d", getpid());
	missing = missing_here();
	if (missing) {
		printf("skipped: %s\n", missing);
		return 77;
	}
	add(s, enter_and_leave);
	add(s, others);
	add(s, no_swap);
	add(s, same_name);
	add(s, at_once);
	add(s, no_such_process);
	add(s, no_right);
	if (!sd_booted()) { // who removes what, and looks for what, is systemd's business there
		add(s, destroy_from_inside);
		add(s, destroy_waits);
		add(s, destroy_names_who_stays);
		add(s, no_hierarchy);
		add(s, no_bus);
		add(s, part_of_a_hierarchy);
	}
	add(s, promise);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	sweep();
	return failed ? 1 : 0;
}
