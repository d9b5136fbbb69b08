// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/scope.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <systemd/sd-bus.h>

#include "util/clock.h"
#include "util/cleanup.h"
#include "util/log.h"

#define SERVICE "org.freedesktop.systemd1"
#define OBJECT "/org/freedesktop/systemd1"
#define TIMEOUT_US 5000000

#define _cleanup_bus_ __attribute__((cleanup(sd_bus_flush_close_unrefp)))
#define _cleanup_message_ __attribute__((cleanup(sd_bus_message_unrefp)))
#define _cleanup_error_ __attribute__((cleanup(sd_bus_error_free)))

struct job {
	const char *path; // the bus's name of it
	bool ended, done;
};

static int job_removed(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	const char *path, *result;
	struct job *job = ctx;

	(void)error;
	if (sd_bus_message_read(m, "uoss", NULL, &path, NULL, &result) < 0 || strcmp(path, job->path))
		return 0;
	job->ended = true;
	job->done = !strcmp(result, "done");
	return 0;
}

static int wait_for_job(sd_bus *bus, struct job *job)
{
	uint64_t end = clock_now_ns() + TIMEOUT_US * 1000UL;

	while (!job->ended) {
		uint64_t now = clock_now_ns();
		int r = sd_bus_process(bus, NULL);

		if (!r)
			r = now < end ? sd_bus_wait(bus, (end - now) / 1000) : -ETIMEDOUT;
		if (r < 0 && r != -EINTR)
			return r;
	}
	return job->done ? 0 : -ECANCELED;
}

// The answer is the path of a job. With no delegation: systemd manages the group's settings, and we make no groups below it.
static int ask(sd_bus *bus, const char *name, const char *unit, pid_t pid, sd_bus_error *error, sd_bus_message **answer)
{
	char description[128];

	snprintf(description, sizeof description, "Virtual machine %s, restored by criu-vm", name);
	return sd_bus_call_method(bus, SERVICE, OBJECT, SERVICE ".Manager", "StartTransientUnit", error, answer, "ssa(sv)a(sa(sv))", unit, "fail", 8,
				  "Description", "s", description, "Slice", "s", "criu-vm.slice", "PIDs", "au", 1, (uint32_t)pid, "Delegate", "b", 0,
				  "CollectMode", "s", "inactive-or-failed", "MemoryAccounting", "b", 1, "MemorySwapMax", "t", (uint64_t)0,
				  "TasksMax", "t", UINT64_MAX, 0); // QEMU's threads, as many as it had elsewhere
}

static int start(const char *name, const char *unit, pid_t pid, sd_bus_error *error, char **group)
{
	_cleanup_message_ sd_bus_message *answer = NULL;
	_cleanup_free_ char *object = NULL;
	_cleanup_bus_ sd_bus *bus = NULL;
	struct job job = { .ended = false };
	int r = sd_bus_open_system(&bus);

	if (r < 0 || (r = sd_bus_set_method_call_timeout(bus, TIMEOUT_US)) < 0 ||
	    (r = sd_bus_match_signal(bus, NULL, SERVICE, OBJECT, SERVICE ".Manager", "JobRemoved", job_removed, &job)) < 0 ||
	    (r = ask(bus, name, unit, pid, error, &answer)) < 0 || (r = sd_bus_message_read(answer, "o", &job.path)) < 0)
		return r;
	r = wait_for_job(bus, &job);
	if (r < 0 || (r = sd_bus_path_encode(OBJECT "/unit", unit, &object)) < 0)
		return r;
	r = sd_bus_get_property_string(bus, SERVICE, object, SERVICE ".Scope", "ControlGroup", error, group);
	return r < 0 ? r : 0;
}

int scope_start(const char *name, pid_t pid, char **unit, char **group)
{
	_cleanup_error_ sd_bus_error error = SD_BUS_ERROR_NULL;
	_cleanup_free_ char *u = NULL;
	int r;

	if (asprintf(&u, "criu-vm-%s.scope", name) < 0)
		return -ENOMEM;
	r = start(name, u, pid, &error, group);
	if (sd_bus_error_has_name(&error, SERVICE ".UnitExists"))
		return -EEXIST;
	if (r)
		log_warn("systemd does not start %s: %s", u, error.message ? error.message : strerror(-r));
	else
		*unit = steal_ptr(&u);
	return r;
}
