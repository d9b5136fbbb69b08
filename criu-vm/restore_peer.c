// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/restore_peer.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/hello.h"
#include "criu-vm/image_server.h"
#include "criu-vm/peer_vm.h"
#include "criu-vm/server.h"
#include "criu-vm/vm_remote.h"
#include "images/format.h"
#include "images/valid.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"

#define CONNECT_MS 15000
#define SAY_MS 30000
#define FINISH_MS 1000
#define LINES 3 // for what the VM waits for, and the rest: one of these is worked on here while the other is on its way

struct restore_peer {
	const struct restore_peer_opts *o; // while it is asked
	char *host, *tls_dir; // tls_dir: absolute, or NULL
	uint16_t port;
	bool is_insecure;
	struct wire_tls *tls;
	struct wire_conn *c;
	uint8_t token[WIRE_TOKEN_LEN];

	uint64_t id, nr_chunks;
	size_t vm_len;
	VmEntry *vm;
	DeviceStateEntry *ds;
	uint64_t (*present)[4]; // a chunk
};

// ---- the connection

static int prepare(struct restore_peer *p)
{
	int err = wire_parse_address(p->o->server, &p->host, &p->port);

	p->is_insecure = p->o->insecure;
	if (!err && p->o->tls_creds) {
		p->tls_dir = realpath(p->o->tls_creds, NULL);
		err = wire_tls_load(p->o->tls_creds, false, &p->tls);
		if (!err && !p->tls_dir)
			err = -errno;
	}
	if (err || p->tls || p->o->insecure || wire_is_loopback(p->host))
		return err ? err : wire_token_new(p->token);
	log_err("%s is not this host: the VM's memory would come over the network in the clear, from whoever answers there: give --tls-creds "
		"DIR, or say --insecure", p->host);
	return -EPERM;
}

static int not_received(const struct restore_peer *p, int err)
{
	if (err == -EINTR)
		log_err("interrupted; nothing was restored");
	else if (err != -ECONNABORTED && err != -EPROTO && err != -EPROTONOSUPPORT && err != -EBADMSG && err != -EFBIG) // these are logged
		log_err("%s: %s, while it was asked for its checkpoint; is that a 'criu-vm lazy-pages --images' server?", wire_peer(p->c),
			strerror(-err));
	return err;
}

// On this very host anybody may listen where the server was, or is to be.
static int check_owner(const struct restore_peer *p)
{
	if (p->tls || p->o->insecure || server_peer_is_ours(wire_fd(p->c)))
		return 0;
	log_err("who serves at %s is neither root nor the user that you are: give --tls-creds DIR, or say --insecure", wire_peer(p->c));
	return -EPERM;
}

// Until the server has said which checkpoint it has.
static int ask(struct restore_peer *p)
{
	struct wire_connect_opts o = { .host = p->host, .port = p->port, .tls = p->tls, .timeout_ms = CONNECT_MS, .interrupted = cmd_interrupted,
				       .preamble.kind = WIRE_IMAGES };
	uint64_t features;
	WireMsg *m;
	int err;

	memcpy(o.preamble.token, p->token, sizeof p->token);
	err = wire_connect(&o, &p->c);
	if (err)
		return err;
	err = hello_say(p->c, p->token, WIRE_FEATURE_LAZY, &features);
	if (!err && (err = check_owner(p)))
		return err;
	if (!err)
		err = wire_expect(p->c, SAY_MS, offsetof(WireMsg, checkpoint), &m);
	if (err)
		return not_received(p, err);
	p->id = m->checkpoint->id;
	p->vm_len = m->checkpoint->vm_len;
	p->nr_chunks = m->checkpoint->chunks;
	wire_msg__free_unpacked(m, NULL);
	return 0;
}

static void hang_up(struct restore_peer *p)
{
	if (p->c)
		wire_finish(p->c, FINISH_MS);
	wire_close(steal_ptr(&p->c));
}

// ---- what it says of the VM

static int damaged(const struct restore_peer *p, const char *what, const char *fault)
{
	log_err("%s: %s is not accepted: %s", wire_peer(p->c), what, fault);
	return -EBADMSG;
}

static uint64_t chunks_of(const VmEntry *vm)
{
	uint64_t nr = 0;

	for (size_t i = 0; i < vm->n_blocks; i++)
		nr += DIV_ROUND_UP(vm->blocks[i]->len, IMG_CHUNK_SIZE);
	return nr;
}

static int take_vm(struct restore_peer *p)
{
	_cleanup_free_ void *packed = NULL;
	const char *fault = NULL;
	size_t len;
	int err = wire_receive_document(p->c, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, WIRE_VM_MAX, &packed, &len);

	if (err)
		return not_received(p, err);
	p->vm = len == p->vm_len ? vm_entry__unpack(NULL, len, packed) : NULL;
	if (!p->vm)
		fault = "it cannot be read";
	else if (!(fault = img_vm_fault(p->vm)) && !(fault = peer_vm_fault(p->vm)) && chunks_of(p->vm) != p->nr_chunks)
		fault = "it has another number of chunks than the checkpoint";
	return fault ? damaged(p, "the description of the VM", fault) : 0;
}

static int take_state(struct restore_peer *p)
{
	_cleanup_free_ void *packed = NULL;
	const char *fault;
	size_t len;
	int err = wire_receive_document(p->c, WIRE_DOCUMENT_KIND__WIRE_DOC_DEVICE_STATE, WIRE_DOC_MAX, &packed, &len);

	if (err)
		return not_received(p, err);
	p->ds = device_state_entry__unpack(NULL, len, packed);
	fault = p->ds ? img_device_state_fault(p->ds) : "it cannot be read";
	return fault ? damaged(p, "the device state", fault) : 0;
}

// No page behind the end of its block.
static bool within_blocks(const struct restore_peer *p)
{
	const uint64_t(*at)[4] = (const uint64_t(*)[4])p->present;

	for (size_t i = 0; i < p->vm->n_blocks; i++) {
		uint64_t pages = p->vm->blocks[i]->len / PAGE_SIZE, rest = pages % IMG_CHUNK_PAGES;

		at += DIV_ROUND_UP(pages, IMG_CHUNK_PAGES);
		if (rest && bitmap_next(at[-1], IMG_CHUNK_PAGES, rest, true) < IMG_CHUNK_PAGES)
			return false;
	}
	return true;
}

static const char *unpack_present(struct restore_peer *p, const void *packed, size_t packed_len)
{
	size_t len = p->nr_chunks * sizeof *p->present;

	// Before it is allocated: it must be what it is to be.
	if (ZSTD_getFrameContentSize(packed, packed_len) != len)
		return "it is of another length than the VM's memory";
	p->present = malloc(len);
	if (!p->present)
		return "there is not enough memory for it";
	if (ZSTD_decompress(p->present, len, packed, packed_len) != len)
		return "it cannot be unpacked";
	for (uint64_t i = 0; i < p->nr_chunks; i++)
		for (unsigned w = 0; w < 4; w++)
			p->present[i][w] = le64toh(p->present[i][w]);
	return within_blocks(p) ? NULL : "it has pages that the VM has not";
}

static int take_present(struct restore_peer *p)
{
	_cleanup_free_ void *packed = NULL;
	const char *fault;
	size_t len;
	int err = wire_receive_document(p->c, WIRE_DOCUMENT_KIND__WIRE_DOC_PRESENT, WIRE_DOC_MAX, &packed, &len);

	if (err)
		return not_received(p, err);
	fault = unpack_present(p, packed, len);
	return fault ? damaged(p, "the list of its pages", fault) : 0;
}

int restore_peer_open(const struct restore_peer_opts *o, struct restore_peer **out)
{
	struct restore_peer *p = calloc(1, sizeof *p);
	struct peer_vm_opts may = { .qemu = o->qemu, .user = o->user, .is_root = !o->tls_creds && !o->insecure, .give_qemu = "give --qemu FILE",
				    .give_user = "give --user USER, or, if that host may be root here, --user root" };
	int err;

	if (!p)
		return -ENOMEM;
	p->o = o;
	err = prepare(p);
	if (!err)
		err = ask(p);
	if (!err)
		err = take_vm(p);
	if (!err)
		err = take_state(p);
	if (!err)
		err = take_present(p);
	hang_up(p);
	if (!err)
		err = peer_vm_check(&may, p->vm, p->vm->name ? p->vm->name : o->server);
	if (err)
		restore_peer_free(p);
	else
		*out = p;
	return err;
}

void restore_peer_free(struct restore_peer *p)
{
	if (!p)
		return;
	wire_close(p->c);
	wire_tls_free(p->tls);
	if (p->vm)
		vm_entry__free_unpacked(p->vm, NULL);
	if (p->ds)
		device_state_entry__free_unpacked(p->ds, NULL);
	free(p->present);
	free(p->tls_dir);
	free(p->host);
	free(p);
}

const VmEntry *restore_peer_vm(const struct restore_peer *p)
{
	return p->vm;
}

const DeviceStateEntry *restore_peer_device_state(const struct restore_peer *p)
{
	return p->ds;
}

void restore_peer_pages(const struct restore_peer *p, uint64_t chunk, uint64_t pages[4])
{
	memcpy(pages, p->present[chunk], sizeof p->present[chunk]);
}

// ---- for the pager

static char *address_of(const struct restore_peer *p)
{
	char *text;

	return asprintf(&text, strchr(p->host, ':') ? "[%s]:%u" : "%s:%u", p->host, p->port) < 0 ? NULL : text;
}

static char *line_id_of(const struct restore_peer *p)
{
	uint8_t id[WIRE_LINE_ID_LEN];

	image_server_line_id(p->token, p->id, id);
	return vm_remote_format_id(id);
}

int restore_peer_note(const struct restore_peer *p, struct vm_state *s)
{
	s->remote = address_of(p);
	s->remote_connects = true;
	s->remote_id = line_id_of(p);
	s->remote_tls = p->tls_dir ? strdup(p->tls_dir) : NULL;
	s->remote_insecure = p->is_insecure;
	s->remote_lines = LINES;
	return s->remote && s->remote_id && !s->remote_tls == !p->tls_dir ? 0 : -ENOMEM;
}

static int find(struct restore_peer *p, const char *line_id, char **server, char **tls)
{
	_cleanup_free_ char *theirs = NULL;
	int err = prepare(p);

	if (!err)
		err = ask(p);
	if (err)
		return err;
	theirs = line_id_of(p);
	*server = address_of(p);
	*tls = steal_ptr(&p->tls_dir);
	if (!theirs || !*server)
		return -ENOMEM;
	// Behind the token, which is of each asker's own choice.
	if (strlen(line_id) == strlen(theirs) && !strcmp(line_id + 2 * WIRE_TOKEN_LEN, theirs + 2 * WIRE_TOKEN_LEN))
		return 0;
	log_err("%s serves another checkpoint than the one that the VM was restored from", *server);
	return -ESTALE;
}

int restore_peer_find(const struct restore_peer_opts *o, const char *line_id, char **server, char **tls)
{
	struct restore_peer *p = calloc(1, sizeof *p);
	int err;

	*server = *tls = NULL;
	if (!p)
		return -ENOMEM;
	p->o = o;
	err = find(p, line_id, server, tls);
	restore_peer_free(p);
	return err;
}
