// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/restore.h"
#include "qemu/devstate.h"
#include "qemu/qmp.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define LOAD_TIMEOUT_NS (120 * NSEC_PER_SEC)

static int send_stream(const struct restore *r, int fd, const uint8_t *p, size_t len)
{
	uint64_t end = clock_now_ns() + LOAD_TIMEOUT_NS;

	while (len) {
		struct pollfd pfd = { .fd = fd, .events = POLLOUT };
		ssize_t n = poll(&pfd, 1, 200) > 0 ? write(fd, p, len) : 0;
		int err;

		if (n < 0 && errno != EAGAIN && errno != EINTR && errno != EPIPE) {
			err = -errno;
			log_err("cannot send the device state to QEMU: %s", strerror(-err));
			return err;
		}
		if (n > 0) {
			p += n;
			len -= (size_t)n;
			continue;
		}
		if (n < 0 && errno == EPIPE) // it has stopped reading: it is ending, or fails to
			usleep(100000);
		err = restore_waiting_failed(r, end, "take its device state");
		if (err)
			return err;
	}
	return 0;
}

static int wait_loaded(const struct restore *r)
{
	uint64_t end = clock_now_ns() + LOAD_TIMEOUT_NS;

	for (;;) {
		json_t *status = NULL;
		bool loading;
		int err;

		if (restore_qemu_ended(r))
			return -ECHILD;
		err = qmp_try(r->qmp, "query-status", NULL, &status);
		if (err)
			return err != -EINTR && restore_qemu_ended(r) ? -ECHILD : err; // else that was told
		loading = json_is_string(json_object_get(status, "status")) &&
			  !strcmp(json_string_value(json_object_get(status, "status")), "inmigrate");
		json_decref(status);
		if (!loading)
			return 0;
		err = restore_waiting_failed(r, end, "load its device state");
		if (err)
			return err;
		usleep(1000);
	}
}

static void put_runs(const SmallBlockEntry *b, uint8_t *data)
{
	for (size_t j = 0; j < b->n_runs; j++)
		memcpy(data + b->runs[j]->off, b->runs[j]->data.data, b->runs[j]->data.len);
}

int restore_expand_small(const DeviceStateEntry *ds, struct qemu_small_block **out, size_t *nr)
{
	struct qemu_small_block *small = calloc(ds->n_blocks + 1, sizeof *small);

	for (size_t i = 0; small && i < ds->n_blocks; i++) {
		const SmallBlockEntry *b = ds->blocks[i];
		char *name = strdup(b->name);
		uint8_t *data = calloc(1, b->len);

		small[i] = (struct qemu_small_block){ .name = name, .len = b->len, .data = data };
		if (!name || !data) {
			restore_free_small(small, i + 1);
			return -ENOMEM;
		}
		put_runs(b, data);
	}
	*out = small;
	*nr = ds->n_blocks;
	return small ? 0 : -ENOMEM;
}

void restore_free_small(struct qemu_small_block *small, size_t nr)
{
	for (size_t i = 0; small && i < nr; i++) {
		free((void *)small[i].name);
		free((void *)small[i].data);
	}
	free(small);
}

int restore_update_small(const DeviceStateEntry *ds, struct qemu_small_block *small, size_t nr)
{
	for (size_t i = 0; i < ds->n_blocks; i++) {
		const SmallBlockEntry *b = ds->blocks[i];
		size_t k = 0;

		while (k < nr && strcmp(small[k].name, b->name) != 0)
			k++;
		if (k == nr || small[k].len != b->len) {
			log_err("RAM block '%s' of the device state is none of those that came before", b->name);
			return -EBADMSG;
		}
		put_runs(b, (uint8_t *)small[k].data);
	}
	return 0;
}

static bool gives_up(void *ctx)
{
	return restore_gives_up(ctx);
}

// Devices touch pages, which may be missing: QEMU, and so its monitor, waits until they come, and nobody knows for how long.
static int load(struct restore *r, const uint8_t *stream, size_t len)
{
	int err, pipe_fds[2];

	qmp_set_gives_up(r->qmp, gives_up, r);
	if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
		err = -errno;
		log_err("cannot make a pipe: %s", strerror(-err));
		return err;
	}
	fcntl(pipe_fds[1], F_SETFL, O_NONBLOCK);
	err = qmp_call_fd(r->qmp, "getfd", json_pack("{s:s}", "fdname", "criu-vm-state"), pipe_fds[0], NULL);
	close(pipe_fds[0]);
	// What another monitor has said by now would have it run as soon as it is loaded.
	if (!err)
		err = qmp_call(r->qmp, "stop", NULL, NULL);
	if (!err)
		err = qmp_call(r->qmp, "migrate-incoming", json_pack("{s:s}", "uri", "fd:criu-vm-state"), NULL);
	if (!err)
		err = send_stream(r, pipe_fds[1], stream, len);
	close(pipe_fds[1]);
	return err ? err : wait_loaded(r);
}

int restore_load_state(struct restore *r, const uint8_t *state, size_t state_len, const struct qemu_small_block *small, size_t nr)
{
	_cleanup_free_ uint8_t *stream = NULL;
	size_t len;
	int err = qemu_devstate_build(state, state_len, r->vm->machine, small, nr, &stream, &len);

	return err ? err : load(r, stream, len);
}

static const DeviceStateEntry *device_state(const struct restore *r)
{
	if (r->peer)
		return restore_peer_device_state(r->peer);
	return r->stream ? img_stream_in_device_state(r->stream) : img_dir_device_state(r->images);
}

int restore_load(void *ctx)
{
	struct restore *r = ctx;
	const DeviceStateEntry *ds = device_state(r);
	struct qemu_small_block *small = NULL;
	size_t nr = 0;
	int err = restore_expand_small(ds, &small, &nr);

	if (!err)
		err = restore_load_state(r, ds->stream.data, ds->stream.len, small, nr);
	restore_free_small(small, nr);
	return err;
}
