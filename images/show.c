// SPDX-License-Identifier: GPL-2.0-only
// Messages are walked by protobuf-c's descriptors, into JSON; text is made from that JSON.
#include "images/show.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "images/criu.pb-c.h"
#include "images/file_int.h"
#include "images/format.h"
#include "images/resident_int.h"
#include "images/vm.pb-c.h"
#include "util/cleanup.h"
#include "util/log.h"

static const struct kind {
	uint32_t magic;
	const char *name;
	const ProtobufCMessageDescriptor *first, *rest;
	uint32_t max;
} kinds[] = {
	{ IMG_MAGIC_INVENTORY, "INVENTORY", &inventory_entry__descriptor, NULL, IMG_INVENTORY_MAX },
	{ IMG_MAGIC_PAGEMAP, "PAGEMAP", &pagemap_head__descriptor, &pagemap_entry__descriptor, IMG_PAGEMAP_ENTRY_MAX },
	{ IMG_MAGIC_STATS, "STATS", &stats_entry__descriptor, NULL, IMG_STATS_MAX },
	{ IMG_MAGIC_VM, "VM", &vm_entry__descriptor, NULL, IMG_VM_MAX },
	{ IMG_MAGIC_DEVICE_STATE, "DEVICE_STATE", &device_state_entry__descriptor, NULL, IMG_DEVICE_STATE_MAX },
	{ IMG_MAGIC_RESIDENT, "RESIDENT", &resident_entry__descriptor, &resident_entry__descriptor, IMG_RESIDENT_ENTRY_MAX },
};

// Strings are whatever a command line held: those that are no UTF-8 have their bytes beyond ASCII as \xNN.
static json_t *string_json(const char *s)
{
	json_t *v = json_string(s);
	_cleanup_free_ char *escaped = v ? NULL : malloc(4 * strlen(s) + 1);
	char *p = escaped;

	if (v || !escaped)
		return v;
	for (*p = 0; *s; s++)
		p += sprintf(p, *s & 0x80 ? "\\x%02x" : "%c", (unsigned char)*s);
	return json_string(escaped);
}

static json_t *hex_json(uint64_t v)
{
	return json_sprintf("%#" PRIx64, v);
}

static json_t *message_json(const ProtobufCMessage *m);

static json_t *value_json(ProtobufCType type, const void *p)
{
	switch (type) {
	case PROTOBUF_C_TYPE_UINT32:
		return json_integer(*(const uint32_t *)p);
	case PROTOBUF_C_TYPE_UINT64:
		// JSON's integers have a sign here; so large a value is damage, but is to be seen.
		return *(const uint64_t *)p <= INT64_MAX ? json_integer((json_int_t)*(const uint64_t *)p) : hex_json(*(const uint64_t *)p);
	case PROTOBUF_C_TYPE_FIXED64:
		return hex_json(*(const uint64_t *)p);
	case PROTOBUF_C_TYPE_BOOL:
		return json_boolean(*(const protobuf_c_boolean *)p);
	case PROTOBUF_C_TYPE_STRING:
		return string_json(*(char *const *)p);
	case PROTOBUF_C_TYPE_BYTES:
		return json_pack("{s:I}", "bytes", (json_int_t)((const ProtobufCBinaryData *)p)->len);
	case PROTOBUF_C_TYPE_MESSAGE:
		return message_json(*(const ProtobufCMessage *const *)p);
	default:
		return json_null();
	}
}

static json_t *repeated_json(ProtobufCType type, const void *const *array, size_t n)
{
	json_t *list = json_array();

	// All that our messages repeat are strings and messages: arrays of pointers.
	for (size_t i = 0; list && i < n; i++)
		json_array_append_new(list, value_json(type, &array[i]));
	return list;
}

static json_t *field_json(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
	const char *base = (const char *)m, *member = base + f->offset, *quantifier = base + f->quantifier_offset;

	if (f->label == PROTOBUF_C_LABEL_REPEATED)
		return repeated_json(f->type, *(const void *const *const *)member, *(const size_t *)quantifier);
	if (f->label == PROTOBUF_C_LABEL_OPTIONAL) {
		bool pointer = f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_MESSAGE;

		if (pointer ? !*(const void *const *)member : !*(const protobuf_c_boolean *)quantifier)
			return NULL;
	}
	return value_json(f->type, member);
}

// Of a group of chunks: how much of it was in memory.
static void polish_resident(const ResidentEntry *e, json_t *o)
{
	_cleanup_free_ uint8_t *raw = malloc(IMG_RESIDENT_GROUP * IMG_RESIDENT_LEN);
	unsigned nr, chunks = 0, oldest = UINT8_MAX, hottest = 0, pages = 0;
	const char *fault = raw ? img_resident_unpack(e, raw, &nr) : "out of memory";

	if (fault) {
		json_object_set_new(o, "damaged", json_string(fault));
		return;
	}
	for (unsigned i = 0; i < nr; i++) {
		chunks += raw[i] != 0;
		oldest = raw[i] && raw[i] < oldest ? raw[i] : oldest;
		hottest = raw[i] > hottest ? raw[i] : hottest;
	}
	for (size_t i = nr; i < (size_t)nr * IMG_RESIDENT_LEN; i++)
		pages += (unsigned)__builtin_popcount(raw[i]);
	json_object_set_new(o, "resident_chunks", json_integer(chunks));
	json_object_set_new(o, "resident_pages", json_integer(pages));
	json_object_set_new(o, "age_min", json_integer(chunks ? oldest : 0));
	json_object_set_new(o, "age_max", json_integer(hottest));
}

// Where the bare value says little, or too much.
static void polish(const ProtobufCMessage *m, json_t *o)
{
	if (m->descriptor == &pagemap_entry__descriptor) {
		const PagemapEntry *e = (const PagemapEntry *)m;

		json_object_set_new(o, "vaddr", hex_json(e->vaddr));
		if (e->has_flags)
			json_object_set_new(o, "flags", e->flags == IMG_PE_PRESENT ? json_string("PE_PRESENT") :
					    e->flags == IMG_PE_PARENT ? json_string("PE_PARENT") : hex_json(e->flags));
	} else if (m->descriptor == &small_block_entry__descriptor) {
		const SmallBlockEntry *b = (const SmallBlockEntry *)m;
		json_int_t stored = 0;

		for (size_t i = 0; i < b->n_runs; i++)
			stored += (json_int_t)b->runs[i]->data.len;
		json_object_set_new(o, "runs", json_integer((json_int_t)b->n_runs));
		json_object_set_new(o, "stored", json_integer(stored));
	} else if (m->descriptor == &resident_entry__descriptor) {
		polish_resident((const ResidentEntry *)m, o);
	}
}

// Absent fields are left out.
static json_t *message_json(const ProtobufCMessage *m)
{
	json_t *o = json_object();

	for (unsigned i = 0; o && i < m->descriptor->n_fields; i++) {
		json_t *v = field_json(m, &m->descriptor->fields[i]);

		if (v)
			json_object_set_new(o, m->descriptor->fields[i].name, v);
	}
	if (o)
		polish(m, o);
	return o;
}

static bool is_scalar(const json_t *v)
{
	return !json_is_object(v) && !json_is_array(v);
}

static bool is_flat(json_t *v)
{
	const char *key;
	json_t *member;

	if (json_is_object(v))
		json_object_foreach(v, key, member)
			if (!is_scalar(member))
				return false;
	return !json_is_array(v);
}

// Nothing but printable ASCII reaches a terminal.
static void print_scalar(const json_t *v, FILE *out)
{
	json_dumpf(v, out, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
}

static void print_text(json_t *v, int depth, FILE *out)
{
	const char *key, *gap = "";
	json_t *member;
	size_t i;

	if (is_flat(v)) {
		fprintf(out, "%*s", 2 * depth, "");
		if (is_scalar(v))
			print_scalar(v, out);
		json_object_foreach(v, key, member) {
			fprintf(out, "%s%s: ", gap, key);
			print_scalar(member, out);
			gap = "  ";
		}
		fputc('\n', out);
		return;
	}
	json_array_foreach(v, i, member)
		print_text(member, depth, out);
	json_object_foreach(v, key, member) {
		fprintf(out, "%*s%s:", 2 * depth, "", key);
		if (is_scalar(member)) {
			fputc(' ', out);
			print_scalar(member, out);
			fputc('\n', out);
		} else {
			fputc('\n', out);
			print_text(member, depth + 1, out);
		}
	}
}

static void print_entry(const ProtobufCMessage *m, bool json, bool first, FILE *out)
{
	json_t *o = message_json(m);

	if (json) {
		fputs(first ? "\n" : ",\n", out);
		json_dumpf(o, out, 0);
	} else {
		print_text(o, 1, out);
	}
	json_decref(o);
}

static int show_entries(struct img_in *in, const struct kind *k, bool json, FILE *out)
{
	ProtobufCMessage *m;
	bool first = true;
	int ret;

	fprintf(out, json ? "{\"magic\": \"%s\", \"entries\": [" : "%s\n", k->name);
	if (k->rest)
		ret = img_in_get(in, k->first, k->max, &m);
	else
		ret = img_in_get_last(in, k->first, k->max, &m);
	while (ret >= 0 && m) {
		print_entry(m, json, first, out);
		protobuf_c_message_free_unpacked(m, NULL);
		m = NULL;
		first = false;
		if (k->rest)
			ret = img_in_get(in, k->rest, k->max, &m);
	}
	if (ret >= 0 && json)
		fputs("\n]}\n", out);
	return ret < 0 ? ret : 0;
}

static int show_pages(const char *path, unsigned id, bool json, FILE *out)
{
	char size[16];
	struct stat st;

	if (stat(path, &st))
		return img_io_error(path, "open", -errno);
	if (!S_ISREG(st.st_mode)) {
		log_err("%s: is no regular file", path);
		return -EINVAL;
	}
	if (json)
		fprintf(out, "{\"magic\": null, \"pages_id\": %u, \"bytes\": %jd}\n", id, (intmax_t)st.st_size);
	else
		fprintf(out, "what the pagemaps of pages_id %u list, %s\n", id, size_format((uint64_t)st.st_size, size));
	return st.st_size % (off_t)PAGE_SIZE ? img_damaged(path, "its length is no multiple of the page") : 0;
}

static int show_image(const char *path, bool json, FILE *out)
{
	struct img_in in;
	uint32_t magic;
	int ret;

	ret = img_in_open(&in, AT_FDCWD, NULL, path, &magic);
	if (!ret) {
		const struct kind *k = kinds;

		while (k < kinds + ARRAY_SIZE(kinds) && k->magic != magic)
			k++;
		if (k < kinds + ARRAY_SIZE(kinds)) {
			ret = show_entries(&in, k, json, out);
		} else {
			log_err("%s: is no image of a VM's checkpoint (its magic is %#x)", path, magic);
			ret = -EINVAL;
		}
	}
	img_in_fini(&in);
	return ret;
}

int img_show(const char *path, bool json, FILE *out)
{
	const char *name = strrchr(path, '/');
	unsigned id;
	int end = 0, ret;

	name = name ? name + 1 : path;
	if (sscanf(name, "pages-%u.img%n", &id, &end) == 1 && end && !name[end])
		ret = show_pages(path, id, json, out);
	else
		ret = show_image(path, json, out);
	if (!ret && (fflush(out) || ferror(out))) {
		log_err("%s: cannot print it: %s", path, strerror(errno));
		ret = -EIO;
	}
	return ret;
}
