// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "util/clock.h"
#include "wire/control.h"

struct wire_keepalive {
	struct wire_conn *c;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t stopped;
	bool stop; // under lock
};

static struct timespec when_next(void)
{
	uint64_t ns = clock_now_ns() + WIRE_KEEPALIVE_MS * NSEC_PER_MSEC;

	return (struct timespec){ .tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = (long)(ns % NSEC_PER_SEC) };
}

// true: the time has come; false: it is stopped.
static bool await_next(struct wire_keepalive *k)
{
	struct timespec at = when_next();
	bool stop;
	int err = 0;

	pthread_mutex_lock(&k->lock);
	while (!k->stop && !err)
		err = pthread_cond_clockwait(&k->stopped, &k->lock, CLOCK_MONOTONIC, &at);
	stop = k->stop;
	pthread_mutex_unlock(&k->lock);
	return !stop;
}

static void *work(void *arg)
{
	struct wire_keepalive *k = arg;

	while (await_next(k))
		if (wire_send_plain(k->c, offsetof(WireMsg, keepalive)))
			break;
	return NULL;
}

// Signals are for the threads that were there before.
static int start_thread(struct wire_keepalive *k)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&k->thread, NULL, work, k);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}

int wire_keepalive_start(struct wire_conn *c, struct wire_keepalive **out)
{
	struct wire_keepalive *k = calloc(1, sizeof *k);
	int ret;

	if (!k)
		return -ENOMEM;
	k->c = c;
	pthread_mutex_init(&k->lock, NULL);
	pthread_cond_init(&k->stopped, NULL);
	ret = start_thread(k);
	if (ret) {
		pthread_cond_destroy(&k->stopped);
		pthread_mutex_destroy(&k->lock);
		free(k);
		return ret;
	}
	*out = k;
	return 0;
}

void wire_keepalive_stop(struct wire_keepalive *k)
{
	if (!k)
		return;
	pthread_mutex_lock(&k->lock);
	k->stop = true;
	pthread_cond_signal(&k->stopped);
	pthread_mutex_unlock(&k->lock);
	pthread_join(k->thread, NULL);
	pthread_cond_destroy(&k->stopped);
	pthread_mutex_destroy(&k->lock);
	free(k);
}
