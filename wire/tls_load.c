// SPDX-License-Identifier: GPL-2.0-only
// Credentials from a directory, named as QEMU's tls-creds-x509 and tls-creds-psk.
#include "wire/conn_int.h"

#include <errno.h>
#include <fcntl.h>
#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define MAX_FILE MiB
#define MAX_NAME 127 // of a key; GnuTLS's own limit
#define MIN_KEY 16   // bytes: what can be guessed is no key
#define MAX_KEY 512

// NORMAL without the old versions and ciphers, and in another order: with keys.psk, NORMAL's choice is ChaCha20, and that is ten times
// slower where a CPU has AES. To keys.psk belongs what QEMU adds, but for plain PSK: a key that is lost would open all that was recorded.
#define PRIORITY_X509 "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-CIPHER-ALL:+AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305"
#define PRIORITY_PSK PRIORITY_X509 ":+ECDHE-PSK:+DHE-PSK"

struct text {
	char *data; // NUL behind it
	size_t len;
};

static void text_free(struct text *t)
{
	if (t->data)
		explicit_bzero(t->data, t->len);
	free(t->data);
}

#define _cleanup_text_ __attribute__((cleanup(text_free)))

static gnutls_datum_t datum(const struct text *t)
{
	return (gnutls_datum_t){ .data = (unsigned char *)t->data, .size = (unsigned)t->len };
}

static int fail(const char *dir, const char *name, const char *what, int error)
{
	log_err("%s/%s: %s", dir, name, what);
	return error;
}

static int read_text(const char *dir, const char *name, bool secret, struct text *t)
{
	_cleanup_free_ char *path = NULL;
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	if (asprintf(&path, "%s/%s", dir, name) < 0)
		return -ENOMEM;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) < 0)
		return fail(dir, name, strerror(errno), -errno);
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > MAX_FILE)
		return fail(dir, name, "is no file of credentials", -EINVAL);
	if (secret && st.st_mode & S_IRWXO)
		return fail(dir, name, "everybody on this host may use this key: take that right away with chmod o=", -EACCES);
	t->data = malloc((size_t)st.st_size + 1);
	if (!t->data)
		return -ENOMEM;
	t->len = (size_t)st.st_size;
	r = io_read_full(fd, t->data, t->len);
	t->data[t->len] = '\0';
	return r ? fail(dir, name, strerror(-r), r) : 0;
}

static bool exists(const char *dir, const char *name)
{
	_cleanup_free_ char *path = NULL;

	return asprintf(&path, "%s/%s", dir, name) > 0 && (access(path, F_OK) == 0 || errno != ENOENT);
}

// Of our own certificate: the other side will refuse it, so here is where it should be read about first.
static void warn_of_age(const char *dir, const char *name, const struct text *t)
{
	gnutls_datum_t d = datum(t);
	gnutls_x509_crt_t cert;

	if (gnutls_x509_crt_init(&cert))
		return;
	if (!gnutls_x509_crt_import(cert, &d, GNUTLS_X509_FMT_PEM)) {
		if (gnutls_x509_crt_get_expiration_time(cert) < time(NULL))
			log_warn("%s/%s: this certificate has expired", dir, name);
		else if (gnutls_x509_crt_get_activation_time(cert) > time(NULL))
			log_warn("%s/%s: this certificate is not valid yet; is the clock right?", dir, name);
	}
	gnutls_x509_crt_deinit(cert);
}

static int load_own(struct wire_tls *tls, const char *cert_name, const char *key_name)
{
	_cleanup_text_ struct text cert = { 0 }, key = { 0 };
	gnutls_datum_t c, k;
	int r = read_text(tls->dir, cert_name, false, &cert);

	if (!r)
		r = read_text(tls->dir, key_name, true, &key);
	if (r)
		return r;
	c = datum(&cert);
	k = datum(&key);
	r = gnutls_certificate_set_x509_key_mem(tls->x509, &c, &k, GNUTLS_X509_FMT_PEM);
	if (r == GNUTLS_E_CERTIFICATE_KEY_MISMATCH)
		return fail(tls->dir, key_name, "is not the key of the certificate beside it", -EINVAL);
	if (r < 0) {
		log_err("%s: %s or %s: %s", tls->dir, cert_name, key_name, gnutls_strerror(r));
		return -EINVAL;
	}
	warn_of_age(tls->dir, cert_name, &cert);
	return 0;
}

static int load_x509(struct wire_tls *tls)
{
	static const char ca_name[] = "ca-cert.pem", crl_name[] = "ca-crl.pem";
	_cleanup_text_ struct text ca = { 0 }, crl = { 0 };
	gnutls_datum_t d;
	int r = read_text(tls->dir, ca_name, false, &ca);

	if (r)
		return r;
	if (gnutls_certificate_allocate_credentials(&tls->x509))
		return -ENOMEM;
	d = datum(&ca);
	r = gnutls_certificate_set_x509_trust_mem(tls->x509, &d, GNUTLS_X509_FMT_PEM);
	if (r <= 0)
		return fail(tls->dir, ca_name, r ? gnutls_strerror(r) : "holds no certificate", -EINVAL);
	if (exists(tls->dir, crl_name)) {
		r = read_text(tls->dir, crl_name, false, &crl);
		if (r)
			return r;
		d = datum(&crl);
		r = gnutls_certificate_set_x509_crl_mem(tls->x509, &d, GNUTLS_X509_FMT_PEM);
		if (r <= 0)
			return fail(tls->dir, crl_name, r ? gnutls_strerror(r) : "holds no list", -EINVAL);
	}
	return tls->server ? load_own(tls, "server-cert.pem", "server-key.pem") : load_own(tls, "client-cert.pem", "client-key.pem");
}

static bool key_ok(const char *name, const char *hex)
{
	size_t len = strlen(hex);

	for (const char *p = name; *p; p++)
		if (*p < ' ' || *p > '~')
			return false;
	return name[0] && strlen(name) <= MAX_NAME && len >= 2 * MIN_KEY && len <= 2 * MAX_KEY && len % 2 == 0 &&
	       strspn(hex, "0123456789abcdefABCDEF") == len;
}

static int add_key(struct wire_tls *tls, const char *name, const char *hex)
{
	struct wire_psk *keys = reallocarray(tls->keys, tls->nr_keys + 1, sizeof *keys), *key;

	if (!keys)
		return -ENOMEM;
	tls->keys = keys;
	key = &keys[tls->nr_keys++];
	*key = (struct wire_psk){ .name = strdup(name), .hex.data = (unsigned char *)strdup(hex), .hex.size = (unsigned)strlen(hex) };
	return key->name && key->hex.data ? 0 : -ENOMEM;
}

static int parse_keys(struct wire_tls *tls, char *text)
{
	char *line, *next = text;
	unsigned number = 0;

	while ((line = strsep(&next, "\n"))) {
		char *hex = strrchr(line, ':');
		int r;

		number++;
		line[strcspn(line, "\r")] = '\0';
		if (!line[0])
			continue;
		if (hex)
			*hex++ = '\0';
		if (!hex || !key_ok(line, hex)) {
			log_err("%s/keys.psk, line %u: is not NAME:KEY, the key being %d to %d bytes in hexadecimal; make one with psktool",
				tls->dir, number, MIN_KEY, MAX_KEY);
			return -EINVAL;
		}
		r = add_key(tls, line, hex);
		if (r)
			return r;
	}
	return tls->nr_keys ? 0 : fail(tls->dir, "keys.psk", "holds no key", -EINVAL);
}

static const struct wire_psk *find_key(const struct wire_tls *tls, const char *name)
{
	for (size_t i = 0; i < tls->nr_keys; i++)
		if (!strcmp(tls->keys[i].name, name))
			return &tls->keys[i];
	return NULL;
}

// GnuTLS's callback: 1 lets it go on with a key that fits nobody, so that names cannot be tried out.
static int give_key(gnutls_session_t session, const char *name, gnutls_datum_t *key)
{
	struct wire_conn *c = gnutls_session_get_ptr(session);
	const struct wire_psk *psk = find_key(c->tls, name);

	free(c->key_name);
	c->key_name = strdup(name);
	c->unknown_key = !psk;
	return !psk ? 1 : gnutls_hex_decode2(&psk->hex, key) ? -1 : 0;
}

static int load_psk(struct wire_tls *tls)
{
	_cleanup_text_ struct text t = { 0 };
	int r = read_text(tls->dir, "keys.psk", true, &t);

	if (!r && (!t.data || strlen(t.data) != t.len))
		r = fail(tls->dir, "keys.psk", "is no text", -EINVAL);
	if (!r)
		r = parse_keys(tls, t.data);
	if (r)
		return r;
	if (tls->server) {
		if (gnutls_psk_allocate_server_credentials(&tls->psk_server))
			return -ENOMEM;
		gnutls_psk_set_server_credentials_function(tls->psk_server, give_key);
		return 0;
	}
	if (gnutls_psk_allocate_client_credentials(&tls->psk_client))
		return -ENOMEM;
	r = gnutls_psk_set_client_credentials(tls->psk_client, tls->keys[0].name, &tls->keys[0].hex, GNUTLS_PSK_KEY_HEX);
	return r ? fail(tls->dir, "keys.psk", gnutls_strerror(r), -EINVAL) : 0;
}

int wire_tls_load(const char *dir, bool server, struct wire_tls **out)
{
	struct wire_tls *tls = calloc(1, sizeof *tls);
	bool x509 = exists(dir, "ca-cert.pem");
	int r;

	if (!tls)
		return -ENOMEM;
	tls->server = server;
	tls->dir = strdup(dir);
	if (!tls->dir || gnutls_priority_init(&tls->priority, x509 ? PRIORITY_X509 : PRIORITY_PSK, NULL)) {
		r = -ENOMEM;
	} else if (!x509 && !exists(dir, "keys.psk")) {
		log_err("%s has neither ca-cert.pem, for certificates, nor keys.psk", dir);
		r = -ENOENT;
	} else {
		r = x509 ? load_x509(tls) : load_psk(tls);
	}
	if (r)
		wire_tls_free(tls);
	else
		*out = tls;
	return r;
}

void wire_tls_free(struct wire_tls *tls)
{
	if (!tls)
		return;
	for (size_t i = 0; i < tls->nr_keys; i++) {
		if (tls->keys[i].hex.data)
			explicit_bzero(tls->keys[i].hex.data, tls->keys[i].hex.size);
		free(tls->keys[i].hex.data);
		free(tls->keys[i].name);
	}
	free(tls->keys);
	if (tls->x509)
		gnutls_certificate_free_credentials(tls->x509);
	if (tls->psk_server)
		gnutls_psk_free_server_credentials(tls->psk_server);
	if (tls->psk_client)
		gnutls_psk_free_client_credentials(tls->psk_client);
	if (tls->priority)
		gnutls_priority_deinit(tls->priority);
	free(tls->dir);
	free(tls);
}
