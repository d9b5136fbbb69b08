// SPDX-License-Identifier: GPL-2.0-only
// A connection in TLS: who is let in, what both sides say about who is not, and that it carries what one in the clear does.
#include "tests/unit/wire_certs.h"
#include "tests/unit/wire_transfers.h"
#include "wire/conn_int.h"

#define KEY "000102030405060708090a0b0c0d0e0f"
#define OTHER_KEY "100102030405060708090a0b0c0d0e0f"

static char client_dir[] = "/tmp/criu-vm-test.XXXXXX", server_dir[] = "/tmp/criu-vm-test.XXXXXX";
static struct identity ca, other_ca;
static struct wire_tls *client_tls, *server_tls;

static void make_dirs(void)
{
	strcpy(client_dir + sizeof client_dir - 7, "XXXXXX");
	strcpy(server_dir + sizeof server_dir - 7, "XXXXXX");
	if (!mkdtemp(client_dir) || !mkdtemp(server_dir))
		abort();
	ca = identity_new(&(struct wish){ .name = "a CA" }, NULL);
	other_ca = identity_new(&(struct wish){ .name = "another CA" }, NULL);
}

static void remove_dirs(void)
{
	rmdir(client_dir);
	rmdir(server_dir);
	identity_free(&ca);
	identity_free(&other_ca);
}

// After a test, and before one: the test before may have failed.
static void end(void)
{
	wire_tls_free(client_tls);
	wire_tls_free(server_tls);
	client_tls = server_tls = NULL;
	empty_dir(client_dir);
	empty_dir(server_dir);
}

// One side's files, its certificate signed by signer, which trusts trusted.
static void set(bool server, const struct wish *w, const struct identity *signer, const struct identity *trusted)
{
	struct wish wish = w ? *w : (struct wish){ 0 };
	struct identity i;

	wish.server ^= server;
	i = identity_new(&wish, signer);
	write_identity(server ? server_dir : client_dir, server, &i, trusted);
	identity_free(&i);
}

static void load(void)
{
	ck_assert_int_eq(wire_tls_load(client_dir, false, &client_tls), 0);
	ck_assert_int_eq(wire_tls_load(server_dir, true, &server_tls), 0);
}

static void set_keys(const char *client, const char *server)
{
	write_file(client_dir, "keys.psk", client, strlen(client), 0600);
	write_file(server_dir, "keys.psk", server, strlen(server), 0600);
}

static void make_pair(struct pair *p)
{
	if (!client_tls) {
		set(false, NULL, &ca, &ca);
		set(true, NULL, &ca, &ca);
		load();
	}
	p->client_tls = client_tls;
	p->server_tls = server_tls;
	pair_must_open(p);
}

static void talk(const struct pair *p)
{
	char buf[4];

	ck_assert_int_eq(wire_write(p->client, "ping", 4), 0);
	ck_assert_int_eq(wire_read(p->server, buf, 4), 0);
	ck_assert_mem_eq(buf, "ping", 4);
	ck_assert_int_eq(wire_write(p->server, "pong", 4), 0);
	ck_assert_int_eq(wire_read(p->client, buf, 4), 0);
	ck_assert_mem_eq(buf, "pong", 4);
}

START_TEST(right_certificates)
{
	struct pair p = { .host = _i ? "localhost" : "127.0.0.1" };

	set(false, &(struct wish){ .name = "source\n.example" }, &ca, &ca);
	set(true, NULL, &ca, &ca);
	load();
	make_pair(&p);
	talk(&p);
	ck_assert_ptr_nonnull(strstr(wire_peer(p.server), " (source?.example)"));
	ck_assert_ptr_nonnull(strstr(wire_peer(p.client), " (localhost)"));
	pair_close(&p);
}
END_TEST

#define EXPIRED { .from_days = -2, .to_days = -1 }
#define EARLY { .from_days = 1, .to_days = 2 }

// Who is wrong, how, and what the sides say.
static const struct {
	struct wish client, server;
	const struct identity *client_signer, *server_signer; // NULL: the CA that both trust
	const char *host, *client_says, *server_says;
} refused[] = {
	{ .server_signer = &other_ca, .client_says = "certificate, of 'localhost', is not signed by our CA; see /tmp/",
	  .server_says = "refuses us: our certificate is not signed by its CA" },
	{ .client_signer = &other_ca, .client_says = "refuses us: our certificate is not signed by its CA",
	  .server_says = "certificate, of 'localhost', is not signed by our CA; see /tmp/" },
	{ .server = EXPIRED, .client_says = "or the CA's has expired", .server_says = "us: our certificate, or its CA's, has expired" },
	{ .client = EXPIRED, .client_says = "us: our certificate, or its CA's, has expired", .server_says = "or the CA's has expired" },
	{ .server = EARLY, .client_says = "not valid yet", .server_says = "refuses us: our certificate, or its CA's" },
	{ .client = EARLY, .client_says = "refuses us: our certificate, or its CA's", .server_says = "not valid yet" },
	{ .server = { .name = "elsewhere" }, .client_says = "of 'elsewhere', is not for host 127.0.0.1",
	  .server_says = "our certificate is not for the host name that it used" },
	{ .server = { .name = "127.0.0.10" }, .host = "localhost", .client_says = "of '127.0.0.10', is not for host localhost",
	  .server_says = "our certificate is not for the host name that it used" },
	{ .server = { .server = true }, .client_says = "is for another purpose", .server_says = "our certificate is for another purpose" },
	{ .client = { .server = true }, .client_says = "our certificate is for another purpose", .server_says = "is for another purpose" },
};

START_TEST(refused_certificates)
{
	struct pair p = { .host = refused[_i].host };

	set(false, &refused[_i].client, refused[_i].client_signer ? refused[_i].client_signer : &ca, &ca);
	set(true, &refused[_i].server, refused[_i].server_signer ? refused[_i].server_signer : &ca, &ca);
	load();
	p.client_tls = client_tls;
	p.server_tls = server_tls;
	said_clear();
	pair_open(&p);
	ck_assert_int_eq(p.client_error, -EPROTO);
	ck_assert_int_eq(p.server_error, -EPROTO);
	ck_said(refused[_i].client_says);
	ck_said(refused[_i].server_says);
}
END_TEST

START_TEST(revoked)
{
	struct identity bad = identity_new(&(struct wish){ .server = _i }, &ca);
	struct pair p = { 0 };

	set(!_i, NULL, &ca, &ca);
	write_identity(_i ? server_dir : client_dir, _i, &bad, &ca);
	write_crl(_i ? client_dir : server_dir, &ca, bad.cert);
	load();
	p.client_tls = client_tls;
	p.server_tls = server_tls;
	said_clear();
	pair_open(&p);
	ck_assert_int_eq(p.client_error, -EPROTO);
	ck_assert_int_eq(p.server_error, -EPROTO);
	ck_said("of 'localhost', has been revoked");
	ck_said("our certificate has been revoked");
	identity_free(&bad);
}
END_TEST

START_TEST(no_certificate)
{
	struct pair p = { 0 };

	set(false, NULL, &ca, &ca);
	set(true, NULL, &ca, &ca);
	load();
	gnutls_certificate_free_keys(client_tls->x509);
	p.client_tls = client_tls;
	p.server_tls = server_tls;
	said_clear();
	pair_open(&p);
	ck_assert_int_eq(p.client_error, -EPROTO);
	ck_assert_int_eq(p.server_error, -EPROTO);
	ck_said("it wants a certificate");
	ck_said("it shows no certificate");
}
END_TEST

static const struct {
	const char *client, *server, *client_says, *server_says; // NULL: let in
} keys[] = {
	{ "vm:" KEY, "vm:" KEY, NULL, NULL },
	{ "vm:" KEY "\r\nx:" OTHER_KEY "\n", "x:" OTHER_KEY "\n\nvm:" KEY "\n", NULL, NULL },
	{ "vm:" OTHER_KEY "\n", "vm:" KEY "\n", "our key is not the one that it has under that name", "its key is not that for 'vm' in" },
	{ "who:" KEY "\n", "vm:" KEY "\n", "our key is not the one that it has under that name", "has no key for 'who'" },
};

START_TEST(shared_keys)
{
	struct pair p = { 0 };

	set_keys(keys[_i].client, keys[_i].server);
	load();
	p.client_tls = client_tls;
	p.server_tls = server_tls;
	said_clear();
	pair_open(&p);
	if (keys[_i].client_says) {
		ck_assert_int_eq(p.client_error, -EPROTO);
		ck_assert_int_eq(p.server_error, -EPROTO);
		ck_said(keys[_i].client_says);
		ck_said(keys[_i].server_says);
		return;
	}
	ck_assert_int_eq(p.client_error, 0);
	ck_assert_int_eq(p.server_error, 0);
	talk(&p);
	ck_assert_ptr_nonnull(strstr(wire_peer(p.server), " (vm)"));
	ck_assert_int_eq(gnutls_kx_get(p.client->session), GNUTLS_KX_ECDHE_PSK); // a key that is lost opens nothing that was recorded
	ck_assert_int_eq(gnutls_cipher_get(p.client->session), GNUTLS_CIPHER_AES_128_GCM);
	pair_close(&p);
}
END_TEST

START_TEST(keys_against_certificates)
{
	struct pair p = { 0 };

	set_keys("vm:" KEY, "vm:" KEY);
	set(_i, NULL, &ca, &ca);
	load();
	p.client_tls = client_tls;
	p.server_tls = server_tls;
	said_clear();
	pair_open(&p);
	ck_assert_int_eq(p.client_error, -EPROTO);
	ck_assert_int_eq(p.server_error, -EPROTO);
	ck_said("does one use certificates, the other one keys.psk?");
}
END_TEST

START_TEST(plain_client)
{
	struct pair p = { .timeout_ms = 300 };
	struct wire_connect_opts o = { .host = "127.0.0.1", .timeout_ms = PATIENCE_MS, .preamble = { .kind = WIRE_CONTROL } };
	static const char not_tls[4096];
	pthread_t thread;
	char byte;

	set(false, NULL, &ca, &ca);
	set(true, NULL, &ca, &ca);
	load();
	p.server_tls = server_tls;
	said_clear();
	pair_open(&p); // it waits to be spoken to
	ck_assert_int_eq(p.client_error, 0);
	ck_assert_int_eq(p.server_error, -ETIMEDOUT);
	ck_said("does not go on with the TLS handshake");
	ck_assert_int_eq(wire_read(p.client, &byte, 1), -ECONNRESET);
	pair_close(&p);

	p.timeout_ms = PATIENCE_MS;
	p.listen_fd = pair_listen(AF_INET, &o.port);
	ck_assert_int_eq(pthread_create(&thread, NULL, pair_accept, &p), 0);
	ck_assert_int_eq(wire_connect(&o, &p.client), 0);
	wire_write(p.client, not_tls, sizeof not_tls);
	wire_shutdown(p.client);
	pthread_join(thread, NULL);
	close(p.listen_fd);
	ck_assert_int_eq(p.server_error, -EPROTO);
	ck_said("does not speak TLS");
	pair_close(&p);
}
END_TEST

// What listens is not what it should be: it is silent, closes, or talks in the clear.
static void *no_server(void *arg)
{
	static const char abort_text[] = "\0\0\0\40this server has no TLS at all, sorry";
	struct pair *p = arg;
	char buf[512];
	int fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (p->server_error == 2)
		p->server_error = (int)write(fd, abort_text, sizeof abort_text);
	if (p->server_error)
		shutdown(fd, SHUT_WR);
	while (read(fd, buf, sizeof buf) > 0)
		;
	close(fd);
	return NULL;
}

START_TEST(plain_server)
{
	static const int error[] = { -ETIMEDOUT, -ECONNRESET, -EPROTO };
	static const char *const says[] = { "is it a criu-vm server?", "does it use TLS?", "does not speak TLS" };
	struct pair p = { .server_error = _i };
	struct wire_connect_opts o = { .host = "127.0.0.1", .timeout_ms = _i ? PATIENCE_MS : 300, .preamble = { .kind = WIRE_CONTROL } };
	pthread_t thread;

	set(false, NULL, &ca, &ca);
	set(true, NULL, &ca, &ca);
	load();
	o.tls = client_tls;
	p.listen_fd = pair_listen(AF_INET, &o.port);
	ck_assert_int_eq(pthread_create(&thread, NULL, no_server, &p), 0);
	said_clear();
	ck_assert_int_eq(wire_connect(&o, &p.client), error[_i]);
	pthread_join(thread, NULL);
	close(p.listen_fd);
	ck_said(says[_i]);
}
END_TEST

// Bytes that TLS did not make, beneath a session that stands.
START_TEST(spoiled)
{
	static const struct { const char *bytes; size_t len; int error; } bad[] = {
		{ "\27\3\3\0\40 0123456789abcdef0123456789abcdef", 37, -EBADMSG }, // a record
		{ "\27\3\3\377\377", 5, -EBADMSG },                               // a huge one
		{ "\27\3\3\0\40 0123", 9, -ECONNRESET },                           // half of one
		{ "some text", 9, -EBADMSG },
		{ "", 0, -ECONNRESET },
	};
	struct pair p = { 0 };
	char buf[4];

	make_pair(&p);
	talk(&p);
	ck_assert_int_eq(send(p.client->fd, bad[_i].bytes, bad[_i].len, 0), bad[_i].len);
	shutdown(p.client->fd, SHUT_WR);
	ck_assert_int_eq(wire_poll(p.server, PATIENCE_MS), 1);
	ck_assert_int_eq(wire_read(p.server, buf, 4), bad[_i].error);
	ck_assert_int_eq(wire_poll(p.server, PATIENCE_MS), 1);
	pair_close(&p);
}
END_TEST

// As GnuTLS does it by itself, after 256 GiB.
static void change_keys(struct wire_conn *c)
{
	int r;

	pthread_mutex_lock(&c->tls_lock);
	c->sending = true;
	r = gnutls_session_key_update(c->session, 0);
	c->sending = false;
	pthread_mutex_unlock(&c->tls_lock);
	ck_assert_int_eq(r, 0);
}

START_TEST(keys_change)
{
	struct pair p = { 0 };
	make_pair(&p);
	struct stream s[] = { { p.client, 1, 0, change_keys }, { p.server, 1, 0, NULL },
			      { p.server, 2, 0, change_keys }, { p.client, 2, 0, NULL } };

	ck_assert_int_eq(gnutls_protocol_get_version(p.client->session), GNUTLS_TLS1_3);
	stream_all(s, ARRAY_SIZE(s));
	pair_close(&p);
}
END_TEST

START_TEST(interrupted_handshake)
{
	struct wire_connect_opts o = { .host = "127.0.0.1", .timeout_ms = PATIENCE_MS, .interrupted = stopped };
	struct wire_conn *c;
	int fd = pair_listen(AF_INET, &o.port);
	uint64_t since = clock_now_ns();
	pthread_t thread;

	set(false, NULL, &ca, &ca);
	set(true, NULL, &ca, &ca);
	load();
	o.tls = client_tls;
	stop_it = false;
	ck_assert_int_eq(pthread_create(&thread, NULL, stop_soon, NULL), 0);
	ck_assert_int_eq(wire_connect(&o, &c), -EINTR);
	ck_assert_uint_lt(elapsed_ms(since), PATIENCE_MS / 2);
	pthread_join(thread, NULL);
	close(fd);
}
END_TEST

static int load_says(bool server, const char *text)
{
	struct wire_tls *tls = NULL;
	int r;

	said_clear();
	r = wire_tls_load(server ? server_dir : client_dir, server, &tls);
	ck_assert_ptr_null(tls);
	ck_said(text);
	return r;
}

START_TEST(bad_files)
{
	static const char zeros[40];
	struct identity i = identity_new(&(struct wish){ .server = true }, &ca);

	ck_assert_int_eq(load_says(true, "has neither ca-cert.pem, for certificates, nor keys.psk"), -ENOENT);
	set(true, NULL, &ca, &ca);
	write_cert(server_dir, "server-cert.pem", i.cert);
	ck_assert_int_eq(load_says(true, "/server-key.pem: is not the key of the certificate beside it"), -EINVAL);
	set(true, NULL, &ca, &ca);
	write_file(server_dir, "ca-crl.pem", "x", 1, 0644);
	ck_assert_int_eq(load_says(true, "/ca-crl.pem: "), -EINVAL);
	empty_dir(server_dir);
	write_cert(server_dir, "ca-cert.pem", ca.cert);
	ck_assert_int_eq(load_says(true, "/server-cert.pem: No such file"), -ENOENT);
	write_cert(server_dir, "server-cert.pem", i.cert);
	ck_assert_int_eq(load_says(true, "/server-key.pem: No such file"), -ENOENT);
	write_file(server_dir, "server-key.pem", "no key", 6, 0600);
	ck_assert_int_eq(load_says(true, "server-cert.pem or server-key.pem: "), -EINVAL);
	write_file(server_dir, "server-key.pem", "no key", 6, 0604);
	ck_assert_int_eq(load_says(true, "everybody on this host may use this key"), -EACCES);
	write_file(server_dir, "ca-cert.pem", zeros, sizeof zeros, 0644);
	ck_assert_int_eq(load_says(true, "/ca-cert.pem: "), -EINVAL);
	write_file(client_dir, "keys.psk", "vm:" KEY, 3 + sizeof KEY, 0644);
	ck_assert_int_eq(load_says(false, "everybody on this host may use this key"), -EACCES);
	identity_free(&i);
}
END_TEST

static const char *const bad_keys[] = { "", "\n\n", KEY, ":" KEY, "vm:", "vm:00010203", "vm:" KEY "0", "vm:" KEY "0g", "v\1m:" KEY,
	"ok:" KEY "\nvm" };

START_TEST(bad_key_lines)
{
	set_keys(bad_keys[_i], bad_keys[_i]);
	ck_assert_int_eq(load_says(true, _i < 2 ? "/keys.psk: holds no key" : "is not NAME:KEY"), -EINVAL);
	ck_assert_int_eq(load_says(false, _i < 2 ? "/keys.psk: holds no key" : "is not NAME:KEY"), -EINVAL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("wire_tls");
	TCase *t = tcase_create("refusals"), *u = tcase_create("transfers");
	SRunner *sr;
	int failed;

	tcase_set_timeout(t, 60);
	tcase_add_unchecked_fixture(t, make_dirs, remove_dirs);
	tcase_add_checked_fixture(t, end, end);
	tcase_add_loop_test(t, right_certificates, 0, 2);
	tcase_add_loop_test(t, refused_certificates, 0, ARRAY_SIZE(refused));
	tcase_add_loop_test(t, revoked, 0, 2);
	tcase_add_test(t, no_certificate);
	tcase_add_loop_test(t, shared_keys, 0, ARRAY_SIZE(keys));
	tcase_add_loop_test(t, keys_against_certificates, 0, 2);
	tcase_add_test(t, plain_client);
	tcase_add_loop_test(t, plain_server, 0, 3);
	tcase_add_test(t, bad_files);
	tcase_add_loop_test(t, bad_key_lines, 0, ARRAY_SIZE(bad_keys));
	suite_add_tcase(s, t);
	tcase_set_timeout(u, 120);
	tcase_add_unchecked_fixture(u, make_dirs, remove_dirs);
	tcase_add_checked_fixture(u, end, end);
	tcase_add_loop_test(u, spoiled, 0, 5);
	tcase_add_test(u, keys_change);
	tcase_add_test(u, interrupted_handshake);
	add_transfers(u);
	suite_add_tcase(s, u);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
