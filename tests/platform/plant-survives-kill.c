// SPDX-License-Identifier: GPL-2.0-only
// Whoever injects may be killed at any moment, with all of its process group: the victim is always put right again.
#include <math.h>
#include <pthread.h>

#include "tests/platform/platform.h"
#include "util/io.h"
#include "util/log.h"

#define ROUNDS 300

static const struct mm_plant_opts opts = { .ring_entries = 8, .sq_idle_ms = 1, .target_uffd_dev = -1 };

struct pulse {
	_Atomic uint64_t beats[3];
};

// Would notice a register, a signal mask or a system call that is not what it was.
static void *work(void *arg)
{
	_Atomic uint64_t *beat = arg;
	struct timespec ts = { 0, 50000 };
	sigset_t mask;

	for (uint64_t i = 1;; i++) {
		double sum = 0, half = 1;
		uint64_t hash = i;

		for (int k = 0; k < 500; k++, half /= 2) {
			sum += half;
			hash = hash * 6364136223846793005ULL + 1;
			hash ^= hash >> 7;
			hash ^= hash >> 14 ^ hash >> 28 ^ hash >> 56;
		}
		CHECK(fabs(sum - 2) < 1e-9 && hash && getppid() > 0);
		if (i % 16 == 0)
			CHECK(!nanosleep(&ts, NULL) && !sigprocmask(SIG_SETMASK, NULL, &mask) && !sigismember(&mask, SIGUSR1));
		*beat = i;
	}
	return NULL;
}

static void victim(struct pulse *p)
{
	pthread_t t;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pthread_create(&t, NULL, work, (void *)&p->beats[1]);
	pthread_create(&t, NULL, work, (void *)&p->beats[2]);
	work((void *)&p->beats[0]);
}

static size_t count(pid_t pid, const char *kind)
{
	char path[64], link[64];
	size_t n = 0;

	for (int fd = 0; fd < 1024; fd++) {
		ssize_t len;

		snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
		len = readlink(path, link, sizeof link - 1);
		n += len > 0 && !strncmp(link, kind, (size_t)len);
	}
	return n;
}

// Returns after how many microseconds it was over.
static unsigned kill_injector(pid_t target, unsigned delay_us)
{
	uint64_t begin = clock_now_ns();
	pid_t pid = fork();

	if (!pid) {
		struct mm_plant p;

		setpgid(0, 0);
		_exit(mm_plant(target, &opts, &p) ? 1 : 0);
	}
	setpgid(pid, pid);
	if (delay_us) {
		usleep(delay_us);
		kill(-pid, SIGKILL);
	}
	waitpid(pid, NULL, 0);
	return (unsigned)((clock_now_ns() - begin) / 1000);
}

static bool beating(struct pulse *p)
{
	uint64_t before[3] = { p->beats[0], p->beats[1], p->beats[2] };

	usleep(200000);
	return p->beats[0] > before[0] && p->beats[1] > before[1] && p->beats[2] > before[2];
}

int main(void)
{
	struct pulse *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC), status;
	char path[64], *text;
	struct mm_plant plant;
	pid_t pid = fork();
	size_t len, nr_uffds;
	unsigned whole_us;

	if (!pid)
		victim(p);
	log_init(quiet, LOG_ERROR, NULL, false);
	srand(3);
	whole_us = kill_injector(pid, 0);
	for (int i = 0; i < ROUNDS; i++)
		kill_injector(pid, (unsigned)rand() % (2 * whole_us) + 1);
	usleep(200000);
	CHECK(!waitpid(pid, &status, WNOHANG) && beating(p));
	snprintf(path, sizeof path, "/proc/%d/status", pid);
	CHECK(!io_read_file(path, 1 << 20, &text, &len) && strstr(text, "\nTracerPid:\t0\n"));
	free(text);
	nr_uffds = count(pid, "anon_inode:[userfaultfd]");
	CHECK(nr_uffds == count(pid, "anon_inode:[io_uring]")); // both or none
	printf("%d injectors killed, %zu of them too late\n", ROUNDS, nr_uffds - 1);
	CHECK(nr_uffds > 1 && nr_uffds <= ROUNDS); // else the moments were ill chosen
	CHECK(!mm_plant(pid, &opts, &plant));
	printf("the main thread stood still for %.2f ms\n", (double)plant.window_ns / NSEC_PER_MSEC);
	CHECK(count(pid, "anon_inode:[userfaultfd]") == nr_uffds + 1);
	CHECK(beating(p));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	CHECK(mm_plant(pid, &opts, &plant) == -ESRCH);
	return 0;
}
