// SPDX-License-Identifier: GPL-2.0-only
// The planted ring's thread sleeps when there is nothing to zap, and a batch wakes it once.
#include <dirent.h>

#include "tests/platform/platform.h"

#define PAGES 2048
#define BATCH 32

// CPU time of the ring's threads, in ticks of 10 ms.
static uint64_t ring_ticks(pid_t pid)
{
	char path[64], stat_path[400];
	struct dirent *e;
	uint64_t sum = 0;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	d = opendir(path);
	CHECK(d);
	while ((e = readdir(d))) {
		uint64_t user, sys;
		char name[32];
		FILE *f;

		snprintf(stat_path, sizeof stat_path, "%s/%s/stat", path, e->d_name);
		f = e->d_name[0] == '.' ? NULL : fopen(stat_path, "r");
		if (!f)
			continue;
		if (fscanf(f, "%*d (%31[^)]) %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", name, &user, &sys) == 3 &&
		    !strncmp(name, "iou-", 4))
			sum += user + sys;
		fclose(f);
	}
	closedir(d);
	return sum;
}

int main(void)
{
	uint64_t before, busy, idle, tag, tags, took, t;
	struct victim v;
	int res;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES);
	before = ring_ticks(v.pid);
	took = 0;
	for (int round = 0; round < 20; round++) {
		t = clock_now_ns();
		tags = 0;
		for (size_t i = 0; i < BATCH; i++)
			CHECK(!mm_zap_queue(v.zapper, v.hva + i * 64 * PAGE_SIZE, 64 * PAGE_SIZE, i));
		CHECK(!mm_zap_submit(v.zapper));
		for (int left = BATCH; left;) {
			struct pollfd p = { mm_zap_fd(v.zapper), POLLIN, 0 };

			CHECK(poll(&p, 1, 1000) == 1);
			for (; mm_zap_reap(v.zapper, &tag, &res); left--, tags |= 1ULL << tag)
				CHECK(!res && tag < BATCH);
		}
		CHECK(tags == (1ULL << BATCH) - 1); // each one once
		took += clock_now_ns() - t;
		usleep(50000);
	}
	busy = ring_ticks(v.pid) - before;
	CHECK(!mm_zap_pending(v.zapper));
	usleep(20000);
	before = ring_ticks(v.pid);
	sleep(2);
	idle = ring_ticks(v.pid) - before;
	printf("20 batches of %d zaps, 20 a second: %lu us each, %lu0 ms CPU; 2 s of nothing: %lu0 ms\n", BATCH, took / 20000,
	       busy, idle);
	CHECK(idle <= 1);
	CHECK(busy <= 50);

	for (size_t i = 0; i < 64; i++)
		CHECK(!mm_zap_queue(v.zapper, v.hva, PAGE_SIZE, i));
	CHECK(mm_zap_queue(v.zapper, v.hva, PAGE_SIZE, 64) == -EBUSY); // as many as the ring has entries
	kill(v.pid, SIGKILL);
	waitpid(v.pid, NULL, 0);
	CHECK(mm_zap_submit(v.zapper) == -ESRCH);
	victim_end(&v);
	return 0;
}
