// SPDX-License-Identifier: GPL-2.0-only
// Before the instant: a thread that lets whoever writes through at once, and sees to it that few chunks are without protection.
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>

#include "mm/protect_int.h"
#include "util/bitmap.h"
#include "util/log.h"

#define AGAIN_MS 1 // after a discard held things up

// Protects the one again that has been open for longest. What cannot be now is left to the instant.
static int shut_oldest(struct mm_protect *p)
{
	const size_t unit = p->window[p->window_at];
	int ret = protect_set(p, unit, true);

	p->window_at = (p->window_at + 1) % WINDOW;
	p->nr_window--;
	bitmap_clear(p->open, unit);
	if (ret != -EAGAIN)
		return ret;
	bitmap_set(p->gone, unit);
	return 0;
}

// The chunk is noted before it is written to. An open one can be protected nevertheless, by the first pass over everything.
static int let_through(struct mm_protect *p, size_t unit)
{
	int ret = 0;

	if (!bitmap_test(p->open, unit)) {
		if (p->nr_window == WINDOW)
			ret = shut_oldest(p);
		bitmap_set(p->open, unit);
		p->window[(p->window_at + p->nr_window++) % WINDOW] = unit;
	}
	return ret ? ret : protect_set(p, unit, false);
}

static int serve(struct mm_protect *p, bool *again)
{
	int ret = protect_read_events(p);

	*again = false;
	for (size_t c = 0; !ret && (c = bitmap_next(p->wanted, p->nr_chunks, c, true)) < p->nr_chunks; c++) {
		size_t nr, unit = protect_unit(p, c, &nr);

		ret = let_through(p, unit);
		if (ret == -EAGAIN) {
			*again = true;
			ret = 0;
			c = unit + nr - 1;
		} else {
			bitmap_clear_range(p->wanted, unit, nr);
		}
	}
	return ret;
}

static void *arm(void *ctx)
{
	struct mm_protect *p = ctx;
	struct pollfd fds[] = { { p->uffd, POLLIN, 0 }, { p->kick_fd, POLLIN, 0 } };
	bool again = false;
	int ret = 0;

	while (!ret) {
		if (poll(fds, 2, again ? AGAIN_MS : -1) < 0 && errno != EINTR)
			ret = -errno;
		if (fds[1].revents)
			break;
		pthread_mutex_lock(&p->lock);
		if (!ret)
			ret = serve(p, &again);
		p->err = ret;
		pthread_mutex_unlock(&p->lock);
	}
	if (ret && ret != -ESRCH)
		log_err("process %d: its writes cannot be let through: %s", p->pid, strerror(-ret));
	return NULL;
}

int protect_arm_start(struct mm_protect *p)
{
	sigset_t all, before;
	int ret;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	ret = -pthread_create(&p->thread, NULL, arm, p);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	p->thread_runs = p->armed = !ret;
	return ret;
}

void protect_arm_stop(struct mm_protect *p)
{
	eventfd_t kicks;

	if (!p->thread_runs)
		return;
	eventfd_write(p->kick_fd, 1);
	pthread_join(p->thread, NULL);
	eventfd_read(p->kick_fd, &kicks);
	p->thread_runs = false;
}
