// SPDX-License-Identifier: GPL-2.0-only
#include "wire/messages_int.h"

#include <errno.h>
#include <net/if.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "wire/control.h"

static bool text_ok(const char *s, size_t max)
{
	size_t len = strnlen(s, max + 1);

	for (size_t i = 0; i < len; i++)
		if ((unsigned char)s[i] < ' ' || s[i] == 0x7f)
			return false;
	return len && len <= max;
}

// As criu-vm's names of VMs, which are names of folders, too.
static bool vm_name_ok(const char *s)
{
	static const char alnum[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
	size_t len = strnlen(s, WIRE_VM_NAME_MAX + 1);

	return len && len <= WIRE_VM_NAME_MAX && !strchr("._-", s[0]) && strspn(s, alnum) == len;
}

// As the kernel's dev_valid_name().
static bool ifname_ok(const char *s)
{
	return text_ok(s, IFNAMSIZ - 1) && !strpbrk(s, "/: ") && strcmp(s, ".") && strcmp(s, "..") &&
	       strcmp(s, "all") && strcmp(s, "default"); // which stand for every interface of a host
}

static const char *hello_fault(const void *msg)
{
	const WireHello *h = msg;

	if (!h->version_min || h->version < h->version_min)
		return "its versions are no range";
	if (h->token.len != WIRE_TOKEN_LEN)
		return "its token is not 16 bytes long";
	return text_ok(h->software, WIRE_TEXT_MAX) ? NULL : "the name of its software is empty, too long or not printable";
}

static int compare_names(const void *a, const void *b)
{
	const WireBlock *const *x = a, *const *y = b;

	return strcmp((*x)->name, (*y)->name);
}

static const char *blocks_fault(const WireOffer *o)
{
	const WireBlock *sorted[WIRE_BLOCKS_MAX];
	uint64_t sum = 0;

	if (!o->n_blocks || o->n_blocks > WIRE_BLOCKS_MAX)
		return "the number of RAM blocks is out of range";
	for (size_t i = 0; i < o->n_blocks; i++) {
		const WireBlock *b = sorted[i] = o->blocks[i];

		if (!text_ok(b->name, WIRE_NAME_MAX))
			return "the name of a RAM block is empty, too long or not printable";
		if (!b->len || b->len % PAGE_SIZE || b->len > WIRE_BLOCK_LEN_MAX)
			return "the length of a RAM block is no multiple of the page, or out of range";
		sum += b->len; // no overflow: 256 of 16 TiB
	}
	qsort(sorted, o->n_blocks, sizeof *sorted, compare_names);
	for (size_t i = 1; i < o->n_blocks; i++)
		if (!strcmp(sorted[i - 1]->name, sorted[i]->name))
			return "two RAM blocks of one name";
	return sum == o->ram && sum <= WIRE_RAM_MAX ? NULL : "the size of guest RAM is not that of its blocks, or out of range";
}

static const char *net_fault(const WireNet *n)
{
	if (!text_ok(n->netdev, WIRE_NAME_MAX))
		return "the name of a netdev is empty, too long or not printable";
	if (!ifname_ok(n->ifname) || (n->bridge && !ifname_ok(n->bridge)))
		return "the name of a network interface or of a bridge cannot be one";
	if (n->has_mtu && (n->mtu < 68 || n->mtu > 65535))
		return "the MTU of a network interface is out of range";
	if (n->n_vlans > WIRE_VLANS_MAX || (n->has_pvid && n->pvid && !n->n_vlans))
		return "the number of VLANs of a network interface is out of range";
	for (size_t i = 0; i < n->n_vlans; i++)
		if (!n->vlans[i] || n->vlans[i] > 4094)
			return "a VLAN is out of range";
	if (n->has_queues && (!n->queues || n->queues > WIRE_QUEUES_MAX))
		return "the number of queues of a network interface is out of range";
	return NULL;
}

static const char *nets_fault(const WireOffer *o)
{
	const char *fault = NULL;

	if (o->n_nets > WIRE_NETS_MAX)
		return "too many network interfaces";
	for (size_t i = 0; i < o->n_nets && !fault; i++) {
		fault = net_fault(o->nets[i]);
		for (size_t j = 0; j < i && !fault; j++)
			if (!strcmp(o->nets[i]->netdev, o->nets[j]->netdev))
				fault = "two network interfaces of one netdev";
	}
	return fault;
}

static bool channels_ok(uint64_t nr)
{
	return nr && nr <= WIRE_MAX_CHANNELS;
}

// The source's path of it; that it is there, and the same, is for its id to say.
static const char *handed_on_fault(const WireOffer *o)
{
	if (!o->images_dir)
		return o->has_images_id ? "the id of a checkpoint, and no folder" : NULL;
	if (!o->has_lazy || !o->lazy || !o->has_images_id)
		return "a checkpoint without its id, or whose pages are not to come later";
	return o->images_dir[0] == '/' && text_ok(o->images_dir, WIRE_PATH_LEN) ? NULL :
		"the folder of the checkpoint is no absolute path, too long or not printable";
}

static const char *offer_fault(const void *msg)
{
	const WireOffer *o = msg;
	const char *fault = blocks_fault(o);

	if (fault)
		return fault;
	if (!vm_name_ok(o->name))
		return "the VM's name cannot be one";
	if (o->has_budget && (o->budget < PAGE_SIZE || o->budget > WIRE_RAM_MAX))
		return "the memory that the VM is to get is out of range";
	if (o->swap && !text_ok(o->swap, WIRE_PATH_LEN))
		return "the swap image is empty, too long or not printable";
	if (!channels_ok(o->channels))
		return "the number of channels is out of range";
	if (o->has_zstd && (!o->zstd || o->zstd > WIRE_ZSTD_MAX))
		return "the level of zstd is out of range";
	if (!o->vm_len || o->vm_len > WIRE_VM_MAX)
		return "the length of the VM's description is out of range";
	fault = handed_on_fault(o);
	return fault ? fault : nets_fault(o);
}

static const char *admit_fault(const void *msg)
{
	const WireAdmit *a = msg;

	if (!vm_name_ok(a->name))
		return "the VM's name cannot be one";
	if (!a->budget || a->budget > WIRE_RAM_MAX || a->swap > WIRE_RAM_MAX)
		return "the memory that the VM gets, or its swap image, is out of range";
	if (!channels_ok(a->channels))
		return "the number of channels is out of range";
	if (a->host.len != WIRE_TOKEN_LEN)
		return "its host's id is not 16 bytes long";
	return a->key.len == WIRE_KEY_LEN ? NULL : "its key is not 16 bytes long";
}

static const char *piece_fault(const void *msg)
{
	const WirePiece *p = msg;
	uint64_t left;

	if (p->kind < WIRE_DOCUMENT_KIND__WIRE_DOC_VM || p->kind > WIRE_DOCUMENT_KIND__WIRE_DOC_PRESENT)
		return "a document of no known kind";
	if (!p->len || p->len > WIRE_DOC_MAX)
		return "the length of a document is out of range";
	if (p->off >= p->len || p->off % WIRE_PIECE_MAX)
		return "a piece of a document is not where one can be";
	left = p->len - p->off;
	if (p->data.len != (left < WIRE_PIECE_MAX ? left : WIRE_PIECE_MAX))
		return "a piece of a document has not the length that it must have";
	return (p->data.len == left) == !!p->has_checksum ? NULL : "a document's checksum is not in its last piece";
}

static const char *round_begin_fault(const void *msg)
{
	const WireRound *r = msg;

	if (r->round > WIRE_ROUND_MAX)
		return "the number of a round is out of range";
	return r->n_frames || r->has_ram_pages || r->has_swap_pages ? "it has what belongs to the end of a round" : NULL;
}

static const char *round_done_fault(const void *msg)
{
	const WireRound *r = msg;

	if (r->round > WIRE_ROUND_MAX)
		return "the number of a round is out of range";
	return !channels_ok(r->n_frames) || r->has_ram_pages || r->has_swap_pages ? "it has not one number of frames a channel" : NULL;
}

static const char *round_taken_fault(const void *msg)
{
	const WireRound *r = msg;

	if (r->round > WIRE_ROUND_MAX)
		return "the number of a round is out of range";
	return r->n_frames || !r->has_ram_pages || !r->has_swap_pages ? "it does not say what was taken" : NULL;
}

static const char *running_fault(const void *msg)
{
	const WireRunning *r = msg;

	return !r->error || text_ok(r->error, WIRE_TEXT_MAX) ? NULL : "the error is empty, too long or not printable";
}

static const char *abort_fault(const void *msg)
{
	const WireAbort *a = msg;

	return text_ok(a->reason, WIRE_TEXT_MAX) ? NULL : "the reason is empty, too long or not printable";
}

static const char *plain_fault(const void *msg)
{
	const WireAbort *a = msg;

	return *a->reason ? "it has a reason, where there is none to have" : NULL;
}

static const char *status_fault(const void *msg)
{
	const WireStatus *s = msg;

	if (s->state < WIRE_STATE__WIRE_UNKNOWN || s->state > WIRE_STATE__WIRE_ABORTED)
		return "it is of no known state";
	if (s->token.len != WIRE_TOKEN_LEN)
		return "its token is not 16 bytes long";
	if (s->host.len != WIRE_TOKEN_LEN)
		return "its host's id is not 16 bytes long";
	return !s->name || vm_name_ok(s->name) ? NULL : "the VM's name cannot be one";
}

static const char *checkpoint_fault(const void *msg)
{
	const WireCheckpoint *k = msg;

	if (!k->vm_len || k->vm_len > WIRE_VM_MAX)
		return "the length of the VM's description is out of range";
	return k->chunks && k->chunks <= WIRE_CHUNKS_MAX ? NULL : "the number of chunks is out of range";
}

static const struct {
	size_t kind;
	const char *(*fault)(const void *msg);
} rules[] = {
	{ offsetof(WireMsg, hello), hello_fault },
	{ offsetof(WireMsg, offer), offer_fault },
	{ offsetof(WireMsg, admit), admit_fault },
	{ offsetof(WireMsg, piece), piece_fault },
	{ offsetof(WireMsg, round_begin), round_begin_fault },
	{ offsetof(WireMsg, round_done), round_done_fault },
	{ offsetof(WireMsg, round_taken), round_taken_fault },
	{ offsetof(WireMsg, ready), plain_fault },
	{ offsetof(WireMsg, commit), plain_fault },
	{ offsetof(WireMsg, committed), plain_fault },
	{ offsetof(WireMsg, running), running_fault },
	{ offsetof(WireMsg, done), plain_fault },
	{ offsetof(WireMsg, abort), abort_fault },
	{ offsetof(WireMsg, status), status_fault },
	{ offsetof(WireMsg, keepalive), plain_fault },
	{ offsetof(WireMsg, checkpoint), checkpoint_fault },
};

static const void *content(const WireMsg *m, size_t kind)
{
	return *(void *const *)((const char *)m + kind);
}

static size_t nr_kinds(const WireMsg *m)
{
	size_t nr = 0;

	for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
		nr += !!content(m, rules[i].kind);
	return nr;
}

const char *wire_msg_fault(const WireMsg *m)
{
	if (nr_kinds(m) != 1)
		return "it is not of exactly one kind";
	for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
		if (content(m, rules[i].kind))
			return rules[i].fault(content(m, rules[i].kind));
	return NULL;
}

int wire_msg_parse(const void *buf, size_t len, WireMsg **m, const char **fault)
{
	WireMsg *msg = wire_msg__unpack(NULL, len, buf);
	int ret = -EBADMSG;

	if (!msg) {
		*fault = "it is no message";
		return -EBADMSG;
	}
	*fault = wire_msg_fault(msg);
	if (!*fault) {
		*m = msg;
		return 0;
	}
	if (!nr_kinds(msg)) {
		*fault = "it is of a kind that this version does not know";
		ret = -EPROTO;
	}
	wire_msg__free_unpacked(msg, NULL);
	return ret;
}

size_t wire_msg_kind(const WireMsg *m)
{
	size_t i = 0;

	while (i < ARRAY_SIZE(rules) - 1 && !content(m, rules[i].kind))
		i++;
	return rules[i].kind;
}

const char *wire_kind_name(size_t kind)
{
	for (unsigned i = 0; i < wire_msg__descriptor.n_fields; i++)
		if (wire_msg__descriptor.fields[i].offset == kind)
			return wire_msg__descriptor.fields[i].name;
	return "?";
}
