// SPDX-License-Identifier: GPL-2.0-only
// The injector dies before its victim stops: the helper goes on alone, and leaves nothing in the victim as nobody would use it.
// A victim that does not stop at all is let go after some seconds, unharmed.
#include "tests/platform/platform.h"
#include "util/io.h"

static const struct mm_plant_opts opts = { .ring_entries = 8, .sq_idle_ms = 1, .target_uffd_dev = -1 };

// A process that waits for the child of its vfork(), which no ptrace can stop, until hold is 0.
static pid_t start_unstoppable(_Atomic int *hold)
{
	pid_t pid;

	*hold = 1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!vfork()) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			for (*hold = 2; *hold;)
				usleep(1000);
			_exit(0);
		}
		for (;;)
			pause();
	}
	while (*hold != 2)
		usleep(1000);
	return pid;
}

static bool traced(pid_t pid)
{
	char path[32], *text;
	bool is;
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	CHECK(!io_read_file(path, 1 << 20, &text, &len));
	is = !strstr(text, "\nTracerPid:\t0\n");
	free(text);
	return is;
}

static void end(pid_t pid)
{
	CHECK(!waitpid(pid, NULL, WNOHANG)); // it lives
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

int main(void)
{
	_Atomic int *hold = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char fd3[32];
	struct mm_plant p;
	pid_t pid, injector;

	close_range(3, 100, 0);
	pid = start_unstoppable(hold);
	injector = fork();
	if (!injector)
		_exit(mm_plant(pid, &opts, &p) ? 1 : 0);
	while (!traced(pid))
		usleep(1000);
	kill(injector, SIGKILL);
	waitpid(injector, NULL, 0);
	CHECK(traced(pid) && mm_plant(pid, &opts, &p) == -EBUSY);
	*hold = 0;
	while (traced(pid))
		usleep(1000);
	snprintf(fd3, sizeof fd3, "/proc/%d/fd/3", pid);
	CHECK(access(fd3, F_OK) && errno == ENOENT);
	CHECK(!mm_plant(pid, &opts, &p) && p.target_uffd == 3 && p.target_ring == 4);
	mm_plant_fini(&p);
	end(pid);

	pid = start_unstoppable(hold);
	CHECK(mm_plant(pid, &opts, &p) == -ETIMEDOUT && !traced(pid));
	*hold = 0;
	CHECK(!mm_plant(pid, &opts, &p));
	mm_plant_fini(&p);
	end(pid);
	return 0;
}
