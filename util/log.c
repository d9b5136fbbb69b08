// SPDX-License-Identifier: GPL-2.0-only
#include "util/log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_LEN 2048
#define REPEAT_AFTER_S 60

static struct {
	int fd;
	enum log_level max;
	bool timestamps, repeats; // repeats: each time that there is the same error
	char prefix[80];
	char last_error[LINE_MAX_LEN];
	time_t error_at; // when last_error was written
	void (*hear)(void *ctx, const char *text);
	void *hear_ctx;
} state = { .fd = STDERR_FILENO, .max = LOG_WARN, .repeats = true };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // of the last error, and repeats
static pthread_mutex_t hearing = PTHREAD_MUTEX_INITIALIZER;

static const char *const level_word[] = { "error: ", "warning: ", "", "debug: " };

static void take_lock(void)
{
	pthread_mutex_lock(&lock);
}

static void release_lock(void)
{
	pthread_mutex_unlock(&lock);
}

// A child that is forked while another thread logs could not log any more.
static void guard_forks(void)
{
	pthread_atfork(take_lock, release_lock, release_lock);
}

void log_init(int fd, enum log_level max, const char *prefix, bool timestamps)
{
	static pthread_once_t guarded = PTHREAD_ONCE_INIT;

	pthread_once(&guarded, guard_forks);
	state.fd = fd;
	state.max = max;
	state.timestamps = timestamps;
	state.repeats = !timestamps;
	snprintf(state.prefix, sizeof state.prefix, "%s", prefix ? prefix : "");
}

void log_no_repeats(void)
{
	pthread_mutex_lock(&lock);
	state.repeats = false;
	pthread_mutex_unlock(&lock);
}

enum log_level log_max(void)
{
	return state.max;
}

const char *log_last_error(void)
{
	static _Thread_local char copy[LINE_MAX_LEN];

	pthread_mutex_lock(&lock);
	strcpy(copy, state.last_error);
	pthread_mutex_unlock(&lock);
	return copy;
}

void log_listen(void (*hear)(void *ctx, const char *text), void *ctx)
{
	state.hear = hear;
	state.hear_ctx = ctx;
}

static void tell_listener(const char *text)
{
	pthread_mutex_lock(&hearing);
	state.hear(state.hear_ctx, text);
	pthread_mutex_unlock(&hearing);
}

// False: in the log of a process that tries something again and again, it is the same error as before.
static bool remember(const char *text)
{
	time_t now = time(NULL);
	bool repeated;

	pthread_mutex_lock(&lock);
	repeated = !state.repeats && !strcmp(text, state.last_error) && now - state.error_at < REPEAT_AFTER_S;
	if (!repeated) {
		state.error_at = now;
		snprintf(state.last_error, sizeof state.last_error, "%s", text);
	}
	pthread_mutex_unlock(&lock);
	return !repeated;
}

// Names and messages of images, of a QEMU and of its guest are in these lines: none of it shall move a terminal's cursor.
static void disarm(char *text)
{
	for (; *text; text++)
		if (((unsigned char)*text < ' ' && *text != '\n' && *text != '\t') || *text == 0x7f)
			*text = '?';
}

void log_at(enum log_level level, const char *fmt, ...)
{
	char line[LINE_MAX_LEN + 160], stamp[32] = "";
	int saved_errno = errno, len, text, text_start;
	va_list ap;

	if (level > state.max && level != LOG_ERROR)
		return;
	if (state.timestamps) {
		struct timespec now;
		struct tm tm;
		size_t n;

		clock_gettime(CLOCK_REALTIME, &now);
		localtime_r(&now.tv_sec, &tm);
		n = strftime(stamp, sizeof stamp, "%F %T", &tm);
		snprintf(stamp + n, sizeof stamp - n, ".%03ld ", now.tv_nsec / 1000000);
	}
	text_start = (int)strlen(stamp);
	len = snprintf(line, sizeof line - LINE_MAX_LEN, "%s%s%s%s", stamp, state.prefix, *state.prefix ? ": " : "", level_word[level]);
	if (len > (int)sizeof line - LINE_MAX_LEN - 1)
		len = sizeof line - LINE_MAX_LEN - 1;
	text = len;
	va_start(ap, fmt);
	len += vsnprintf(line + len, LINE_MAX_LEN - 1, fmt, ap);
	va_end(ap);
	if (len > text + LINE_MAX_LEN - 2)
		len = text + LINE_MAX_LEN - 2;
	disarm(line + text);
	if (level == LOG_ERROR && !remember(line + text))
		goto out;
	if (level == LOG_ERROR && state.hear)
		tell_listener(line + text);
	line[len++] = '\n';
	if (level == LOG_ERROR && state.fd > STDERR_FILENO) // in a file, an error would be missed
		dprintf(STDERR_FILENO, "%.*s", len - text_start, line + text_start);
	if (write(state.fd, line, (size_t)len) < 0) {
		// Nobody is left to tell.
	}
out:
	errno = saved_errno;
}
