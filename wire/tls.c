// SPDX-License-Identifier: GPL-2.0-only
// A connection's TLS session.
//
// DOC: what stands between GnuTLS and the socket
//
//	wire_write() -> gnutls_record_send() -> out -> socket         socket -> in -> gnutls_record_recv() -> wire_read()
//
// GnuTLS lets one thread send and another receive on a session, but after 2^24 records, 256 GiB, it changes its keys in the midst of
// sending or receiving, and that touches what both of them use (gnutls issue 1717): so both hold tls_lock while they are in GnuTLS. And
// a key that changes while a record waits for a full socket loses or repeats bytes: so GnuTLS never meets the socket. What it sends goes
// to `out`, which takes all; what it receives comes from `in`. System calls, and waiting, are done without the lock, and many records
// take one.
//
// DOC: the welcome
//
// A TLS 1.3 client is done before the server has looked at its certificate. So that wire_connect() can say whether the server took it,
// the server's first byte in the session is WELCOME.
#include "wire/conn_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/x509.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/log.h"
#include "util/size.h"

#define WELCOME 'W'
#define RECORD_MAX (16 * KiB)
#define BATCH (8 * RECORD_MAX) // of one system call
#define NAME_MAX_LEN 64 // of a certificate's owner, in messages

#define say(c, ...) log_at((c)->quiet ? LOG_DEBUG : LOG_ERROR, __VA_ARGS__)

static int transfer_error(ssize_t n)
{
	return n == GNUTLS_E_AGAIN || n == GNUTLS_E_INTERRUPTED ? -EAGAIN : n == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EBADMSG;
}

static ssize_t push(gnutls_transport_ptr_t ptr, const giovec_t *iov, int nr)
{
	struct wire_conn *c = ptr;
	struct wire_buffer *out = &c->out;
	size_t more = 0;

	for (int i = 0; i < nr; i++)
		more += iov[i].iov_len;
	if (!c->sending) { // GnuTLS answers nothing by itself while it receives; out is another thread's then
		errno = EPERM;
		return -1;
	}
	if (out->room - out->len < more) {
		uint8_t *data = realloc(out->data, out->len + more);

		if (!data) {
			errno = ENOMEM;
			return -1;
		}
		out->data = data;
		out->room = out->len + more;
	}
	for (int i = 0; i < nr; out->len += iov[i++].iov_len)
		memcpy(out->data + out->len, iov[i].iov_base, iov[i].iov_len);
	return (ssize_t)more;
}

static ssize_t pull(gnutls_transport_ptr_t ptr, void *buf, size_t len)
{
	struct wire_conn *c = ptr;
	size_t left = c->in.len - c->in.at, n = left < len ? left : len;

	if (!n) {
		errno = EAGAIN;
		return -1;
	}
	memcpy(buf, c->in.data + c->in.at, n);
	c->in.at += n;
	return (ssize_t)n;
}

// Sends what is in out: 0 when all of it went, -EAGAIN, -errno.
static int flush(struct wire_conn *c)
{
	struct wire_buffer *out = &c->out;

	while (out->at < out->len) {
		ssize_t n = send(c->fd, out->data + out->at, out->len - out->at, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0)
			return errno == EINTR ? -EAGAIN : errno == EPIPE ? -ECONNRESET : -errno;
		out->at += (size_t)n;
	}
	out->at = out->len = 0;
	return 0;
}

// Receives into in, which GnuTLS has emptied. Bytes, 0: the end, -EAGAIN, -errno.
static ssize_t fill(struct wire_conn *c)
{
	ssize_t n = recv(c->fd, c->in.data, c->in.room, MSG_DONTWAIT);

	if (n < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	c->in.at = 0;
	c->in.len = (size_t)n;
	return n;
}

ssize_t wire_tls_receive(struct wire_conn *c, void *buf, size_t len)
{
	for (;;) {
		ssize_t n;

		pthread_mutex_lock(&c->tls_lock);
		n = gnutls_record_recv(c->session, buf, len);
		pthread_mutex_unlock(&c->tls_lock);
		if (n >= 0)
			return n;
		n = transfer_error(n);
		if (n == -EAGAIN && c->in.at == c->in.len)
			n = fill(c);
		else if (n == -EAGAIN)
			continue;
		if (n <= 0)
			return n;
	}
}

// What the next record is made of: a long piece as it lies, short ones put together.
static size_t next_record(struct wire_conn *c, const struct iovec *iov, unsigned nr, const void **data)
{
	size_t len = 0;

	*data = iov->iov_base;
	if (nr == 1 || iov->iov_len >= RECORD_MAX)
		return iov->iov_len < RECORD_MAX ? iov->iov_len : RECORD_MAX;
	*data = c->gather;
	for (; nr-- && len < RECORD_MAX; iov++) {
		size_t part = iov->iov_len < RECORD_MAX - len ? iov->iov_len : RECORD_MAX - len;

		if (part)
			memcpy(c->gather + len, iov->iov_base, part);
		len += part;
	}
	return len;
}

ssize_t wire_tls_send(struct wire_conn *c, const struct iovec *iov, unsigned nr)
{
	const void *data;
	size_t len;
	ssize_t n;
	int r = !nr || c->out.at || c->out.len >= BATCH ? flush(c) : 0;

	if (r || !nr)
		return r;
	len = next_record(c, iov, nr, &data);
	pthread_mutex_lock(&c->tls_lock);
	c->sending = true;
	n = gnutls_record_send(c->session, data, len);
	c->sending = false;
	pthread_mutex_unlock(&c->tls_lock);
	return n < 0 ? transfer_error(n) : n;
}

// Whose certificate the other side has shown, or by whose key it came: "" if it has said none.
static void peer_name(const struct wire_conn *c, char name[NAME_MAX_LEN + 1])
{
	unsigned nr = 0;
	const gnutls_datum_t *certs = c->tls->x509 ? gnutls_certificate_get_peers(c->session, &nr) : NULL;
	size_t len = NAME_MAX_LEN + 1;
	gnutls_x509_crt_t cert;

	name[0] = '\0';
	if (c->key_name) {
		strncat(name, c->key_name, NAME_MAX_LEN);
	} else if (certs && nr && !gnutls_x509_crt_init(&cert)) {
		if (gnutls_x509_crt_import(cert, certs, GNUTLS_X509_FMT_DER) ||
		    gnutls_x509_crt_get_dn_by_oid(cert, GNUTLS_OID_X520_COMMON_NAME, 0, 0, name, &len))
			name[0] = '\0';
		gnutls_x509_crt_deinit(cert);
	}
	for (char *p = name; *p; p++)
		if (*p < ' ' || *p > '~')
			*p = '?';
}

// What can be wrong with a certificate, what says it best first; the alert tells the other side.
static const struct {
	unsigned status;
	gnutls_alert_description_t alert;
	const char *text;
} faults[] = {
	{ GNUTLS_CERT_REVOKED, GNUTLS_A_CERTIFICATE_REVOKED, "has been revoked" },
	{ GNUTLS_CERT_SIGNER_NOT_FOUND | GNUTLS_CERT_SIGNATURE_FAILURE, GNUTLS_A_UNKNOWN_CA, "is not signed by our CA" },
	{ GNUTLS_CERT_SIGNER_NOT_CA, GNUTLS_A_UNKNOWN_CA, "is signed by a certificate that is no CA's" },
	{ GNUTLS_CERT_EXPIRED, GNUTLS_A_CERTIFICATE_EXPIRED, "or the CA's has expired" },
	{ GNUTLS_CERT_NOT_ACTIVATED, GNUTLS_A_CERTIFICATE_EXPIRED, "or the CA's is not valid yet: compare the hosts' clocks" },
	{ GNUTLS_CERT_PURPOSE_MISMATCH, GNUTLS_A_UNSUPPORTED_CERTIFICATE, "is for another purpose: its extended key usage says so" },
	{ GNUTLS_CERT_UNEXPECTED_OWNER, GNUTLS_A_BAD_CERTIFICATE, "is not for the host" },
	{ GNUTLS_CERT_INSECURE_ALGORITHM, GNUTLS_A_UNSUPPORTED_CERTIFICATE, "or the CA's uses an algorithm that is not secure" },
	{ GNUTLS_CERT_REVOCATION_DATA_SUPERSEDED, GNUTLS_A_CERTIFICATE_UNKNOWN, "cannot be checked: ca-crl.pem is out of date" },
	{ ~0U, GNUTLS_A_BAD_CERTIFICATE, "is not valid" },
};

static void refuse_certificate(struct wire_conn *c)
{
	unsigned status = gnutls_session_get_verify_cert_status(c->session);
	char name[NAME_MAX_LEN + 1];
	size_t i = 0;

	while (i < ARRAY_SIZE(faults) - 1 && !(status & faults[i].status))
		i++;
	gnutls_alert_send(c->session, GNUTLS_AL_FATAL, faults[i].alert);
	peer_name(c, name);
	if (faults[i].status == GNUTLS_CERT_UNEXPECTED_OWNER)
		say(c, "%s is refused: its certificate, of '%s', is not for host %s: give the name or address that it was made for",
		    c->peer, name, c->host);
	else
		say(c, "%s is refused: its certificate, of '%s', %s; see %s/ca-cert.pem", c->peer, name, faults[i].text, c->tls->dir);
}

// What the other side says, in an alert, about us.
static const char *alert_text(const struct wire_conn *c, gnutls_alert_description_t alert)
{
	switch (alert) {
	case GNUTLS_A_UNKNOWN_CA:
		return "our certificate is not signed by its CA";
	case GNUTLS_A_CERTIFICATE_EXPIRED:
		return "our certificate, or its CA's, has expired or is not valid yet";
	case GNUTLS_A_CERTIFICATE_REVOKED:
		return "our certificate has been revoked";
	case GNUTLS_A_UNSUPPORTED_CERTIFICATE:
		return "our certificate is for another purpose, or not secure any more";
	case GNUTLS_A_BAD_CERTIFICATE:
	case GNUTLS_A_CERTIFICATE_UNKNOWN:
		return c->tls->server ? "our certificate is not for the host name that it used, or is not valid" :
					"our certificate is not valid";
	case GNUTLS_A_CERTIFICATE_REQUIRED:
		return "it wants a certificate";
	case GNUTLS_A_UNKNOWN_PSK_IDENTITY:
	case GNUTLS_A_DECRYPT_ERROR:
	case GNUTLS_A_BAD_RECORD_MAC:
	case GNUTLS_A_ILLEGAL_PARAMETER:
		return c->tls->x509 ? gnutls_alert_get_name(alert) : "our key is not the one that it has under that name";
	case GNUTLS_A_HANDSHAKE_FAILURE:
	case GNUTLS_A_INSUFFICIENT_SECURITY:
	case GNUTLS_A_MISSING_EXTENSION:
		return "no kind of TLS suits both: does one use certificates, the other one keys.psk?";
	default:
		return gnutls_alert_get_name(alert);
	}
}

// Says why, on both sides. -errno.
static int handshake_failed(struct wire_conn *c, int error)
{
	char name[NAME_MAX_LEN + 1];

	switch (error) {
	case GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR:
		refuse_certificate(c);
		return -EPROTO;
	case GNUTLS_E_FATAL_ALERT_RECEIVED:
		say(c, "%s refuses us: %s; see %s", c->peer, alert_text(c, gnutls_alert_get(c->session)), c->tls->dir);
		return -EPROTO;
	case GNUTLS_E_MEMORY_ERROR:
		return -ENOMEM;
	}
	gnutls_alert_send_appropriate(c->session, error);
	peer_name(c, name);
	if (error == GNUTLS_E_NO_CERTIFICATE_FOUND || error == GNUTLS_E_CERTIFICATE_REQUIRED)
		say(c, "%s is refused: it shows no certificate", c->peer);
	else if (c->unknown_key)
		say(c, "%s is refused: %s/keys.psk has no key for '%s'", c->peer, c->tls->dir, name);
	else if (c->key_name)
		say(c, "%s is refused: its key is not that for '%s' in %s/keys.psk", c->peer, name, c->tls->dir);
	else if (error == GNUTLS_E_UNEXPECTED_PACKET || error == GNUTLS_E_UNEXPECTED_PACKET_LENGTH ||
		 error == GNUTLS_E_UNSUPPORTED_VERSION_PACKET)
		say(c, "%s does not speak TLS", c->peer);
	else
		say(c, "%s is refused: TLS: %s", c->peer, gnutls_strerror(error));
	return -EPROTO;
}

static int welcome(gnutls_session_t session)
{
	const struct wire_conn *c = gnutls_session_get_ptr(session);
	char byte = WELCOME;
	ssize_t n = c->tls->server ? gnutls_record_send(session, &byte, 1) : gnutls_record_recv(session, &byte, 1);

	return n < 0 ? (int)n : !n ? GNUTLS_E_PREMATURE_TERMINATION : byte == WELCOME ? 0 : GNUTLS_E_UNEXPECTED_PACKET;
}

// After a step: what it said is sent, what the next one needs is here. 1, 0 at end_ns, -errno.
static int exchange(struct wire_conn *c, bool done, uint64_t end_ns)
{
	ssize_t n;
	int r;

	while ((r = flush(c)) == -EAGAIN) {
		r = wire_wait(c->fd, POLLOUT, end_ns, c->interrupted);
		if (r <= 0)
			return r;
	}
	if (r || done || c->in.at < c->in.len)
		return r ? r : 1;
	while ((n = fill(c)) == -EAGAIN) {
		r = wire_wait(c->fd, POLLIN, end_ns, c->interrupted);
		if (r <= 0)
			return r;
	}
	return n > 0 ? 1 : n ? (int)n : -ECONNRESET;
}

static int step_until(struct wire_conn *c, int (*step)(gnutls_session_t), uint64_t end_ns)
{
	for (;;) {
		int r, error;

		c->sending = true;
		error = step(c->session);
		if (error < 0 && gnutls_error_is_fatal(error)) {
			r = handshake_failed(c, error);
			exchange(c, true, end_ns);
			return r;
		}
		r = exchange(c, error >= 0, end_ns);
		c->sending = false;
		if (r > 0 && error >= 0)
			return 0;
		if (!r)
			say(c, "%s does not go on with the TLS handshake%s", c->peer, c->tls->server ? "" : "; is it a criu-vm server?");
		else if (r < 0 && r != -EINTR)
			say(c, "%s has left in the TLS handshake%s: %s", c->peer, c->tls->server ? "" : "; does it use TLS?", strerror(-r));
		if (r <= 0)
			return r ? r : -ETIMEDOUT;
	}
}

static int set_host(gnutls_session_t session, const char *host, gnutls_typed_vdata_st *name)
{
	struct in6_addr address;

	*name = (gnutls_typed_vdata_st){ .type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)host };
	if (inet_pton(AF_INET, host, &address) > 0 || inet_pton(AF_INET6, host, &address) > 0)
		return 0; // no address is sent as a name
	return gnutls_server_name_set(session, GNUTLS_NAME_DNS, host, strlen(host));
}

static int set_up(struct wire_conn *c)
{
	const struct wire_tls *tls = c->tls;
	gnutls_typed_vdata_st *want = c->want;
	unsigned nr = 0;
	int r = gnutls_init(&c->session, (tls->server ? GNUTLS_SERVER : GNUTLS_CLIENT | GNUTLS_FORCE_CLIENT_CERT) |
				 GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS);

	if (r)
		return r;
	gnutls_session_set_ptr(c->session, c);
	gnutls_transport_set_ptr(c->session, c);
	gnutls_transport_set_vec_push_function(c->session, push);
	gnutls_transport_set_pull_function(c->session, pull);
	r = gnutls_priority_set(c->session, tls->priority);
	if (!r && tls->psk_server)
		r = gnutls_credentials_set(c->session, GNUTLS_CRD_PSK, tls->psk_server);
	if (!r && tls->psk_client)
		r = gnutls_credentials_set(c->session, GNUTLS_CRD_PSK, tls->psk_client);
	if (r || !tls->x509)
		return r;
	if (tls->server)
		gnutls_certificate_server_set_request(c->session, GNUTLS_CERT_REQUIRE);
	else
		r = set_host(c->session, c->host, &want[nr++]);
	want[nr++] = (gnutls_typed_vdata_st){ .type = GNUTLS_DT_KEY_PURPOSE_OID,
		.data = (unsigned char *)(tls->server ? GNUTLS_KP_TLS_WWW_CLIENT : GNUTLS_KP_TLS_WWW_SERVER) };
	gnutls_session_set_verify_cert2(c->session, want, nr, 0);
	return r ? r : gnutls_credentials_set(c->session, GNUTLS_CRD_CERTIFICATE, tls->x509);
}

// "192.0.2.1:4711" becomes "192.0.2.1:4711 (name)".
static void add_name(struct wire_conn *c)
{
	char name[NAME_MAX_LEN + 1], *peer;

	peer_name(c, name);
	if (!name[0] || asprintf(&peer, "%s (%s)", c->peer, name) < 0)
		return;
	free(c->peer);
	c->peer = peer;
}

int wire_tls_handshake(struct wire_conn *c, const struct wire_tls *tls, const char *host, uint64_t end_ns)
{
	int r;

	c->tls = tls;
	c->gather = malloc(RECORD_MAX);
	c->host = host ? strndup(host, strcspn(host, "%")) : NULL; // no certificate has "%eth0"
	c->in.room = BATCH;
	c->in.data = malloc(c->in.room);
	if (!c->gather || !c->in.data || (host && !c->host))
		return -ENOMEM;
	r = set_up(c);
	if (r) {
		say(c, "%s: TLS: %s", c->peer, gnutls_strerror(r));
		return r == GNUTLS_E_MEMORY_ERROR ? -ENOMEM : -EPROTO;
	}
	r = step_until(c, gnutls_handshake, end_ns);
	if (!r)
		r = step_until(c, welcome, end_ns);
	if (!r)
		add_name(c);
	else if (r == -EPROTO)
		wire_finish(c, WIRE_FINISH_MS); // the alert gets there
	return r;
}

void wire_tls_end(struct wire_conn *c)
{
	// No close_notify: the protocol has an end of its own, and one that comes without it is a lost line in any case.
	if (c->session)
		gnutls_deinit(c->session);
	free(c->gather);
	free(c->in.data);
	free(c->out.data);
	free(c->host);
	free(c->key_name);
}
