// SPDX-License-Identifier: GPL-2.0-only
// A served checkpoint: what is told of it, its pages, and what a restore does not believe. Both sides over the loopback interface.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <zstd.h>

#include "criu-vm/hello.h"
#include "criu-vm/image_server.h"
#include "criu-vm/image_server_int.h"
#include "criu-vm/restore_peer.h"
#include "tests/unit/images_fixture.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/zero.h"

#define PATIENCE_MS 20000
#define BIG_LEN (5 * MiB - 8 * PAGE_SIZE)

static struct image_server *server;
static struct ram ram;
static char where[32]; // "127.0.0.1:PORT"
static uint16_t port;
static int listener;

static void base_on_disk(void)
{
	make_base("/var/tmp"); // a file system that takes O_DIRECT
}

// ---- the server

struct taken {
	struct wire_preamble preamble;
	int fd;
};

static void *serve_one(void *arg)
{
	struct taken *t = arg;

	if (t->preamble.kind == WIRE_IMAGES)
		image_server_describe(server, NULL, t->preamble.token, -1, t->fd);
	else
		image_server_line(server, NULL, t->preamble.channel, -1, t->fd);
	free(t);
	return NULL;
}

static struct taken *take(void)
{
	uint8_t buf[WIRE_PREAMBLE_LEN];
	struct taken *t = calloc(1, sizeof *t);

	t->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (t->fd < 0 || io_read_full(t->fd, buf, sizeof buf) || wire_preamble_parse(buf, &t->preamble)) {
		free(t);
		return NULL;
	}
	return t;
}

static void *serve_all(void *arg)
{
	struct taken *t;
	pthread_t thread;

	(void)arg;
	while ((t = take()))
		if (!pthread_create(&thread, NULL, serve_one, t))
			pthread_detach(thread);
	return NULL;
}

static void start(void *(*serve)(void *arg), void *arg)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	pthread_t thread;

	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ok(bind(listener, (struct sockaddr *)&a, len));
	ok(listen(listener, 8));
	ok(getsockname(listener, (struct sockaddr *)&a, &len));
	port = ntohs(a.sin_port);
	snprintf(where, sizeof where, "127.0.0.1:%u", port);
	ok(pthread_create(&thread, NULL, serve, arg));
	pthread_detach(thread);
}

// Of 5 MiB: a checkpoint, and an increment in which each third page is another, and each sixth zero.
static void write_big(int zstd_level)
{
	struct img_dir *parent;
	struct img_writer *w;

	ram = ram_new(BIG_LEN);
	for (uint64_t i = 0; i < ram.len / PAGE_SIZE; i++)
		fill_random(ram.data + i * PAGE_SIZE, 512);
	write_checkpoint(&ram, 1, zstd_level);
	strcat(strcpy(parent_dir, tmp), "/parent");
	ok(rename(dir, parent_dir));
	ok(img_dir_open(parent_dir, &parent));
	w = writer_open(dir, parent, zstd_level);
	ok(give_blocks(w, &ram, 1));
	for (uint64_t c = 0; c < 5; c++) {
		uint64_t as_parent[4] = { 0 };

		for (uint64_t i = c * 256; i < (c + 1) * 256 && i < ram.len / PAGE_SIZE; i++)
			if (i % 3)
				bitmap_set(as_parent, i % 256);
			else
				memset(ram.data + i * PAGE_SIZE, i % 2 ? (int)(i % 255) + 1 : 0, PAGE_SIZE);
		ok(img_writer_chunk(w, 0, c, ram.data + c * MiB, all_pages, as_parent));
	}
	ok(img_writer_end_pages(w));
	write_meta(w, &ram, 1, false);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
	img_dir_close(parent);
}

static void serve_big(int zstd_level)
{
	write_big(zstd_level);
	ok(image_server_open(dir, &server));
	start(serve_all, NULL);
}

// ---- who asks

static const struct restore_peer_opts *asks(void)
{
	static struct restore_peer_opts o = { .server = where, .qemu = "/bin/true" };

	return &o;
}

struct line {
	struct wire_conn *c;
	struct wire_pages *p;
	uint64_t id;
};

static struct line line_open(uint8_t channel, uint64_t id)
{
	struct wire_connect_opts o = { .host = "127.0.0.1", .port = port, .timeout_ms = PATIENCE_MS,
				       .preamble = { .kind = WIRE_IMAGE_LINE, .channel = channel, .token = { 7 } } };
	uint8_t left[WIRE_LINE_ID_LEN];
	struct line l = { .id = id };

	ok(wire_connect(&o, &l.c));
	ok(wire_pages_new(l.c, &l.p));
	image_server_line_id(o.preamble.token, id, left);
	ok(wire_line_left(l.p, WIRE_LINE_WANTS, 1, left));
	return l;
}

static void line_close(struct line *l)
{
	wire_pages_free(l->p);
	wire_close(l->c);
}

static int next_frame(struct line *l, struct wire_frame *f, char *pages)
{
	int err;

	do
		err = wire_pages_receive(l->p, f, pages);
	while (!err && f->type == WIRE_ALIVE);
	return err;
}

// The type of the answer. What comes is what it has to be.
static int want(struct line *l, uint64_t chunk, const uint64_t pages[4])
{
	static char got[WIRE_CHUNK_SIZE];
	const char *at = got;
	struct wire_frame f;

	ok(wire_line_want(l->p, 0, chunk, pages));
	ok(next_frame(l, &f, got));
	ck_assert_uint_eq(f.chunk, chunk);
	for (size_t i = 0; i < 256 && f.type == WIRE_PAGES; i++) {
		const uint8_t *page = ram.data + chunk * MiB + i * PAGE_SIZE;

		ck_assert_int_eq(bitmap_test(pages, i), bitmap_test(f.present, i) || bitmap_test(f.zero, i));
		if (!bitmap_test(pages, i))
			continue;
		ck_assert_int_eq(bitmap_test(f.zero, i), mem_is_zero(page, PAGE_SIZE));
		if (bitmap_test(f.zero, i))
			continue;
		ck_assert_mem_eq(at, page, PAGE_SIZE);
		at += PAGE_SIZE;
	}
	return f.type;
}

static int want_run(struct line *l, uint64_t first, size_t nr)
{
	uint64_t pages[4] = { 0 };

	bitmap_set_range(pages, first % 256, nr);
	return want(l, first / 256, pages);
}

// ---- what is told

START_TEST(describes)
{
	struct vm_state s = { 0 };
	struct restore_peer *p;
	struct img_dir *d;
	uint64_t a[4], b[4];

	serve_big(0);
	ok(img_dir_open(dir, &d));
	ok(restore_peer_open(asks(), &p));
	ck_assert_uint_eq(image_server_id(server), img_dir_id(d));
	ck_assert_str_eq(restore_peer_vm(p)->machine, "pc-i440fx-7.2");
	ck_assert_uint_eq(restore_peer_vm(p)->blocks[0]->len, ram.len);
	ck_assert_uint_eq(restore_peer_device_state(p)->blocks[0]->runs[0]->data.len, 2 * PAGE_SIZE);
	for (uint64_t c = 0; c < 5; c++) {
		img_dir_pages(d, 0, c, a);
		restore_peer_pages(p, c, b);
		ck_assert_mem_eq(a, b, sizeof a);
	}
	ok(restore_peer_note(p, &s));
	ck_assert_str_eq(s.remote, where);
	ck_assert(s.remote_connects && !s.remote_key && !s.remote_tls && s.remote_lines);
	ck_assert_uint_eq(strlen(s.remote_id), 2 * WIRE_LINE_ID_LEN);
	vm_state_fini(&s);
	restore_peer_free(p);
	img_dir_close(d);
}
END_TEST

START_TEST(finds_its_checkpoint)
{
	char id[2 * WIRE_LINE_ID_LEN + 1], *address, *tls;
	struct vm_state s = { 0 };
	struct restore_peer *p;

	serve_big(0);
	ok(restore_peer_open(asks(), &p));
	ok(restore_peer_note(p, &s));
	ok(restore_peer_find(asks(), s.remote_id, &address, &tls));
	ck_assert_str_eq(address, where);
	free(address);
	strcpy(id, s.remote_id);
	id[2 * WIRE_TOKEN_LEN] ^= 1;
	ck_assert_int_eq(restore_peer_find(asks(), id, &address, &tls), -ESTALE);
	free(address);
	vm_state_fini(&s);
	restore_peer_free(p);
}
END_TEST

START_TEST(no_pre_dump)
{
	struct ram r = small_ram();
	struct img_writer *w;

	ok(img_writer_open(&(struct img_writer_opts){ .dir = dir, .ram_only = true }, &w));
	ok(write_pages(w, &r, 1));
	write_meta(w, &r, 1, true);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
	free(r.data);
	ck_assert_int_eq(image_server_open(dir, &server), -EINVAL);
}
END_TEST

START_TEST(reads_through_the_page_cache)
{
	serve_big(_i);
	for (const struct img_dir *d = server->dir; d; d = img_dir_parent(d)) {
		struct img_part any = { .dir = d };

		ck_assert_int_eq(fcntl(img_part_fd(&any), F_GETFL) & O_DIRECT, 0);
	}
}
END_TEST

// ---- pages

START_TEST(pages)
{
	struct line lines[2];
	size_t nr_pages;

	serve_big(_i);
	nr_pages = ram.len / PAGE_SIZE;
	for (uint8_t i = 0; i < 2; i++)
		lines[i] = line_open(i, image_server_id(server));
	for (unsigned i = 0; i < 400; i++) {
		size_t first = (size_t)random() % nr_pages, nr = 1 + (size_t)random() % 16;

		nr = nr > 256 - first % 256 ? 256 - first % 256 : nr;
		nr = nr > nr_pages - first ? nr_pages - first : nr;
		ck_assert_int_eq(want_run(&lines[i % 2], first, nr), WIRE_PAGES);
	}
	for (uint64_t c = 0; c < 4; c++)
		ck_assert_int_eq(want(&lines[0], c, all_pages), WIRE_PAGES);
	line_close(&lines[0]);
	line_close(&lines[1]);
}
END_TEST

static void damage(const char *place, uint64_t off, uint64_t len)
{
	static char bad[MiB];
	char path[PATH_MAX + 16];
	int fd;

	snprintf(path, sizeof path, "%s/pages-1.img", place);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	ok(io_pwrite_full(fd, bad, len, off));
	ok(close(fd));
}

START_TEST(damaged)
{
	const struct img_chunk *parents;
	struct line l, other;

	serve_big(_i);
	parents = img_dir_chunk(img_dir_parent(server->dir), 0, 2);
	l = line_open(0, image_server_id(server));
	damage(parent_dir, parents->off, PAGE_SIZE);
	ck_assert_int_eq(want_run(&l, 2 * 256 + 10, 2), WIRE_CANNOT); // the stored page that was written over is another one
	ck_assert_int_eq(want_run(&l, 2 * 256 + 1, 1), WIRE_PAGES);   // this one is in the increment
	ck_assert_int_eq(want_run(&l, 3 * 256, 256), WIRE_PAGES);
	other = line_open(1, image_server_id(server));
	ck_assert_int_eq(want_run(&other, 2 * 256, 1), WIRE_CANNOT);
	line_close(&other);
	line_close(&l);
}
END_TEST

// What was found good is not read as a whole again: raw pages are read one by one, what was unpacked is still there.
START_TEST(known_good)
{
	const struct img_chunk *entry;
	struct line l, other;

	serve_big(_i);
	entry = img_dir_chunk(server->dir, 0, 1);
	l = line_open(0, image_server_id(server));
	ck_assert_int_eq(want_run(&l, 1 * 256 + 5, 1), WIRE_PAGES); // of the increment
	damage(dir, entry->off + entry->stored - PAGE_SIZE, PAGE_SIZE);
	ck_assert_int_eq(want_run(&l, 1 * 256 + 2, 10), WIRE_PAGES);
	other = line_open(1, image_server_id(server));
	ck_assert_int_eq(want_run(&other, 1 * 256 + 5, 1), _i ? WIRE_CANNOT : WIRE_PAGES);
	line_close(&other);
	line_close(&l);
}
END_TEST

START_TEST(another_checkpoint)
{
	struct wire_frame f;
	struct line l;

	serve_big(0);
	l = line_open(0, image_server_id(server) + 1);
	ok(next_frame(&l, &f, NULL));
	ck_assert_int_eq(f.type, WIRE_REFUSED);
	ck_assert_int_eq(f.round, WIRE_REFUSED_CHECKPOINT);
	ck_assert_int_eq(next_frame(&l, &f, NULL), -ECONNRESET);
	line_close(&l);
}
END_TEST

START_TEST(complete)
{
	uint8_t id[WIRE_LINE_ID_LEN], token[WIRE_TOKEN_LEN] = { 7 };
	struct wire_frame f;
	struct line l;

	serve_big(0);
	l = line_open(0, image_server_id(server));
	image_server_line_id(token, l.id, id);
	ok(wire_line_left(l.p, WIRE_LINE_COMPLETE, 0, id));
	ok(next_frame(&l, &f, NULL));
	ck_assert_int_eq(f.type, WIRE_OVER);
	ck_assert_int_eq(next_frame(&l, &f, NULL), -ECONNRESET);
	line_close(&l);
}
END_TEST

// ---- what a restore does not believe

enum lie {
	NONE,
	OTHER_TOKEN,
	OTHER_VERSION,
	NO_CHECKPOINT,
	OTHER_VM_LEN,
	OTHER_CHUNKS,
	NO_VM,
	NO_BLOCKS,
	RELATIVE_FOLDER,
	NO_STATE,
	BAD_STATE,
	SHORT_PRESENT,
	LONG_PRESENT,
	NO_PRESENT,
	CUT_PRESENT,
	PAGE_BEHIND_THE_END,
	HANG_UP,
	NR_LIES
};

static const int expected[NR_LIES] = { [OTHER_TOKEN] = -EPROTO,
				       [OTHER_VERSION] = -EPROTONOSUPPORT,
				       [NO_CHECKPOINT] = -EPROTO,
				       [OTHER_VM_LEN] = -EBADMSG,
				       [OTHER_CHUNKS] = -EBADMSG,
				       [NO_VM] = -EBADMSG,
				       [NO_BLOCKS] = -EBADMSG,
				       [RELATIVE_FOLDER] = -EBADMSG,
				       [NO_STATE] = -EBADMSG,
				       [BAD_STATE] = -EBADMSG,
				       [SHORT_PRESENT] = -EBADMSG,
				       [LONG_PRESENT] = -EBADMSG,
				       [NO_PRESENT] = -EBADMSG,
				       [CUT_PRESENT] = -EBADMSG,
				       [PAGE_BEHIND_THE_END] = -EBADMSG,
				       [HANG_UP] = -ECONNRESET };

static void lie_hello(struct wire_conn *c, enum lie lie, const uint8_t token[WIRE_TOKEN_LEN])
{
	uint8_t other[WIRE_TOKEN_LEN] = { 1 };
	WireHello hello = WIRE_HELLO__INIT;
	WireMsg m = WIRE_MSG__INIT, *theirs;

	ok(wire_expect(c, PATIENCE_MS, offsetof(WireMsg, hello), &theirs));
	wire_msg__free_unpacked(theirs, NULL);
	hello.version = hello.version_min = WIRE_VERSION + (lie == OTHER_VERSION);
	hello.software = "criu-vm";
	hello.token = (ProtobufCBinaryData){ WIRE_TOKEN_LEN, lie == OTHER_TOKEN ? other : (uint8_t *)token };
	m.hello = &hello;
	wire_send(c, &m);
}

static void lie_checkpoint(struct wire_conn *c, enum lie lie)
{
	WireCheckpoint k = WIRE_CHECKPOINT__INIT;
	WireMsg m = WIRE_MSG__INIT;

	k.id = 1;
	k.vm_len = server->vm.len + (lie == OTHER_VM_LEN);
	k.chunks = server->nr_chunks + (lie == OTHER_CHUNKS);
	m.checkpoint = &k;
	if (lie == NO_CHECKPOINT)
		wire_send_plain(c, offsetof(WireMsg, ready));
	else
		wire_send(c, &m);
}

// As another VM, or another device state, would be described.
static void lie_vm(struct wire_conn *c, enum lie lie)
{
	struct document doc = server->vm;
	VmEntry *vm = vm_entry__unpack(NULL, doc.len, doc.data);
	_cleanup_free_ uint8_t *packed = malloc(doc.len + 64);
	size_t folder = strlen(vm->cwd), nr = vm->n_blocks;

	if (lie == RELATIVE_FOLDER)
		vm->cwd[folder - 1] = '.';
	if (lie == NO_BLOCKS)
		vm->n_blocks = 0;
	doc.len = vm_entry__pack(vm, packed);
	vm->n_blocks = nr;
	// Of the length that was said.
	if (lie == NO_BLOCKS)
		memcpy(packed + doc.len, "\xfa\x7f", 2), packed[doc.len + 2] = (uint8_t)(server->vm.len - doc.len - 3), doc.len = server->vm.len;
	if (lie == NO_VM)
		memset(packed, 0xff, doc.len);
	wire_send_document(c, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, packed, doc.len);
	vm_entry__free_unpacked(vm, NULL);
}

static void lie_state(struct wire_conn *c, enum lie lie)
{
	DeviceStateEntry *ds = device_state_entry__unpack(NULL, server->state.len, server->state.data);
	_cleanup_free_ uint8_t *packed = malloc(server->state.len + 64);
	size_t len;

	if (lie == BAD_STATE)
		ds->blocks[0]->runs[0]->off = 3 * PAGE_SIZE; // its end is behind the block's
	len = device_state_entry__pack(ds, packed);
	if (lie == NO_STATE)
		memset(packed, 0xff, len);
	wire_send_document(c, WIRE_DOCUMENT_KIND__WIRE_DOC_DEVICE_STATE, packed, len);
	device_state_entry__free_unpacked(ds, NULL);
}

static void lie_present(struct wire_conn *c, enum lie lie)
{
	uint64_t map[16][4] = { { 1 } };
	size_t nr = server->nr_chunks - (lie == SHORT_PRESENT) + (lie == LONG_PRESENT || lie == OTHER_CHUNKS), len;
	char packed[1024];

	if (lie == PAGE_BEHIND_THE_END)
		bitmap_set(map[nr - 1], 256 - 8); // the first of those that the last chunk has not
	else
		bitmap_set(map[nr - 1], 256 - 9);
	len = ZSTD_compress(packed, sizeof packed, map, nr * sizeof *map, 1);
	if (lie == NO_PRESENT)
		memset(packed, 0, len);
	wire_send_document(c, WIRE_DOCUMENT_KIND__WIRE_DOC_PRESENT, packed, len - (lie == CUT_PRESENT ? 2 : 0));
}

static void *liar(void *arg)
{
	enum lie lie = *(enum lie *)arg;
	struct taken *t = take();
	struct wire_conn *c;

	ok(wire_accept(t->fd, NULL, PATIENCE_MS, &c));
	lie_hello(c, lie, t->preamble.token);
	lie_checkpoint(c, lie);
	lie_vm(c, lie);
	lie_state(c, lie);
	if (lie != HANG_UP) {
		lie_present(c, lie);
		wire_poll(c, PATIENCE_MS);
	}
	wire_close(c);
	free(t);
	return NULL;
}

START_TEST(liars)
{
	enum lie lie = (enum lie)_i;
	struct restore_peer *p = NULL;
	int err;

	write_big(0);
	ok(image_server_open(dir, &server));
	start(liar, &lie);
	err = restore_peer_open(asks(), &p);
	if (lie == HANG_UP && err == -EPERM) // so early that nobody can say whose it was
		return;
	ck_assert_msg(err == expected[lie], "lie %d: %d instead of %d: %s", lie, err, expected[lie], log_last_error());
	restore_peer_free(err ? NULL : p);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("image_server");

	tcase_add_test(t, describes);
	tcase_add_test(t, finds_its_checkpoint);
	tcase_add_test(t, no_pre_dump);
	tcase_add_loop_test(t, reads_through_the_page_cache, 0, 2);
	tcase_add_loop_test(t, pages, 0, 2);
	tcase_add_loop_test(t, damaged, 0, 2);
	tcase_add_loop_test(t, known_good, 0, 2);
	tcase_add_test(t, another_checkpoint);
	tcase_add_test(t, complete);
	tcase_add_loop_test(t, liars, NONE, NR_LIES);
	return run_case("image_server", t, base_on_disk);
}
