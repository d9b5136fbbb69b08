// SPDX-License-Identifier: GPL-2.0-only
// The server of a destination: real sockets and processes. Its children are ours: a receiver does what its connection says, a line each:
//
//	reserve NAME BYTES -> "0" or "ERRNO REASON"      channel -> "CHANNEL WHAT-CAME-OVER-IT"
//	fds -> how many it has      env -> is it a service?      make NAME (its run directory) -> "0"
//	undecided -> "0"
//	exit STATUS      kill      wait -> until it is interrupted, "interrupted"
#include <arpa/inet.h>
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/cmd.h"
#include "criu-vm/image_server.h"
#include "criu-vm/migration_lazy.h"
#include "criu-vm/migration_record.h"
#include "criu-vm/receive.h"
#include "criu-vm/server_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/process.h"
#include "util/size.h"
#include "wire/control.h"

#define SOON_MS 5000
#define HOST "127.0.0.1"

static char tmp[] = "/tmp/test-server-XXXXXX";
static char run_dir[64];
static int said; // a memfd: what is logged

// ---- the children's part

static unsigned open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n - 3; // ".", "..", d
}

static void put(int fd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void put(int fd, const char *fmt, ...)
{
	char line[600];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0 || send(fd, "\n", 1, MSG_NOSIGNAL) < 0)
		_exit(99);
}

// Without the newline; "" at the end, or when nothing comes in time.
static const char *get(int fd)
{
	static char line[600];
	struct pollfd p = { .fd = fd, .events = POLLIN };
	size_t len = 0;

	while (len + 1 < sizeof line && poll(&p, 1, SOON_MS) > 0 && read(fd, line + len, 1) == 1 && line[len] != '\n')
		len++;
	line[len] = 0;
	return line;
}

static void reserve(const struct receive_opts *o, int fd, const char *line)
{
	char name[600], reason[512];
	unsigned long bytes;
	int r;

	if (sscanf(line, "reserve %599s %lu", name, &bytes) != 2)
		_exit(98);
	r = server_line_reserve(o->line, name, bytes, reason);
	put(fd, r ? "%d %s" : "%d", r, reason);
}

static void take_channel(const struct receive_opts *o, int fd)
{
	unsigned channel;
	int data, r = server_line_channel(o->line, 1000, &channel, &data);

	if (r) {
		put(fd, "%d", r);
		return;
	}
	put(fd, "%u %s", channel, get(data));
	close(data);
}

static int make_run_dir(const struct receive_opts *o, const char *name)
{
	struct run_dir rd;
	int r = run_dir_create(o->server->run_dir, name, &rd);

	return r ? r : arrival_mark(&rd, o->token);
}

int receive_run(const struct receive_opts *o, int fd)
{
	for (;;) {
		const char *line = get(fd);
		char c;

		if (!strncmp(line, "reserve ", 8))
			reserve(o, fd, line);
		else if (!strcmp(line, "channel"))
			take_channel(o, fd);
		else if (!strcmp(line, "fds"))
			put(fd, "%u", open_fds());
		else if (!strcmp(line, "env"))
			put(fd, "%d", getenv("NOTIFY_SOCKET") != NULL);
		else if (!strcmp(line, "undecided"))
			put(fd, "%d", server_line_undecided(o->line));
		else if (!strncmp(line, "make ", 5))
			put(fd, "%d", make_run_dir(o, line + 5));
		else if (!strncmp(line, "exit ", 5))
			return atoi(line + 5);
		else if (!strcmp(line, "kill"))
			raise(SIGKILL);
		else if (!strcmp(line, "wait"))
			break;
		else if (cmd_interrupted() || !recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT))
			return CMD_FAILED;
	}
	for (unsigned i = 0; i < 1000 && !cmd_interrupted(); i++)
		usleep(10000);
	put(fd, "interrupted");
	return CMD_FAILED;
}

int receive_answer(const struct receive_opts *o, int fd)
{
	char text[WIRE_TOKEN_TEXT];

	put(fd, "answer %s", wire_token_format(o->token, text));
	close(fd);
	return 0;
}

int receive_line(const struct receive_opts *o, unsigned line, int fd)
{
	char text[WIRE_TOKEN_TEXT];

	put(fd, "line %u of %s", line, wire_token_format(o->token, text));
	close(fd);
	return 0;
}

// A served checkpoint, of which nothing is known here but who reads it.
int image_server_open(const char *dir, struct image_server **s)
{
	*s = (struct image_server *)dir;
	return 0;
}

void image_server_close(struct image_server *s)
{
	(void)s;
}

const char *image_server_dir(const struct image_server *s)
{
	return (const char *)s;
}

const char *image_server_vm_name(const struct image_server *s)
{
	(void)s;
	return "";
}

uint64_t image_server_pages(const struct image_server *s)
{
	(void)s;
	return 1;
}

uint64_t image_server_id(const struct image_server *s)
{
	(void)s;
	return 1;
}

int image_server_line(const struct image_server *s, const struct wire_tls *tls, unsigned nr, int line, int fd)
{
	(void)s, (void)tls, (void)nr;
	for (;;) {
		const char *text = get(fd);
		char c;

		if (!strcmp(text, "introduced"))
			put(fd, "%d", server_line_introduced(line));
		else if (!strcmp(text, "there?"))
			put(fd, "yes");
		else if (cmd_interrupted() || !recv(fd, &c, 1, MSG_PEEK | MSG_DONTWAIT))
			return CMD_FAILED;
	}
}

int image_server_describe(const struct image_server *s, const struct wire_tls *tls, const uint8_t token[WIRE_TOKEN_LEN], int line, int fd)
{
	(void)token;
	return image_server_line(s, tls, 0, line, fd);
}

// ---- the test's part

struct rig {
	struct server_opts o;
	pid_t server;
	int out; // what it says
	unsigned fds; // of a receiver, if it has no more than it should
	uint16_t port;
};

static char *file_in(const char *dir, const char *name)
{
	char *path;

	ck_assert(asprintf(&path, "%s/%s", dir, name) > 0);
	return path;
}

static const char *log_text(void)
{
	static char text[65536];
	ssize_t n = pread(said, text, sizeof text - 1, 0);

	text[n > 0 ? n : 0] = 0;
	return text;
}

static unsigned log_has(const char *what)
{
	unsigned n = 0;

	for (const char *p = log_text(); (p = strstr(p, what)); p++)
		n++;
	return n;
}

static bool log_gets(const char *what)
{
	for (unsigned i = 0; i < SOON_MS / 10; i++) {
		if (log_has(what))
			return true;
		usleep(10000);
	}
	return false;
}

static void start(struct rig *r)
{
	int out[2];

	r->o.run_dir = run_dir;
	r->o.json = true;
	r->fds = open_fds() + 2; // its line and its connection
	ck_assert(!pipe2(out, O_CLOEXEC));
	r->server = fork();
	if (!r->server) {
		dup2(out[1], STDOUT_FILENO);
		close(out[0]);
		close(out[1]);
		_exit(server_run(&r->o));
	}
	close(out[1]);
	r->out = out[0];
}

// An object that the server says: {event: {...}}; the caller's.
static json_t *heard(const struct rig *r, const char *event)
{
	json_t *j = json_loads(get(r->out), 0, NULL), *in = json_incref(json_object_get(j, event));

	json_decref(j);
	ck_assert_msg(in, "no '%s' was said; logged: %s", event, log_text());
	return in;
}

static void heard_of(const struct rig *r, const char *event, const char *name)
{
	json_t *j = heard(r, event);

	ck_assert_str_eq(json_string_value(json_object_get(j, "name")), name);
	ck_assert(json_object_get(j, "from") && json_object_get(j, "message"));
	json_decref(j);
}

static void listening(struct rig *r)
{
	json_t *j = heard(r, "listening");

	r->port = (uint16_t)json_integer_value(json_object_get(j, "port"));
	ck_assert(r->port && json_string_length(json_object_get(j, "address")));
	json_decref(j);
}

static void begin(struct rig *r)
{
	start(r);
	listening(r);
}

static int ended(const struct rig *r)
{
	for (unsigned i = 0; i < SOON_MS / 10; i++) {
		int status;

		if (waitpid(r->server, &status, WNOHANG) == r->server)
			return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
		usleep(10000);
	}
	kill(r->server, SIGKILL);
	waitpid(r->server, NULL, 0);
	return -1000;
}

static void finish(const struct rig *r)
{
	kill(r->server, SIGTERM);
	ck_assert_int_eq(ended(r), CMD_OK);
	close(r->out);
}

static int try_dial(const struct rig *r)
{
	_cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(r->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

	return connect(fd, (struct sockaddr *)&at, sizeof at) ? -errno : steal_fd(&fd);
}

static int dial(const struct rig *r)
{
	int fd = try_dial(r);

	ck_assert_int_ge(fd, 0);
	return fd;
}

static const struct wire_preamble *preamble(enum wire_kind kind, uint8_t token, uint8_t channel)
{
	static struct wire_preamble p;

	p = (struct wire_preamble){ .kind = kind, .channel = channel };
	memset(p.token, token, sizeof p.token);
	return &p;
}

// With what comes behind the preamble, in one piece.
static int call(const struct rig *r, enum wire_kind kind, uint8_t token, uint8_t channel, const char *behind)
{
	uint8_t buf[WIRE_PREAMBLE_LEN + 600];
	int fd = dial(r);

	wire_preamble_pack(preamble(kind, token, channel), buf);
	memcpy(buf + WIRE_PREAMBLE_LEN, behind, strlen(behind));
	ck_assert(!io_write_full(fd, buf, WIRE_PREAMBLE_LEN + strlen(behind)));
	return fd;
}

// It is closed, nothing having come. False after ms.
static bool is_closed(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char c;

	return poll(&p, 1, ms) > 0 && read(fd, &c, 1) <= 0;
}

// A receiver that is promised so much.
static int arrive(const struct rig *r, uint8_t token, const char *name, unsigned long bytes)
{
	char line[100];
	int fd;

	snprintf(line, sizeof line, "reserve %s %lu\n", name, bytes);
	fd = call(r, WIRE_CONTROL, token, 0, line);
	ck_assert_str_eq(get(fd), "0");
	return fd;
}

static void asks(int fd, const char *line, const char *answer)
{
	const char *got;

	put(fd, "%s", line);
	got = get(fd);
	ck_assert_msg(!strncmp(got, answer, strlen(answer)), "'%s' is answered by '%s', not '%s'", line, got, answer);
}

// Nothing of the server's, or of others.
static void has_no_more(const struct rig *r, int fd)
{
	char nr[20];

	snprintf(nr, sizeof nr, "%u", r->fds);
	asks(fd, "fds", nr);
}

static void is_refused(const struct rig *r, const struct wire_preamble *p, const char *why)
{
	struct wire_connect_opts o = { .host = HOST, .port = r->port, .preamble = *p, .timeout_ms = SOON_MS };
	struct wire_conn *c;
	WireMsg *m;

	ck_assert(!wire_connect(&o, &c));
	ck_assert(!wire_write(c, "\20\0\0\0say hello first", 20)); // as a source would
	ck_assert_int_eq(wire_receive(c, SOON_MS, &m), -ECONNABORTED);
	ck_assert_msg(strstr(log_last_error(), why), "refused: %s", log_last_error());
	wire_close(c);
}

START_TEST(where_it_listens)
{
	struct rig r = { 0 }, same = { 0 };
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	_cleanup_close_ int fd = -1, other = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

	begin(&r);
	fd = dial(&r);
	six.sin6_port = htons(r.port);
	ck_assert(other < 0 || !connect(other, (struct sockaddr *)&six, sizeof six) || errno == EADDRNOTAVAIL);
	same.o.port = r.port;
	start(&same);
	ck_assert_int_eq(ended(&same), CMD_FAILED);
	ck_assert(log_has("another server is there"));
	finish(&r);
}
END_TEST

START_TEST(in_the_clear_only_here)
{
	struct rig r = { .o.address = "0.0.0.0" };

	start(&r);
	ck_assert_int_eq(ended(&r), CMD_USAGE);
	ck_assert(log_has("--insecure"));
	r.o.insecure = true;
	begin(&r);
	close(dial(&r));
	finish(&r);
	r = (struct rig){ .o.address = "no such host" };
	start(&r);
	ck_assert_int_eq(ended(&r), CMD_USAGE);
	ck_assert(log_has("no such host: "));
	r = (struct rig){ .o.address = "192.0.2.1", .o.insecure = true }; // nobody's
	start(&r);
	ck_assert_int_eq(ended(&r), CMD_FAILED);
}
END_TEST

START_TEST(preamble_byte_by_byte)
{
	struct rig r = { 0 };
	uint8_t buf[WIRE_PREAMBLE_LEN + 64];
	_cleanup_close_ int fd = -1;

	begin(&r);
	fd = dial(&r);
	wire_preamble_pack(preamble(WIRE_CONTROL, 1, 0), buf);
	for (size_t i = 0; i < WIRE_PREAMBLE_LEN - 1; i++) {
		ck_assert(!io_write_full(fd, buf + i, 1));
		usleep(2000);
	}
	strcpy((char *)buf + WIRE_PREAMBLE_LEN, "reserve web 4096\n");
	ck_assert(!io_write_full(fd, buf + WIRE_PREAMBLE_LEN - 1, 1 + strlen((char *)buf + WIRE_PREAMBLE_LEN)));
	ck_assert_str_eq(get(fd), "0");
	asks(fd, "channel", "-110"); // none in time
	put(fd, "exit 0");
	heard_of(&r, "arrived", "web");
	finish(&r);
}
END_TEST

START_TEST(garbage)
{
	static const char junk[] = "GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n";
	struct rig r = { 0 };
	uint8_t buf[WIRE_PREAMBLE_LEN];

	begin(&r);
	for (unsigned i = 0; i < 40; i++) {
		_cleanup_close_ int fd = dial(&r);

		ck_assert(!io_write_full(fd, junk, sizeof junk - 1));
		ck_assert(is_closed(fd, SOON_MS));
	}
	ck_assert_uint_eq(log_has("does not speak the migration protocol"), 10); // a minute
	wire_preamble_pack(preamble(WIRE_CONTROL, 1, 0), buf);
	for (size_t i = 0; i < sizeof buf - WIRE_TOKEN_LEN; i++) {
		_cleanup_close_ int fd = dial(&r);
		char answer[64];

		buf[i] ^= 0x80;
		ck_assert(!io_write_full(fd, buf, sizeof buf));
		ck_assert(i == 8 || i == 9 ? read(fd, answer, sizeof answer) > 0 : is_closed(fd, SOON_MS)); // another version: is told
		buf[i] ^= 0x80;
	}
	close(arrive(&r, 1, "web", 4096));
	finish(&r);
}
END_TEST

START_TEST(silent_connections)
{
	struct rig r = { 0 };
	int fd[100], ctl;

	begin(&r);
	for (unsigned i = 0; i < ARRAY_SIZE(fd); i++)
		fd[i] = dial(&r);
	ctl = arrive(&r, 1, "web", 4096);
	has_no_more(&r, ctl);
	for (unsigned i = 0; i < ARRAY_SIZE(fd); i++)
		ck_assert_msg(is_closed(fd[i], 0) == (i <= ARRAY_SIZE(fd) - SERVER_CONNS), "connection %u of %zu", i, ARRAY_SIZE(fd));
	sleep(10);
	for (unsigned i = ARRAY_SIZE(fd) - SERVER_CONNS + 1; i < ARRAY_SIZE(fd); i++)
		ck_assert(is_closed(fd[i], 1000));
	has_no_more(&r, ctl);
	finish(&r);
}
END_TEST

START_TEST(data_channels)
{
	struct rig r = { 0 };
	int a, b, early;

	begin(&r);
	ck_assert(is_closed(call(&r, WIRE_DATA, 1, 0, "of nobody"), SOON_MS));
	a = call(&r, WIRE_CONTROL, 1, 0, "");
	early = call(&r, WIRE_DATA, 1, 0, "too early"); // nothing is promised
	ck_assert(is_closed(early, SOON_MS));
	asks(a, "reserve a 4096", "0");
	b = arrive(&r, 2, "b", 4096);
	for (unsigned i = 0; i < 4; i++) {
		call(&r, WIRE_DATA, 2, (uint8_t)(10 + i), "this is b's\n");
		call(&r, WIRE_DATA, 1, (uint8_t)i, "this is a's\n");
	}
	for (unsigned i = 0; i < 4; i++) {
		char want[40];

		snprintf(want, sizeof want, "%u this is a's", i);
		asks(a, "channel", want);
		snprintf(want, sizeof want, "%u this is b's", 10 + i);
		asks(b, "channel", want);
	}
	has_no_more(&r, a);
	asks(a, "channel", "-110");
	kill(r.server, SIGKILL);
	asks(a, "channel", "-32");
	asks(a, "reserve a 1", "-32");
	close(a);
	close(b);
	ended(&r);
}
END_TEST

START_TEST(too_many_channels)
{
	struct rig r = { 0 };
	int ctl, fd[SERVER_CHANNELS + 3];

	begin(&r);
	ctl = arrive(&r, 1, "web", 4096);
	for (unsigned i = 0; i < ARRAY_SIZE(fd); i++) // those that get none are closed
		fd[i] = call(&r, WIRE_DATA, 1, 1, "x\n");
	ck_assert(is_closed(fd[ARRAY_SIZE(fd) - 1], SOON_MS));
	for (unsigned i = 0; i < 3; i++)
		asks(ctl, "channel", "1 x");
	finish(&r);
}
END_TEST

START_TEST(asking)
{
	struct rig r = { 0 };

	begin(&r);
	for (unsigned i = 0; i < 200; i++) {
		_cleanup_close_ int fd = call(&r, WIRE_ASK, 0xab, 0, "");

		ck_assert_str_eq(get(fd), "answer abababababababababababababababab");
	}
	finish(&r);
}
END_TEST

START_TEST(promises)
{
	struct rig r = { .o.total_ram = 100 * MiB };
	int a, b, c;

	begin(&r);
	a = arrive(&r, 1, "a", 60 * MiB);
	b = call(&r, WIRE_CONTROL, 2, 0, "");
	asks(b, "reserve b 52428800",
	     "-12 b needs 50 MiB of memory and 40 MiB are left: of 100 MiB (--total-ram), VMs that run there have 0 B, and VMs that arrive "
	     "60 MiB");
	asks(b, "reserve b 18446744073709551615", "-12 ");
	asks(b, "reserve b 0", "-22 ");
	asks(b, "reserve a 4096", "-17 a VM 'a' arrives there already");
	asks(b, "reserve b 41943040", "0");
	c = call(&r, WIRE_CONTROL, 3, 0, "reserve c 1\n");
	ck_assert_ptr_nonnull(strstr(get(c), "-12 c needs 1 B of memory and 0 B are left"));
	asks(a, "reserve a 20971520", "0"); // instead of what it had
	asks(c, "reserve c 41943040", "0");
	asks(a, "reserve a 20971521", "-12"); // and has nothing now
	asks(c, "reserve c 62914560", "0");
	asks(c, "reserve c 41943040", "0");
	put(b, "kill");
	heard_of(&r, "failed", "b");
	asks(a, "reserve a 62914560", "0");
	put(c, "exit 1");
	heard_of(&r, "failed", "c");
	asks(a, "reserve a 104857600", "0");
	asks(a, "reserve ../x 1", "-32"); // no such name, and no such receiver
	finish(&r);
}
END_TEST

// A VM here, whose QEMU is this test.
static void make_vm(const char *name, uint64_t budget, int memfd, struct run_dir *rd)
{
	struct vm_state_block block = { .len = budget, .memfd = memfd };
	struct vm_state v = { .qemu = getpid(), .qemu_start = process_start(getpid()), .budget = budget, .ram = budget, .nr_chunks = 1,
			      .blocks = memfd < 0 ? NULL : &block, .nr_blocks = memfd >= 0 };

	ck_assert(!run_dir_create(run_dir, name, rd) && !vm_state_save(rd, &v));
}

static void end_vm(struct run_dir *rd)
{
	run_dir_destroy(rd);
}

START_TEST(vms_that_run_count)
{
	struct rig r = { .o.total_ram = 100 * MiB };
	struct run_dir vm, dead;
	struct vm_state v = { .qemu = getpid(), .qemu_start = 1, .budget = 90 * MiB, .ram = 90 * MiB };
	int a;

	make_vm("db", 70 * MiB, -1, &vm);
	ck_assert(!run_dir_create(run_dir, "dead", &dead) && !vm_state_save(&dead, &v)); // another process has its pid
	begin(&r);
	a = call(&r, WIRE_CONTROL, 1, 0, "");
	asks(a, "reserve db 1", "-17 a VM 'db' runs there already");
	asks(a, "reserve dead 1", "-17"); // locked, by us
	asks(a, "reserve a 31457281",
	     "-12 a needs 30.0 MiB of memory and 30 MiB are left: of 100 MiB (--total-ram), VMs that run there have 70 MiB");
	asks(a, "reserve a 31457280", "0");
	end_vm(&vm);
	make_vm("a", 31457280, -1, &vm); // it has come so far that it is recorded, and counts once
	asks(call(&r, WIRE_CONTROL, 2, 0, ""), "reserve b 73400320", "0");
	end_vm(&vm);
	end_vm(&dead);
	finish(&r);
}
END_TEST

// What is left for one more is what the host has available, but for so much. Others take memory and give it back meanwhile.
static bool is_left(const struct server *s, uint64_t but)
{
	struct server_child c = { .kind = SERVER_RECEIVER };
	char reason[SERVER_REASON];

	for (unsigned i = 0; i < 20; i++) {
		uint64_t available;

		ck_assert(!host_memory_available(&available));
		if (!server_promise(s, &c, "x", available - but - 32 * MiB, reason) &&
		    server_promise(s, &c, "x", available - but + 32 * MiB, reason) == -ENOMEM && strstr(reason, "that the host has for VMs"))
			return true;
	}
	return false;
}

// What a VM has taken of its budget is still the host's to give, to that VM.
START_TEST(what_the_host_has)
{
	struct server_opts o = { .run_dir = run_dir };
	struct server s = { .o = &o };
	uint64_t size = 256 * MiB;
	int memfd = memfd_create("ram", MFD_CLOEXEC);
	struct run_dir vm;

	list_init(&s.children);
	ck_assert(!ftruncate(memfd, (off_t)size));
	ck_assert(is_left(&s, 0));
	make_vm("db", size, memfd, &vm);
	ck_assert(is_left(&s, size));
	ck_assert(!fallocate(memfd, 0, 0, (off_t)size / 2));
	ck_assert(is_left(&s, size / 2));
	ck_assert(!fallocate(memfd, 0, 0, (off_t)size));
	ck_assert(is_left(&s, 0));
	end_vm(&vm);
	close(memfd);
}
END_TEST

START_TEST(stop)
{
	struct rig r = { 0 };
	int a, b;

	begin(&r);
	a = arrive(&r, 1, "a", 4096);
	b = call(&r, WIRE_CONTROL, 2, 0, "wait\n");
	put(a, "wait");
	usleep(100000);
	kill(r.server, SIGTERM);
	ck_assert_str_eq(get(a), "interrupted");
	ck_assert_str_eq(get(b), "interrupted");
	ck_assert_int_eq(ended(&r), CMD_OK);
	ck_assert_int_eq(try_dial(&r), -ECONNREFUSED);
}
END_TEST

START_TEST(once)
{
	static const struct {
		const char *says, *event;
		int status;
	} ends[] = { { "exit 0", "arrived", CMD_OK }, { "exit 1", "failed", CMD_FAILED }, { "kill", "failed", CMD_FAILED } };

	for (unsigned i = 0; i < ARRAY_SIZE(ends); i++) {
		struct rig r = { .o.once = true };
		int fd;

		begin(&r);
		close(call(&r, WIRE_ASK, 1, 0, ""));
		fd = arrive(&r, 1, "web", 4096);
		is_refused(&r, preamble(WIRE_CONTROL, 2, 0), "--once");
		put(fd, "%s", ends[i].says);
		heard_of(&r, ends[i].event, "web");
		ck_assert_int_eq(ended(&r), ends[i].status);
		close(fd);
	}
}
END_TEST

static void is_answered(const struct rig *r, uint8_t token)
{
	_cleanup_close_ int fd = call(r, WIRE_ASK, token, 0, "");

	ck_assert(!strncmp(get(fd), "answer ", 7));
}

START_TEST(killed_after_commit)
{
	struct rig r = { .o.once = true };
	enum migration_decision is;
	uint8_t token[WIRE_TOKEN_LEN];
	int fd;

	begin(&r);
	fd = arrive(&r, 7, "web", 4096);
	memset(token, 7, sizeof token);
	ck_assert(!migration_decide(token, MIGRATION_COMMITTED, "web", &is));
	put(fd, "kill");
	heard_of(&r, "attention", "web");
	is_refused(&r, preamble(WIRE_CONTROL, 2, 0), "--once"); // its source does not know, and cannot learn it but by asking
	is_answered(&r, 6);
	is_refused(&r, preamble(WIRE_CONTROL, 7, 0), "--once");
	is_answered(&r, 7);
	ck_assert_int_eq(ended(&r), CMD_ATTENTION);
	migration_forget(token);
}
END_TEST

// As above: who has asked already does not ask again; a signal ends the waiting.
START_TEST(once_and_not_told)
{
	enum { ASKS_BEFORE, ASKS_AFTER, NEVER_ASKS };
	enum migration_decision is;
	uint8_t token[WIRE_TOKEN_LEN];

	for (int when = ASKS_BEFORE; when <= NEVER_ASKS; when++) {
		struct rig r = { .o.once = true };
		int fd;

		begin(&r);
		fd = arrive(&r, 9, "web", 4096);
		asks(fd, "undecided", "0");
		memset(token, 9, sizeof token);
		ck_assert(!migration_decide(token, MIGRATION_ABORTED, NULL, &is));
		if (when == ASKS_BEFORE) {
			is_answered(&r, 9);
			usleep(200000); // it is reaped
		}
		put(fd, "exit 1");
		heard_of(&r, "failed", "web");
		if (when == ASKS_AFTER)
			is_answered(&r, 9);
		if (when == NEVER_ASKS) {
			is_refused(&r, preamble(WIRE_CONTROL, 9, 0), "--once");
			kill(r.server, SIGTERM);
		}
		ck_assert_int_eq(ended(&r), CMD_FAILED);
		close(fd);
		migration_forget(token);
	}
}
END_TEST

// Whoever connects often and says nothing takes nobody's place that has been seen to be a VM's.
START_TEST(readers)
{
	struct rig r = { .o.images = "/images" };
	int known[2], idle[SERVER_READERS];
	char c;

	begin(&r);
	known[0] = call(&r, WIRE_IMAGE_LINE, 1, 0, "introduced\n");
	known[1] = call(&r, WIRE_IMAGES, 1, 0, "introduced\n");
	for (unsigned i = 0; i < 2; i++)
		ck_assert_str_eq(get(known[i]), "0");
	for (unsigned i = 0; i < SERVER_READERS; i++)
		idle[i] = call(&r, WIRE_IMAGE_LINE, 2, 0, "");
	asks(idle[SERVER_READERS - 1], "there?", "yes");
	for (unsigned i = 0; i < 2; i++) {
		ck_assert_int_le(read(idle[i], &c, 1), 0);
		asks(known[i], "there?", "yes");
	}
	asks(idle[2], "there?", "yes");
	for (unsigned i = 0; i < SERVER_READERS; i++)
		close(idle[i]);
	close(known[0]);
	close(known[1]);
	finish(&r);
}
END_TEST

static void line_is_passed(const struct rig *r, uint8_t token, uint8_t line)
{
	_cleanup_close_ int fd = call(r, WIRE_LINE, token, line, "");
	char start[20];

	snprintf(start, sizeof start, "line %u of %02x%02x", line, token, token);
	ck_assert(!strncmp(get(fd), start, strlen(start)));
}

// Its pages have to come, and its source has to know: page lines are passed on for so long, and nothing else is taken.
START_TEST(once_and_pages_missing)
{
	enum { ALL_COME, ASKS_FIRST, IS_STOPPED };
	struct migration_lazy l = { .name = "web", .run_root = run_dir };
	enum migration_decision is;
	uint8_t token[WIRE_TOKEN_LEN];

	memset(token, 5, sizeof token);
	for (int how = ALL_COME; how <= IS_STOPPED; how++) {
		struct rig r = { .o.once = true };
		int fd;

		begin(&r);
		line_is_passed(&r, 5, 8); // before, too: another server's VM
		fd = arrive(&r, 5, "web", 4096);
		ck_assert(!migration_lazy_save(token, &l));
		if (how == ASKS_FIRST)
			ck_assert(!migration_decide(token, MIGRATION_COMMITTED, "web", &is));
		put(fd, "exit 0");
		heard_of(&r, "arrived", "web");
		if (how == ASKS_FIRST)
			is_answered(&r, 5);
		is_refused(&r, preamble(WIRE_CONTROL, 2, 0), "--once");
		usleep(1500000);
		line_is_passed(&r, 5, 0);
		l.state = WIRE_LINE_COMPLETE; // its source does not know yet
		ck_assert(!migration_lazy_save(token, &l));
		line_is_passed(&r, 5, 0);
		if (how == IS_STOPPED)
			kill(r.server, SIGTERM);
		else
			migration_lazy_remove(token);
		ck_assert_int_eq(ended(&r), CMD_OK);
		close(fd);
		migration_lazy_remove(token);
		migration_forget(token);
		l.state = WIRE_LINE_WANTS;
	}
}
END_TEST

// The server is through with it when nothing of it is left.
START_TEST(killed_before_commit)
{
	struct rig r = { .o.once = true };
	enum migration_decision is;
	uint8_t token[WIRE_TOKEN_LEN];
	struct run_dir rd;
	int fd;

	begin(&r);
	fd = arrive(&r, 8, "web", 4096);
	asks(fd, "make web", "0");
	ck_assert(!run_dir_open(run_dir, "web", &rd));
	run_dir_close(&rd);
	put(fd, "kill");
	heard_of(&r, "failed", "web");
	ck_assert_int_eq(run_dir_open(run_dir, "web", &rd), -ENOENT);
	ck_assert_int_eq(ended(&r), CMD_FAILED);
	memset(token, 8, sizeof token);
	ck_assert(!migration_decided(token, &is, NULL) && is == MIGRATION_ABORTED);
}
END_TEST

static void make_arriving(const char *name, uint8_t first, struct run_dir *rd)
{
	uint8_t token[WIRE_TOKEN_LEN] = { first };

	ck_assert(!run_dir_create(run_dir, name, rd));
	ck_assert(!arrival_mark(rd, token));
	ck_assert(!migration_prepare(token, name));
}

static enum migration_decision decision_of(uint8_t first)
{
	uint8_t token[WIRE_TOKEN_LEN] = { first };
	enum migration_decision is;

	ck_assert(!migration_decided(token, &is, NULL));
	return is;
}

// Server and receiver were killed at once: the next server removes what they made, and nothing that is somebody's.
START_TEST(tidied_at_start)
{
	enum migration_decision is;
	struct run_dir rd, at_work;

	make_arriving("dead", 101, &rd);
	run_dir_close(&rd);
	make_arriving("at-work", 102, &at_work);
	make_arriving("committed", 103, &rd);
	ck_assert(!migration_decide((const uint8_t[WIRE_TOKEN_LEN]){ 103 }, MIGRATION_COMMITTED, "committed", &is));
	run_dir_close(&rd);
	ck_assert(!run_dir_create(run_dir, "restored", &rd));
	run_dir_close(&rd);
	receive_tidy_all(run_dir);
	ck_assert_int_eq(run_dir_open(run_dir, "dead", &rd), -ENOENT);
	ck_assert_int_eq(decision_of(101), MIGRATION_ABORTED);
	ck_assert_int_eq(decision_of(102), MIGRATION_UNDECIDED);
	ck_assert_int_eq(decision_of(103), MIGRATION_COMMITTED);
	run_dir_destroy(&at_work); // it is there
	for (unsigned i = 0; i < 2; i++) {
		ck_assert(!run_dir_open(run_dir, i ? "restored" : "committed", &rd));
		run_dir_destroy(&rd);
	}
	for (uint8_t i = 101; i <= 103; i++) {
		migration_unprepare((const uint8_t[WIRE_TOKEN_LEN]){ i });
		migration_forget((const uint8_t[WIRE_TOKEN_LEN]){ i });
	}
}
END_TEST

START_TEST(refusals)
{
	struct rig r = { 0 };
	int fd;

	begin(&r);
	fd = arrive(&r, 1, "web", 4096);
	is_refused(&r, preamble(WIRE_CONTROL, 1, 0), "under way already");
	has_no_more(&r, fd);
	finish(&r);
}
END_TEST

START_TEST(many_receivers)
{
	struct rig r = { .o.total_ram = SERVER_RECEIVERS };
	int fd[SERVER_RECEIVERS + 1];
	char name[20];

	begin(&r);
	for (unsigned i = 0; i < SERVER_RECEIVERS; i++) {
		snprintf(name, sizeof name, "vm-%u", i);
		fd[i] = i == 1 ? call(&r, WIRE_CONTROL, 2, 0, "fds\n") : arrive(&r, (uint8_t)(i + 1), name, 1);
	}
	get(fd[1]);
	fd[SERVER_RECEIVERS] = arrive(&r, 200, "one-more", 1); // instead of the only one with nothing promised
	ck_assert(is_closed(fd[1], SOON_MS));
	is_refused(&r, preamble(WIRE_CONTROL, 201, 0), "as many VMs are arriving");
	has_no_more(&r, fd[0]);
	finish(&r);
}
END_TEST

// A server with credentials, and one without.
START_TEST(tls_or_not)
{
	_cleanup_free_ char *dir = file_in(tmp, "creds"), *keys = file_in(dir, "keys.psk");
	struct rig r = { .o.tls_creds = dir, .o.address = "0.0.0.0" };
	struct wire_preamble p = *preamble(WIRE_CONTROL, 1, 0);
	uint8_t buf[WIRE_PREAMBLE_LEN];
	FILE *f;
	int fd;

	start(&r);
	ck_assert_int_eq(ended(&r), CMD_FAILED); // no such folder
	ck_assert(!mkdir(dir, 0700));
	f = fopen(keys, "w");
	fprintf(f, "a:00112233445566778899aabbccddeeff\n");
	fclose(f);
	chmod(keys, 0600);
	begin(&r);
	is_refused(&r, &p, "demands TLS");
	is_refused(&r, preamble(WIRE_ASK, 1, 0), "demands TLS");
	ck_assert(is_closed(call(&r, WIRE_DATA, 1, 0, ""), SOON_MS));
	ck_assert(is_closed(call(&r, WIRE_LINE, 1, 0, ""), SOON_MS));
	p.tls = true;
	wire_preamble_pack(&p, buf);
	unlink(keys);
	kill(r.server, SIGHUP);
	ck_assert(log_gets("goes on with what it had read"));
	fd = dial(&r);
	ck_assert(!io_write_full(fd, buf, sizeof buf));
	asks(fd, "reserve web 4096", "0"); // a real receiver would first expect the handshake
	finish(&r);
}
END_TEST

START_TEST(tls_wanted)
{
	struct wire_preamble p = *preamble(WIRE_CONTROL, 1, 0);
	uint8_t buf[WIRE_PREAMBLE_LEN];
	struct rig r = { 0 };
	int fd;

	begin(&r);
	p.tls = true;
	wire_preamble_pack(&p, buf);
	fd = dial(&r);
	ck_assert(!io_write_full(fd, buf, sizeof buf));
	ck_assert(is_closed(fd, SOON_MS));
	ck_assert(log_has("--tls-creds"));
	finish(&r);
}
END_TEST

START_TEST(service_manager)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), ctl;
	static const char *const says[] = { "READY=1", "RELOADING=1", "READY=1", "STOPPING=1" };
	struct rig r = { 0 };

	snprintf(at.sun_path, sizeof at.sun_path, "%s/notify", tmp);
	ck_assert(!bind(fd, (struct sockaddr *)&at, sizeof at));
	setenv("NOTIFY_SOCKET", at.sun_path, 1);
	begin(&r);
	ctl = arrive(&r, 1, "web", 1);
	asks(ctl, "env", "0");
	for (unsigned i = 0; i < ARRAY_SIZE(says); i++) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		char text[256] = "";

		ck_assert(poll(&p, 1, SOON_MS) == 1 && recv(fd, text, sizeof text - 1, 0) > 0);
		ck_assert_msg(!strncmp(text, says[i], strlen(says[i])), "%s, not %s", text, says[i]);
		if (!i)
			kill(r.server, SIGHUP);
		if (i == 2)
			kill(r.server, SIGTERM);
	}
	ck_assert_int_eq(ended(&r), CMD_OK);
	unsetenv("NOTIFY_SOCKET");
	close(fd);
}
END_TEST

static void takes(const char *name, const char *value, bool good)
{
	struct server_opts o = { 0 };
	char what[256] = "";

	ck_assert_msg(!server_option(&o, name, value, what) == good, "--%s %s: %s", name, value, what);
	ck_assert(good || strstr(what, name));
}

START_TEST(options)
{
	static const struct {
		const char *name, *value;
		bool good;
	} cases[] = {
		{ "port", "0", true },		{ "port", "65535", true },	{ "port", "65536", false },   { "port", "", false },
		{ "port", "-1", false },	{ "port", "80x", false },	{ "total-ram", "1.5G", true }, { "total-ram", "0", false },
		{ "total-ram", "25%", false },	{ "vm-ram", "256M", true },	{ "vm-ram", "25%", true },    { "vm-ram", "100%", true },
		{ "vm-ram", "101%", false },	{ "vm-ram", "0%", false },	{ "vm-ram", "%", false },     { "vm-ram", "", false },
		{ "vm-ram", "00000000025%", false }, { "vm-ram", "-5%", false }, { "user", "root", true },    { "user", "0", true },
		{ "user", "no-such-user", false }, { "user", "", false },	{ "qemu", "/bin/sh", true },  { "qemu", "/nowhere/qemu", false },
		{ "qemu", "/tmp", false },	{ "address", "::", true },	{ "insecure", NULL, true },
	};
	struct server_opts o = { .vm_ram = 1 };
	char what[256];

	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
		takes(cases[i].name, cases[i].value, cases[i].good);
	ck_assert(!server_option(&o, "vm-ram", "25%", what) && o.vm_percent == 25 && !o.vm_ram);
	ck_assert(!server_option(&o, "vm-ram", "1M", what) && !o.vm_percent && o.vm_ram == MiB);
	ck_assert(!server_option(&o, "qemu", "/bin/../bin/sh", what) && o.qemu[0] == '/' && !strstr(o.qemu, ".."));
}
END_TEST

static void prepare(void)
{
	said = memfd_create("log", MFD_CLOEXEC);
	log_init(said, LOG_INFO, NULL, false);
}

static void add(Suite *s, const TTest *test)
{
	TCase *t = tcase_create(test->name);

	tcase_set_timeout(t, 60);
	tcase_add_checked_fixture(t, prepare, NULL);
	tcase_add_test(t, test);
	suite_add_tcase(s, t);
}

static void remove_all(void)
{
	char line[100];

	snprintf(line, sizeof line, "rm -rf %s", tmp);
	if (system(line))
		fprintf(stderr, "%s stays\n", tmp);
}

int main(void)
{
	Suite *s = suite_create("server");
	SRunner *sr;
	int failed;

	if (!mkdtemp(tmp))
		return 1;
	snprintf(run_dir, sizeof run_dir, "%s/run", tmp);
	setenv("CRIU_VM_STATE_DIR", tmp, 1);
	add(s, where_it_listens);
	add(s, in_the_clear_only_here);
	add(s, preamble_byte_by_byte);
	add(s, garbage);
	add(s, silent_connections);
	add(s, data_channels);
	add(s, too_many_channels);
	add(s, asking);
	add(s, promises);
	add(s, vms_that_run_count);
	add(s, what_the_host_has);
	add(s, stop);
	add(s, once);
	add(s, once_and_not_told);
	add(s, once_and_pages_missing);
	add(s, readers);
	add(s, tidied_at_start);
	add(s, killed_after_commit);
	add(s, killed_before_commit);
	add(s, refusals);
	add(s, many_receivers);
	add(s, tls_or_not);
	add(s, tls_wanted);
	add(s, service_manager);
	add(s, options);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	remove_all();
	return failed ? 1 : 0;
}
