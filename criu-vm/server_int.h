// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: how the server waits
//
//	signals      SIGTERM, SIGINT, SIGQUIT: the end; SIGHUP: read files again; SIGCHLD: a child has ended
//	listeners    accept, without waiting for what comes
//	conns        half-open: a preamble is expected, 10 s; when there are too many, the oldest goes
//	children     the line of each receiver: what it wants promised; of each reader until it knows with whom it speaks
//
// All in one poll(), each object remembering its place in the array. Lines are looked at first, then conns, listeners and signals: so
// nobody frees what is still to be looked at in the same round.
#pragma once
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "criu-vm/run_dir.h"
#include "criu-vm/server.h"
#include "util/list.h"

#define SERVER_LISTENERS 8
#define SERVER_CONNS 64
#define SERVER_RECEIVERS 64
#define SERVER_HELPERS 64 // that answer, pass a line on, or say no
#define SERVER_READERS 512 // of a served checkpoint, and describers: some for each VM
#define SERVER_CHANNELS 128 // connections that a receiver gets, those that others made with its token included
#define SERVER_REASON 512
#define SERVER_PEER 64

struct server_conn {
	struct list node;
	int fd, slot;
	uint64_t deadline; // ns
	char peer[SERVER_PEER]; // its address
	size_t len;
	uint8_t preamble[WIRE_PREAMBLE_LEN];
};

// A tidier takes the place of a receiver that was killed, and removes what that has left behind. A passer gives a page line to its VM. A
// describer, and a reader for each page line, serve a checkpoint.
enum server_child_kind {
	SERVER_RECEIVER,
	SERVER_TIDIER,
	SERVER_ANSWERER,
	SERVER_PASSER,
	SERVER_REFUSER,
	SERVER_DESCRIBER,
	SERVER_READER,
};

struct server_child {
	struct list node;
	enum server_child_kind kind;
	pid_t pid;
	int line, slot; // -1: none
	uint8_t token[WIRE_TOKEN_LEN];
	char peer[SERVER_PEER];
	char name[RUN_DIR_NAME_MAX + 1]; // "": nothing is promised yet
	uint64_t promised;
	unsigned nr_channels;
	bool undecided; // its source may have to ask what became of the VM
	bool asked;     // it has, and was answered
	bool introduced; // a reader or describer that knows with whom it speaks
	int receiver_status; // of a tidier: how the receiver ended, as of waitpid()
};

struct server {
	const struct server_opts *o;
	pid_t pid;
	struct map_file *map;
	struct wire_tls *tls;
	struct image_server *images; // NULL: it takes VMs
	int listeners[SERVER_LISTENERS];
	unsigned nr_listeners;
	uint64_t accept_after; // ns: there were no descriptors or no memory for a connection
	int signals;
	sigset_t mask; // before ours
	struct list conns, children; // the oldest first
	unsigned nr_conns;
	uint64_t warned_since; // server_warn()
	unsigned nr_warned;
	bool stopping, over;
	bool awaits_ask; // once: the VM has come, or not, and this is all that is left to do
	bool awaits_pages; // or this: pass page lines on, until its source holds nothing any more
	uint64_t look_at;  // ns: when that is looked at
	uint64_t expected_until; // ns: nothing is missing any more, and its source has not come to hear it; 0: pages are missing
	uint8_t once_token[WIRE_TOKEN_LEN];
	uint64_t stop_by;
	int status; // cmd.h
};

// ---- server_listen.c
// In the clear only loopback addresses, unless insecure. An exit status (logged), or CMD_GO_ON.
int server_listen(struct server *s);
// Numeric address and port of a listener.
void server_listener_name(int fd, char address[SERVER_PEER], uint16_t *port);
void server_listen_close(struct server *s);

// ---- server_conns.c
void server_accept(struct server *s, int listener);
// It is readable, or has failed. May free c.
void server_conn_ready(struct server *s, struct server_conn *c);
void server_conns_expire(struct server *s, uint64_t now);
void server_conns_close(struct server *s);
// Logs, a few a minute, what is done to a connection that is no good.
void server_warn(struct server *s, const char *peer, const char *what);

// ---- server_children.c
// For the connection that c has; its descriptor is taken over. A refuser tells the other side why.
void server_spawn(struct server *s, enum server_child_kind kind, const struct wire_preamble *p, struct server_conn *c, const char *why);
// The receiver that has this token, or its tidier, or NULL.
struct server_child *server_receiver_of(struct server *s, const uint8_t token[WIRE_TOKEN_LEN]);
unsigned server_nr_arriving(const struct server *s); // receivers and tidiers
// Gives a data connection to a receiver. fd is taken over.
void server_pass(struct server_child *c, unsigned channel, int fd);
// It wants something, or has closed its line.
void server_line_ready(struct server *s, struct server_child *c);
void server_reap(struct server *s);
// Once: is anything missing yet?
void server_look_at_pages(struct server *s, uint64_t now);
void server_signal_receivers(struct server *s, int sig);
void server_children_free(struct server *s); // of ours, not the processes

// ---- server_memory.c
// Promises bytes to c. -ENOMEM, -EEXIST, -EINVAL: reason is set.
int server_promise(const struct server *s, struct server_child *c, const char *name, uint64_t bytes, char reason[SERVER_REASON]);

// ---- server.c
// A line on standard output, or (json) an object {"event": {...}}: with what became of a VM, or where the server listens.
void server_say(const struct server *s, const char *event, const char *name, const char *peer, const char *text);

// ---- the line
struct server_request {
	uint64_t bytes;
	char name[RUN_DIR_NAME_MAX + 1];
	bool undecided;  // and nothing else: there is no answer
	bool introduced; // the same; of a reader or describer
};

enum server_message_kind { SERVER_PROMISE, SERVER_CHANNEL };

struct server_message {
	enum server_message_kind kind;
	int error;        // PROMISE
	unsigned channel; // CHANNEL: its descriptor comes along
	char reason[SERVER_REASON];
};
