// SPDX-License-Identifier: GPL-2.0-only
// What a connection is made of: conn.c reads and writes, connect.c makes one, tls.c is its TLS session, tls_load.c the credentials.
#pragma once
#include <gnutls/gnutls.h>
#include <pthread.h>
#include <stdatomic.h>

#include "wire/conn.h"

#define WIRE_FINISH_MS 1000 // in which an alert gets to the other side

struct wire_psk {
	char *name;
	gnutls_datum_t hex;
};

// Ciphertext between GnuTLS and the socket: data[at..len) is what is left.
struct wire_buffer {
	uint8_t *data;
	size_t at, len, room;
};

// What of a kind (X.509 or PSK) or side (server or client) is not used is NULL.
struct wire_tls {
	bool server;
	char *dir;
	gnutls_priority_t priority;
	gnutls_certificate_credentials_t x509;
	gnutls_psk_server_credentials_t psk_server;
	gnutls_psk_client_credentials_t psk_client;
	struct wire_psk *keys;
	size_t nr_keys;
};

struct wire_conn {
	int fd;        // non-blocking
	char *peer;
	bool quiet;    // of what fails while it is made
	atomic_uint timeout_ms;
	bool (*_Atomic interrupted)(void);
	_Atomic uint64_t sent, received;
	_Atomic uint64_t heard_ns;       // when a byte came last, or it began
	uint64_t deadline_ns;            // of the reader, 0: none
	pthread_mutex_t message_lock;    // wire_lock()
	int read_error, write_error; // of its reader, of its writer; what came after part of a message would be taken for the rest of it

	gnutls_session_t session; // NULL: in the clear
	const struct wire_tls *tls;
	pthread_mutex_t tls_lock; // see tls.c
	char *host;               // that a client's user wants to reach
	gnutls_typed_vdata_st want[2]; // what its certificate has to be for; the session points here, and at host
	struct wire_buffer in;    // the reader's
	struct wire_buffer out;   // the writer's
	bool sending;             // GnuTLS may add to out
	uint8_t *gather;          // the writer's: a record that is put together of several pieces
	bool has_ahead;           // the reader's: wire_poll() has taken a byte from the session
	uint8_t ahead;
	char *key_name;           // the client's, for its key
	bool unknown_key;         // we have none of that name
};

// Takes fd and peer, also on an error. -ENOMEM.
int wire_conn_new(int fd, char *peer, struct wire_conn **c);
// Is fd ready for what poll() calls events? 1, 0 at end_ns (CLOCK_MONOTONIC), -EINTR: interrupted() (may be NULL) said so, -errno.
int wire_wait(int fd, short events, uint64_t end_ns, bool (*interrupted)(void));

// Logs (at c->quiet's level). host: whom a client's user wants to reach, NULL for a server. As wire_connect().
int wire_tls_handshake(struct wire_conn *c, const struct wire_tls *tls, const char *host, uint64_t end_ns);
// Some of it, without waiting: bytes (0: the end), -EAGAIN, or as wire_read().
ssize_t wire_tls_receive(struct wire_conn *c, void *buf, size_t len);
// Takes some of it (iov[0] is not empty), without waiting, once what was taken before is on its way: bytes, -EAGAIN, or as wire_write().
// nr 0: 0 once all is on its way.
ssize_t wire_tls_send(struct wire_conn *c, const struct iovec *iov, unsigned nr);
void wire_tls_end(struct wire_conn *c);
