// SPDX-License-Identifier: GPL-2.0-only
// A checkpoint and its parent, out of one input: opened and read, or shown. pack.py makes such an input of real checkpoints.
//
// DOC: the input
//
//	a byte of flags, then records: which file (a byte), length (two, little-endian), and so many bytes
//
// A record is one message of a metadata file, to which the magic and the frame are added here, or, with RAW, bytes of the file as they
// are. Unless AS_IS is set, what the files say of one another is then put right: lengths and checksums of files and chunks, and
// which the parent is. Otherwise an input that was changed anywhere would be refused at the first of them, and nothing behind reached.
#include <endian.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "images/criu.pb-c.h"
#include "images/format.h"
#include "images/reader.h"
#include "images/resident.h"
#include "images/show.h"
#include "tests/fuzz/fuzz.h"
#include "util/bitmap.h"
#include "util/io.h"

#define AS_IS 0x01 // flags
#define SHOW 0x02  // it is shown, not opened

enum { INVENTORY, VM, DEVICE_STATE, STATS, PAGEMAP_1, PAGEMAP_2, PAGES, STRAY, RESIDENT, NR_FILES };
#define FILE_MASK 0x07 // of a record's first byte
#define PARENT 0x08
#define RAW 0x10
#define FILE_8 0x20 // and 8 more

#define RECORD_HEAD 3
#define CHUNKS_MAX 4 // that are read of a block

static const struct {
	const char *name;
	uint32_t magic[2]; // 0: none
} kinds[NR_FILES] = {
	{ IMG_NAME_INVENTORY, { IMG_MAGIC_INVENTORY } },
	{ IMG_NAME_VM, { IMG_MAGIC_COMMON, IMG_MAGIC_VM } },
	{ IMG_NAME_DEVICE_STATE, { IMG_MAGIC_COMMON, IMG_MAGIC_DEVICE_STATE } },
	{ IMG_NAME_STATS, { IMG_MAGIC_SERVICE, IMG_MAGIC_STATS } },
	{ "pagemap-1.img", { IMG_MAGIC_COMMON, IMG_MAGIC_PAGEMAP } },
	{ "pagemap-2.img", { IMG_MAGIC_COMMON, IMG_MAGIC_PAGEMAP } },
	{ IMG_NAME_PAGES, { 0 } },
	{ "stray", { 0 } },
	{ IMG_NAME_RESIDENT, { IMG_MAGIC_COMMON, IMG_MAGIC_RESIDENT } },
};

struct file {
	uint8_t *data;
	size_t len;
};

static char dirs[2][300]; // the checkpoint, its parent
static int dirfds[2];
static FILE *nowhere;
static struct img_unpacker *unpacker;
static uint8_t *scratch, *chunk_buf;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *folder = fuzz_folder();

	(void)argc, (void)argv;
	fuzz_quiet();
	for (size_t i = 0; i < 2; i++) {
		snprintf(dirs[i], sizeof dirs[i], "%s/%s", folder, i ? "parent" : "child");
		FUZZ_HOLDS(!mkdir(dirs[i], 0700) && (dirfds[i] = open(dirs[i], O_PATH | O_DIRECTORY | O_CLOEXEC)) >= 0);
	}
	nowhere = fopen("/dev/null", "w");
	scratch = aligned_alloc(PAGE_SIZE, IMG_STORED_MAX);
	chunk_buf = aligned_alloc(PAGE_SIZE, IMG_CHUNK_SIZE);
	FUZZ_HOLDS(nowhere && scratch && chunk_buf && !img_unpacker_new(&unpacker));
	return 0;
}

// ---- files out of records

static void append(struct file *f, const void *data, size_t len)
{
	f->data = realloc(f->data, f->len + len + 1);
	FUZZ_HOLDS(f->data);
	memcpy(f->data + f->len, data, len);
	f->len += len;
}

static void append_u32(struct file *f, uint32_t v)
{
	v = htole32(v);
	append(f, &v, sizeof v);
}

static void append_frame(struct file *f, unsigned kind, const void *data, size_t len)
{
	bool first = !f->len;

	for (size_t i = 0; i < 2 && first && kinds[kind].magic[i]; i++)
		append_u32(f, kinds[kind].magic[i]);
	append_u32(f, (uint32_t)len);
	append(f, data, len);
}

static void append_message(struct file *f, unsigned kind, const ProtobufCMessage *m)
{
	size_t len = protobuf_c_message_get_packed_size(m);
	uint8_t *packed = malloc(len + 1);

	FUZZ_HOLDS(packed);
	protobuf_c_message_pack(m, packed);
	append_frame(f, kind, packed, len);
	free(packed);
}

// The checksum of a chunk that is stored where the entry says.
static bool fix_entry(struct file files[NR_FILES], unsigned kind, const uint8_t *data, size_t len)
{
	const struct file *pages = &files[PAGES];
	PagemapEntry *e = pagemap_entry__unpack(NULL, len, data);
	bool has = e && e->has_vm_checksum && e->vm_offset <= pages->len && e->vm_stored <= pages->len - e->vm_offset;

	if (has) {
		e->vm_checksum = XXH3_64bits(pages->data + e->vm_offset, e->vm_stored);
		append_message(&files[kind], kind, &e->base);
	}
	if (e)
		pagemap_entry__free_unpacked(e, NULL);
	return has;
}

static void fix_listed(const struct file files[NR_FILES], VmFileEntry *listed)
{
	for (size_t i = 0; i < NR_FILES; i++) {
		if (strcmp(listed->name, kinds[i].name))
			continue;
		listed->len = files[i].len;
		if (listed->has_xxh3)
			listed->xxh3 = XXH3_64bits(files[i].data, files[i].len);
	}
}

// All that it says of other files and of itself. *id: the parent's checksum before, its own after.
static bool fix_inventory(struct file files[NR_FILES], const uint8_t *data, size_t len, uint64_t *id)
{
	struct file *f = &files[INVENTORY];
	InventoryEntry *inv = inventory_entry__unpack(NULL, len, data);

	if (!inv)
		return false;
	for (size_t i = 0; i < inv->n_vm_files; i++)
		fix_listed(files, inv->vm_files[i]);
	if (inv->has_vm_parent)
		inv->vm_parent = *id;
	append_message(f, INVENTORY, &inv->base);
	if (inv->has_vm_checksum) {
		uint64_t sum;

		*id = XXH3_64bits(f->data, f->len - sizeof sum);
		sum = htole64(*id);
		memcpy(f->data + f->len - sizeof sum, &sum, sizeof sum);
	}
	inventory_entry__free_unpacked(inv, NULL);
	return true;
}

static size_t record_len(const uint8_t *data, size_t len)
{
	size_t n = len < RECORD_HEAD ? 0 : RECORD_HEAD + (size_t)(data[1] | data[2] << 8);

	return n <= len ? n : 0;
}

static unsigned kind_of(unsigned which)
{
	unsigned kind = (which & FILE_MASK) | (which & FILE_8 ? 8 : 0);

	return kind < NR_FILES ? kind : STRAY;
}

static bool is_pagemap(unsigned which)
{
	return kind_of(which) == PAGEMAP_1 || kind_of(which) == PAGEMAP_2;
}

// What is packed is given unpacked: a frame that was changed would be no frame.
static bool fix_resident(struct file files[NR_FILES], const uint8_t *data, size_t len)
{
	ResidentEntry *e = resident_entry__unpack(NULL, len, data);
	size_t room = e ? ZSTD_compressBound(e->packed.len) : 0;
	uint8_t *packed = malloc(room + 1);
	ProtobufCBinaryData given;
	bool has = e;

	FUZZ_HOLDS(packed);
	if (e) {
		given = e->packed;
		e->packed = (ProtobufCBinaryData){ ZSTD_compress(packed, room, given.data, given.len, 1), packed };
		append_message(&files[RESIDENT], RESIDENT, &e->base);
		e->packed = given;
		resident_entry__free_unpacked(e, NULL);
	}
	free(packed);
	return has;
}

static void add_record(struct file files[NR_FILES], const uint8_t *r, size_t n, bool fix, uint64_t *id)
{
	unsigned kind = kind_of(r[0]);
	const uint8_t *data = r + RECORD_HEAD;
	size_t len = n - RECORD_HEAD;

	if (r[0] & RAW)
		append(&files[kind], data, len);
	else if (!(fix && ((kind == INVENTORY && fix_inventory(files, data, len, id)) ||
			   (is_pagemap(r[0]) && fix_entry(files, kind, data, len)) ||
			   (kind == RESIDENT && fix_resident(files, data, len)))))
		append_frame(&files[kind], kind, data, len);
}

// The files of one of the two directories: pages first, then what tells their checksums, then what tells those of all files.
static void make_files(struct file files[NR_FILES], const uint8_t *data, size_t len, unsigned parent, uint64_t *id)
{
	bool fix = !(data[0] & AS_IS);

	for (unsigned pass = 0; pass < 3; pass++) {
		size_t n;

		for (size_t at = 1; (n = record_len(data + at, len - at)); at += n) {
			unsigned kind = kind_of(data[at]);

			if ((data[at] & PARENT) == parent && pass == (kind == INVENTORY ? 2 : kind != PAGES))
				add_record(files, data + at, n, fix, id);
		}
	}
}

// Whether there was any.
static bool write_files(const struct file files[NR_FILES], int dirfd)
{
	bool any = false;

	for (size_t i = 0; i < NR_FILES; i++) {
		int fd;

		unlinkat(dirfd, kinds[i].name, 0);
		if (!files[i].data)
			continue;
		fd = openat(dirfd, kinds[i].name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		FUZZ_HOLDS(fd >= 0 && !io_write_full(fd, files[i].data, files[i].len));
		close(fd);
		any = true;
	}
	return any;
}

static void make_dirs(const uint8_t *data, size_t len)
{
	bool has_parent = false;
	uint64_t id = 0;

	for (unsigned i = 2; i-- > 0;) {
		struct file files[NR_FILES] = { 0 };

		make_files(files, data, len, i ? PARENT : 0, &id);
		unlinkat(dirfds[i], IMG_NAME_PARENT, 0);
		if (has_parent)
			FUZZ_HOLDS(!symlinkat("../parent", dirfds[i], IMG_NAME_PARENT));
		has_parent = write_files(files, dirfds[i]);
		for (size_t k = 0; k < NR_FILES; k++)
			free(files[k].data);
	}
}

// ---- what is done with them

static void check_parts(const struct img_dir *d, uint32_t block, uint64_t chunk, const uint64_t want[4])
{
	struct img_part parts[IMG_CHAIN_MAX];
	uint64_t seen[4] = { 0 };
	unsigned nr;

	FUZZ_HOLDS(img_dir_layers(d) <= ARRAY_SIZE(parts));
	nr = img_dir_parts(d, block, chunk, want, parts);
	for (unsigned i = 0; i < nr; i++) {
		const struct img_chunk *e = parts[i].entry;
		struct stat st;

		FUZZ_HOLDS(!fstat(img_part_fd(&parts[i]), &st));
		FUZZ_HOLDS(e->stored && e->stored <= IMG_STORED_MAX && e->off + e->stored <= (uint64_t)st.st_size);
		for (unsigned w = 0; w < 4; w++) {
			FUZZ_HOLDS(!(parts[i].pages[w] & ~want[w]) && !(parts[i].pages[w] & seen[w]));
			FUZZ_HOLDS(!(parts[i].pages[w] & ~e->present[w]));
			seen[w] |= parts[i].pages[w];
		}
	}
}

// What no directory has is zero, whatever the files say.
static void read_chunk(const struct img_dir *d, uint32_t block, uint64_t chunk, unsigned nr_pages)
{
	static const uint8_t zeros[PAGE_SIZE];
	uint64_t want[4] = { 0 }, map[4];

	bitmap_set_range(want, 0, nr_pages);
	img_dir_pages(d, block, chunk, map);
	check_parts(d, block, chunk, want);
	memset(chunk_buf, 0xa5, IMG_CHUNK_SIZE);
	if (img_dir_read(d, unpacker, block, chunk, want, scratch, (char *)chunk_buf))
		return;
	for (unsigned i = 0; i < IMG_CHUNK_PAGES; i++) {
		FUZZ_HOLDS(i < nr_pages || (!bitmap_test(map, i) && chunk_buf[i * PAGE_SIZE] == 0xa5));
		FUZZ_HOLDS(i >= nr_pages || bitmap_test(map, i) || !memcmp(chunk_buf + i * PAGE_SIZE, zeros, PAGE_SIZE));
	}
}

// What was checked when it was opened is there when it is asked for.
static void read_resident(const struct img_dir *d)
{
	struct img_resident r;

	FUZZ_HOLDS(!img_dir_resident(d, &r));
	for (size_t i = 0; i < r.nr; i++) {
		const struct img_resident_chunk *c = &r.chunks[i];

		FUZZ_HOLDS(c->block < img_dir_nr_blocks(d) && c->chunk < img_dir_block_chunks(d, c->block));
		FUZZ_HOLDS(c->age && !bitmap_empty(c->pages, IMG_CHUNK_PAGES));
		FUZZ_HOLDS(!i || c[-1].block < c->block || (c[-1].block == c->block && c[-1].chunk < c->chunk));
	}
	img_resident_fini(&r);
}

static void read_all(const struct img_dir *d)
{
	FUZZ_HOLDS(img_dir_ram_only(d) == !img_dir_device_state(d));
	read_resident(d);
	for (uint32_t b = 0; b < img_dir_nr_blocks(d); b++) {
		uint64_t nr = img_dir_block_chunks(d, b), len = img_dir_block_len(d, b);

		FUZZ_HOLDS(nr == DIV_ROUND_UP(len, IMG_CHUNK_SIZE));
		for (uint64_t i = 0; i < nr && i < CHUNKS_MAX; i++) {
			uint64_t c = i < CHUNKS_MAX / 2 || nr <= CHUNKS_MAX ? i : nr - CHUNKS_MAX + i; // its beginning and its end
			uint64_t left = len / PAGE_SIZE - c * IMG_CHUNK_PAGES;

			read_chunk(d, b, c, left < IMG_CHUNK_PAGES ? (unsigned)left : IMG_CHUNK_PAGES);
		}
	}
}

static void show_all(void)
{
	for (unsigned i = 0; i < 2 * NR_FILES; i++) {
		char path[sizeof dirs[0] + 32];

		snprintf(path, sizeof path, "%s/%s", dirs[0], kinds[i / 2].name);
		if (i / 2 != PAGES)
			img_show(path, i % 2, nowhere);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct img_dir *d;

	if (!len)
		return 0;
	make_dirs(data, len);
	if (data[0] & SHOW) {
		show_all();
	} else if (!img_dir_open(dirs[0], &d)) {
		read_all(d);
		img_dir_close(d);
	}
	return 0;
}

// ---- how an input is changed

// A pagemap's entry that says something else, and is one still. Returns its length, 0 if it is none.
static size_t change_entry(uint8_t *payload, size_t len, size_t room, unsigned random)
{
	PagemapEntry *e = pagemap_entry__unpack(NULL, len, payload);
	unsigned what = random % 6, value = random / 6;
	size_t new_len;

	if (!e)
		return 0;
	if (what == 0)
		e->vaddr = value % 1024 * PAGE_SIZE;
	else if (what == 1)
		e->nr_pages = value % (2 * IMG_CHUNK_PAGES);
	else if (what == 2)
		e->flags ^= IMG_PE_PRESENT | IMG_PE_PARENT, e->has_in_parent = e->in_parent = e->flags == IMG_PE_PARENT;
	else if (what == 3)
		e->vm_offset = value % 16 * PAGE_SIZE;
	else if (what == 4)
		e->vm_stored = value % 16 * PAGE_SIZE;
	else
		e->has_vm_checksum = e->has_vm_offset = e->has_vm_stored = !e->has_vm_checksum;
	new_len = pagemap_entry__get_packed_size(e);
	if (new_len <= room)
		pagemap_entry__pack(e, payload);
	pagemap_entry__free_unpacked(e, NULL);
	return new_len <= room ? new_len : 0;
}

// Mostly within one record, whose length then follows.
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max_len, unsigned int seed)
{
	size_t at = 1, nr = 0, old_len, new_len, room, tail;
	uint8_t payload[UINT16_MAX];

	for (size_t n; len && (n = record_len(data + at, len - at)); at += n)
		nr++;
	if (!nr || seed % 8 == 0)
		return LLVMFuzzerMutate(data, len, max_len);
	at = 1;
	seed /= 8;
	for (size_t i = seed % nr; i; i--)
		at += record_len(data + at, len - at);
	old_len = record_len(data + at, len - at) - RECORD_HEAD;
	tail = len - at - RECORD_HEAD - old_len;
	room = max_len - (len - old_len);
	if (!room)
		return LLVMFuzzerMutate(data, len, max_len);
	if (room > sizeof payload)
		room = sizeof payload;
	memcpy(payload, data + at + RECORD_HEAD, old_len);
	seed /= (unsigned)nr;
	new_len = is_pagemap(data[at]) && seed % 2 ? change_entry(payload, old_len, room, seed / 2) : 0;
	if (!new_len)
		new_len = LLVMFuzzerMutate(payload, old_len, room);
	memmove(data + at + RECORD_HEAD + new_len, data + at + RECORD_HEAD + old_len, tail);
	memcpy(data + at + RECORD_HEAD, payload, new_len);
	data[at + 1] = (uint8_t)new_len;
	data[at + 2] = (uint8_t)(new_len >> 8);
	return at + RECORD_HEAD + new_len + tail;
}
