// SPDX-License-Identifier: GPL-2.0-only
// Directories of credentials, made afresh: certificates of any kind that is right or wrong, and keys.
#pragma once
#include <check.h>
#include <fcntl.h>
#include <gnutls/x509.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DAY 86400

struct identity {
	gnutls_x509_crt_t cert;
	gnutls_x509_privkey_t key;
};

struct wish {
	const char *name; // CN and, of a server, what it is for; NULL: localhost
	bool server;
	int from_days, to_days; // from now; both 0: good
};

static inline void must(int r)
{
	ck_assert_msg(r >= 0, "GnuTLS: %s", gnutls_strerror(r));
}

static inline void write_file(const char *dir, const char *name, const void *data, size_t len, mode_t mode)
{
	char path[256];
	int fd;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	unlink(path);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, data, len), len);
	ck_assert_int_eq(fchmod(fd, mode), 0);
	close(fd);
}

static inline struct identity identity_new(const struct wish *w, const struct identity *ca)
{
	static unsigned char serial[4];
	struct identity i;
	const char *name = w->name ? w->name : "localhost";
	bool dated = w->from_days || w->to_days;

	must(gnutls_x509_privkey_init(&i.key));
	must(gnutls_x509_privkey_generate(i.key, GNUTLS_PK_ECDSA, GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0));
	must(gnutls_x509_crt_init(&i.cert));
	must(gnutls_x509_crt_set_version(i.cert, 3));
	serial[3]++;
	must(gnutls_x509_crt_set_serial(i.cert, serial, sizeof serial));
	must(gnutls_x509_crt_set_activation_time(i.cert, time(NULL) + (dated ? w->from_days : -1) * DAY));
	must(gnutls_x509_crt_set_expiration_time(i.cert, time(NULL) + (dated ? w->to_days : 1) * DAY));
	must(gnutls_x509_crt_set_dn_by_oid(i.cert, GNUTLS_OID_X520_COMMON_NAME, 0, name, (unsigned)strlen(name)));
	must(gnutls_x509_crt_set_key(i.cert, i.key));
	must(gnutls_x509_crt_set_ca_status(i.cert, !ca));
	if (!ca) {
		must(gnutls_x509_crt_set_key_usage(i.cert, GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN));
	} else {
		must(gnutls_x509_crt_set_key_purpose_oid(i.cert, w->server ? GNUTLS_KP_TLS_WWW_SERVER : GNUTLS_KP_TLS_WWW_CLIENT, 0));
		if (w->server)
			must(gnutls_x509_crt_set_subject_alt_name(i.cert, GNUTLS_SAN_DNSNAME, name, (unsigned)strlen(name), 0));
		if (w->server && !w->name)
			must(gnutls_x509_crt_set_subject_alt_name(i.cert, GNUTLS_SAN_IPADDRESS, "\177\0\0\1", 4, GNUTLS_FSAN_APPEND));
	}
	must(gnutls_x509_crt_sign2(i.cert, ca ? ca->cert : i.cert, ca ? ca->key : i.key, GNUTLS_DIG_SHA256, 0));
	return i;
}

static inline void identity_free(struct identity *i)
{
	gnutls_x509_crt_deinit(i->cert);
	gnutls_x509_privkey_deinit(i->key);
}

static inline void write_cert(const char *dir, const char *name, gnutls_x509_crt_t cert)
{
	gnutls_datum_t d;

	must(gnutls_x509_crt_export2(cert, GNUTLS_X509_FMT_PEM, &d));
	write_file(dir, name, d.data, d.size, 0644);
	gnutls_free(d.data);
}

// dir's own certificate and key, and the CA that it trusts.
static inline void write_identity(const char *dir, bool server, const struct identity *i, const struct identity *ca)
{
	gnutls_datum_t d;

	write_cert(dir, "ca-cert.pem", ca->cert);
	write_cert(dir, server ? "server-cert.pem" : "client-cert.pem", i->cert);
	must(gnutls_x509_privkey_export2(i->key, GNUTLS_X509_FMT_PEM, &d));
	write_file(dir, server ? "server-key.pem" : "client-key.pem", d.data, d.size, 0600);
	gnutls_free(d.data);
}

static inline void write_crl(const char *dir, const struct identity *ca, gnutls_x509_crt_t revoked)
{
	unsigned char number = 1;
	gnutls_x509_crl_t crl;
	gnutls_datum_t d;

	must(gnutls_x509_crl_init(&crl));
	must(gnutls_x509_crl_set_version(crl, 2));
	must(gnutls_x509_crl_set_this_update(crl, time(NULL) - DAY));
	must(gnutls_x509_crl_set_next_update(crl, time(NULL) + DAY));
	must(gnutls_x509_crl_set_number(crl, &number, sizeof number));
	must(gnutls_x509_crl_set_crt(crl, revoked, time(NULL) - 60));
	must(gnutls_x509_crl_sign2(crl, ca->cert, ca->key, GNUTLS_DIG_SHA256, 0));
	must(gnutls_x509_crl_export2(crl, GNUTLS_X509_FMT_PEM, &d));
	write_file(dir, "ca-crl.pem", d.data, d.size, 0644);
	gnutls_free(d.data);
	gnutls_x509_crl_deinit(crl);
}

static inline void empty_dir(const char *dir)
{
	static const char *const names[] = { "ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem", "client-cert.pem",
		"client-key.pem", "keys.psk" };
	char path[256];

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		snprintf(path, sizeof path, "%s/%s", dir, names[i]);
		unlink(path);
	}
}
