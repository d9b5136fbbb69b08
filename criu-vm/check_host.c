// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "criu-vm/cgroup.h"
#include "criu-vm/check.h"
#include "criu-vm/run_dir.h"
#include "criu-vm/swap_registry.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/size.h"

#define TRIAL_LEN MiB

static uint64_t effective_capabilities(void)
{
	_cleanup_free_ char *text = NULL;
	const char *at;
	size_t len;

	if (io_read_file("/proc/self/status", MiB, &text, &len) || !(at = strstr(text, "\nCapEff:")))
		return 0;
	return strtoull(at + strlen("\nCapEff:"), NULL, 16);
}

bool check_root(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	static const struct {
		unsigned bit;
		const char *name;
	} needed[] = {
		{ CAP_SYS_PTRACE, "CAP_SYS_PTRACE" },
		{ CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE" },
		{ CAP_KILL, "CAP_KILL" },
	};
	uint64_t have = effective_capabilities();
	char lacks[160] = "";

	(void)c;
	(void)item;
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (!(have >> needed[i].bit & 1))
			snprintf(lacks + strlen(lacks), sizeof lacks - strlen(lacks), " %s", needed[i].name);
	if (!*lacks)
		return true;
	check_found(a, "user %u lacks%s", geteuid(), lacks);
	if (!geteuid())
		check_advise(a, "give the container or service these capabilities");
	return false;
}

// The folder, or the one nearest above it that exists: what is below will be made there.
static void nearest(const char *path, char out[PATH_MAX])
{
	struct stat st;

	snprintf(out, PATH_MAX, "%s", path);
	while (*out && stat(out, &st) && errno == ENOENT) {
		char *slash = strrchr(out, '/');

		if (!slash)
			snprintf(out, PATH_MAX, "."); // a relative path
		else
			slash[slash == out] = 0;
	}
}

// Said of path; the caller may add to it.
static bool can_write(const char *path, struct check_answer *a)
{
	char at[PATH_MAX], trial[PATH_MAX + 32];

	nearest(path, at);
	snprintf(trial, sizeof trial, "%s/.criu-vm-check-XXXXXX", at);
	if (mkdtemp(trial)) {
		rmdir(trial);
		check_found(a, strcmp(at, path) ? "%s, made when needed" : "%s", path);
		return true;
	}
	check_found(a, "cannot write to %s: %s", at, strerror(errno));
	return false;
}

bool check_run_dir(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	const size_t room = sizeof ((struct sockaddr_un *)NULL)->sun_path, taken = strlen(c->run_dir) + sizeof "//control.sock";

	(void)item;
	if (taken >= room) {
		check_found(a, "%s is too long for the path of a socket", c->run_dir);
		return false;
	}
	if (!can_write(c->run_dir, a))
		return false;
	if (room - taken < RUN_DIR_NAME_MAX)
		check_found(a, "%s, for names of at most %zu characters", c->run_dir, room - taken);
	return true;
}

bool check_log_dir(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	(void)c;
	(void)item;
	return can_write(LOG_DIR_DEFAULT, a);
}

// A file that vanishes when it is closed.
static int trial_file(const char *dir)
{
	char path[PATH_MAX + 32];
	int fd = open(dir, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);

	if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT))
		return fd;
	snprintf(path, sizeof path, "%s/.criu-vm-check-XXXXXX", dir);
	fd = mkostemp(path, O_DIRECT | O_CLOEXEC);
	if (fd >= 0)
		unlink(path);
	return fd;
}

static int write_and_read(int fd)
{
	_cleanup_free_ char *buf = aligned_alloc(PAGE_SIZE, 2 * PAGE_SIZE);
	int r;

	if (!buf)
		return -ENOMEM;
	memset(buf, 'c', PAGE_SIZE);
	r = io_pwrite_full(fd, buf, PAGE_SIZE, 3 * PAGE_SIZE);
	if (!r)
		r = io_pread_full(fd, buf + PAGE_SIZE, PAGE_SIZE, 3 * PAGE_SIZE);
	return r ? r : memcmp(buf, buf + PAGE_SIZE, PAGE_SIZE) ? -EIO : 0;
}

bool check_swap_dir(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	char dir[PATH_MAX], at[PATH_MAX], space[16];
	_cleanup_close_ int fd = -1;
	struct statfs fs;
	int r;

	(void)c;
	(void)item;
	nearest(swap_registry_dir(dir), at);
	if (statfs(at, &fs)) {
		check_found(a, "%s: %s", at, strerror(errno));
		return false;
	}
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC) {
		check_found(a, "%s is in memory (tmpfs): swapping to it would gain nothing", at);
		return false;
	}
	fd = trial_file(at);
	if (fd < 0) {
		check_found(a, errno == EINVAL ? "the file system of %s has no O_DIRECT (%s)" : "cannot make a file in %s: %s", at,
			    strerror(errno));
		return false;
	}
	r = write_and_read(fd);
	if (r) {
		check_found(a, "%s: direct I/O of 4 KiB: %s", at, strerror(-r));
		return false;
	}
	size_format((uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize, space);
	if (fallocate(fd, 0, 0, (off_t)TRIAL_LEN)) {
		check_found(a, "%s: space cannot be reserved: %s (%s free)", at, strerror(errno), space);
		check_advise(a, "free some space, or use --swap with another place; --swap-sparse reserves none");
		return false;
	}
	check_found(a, "%s, %s free", dir, space);
	return true;
}

static uint64_t host_swap(uint64_t *used)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/swaps", "re");
	unsigned long long kib, kib_used;
	char line[512];
	uint64_t sum = 0;

	*used = 0;
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "%*s %*s %llu %llu", &kib, &kib_used) == 2) {
			sum += kib * KiB;
			*used += kib_used * KiB;
		}
	return sum;
}

// Guest pages in memory are locked there; this is about QEMU's own.
bool check_no_host_swap(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	uint64_t used, all = host_swap(&used);
	int hierarchy = cgroup_memory_hierarchy();
	char size[16], size_used[16];

	(void)c;
	(void)item;
	if (!all)
		return true;
	check_found(a, "the host has %s of swap, %s in use; %s", size_format(all, size), size_format(used, size_used),
		    hierarchy == CGROUP_V2	  ? "VMs are kept out of it by their control groups" :
		    hierarchy == CGROUP_V1_MEMORY ? "cgroup v1 keeps a VM's QEMU out of it only while there is other memory to take" :
						    "a VM's QEMU may go there");
	return hierarchy == CGROUP_V2;
}

bool check_cgroup(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	int hierarchy = cgroup_memory_hierarchy();

	(void)c;
	(void)item;
	if (hierarchy != CGROUP_NR)
		check_found(a, hierarchy == CGROUP_V2 ? "v2" : "v1");
	return hierarchy != CGROUP_NR;
}

bool check_oom_score(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	(void)c;
	(void)item;
	(void)a;
	return effective_capabilities() >> CAP_SYS_RESOURCE & 1;
}

bool check_memlock(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	struct rlimit limit;
	char size[16];

	(void)c;
	(void)item;
	if (effective_capabilities() >> CAP_IPC_LOCK & 1) {
		check_found(a, "no limit (CAP_IPC_LOCK)");
		return true;
	}
	if (getrlimit(RLIMIT_MEMLOCK, &limit))
		limit.rlim_cur = 0;
	if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= 64 * MiB)
		return true;
	check_found(a, "at most %s", size_format(limit.rlim_cur, size));
	return false;
}

bool check_idle_bitmap(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	_cleanup_close_ int fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC);
	uint64_t word;

	(void)c;
	(void)item;
	if (fd >= 0 && pread(fd, &word, sizeof word, 0) == (ssize_t)sizeof word)
		return true;
	check_found(a, "/sys/kernel/mm/page_idle/bitmap: %s", strerror(errno));
	return false;
}
