// SPDX-License-Identifier: GPL-2.0-only
// Processes that may not make a userfaultfd are planted too: one that is not root through an opened /dev/userfaultfd,
// one whose seccomp filter would kill it for the system calls as it is.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>

#include "tests/platform/platform.h"

#define LEN (64 * PAGE_SIZE)
#define DEV_FD 100

struct shared {
	_Atomic(char *) mapping;
};

static void sandbox(void)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog prog = { ARRAY_SIZE(f), f };

	CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog));
}

static pid_t start(struct shared *s, bool root, bool sandboxed)
{
	pid_t pid;

	s->mapping = NULL;
	pid = fork();
	if (!pid) {
		int memfd = memfd_create("ram", MFD_CLOEXEC);

		if (!root && setuid(65534))
			_exit(1);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		CHECK(!ftruncate(memfd, LEN));
		if (sandboxed)
			sandbox();
		s->mapping = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
		for (;;)
			pause();
	}
	while (!s->mapping)
		usleep(100);
	return pid;
}

static int plant(pid_t pid, int dev, uint64_t hva)
{
	struct mm_plant_opts o = { .ring_entries = 8, .sq_idle_ms = 1, .target_uffd_dev = dev };
	struct mm_plant p;
	int ret = mm_plant(pid, &o, &p);

	if (!ret) {
		CHECK(!mm_uffd_api(p.uffd, PAGING_FEATURES | UFFD_FEATURE_EVENT_REMOVE, NULL));
		CHECK(!mm_uffd_register(p.uffd, hva, LEN) && !kill(pid, 0));
		mm_plant_fini(&p);
	}
	return ret;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

int main(void)
{
	struct shared *s = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int dev = open("/dev/userfaultfd", O_RDWR), value = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY);
	char unprivileged = '?';
	pid_t pid;

	if (dev < 0 || dup2(dev, DEV_FD) != DEV_FD)
		SKIP("no /dev/userfaultfd (Linux 6.1)");
	CHECK(read(value, &unprivileged, 1) == 1);
	pid = start(s, false, false);
	CHECK(plant(pid, -1, (uint64_t)(uintptr_t)s->mapping) == (unprivileged == '1' ? 0 : -EPERM));
	CHECK(!plant(pid, DEV_FD, (uint64_t)(uintptr_t)s->mapping));
	end(pid);

	pid = start(s, true, true);
	CHECK(!plant(pid, -1, (uint64_t)(uintptr_t)s->mapping));
	end(pid);

	pid = start(s, true, false); // traced by somebody else, here by us
	CHECK(!ptrace(PTRACE_SEIZE, pid, 0, 0) && plant(pid, -1, 0) == -EBUSY);
	end(pid);
	CHECK(plant(pid, -1, 0) == -ESRCH);
	return 0;
}
