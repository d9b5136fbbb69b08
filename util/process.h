// SPDX-License-Identifier: GPL-2.0-only
// Processes and memory of this host.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

// Start of a process in clock ticks after boot, 0 if there is none: tells it from another one with its pid.
uint64_t process_start(pid_t pid);
// Of its first thread, as in /proc/PID/stat: 'R', 'S', 'D', 'T' (stopped by a signal), 't' (by a tracer), 'Z', ...; 0: there is none.
char process_state(pid_t pid);
bool process_is_stopped(pid_t pid); // by a signal, or by a tracer
// It is being killed, or exits, or has; what it had may be gone before a descriptor of it says that it has ended. True also if there is
// none.
bool process_is_ending(pid_t pid);
// "killed by signal 9 (Killed)" or "exit status 1", of what waitpid() says.
const char *process_how_it_ended(int status, char *buf, size_t size);
// How a process ended that is not our child, as waitpid() would say it; -1: the kernel (before 6.15) does not know, or nobody has
// reaped it. Waits for that, a little.
int process_exit_status(int pidfd);
// The kernel shall not choose the calling process, or those that it starts, when memory is short. Logs at most a warning.
void process_spare_from_oom(void);
// Bytes that can be had without swapping (MemAvailable). -errno.
int host_memory_available(uint64_t *bytes);
