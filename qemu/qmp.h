// SPDX-License-Identifier: GPL-2.0-only
// QMP client: JSON commands to a QEMU over its unix socket. One thread at a time may use a client.
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct qmp;

enum qmp_msg_kind { QMP_REPLY, QMP_EVENT };

struct qmp_msg {
	enum qmp_msg_kind kind;
	uint64_t id; // QMP_REPLY: as given to qmp_send()
	bool ok; // QMP_REPLY: false when QEMU answered with an error
	char *text; // QMP_EVENT: its name. QMP_REPLY that is not ok: QEMU's reason. Else NULL
	json_t *data; // QMP_EVENT: its data. QMP_REPLY that is ok: the return value. Else NULL
};

void qmp_msg_fini(struct qmp_msg *m);

// Connect, read the greeting, negotiate capabilities; each answer is waited for up to timeout_ms, now and in later calls.
// Blocks. Logs and returns -ENOENT, -ECONNREFUSED or -EACCES (no such socket, nobody listens, not permitted), -EBUSY (another
// client has it), -EPROTO (what answers is no QMP), or what connecting gave.
int qmp_open(const char *path, int timeout_ms, struct qmp **q);

// The same, for one of several sockets that may do: -ENOENT, -ECONNREFUSED and -EBUSY are not logged.
int qmp_open_quiet(const char *path, int timeout_ms, struct qmp **q);

// The same, for a QEMU that may be starting still, or end: waits no longer than until watch_fd (its pidfd) is readable, then
// -ESRCH, or until interrupted() (may be NULL) is true, then -EINTR; these and -EBUSY (it did not greet in time) are not logged.
// watch_fd stays the caller's, and neither is used later.
int qmp_open_watching(const char *path, int timeout_ms, int watch_fd, bool (*interrupted)(void), struct qmp **q);

// Takes over a connected socket (closed on failure too); name stands for it in messages.
int qmp_open_fd(int fd, const char *name, int timeout_ms, struct qmp **q);

void qmp_close(struct qmp *q);

const char *qmp_version(const struct qmp *q); // "7.2.22"
unsigned qmp_version_num(const struct qmp *q); // major * 10000 + minor * 100 + micro: 70222

// Who listens on the socket, as the kernel says; 0 if that process is in no pid namespace of ours.
pid_t qmp_peer_pid(const struct qmp *q);

void qmp_set_timeout(struct qmp *q, int timeout_ms);
// Asked some ten times a second while an answer is waited for, for as long as q is there: true ends that, with -EINTR, which is not logged.
void qmp_set_gives_up(struct qmp *q, bool (*gives_up)(void *ctx), void *ctx);

// One command; blocks until its answer. args (may be NULL) is stolen, *ret (ret may be NULL) is the caller's. Events that
// come meanwhile are kept for qmp_receive(), the last 256 of them. Logs and returns -EREMOTEIO (QEMU answers with an error),
// -ETIMEDOUT (the answer may still come: it is then skipped), -EPIPE (QEMU is gone), -EPROTO (what it says is no QMP).
int qmp_call(struct qmp *q, const char *cmd, json_t *args, json_t **ret);

// The same with a descriptor for commands such as getfd and add-fd. fd stays the caller's.
int qmp_call_fd(struct qmp *q, const char *cmd, json_t *args, int fd, json_t **ret);

// The same as qmp_call(), for commands that may well fail: an error answer is not logged, qmp_last_error() has QEMU's words.
int qmp_try(struct qmp *q, const char *cmd, json_t *args, json_t **ret);
const char *qmp_last_error(const struct qmp *q);

// A line of the human monitor; *text is the caller's. QEMU reports a bad line in the text, not as an error.
int qmp_hmp(struct qmp *q, const char *line, char **text);

// For an event loop; these never block. Replies that qmp_call() waits for are not seen here.
int qmp_fd(const struct qmp *q);

// id: any below 2^63, the caller's own. A command that does not fit the socket's buffer at once: -EPIPE, as when QEMU is gone.
int qmp_send(struct qmp *q, const char *cmd, json_t *args, uint64_t id);

// The next message, *m to be given to qmp_msg_fini(). -EAGAIN: none is complete. -EPIPE, -EPROTO as above. After qmp_fd()
// polled readable, and after any qmp_call(), call it until -EAGAIN.
int qmp_receive(struct qmp *q, struct qmp_msg *m);
