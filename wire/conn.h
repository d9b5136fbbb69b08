// SPDX-License-Identifier: GPL-2.0-only
// One connection of a migration: TCP, in the clear or in TLS (GnuTLS), whole reads and writes that end in bounded time.
//
// Reading and writing may go on in two threads at once; two threads that read, or two that write, may not.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "wire/preamble.h"

#define WIRE_PORT 9723
#define WIRE_LOST_MS 15000 // without a byte: the line is lost

struct wire_conn;
struct wire_tls; // credentials; those that use it do not change it

// dir has files named as QEMU's tls-creds-x509 (ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem,
// ca-crl.pem, which may be absent) or tls-creds-psk (keys.psk: NAME:HEX lines; a client uses its first); X.509 if ca-cert.pem is there.
// Both sides are verified; a client verifies the host's name, too. Logs: which file, what to do. -ENOENT, -EACCES (a key that others
// may read), -EINVAL.
int wire_tls_load(const char *dir, bool server, struct wire_tls **tls);
void wire_tls_free(struct wire_tls *tls); // accepts NULL

struct wire_connect_opts {
	const char *host; // name or address
	uint16_t port;
	const struct wire_tls *tls; // NULL: in the clear
	struct wire_preamble preamble; // TLS flag is set by wire_connect()
	unsigned timeout_ms; // for all of it, handshake too
	bool (*interrupted)(void); // may be NULL
	bool quiet; // failing is no error: who asks again and again
};

// "HOST", "HOST:PORT", "[V6]", "[V6]:PORT", "V6": *host is the caller's; *port is WIRE_PORT if none is said. -EINVAL is logged.
int wire_parse_address(const char *text, char **host, uint16_t *port);
// Every address that it has is one. Blocks on the resolver.
bool wire_is_loopback(const char *host);

// Connects to the first of the host's addresses that takes it, sends the preamble, does the handshake. Blocks on the resolver, which
// timeout_ms does not bound. Logs; -EHOSTUNREACH (no such host), -ECONNREFUSED, -ETIMEDOUT, -EINTR (silent), -EPROTO (TLS refused, by
// either side: both say why), ...
int wire_connect(const struct wire_connect_opts *o, struct wire_conn **c);
// fd: accepted, its preamble read. Takes it over, also on an error. tls: NULL: in the clear. Logs.
int wire_accept(int fd, const struct wire_tls *tls, unsigned timeout_ms, struct wire_conn **c);
// Who is at the other end: "192.0.2.1:4711", with the certificate's name behind it.
const char *wire_peer(const struct wire_conn *c);
// Its socket, borrowed: to ask the system who that is.
int wire_fd(const struct wire_conn *c);

// All of it, or -errno: -ECONNRESET (closed, in the middle or before), -ETIMEDOUT (nothing came, or went, for the time-out, WIRE_LOST_MS
// unless wire_set_timeout() says otherwise), -EBADMSG (TLS). -EINTR: interrupted() said so while it waited. Silent. After an error that
// direction is of no use, and gives that error again; the other one may be.
int wire_read(struct wire_conn *c, void *buf, size_t len);
int wire_write(struct wire_conn *c, const void *buf, size_t len);
// Changes iov. Bigger ones go in the fewest system calls.
int wire_writev(struct wire_conn *c, struct iovec *iov, unsigned nr);
// Is there something to read (or the end, or an error)? 1, 0 after timeout_ms (-1: never), -EINTR, -errno. It is the reader's to call.
int wire_poll(struct wire_conn *c, int timeout_ms);
void wire_set_timeout(struct wire_conn *c, unsigned ms); // more than 0
// What is sent goes before other traffic where somebody looks at that: this host's queue, a network that knows RFC 4594's low-latency data.
// wire_connect() does it for line 0 of page lines; who accepts one, itself.
void wire_set_urgent(struct wire_conn *c);
// Reads end with -ETIMEDOUT at this time of clock_now_ns(), even while bytes come, one by one; 0: never.
void wire_set_deadline(struct wire_conn *c, uint64_t ns);
// Milliseconds until the line counts as lost since nothing was received for the time-out; 0: it does.
unsigned wire_lost_in(const struct wire_conn *c);
// For who writes in several threads: a whole message is written under it. wire_write() and wire_writev() do not take it.
void wire_lock(struct wire_conn *c);
void wire_unlock(struct wire_conn *c);
void wire_set_interrupted(struct wire_conn *c, bool (*interrupted)(void));
uint64_t wire_bytes_sent(const struct wire_conn *c); // of the caller's data
uint64_t wire_bytes_received(const struct wire_conn *c);
// Says that no more is sent, and throws away what comes until the other side has closed, too, at most ms: closing while something is
// unread resets the line, and the last message, such as an ABORT, may be lost. Nobody reads or writes meanwhile; wire_close() is still due.
void wire_finish(struct wire_conn *c, unsigned ms);
// Ends it for both sides and wakes whoever reads or writes; from any thread.
void wire_shutdown(struct wire_conn *c);
void wire_close(struct wire_conn *c); // accepts NULL
