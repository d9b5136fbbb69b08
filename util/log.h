// SPDX-License-Identifier: GPL-2.0-only
// Messages to a person: standard error of a command, the log file of a pager.
#pragma once
#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

// fd is borrowed and must outlive logging (2 for a command; -1 for none). Errors go to standard error as well. prefix (may be NULL) is copied and put before each line,
// usually the VM's name. timestamps: date and time before each line, for files; an error that is the same as the last one is told once a minute.
void log_init(int fd, enum log_level max, const char *prefix, bool timestamps);
// For who tries again and again, without a file: such an error once a minute, too.
void log_no_repeats(void);
enum log_level log_max(void);

void log_at(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// The last LOG_ERROR line of this process without its prefix, "" if there was none: for a peer that wants the reason. The caller's until
// its thread asks again.
const char *log_last_error(void);

// Told of each error from here on, in the thread that has it, one at a time: the text of log_last_error(). NULL: nobody.
void log_listen(void (*hear)(void *ctx, const char *text), void *ctx);

#define log_err(...) log_at(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_at(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_at(LOG_INFO, __VA_ARGS__)
#define log_dbg(...) log_at(LOG_DEBUG, __VA_ARGS__)
