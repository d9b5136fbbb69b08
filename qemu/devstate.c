// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/devstate.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qemu/qmp.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

// QEMU: migration/savevm.h and migration/ram.c.
#define VM_MAGIC 0x5145564dU // "QEVM"
#define VM_VERSION 3
#define RAM_VERSION 4
#define RAM_SECTION_ID 0x00ffff00U // unlike any that QEMU gives out

enum section_type {
	SECTION_EOF = 0x00,
	SECTION_START = 0x01,
	SECTION_END = 0x03,
	SECTION_FULL = 0x04,
	SECTION_VMDESCRIPTION = 0x06,
	SECTION_CONFIGURATION = 0x07,
	SECTION_FOOTER = 0x7e,
};

enum ram_flag { // in the low bits of a page's offset
	RAM_ZERO = 0x02,
	RAM_MEM_SIZE = 0x04,
	RAM_PAGE = 0x08,
	RAM_EOS = 0x10,
	RAM_CONTINUE = 0x20, // same block as the page before
};

#define HEADER_LEN 8 // magic, version
#define FOOTER_LEN 5 // SECTION_FOOTER, section id
#define MAX_SECTION_IDS (1U << 18) // QEMU counts them up from 0, one for each device that ever was

static uint32_t get_be32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof v);
	return be32toh(v);
}

// ---- check

// Length of the FULL section header at p, 0 if there is none.
static size_t full_header(const uint8_t *p, size_t left, uint32_t *id)
{
	size_t name_len;

	if (left < 6 || p[0] != SECTION_FULL || !p[5])
		return 0;
	name_len = p[5];
	if (left < 6 + name_len + 8)
		return 0;
	for (size_t i = 0; i < name_len; i++)
		if (p[6 + i] < 0x20 || p[6 + i] > 0x7e)
			return 0;
	*id = get_be32(p + 1);
	return *id < MAX_SECTION_IDS ? 6 + name_len + 8 : 0;
}

// A body may by chance, or by a guest's malice, hold what looks like a border. So every place that may be one is considered, in
// one pass: a border counts if the section that it closes may be open there, and then the section that it opens may be open
// behind it. The true borders are among them, hence a good stream always passes.
static int check_sections(const uint8_t *buf, size_t len)
{
	uint64_t open[BITMAP_WORDS(MAX_SECTION_IDS)] = { 0 }; // sections that may be open at this place
	size_t header, last = HEADER_LEN;
	uint32_t id;

	header = full_header(buf + HEADER_LEN, len - HEADER_LEN, &id);
	if (!header) {
		log_err("device state: no section of a device at its beginning (byte %d), it is damaged", HEADER_LEN);
		return -EBADMSG;
	}
	bitmap_set(open, id);
	for (size_t at = HEADER_LEN + header; at + FOOTER_LEN < len; at++) {
		size_t next = at + FOOTER_LEN;

		if (buf[at] != SECTION_FOOTER)
			continue;
		id = get_be32(buf + at + 1);
		if (id >= MAX_SECTION_IDS || !bitmap_test(open, id))
			continue;
		if (buf[next] == SECTION_EOF && next + 1 == len)
			return 0;
		header = full_header(buf + next, len - next, &id);
		if (header) {
			bitmap_set(open, id);
			last = next;
		}
	}
	log_err("device state: the section at byte %zu of %zu does not end well, or what follows it is no section: it is damaged",
		last, len);
	return -EBADMSG;
}

int qemu_devstate_check(const uint8_t *buf, size_t len)
{
	if (len < HEADER_LEN || get_be32(buf) != VM_MAGIC) {
		log_err("device state: it does not begin with QEMU's magic, it is something else or damaged");
		return -EBADMSG;
	}
	if (get_be32(buf + 4) != VM_VERSION) {
		log_err("device state: version %u, only %d is known", get_be32(buf + 4), VM_VERSION);
		return -EBADMSG;
	}
	if (len > QEMU_DEVSTATE_MAX) {
		log_err("device state: %zu bytes, at most %lu are taken", len, QEMU_DEVSTATE_MAX);
		return -EBADMSG;
	}
	return check_sections(buf, len);
}

// ---- save

static int read_state(int fd, uint8_t **buf, size_t *len)
{
	_cleanup_free_ uint8_t *b = NULL;
	struct stat st;
	int err;

	if (fstat(fd, &st) < 0) {
		err = -errno;
		log_err("device state: fstat: %s", strerror(-err));
		return err;
	}
	if (st.st_size > (off_t)QEMU_DEVSTATE_MAX) {
		log_err("device state: QEMU wrote %lld bytes, at most %lu are taken", (long long)st.st_size, QEMU_DEVSTATE_MAX);
		return -EFBIG;
	}
	b = malloc((size_t)st.st_size + 1);
	err = b ? io_pread_full(fd, b, (size_t)st.st_size, 0) : -ENOMEM;
	if (err) {
		log_err("device state: cannot read what QEMU wrote: %s", strerror(-err));
		return err;
	}
	err = qemu_devstate_check(b, (size_t)st.st_size);
	if (err)
		return err;
	*buf = steal_ptr(&b);
	*len = (size_t)st.st_size;
	return 0;
}

// QEMU itself does not look here for this command, and crashes when a device (nvme in 7.2) cannot be saved.
static int refuse_blocked(struct qmp *q)
{
	json_t *reply = NULL, *reason;
	int err = qmp_call(q, "query-migrate", NULL, &reply);
	size_t i;

	json_array_foreach(json_object_get(reply, "blocked-reasons"), i, reason) {
		log_err("device state: QEMU cannot save this VM: %s", json_string_value(reason) ?: "it does not say why");
		err = -EOPNOTSUPP;
	}
	json_decref(reply);
	return err;
}

// QEMU opens /dev/fdset/N for writing only and takes the descriptor of the set that has just this mode; fd is such a one. Before
// QEMU 9.1 a removed descriptor of a stopped VM is closed only when a monitor disconnects while the VM runs again.
static int save_to(struct qmp *q, bool live, int fd)
{
	json_t *set = NULL;
	char path[64];
	json_int_t id;
	int err, gone = 0;

	err = qmp_call_fd(q, "add-fd", json_pack("{s:s}", "opaque", "criu-vm: device state"), fd, &set);
	if (err)
		return err;
	id = json_integer_value(json_object_get(set, "fdset-id"));
	json_decref(set);
	snprintf(path, sizeof path, "/dev/fdset/%" JSON_INTEGER_FORMAT, id);
	err = qmp_call(q, "xen-save-devices-state", json_pack("{s:s, s:b}", "filename", path, "live", live), NULL);
	if (err != -EPIPE)
		gone = qmp_call(q, "remove-fd", json_pack("{s:I}", "fdset-id", id), NULL);
	return err ?: gone;
}

int qemu_devstate_save(struct qmp *q, bool live, uint8_t **buf, size_t *len)
{
	_cleanup_close_ int fd = memfd_create("device-state", MFD_CLOEXEC), wronly = -1;
	char path[32];
	int err;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (fd >= 0)
		wronly = open(path, O_WRONLY | O_CLOEXEC);
	if (wronly < 0) {
		err = -errno;
		log_err("device state: no memfd to save it to: %s", strerror(-err));
		return err;
	}
	err = refuse_blocked(q) ?: save_to(q, live, wronly) ?: read_state(fd, buf, len);
	(void)!ftruncate(fd, 0); // for the descriptor that QEMU may keep for a while
	return err;
}

// ---- build

static void put8(FILE *f, uint8_t v)
{
	putc(v, f);
}

static void put32(FILE *f, uint32_t v)
{
	v = htobe32(v);
	fwrite(&v, sizeof v, 1, f);
}

static void put64(FILE *f, uint64_t v)
{
	v = htobe64(v);
	fwrite(&v, sizeof v, 1, f);
}

static void put_name(FILE *f, const char *name)
{
	put8(f, (uint8_t)strlen(name));
	fputs(name, f);
}

static void put_end_of_ram(FILE *f)
{
	put64(f, RAM_EOS);
	put8(f, SECTION_FOOTER);
	put32(f, RAM_SECTION_ID);
}

static void put_pages(FILE *f, const struct qemu_small_block *b)
{
	static const uint8_t zeros[PAGE_SIZE];

	for (uint64_t off = 0; off < b->len; off += PAGE_SIZE) {
		const uint8_t *page = b->data + off;
		bool zero = !memcmp(page, zeros, PAGE_SIZE);

		put64(f, off | (zero ? RAM_ZERO : RAM_PAGE) | (off ? RAM_CONTINUE : 0));
		if (!off)
			put_name(f, b->name);
		if (zero)
			put8(f, 0); // what the page is filled with
		else
			fwrite(page, PAGE_SIZE, 1, f);
	}
}

static void put_ram(FILE *f, const struct qemu_small_block *small, size_t nr)
{
	uint64_t total = 0;

	put8(f, SECTION_START);
	put32(f, RAM_SECTION_ID);
	put_name(f, "ram");
	put32(f, 0); // instance
	put32(f, RAM_VERSION);
	for (size_t i = 0; i < nr; i++)
		total += small[i].len;
	put64(f, total | RAM_MEM_SIZE);
	for (size_t i = 0; i < nr; i++) {
		put_name(f, small[i].name);
		put64(f, small[i].len);
	}
	put_end_of_ram(f);
	put8(f, SECTION_END);
	put32(f, RAM_SECTION_ID);
	for (size_t i = 0; i < nr; i++)
		put_pages(f, &small[i]);
	put_end_of_ram(f);
}

static int check_small_blocks(const struct qemu_small_block *small, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		size_t name_len = strlen(small[i].name);

		if (!name_len || name_len > UINT8_MAX || !small[i].len || small[i].len % PAGE_SIZE || small[i].len > 1ULL << 40) {
			log_err("RAM block '%s' of %llu bytes cannot travel with the device state", small[i].name,
				(unsigned long long)small[i].len);
			return -EINVAL;
		}
	}
	return 0;
}

int qemu_devstate_build(const uint8_t *saved, size_t len, const char *machine, const struct qemu_small_block *small, size_t nr,
			uint8_t **out, size_t *out_len)
{
	static const char vmdesc[] = "{\"page_size\": 4096, \"devices\": []}";
	char *buf = NULL;
	bool failed;
	FILE *f;
	int err;

	err = qemu_devstate_check(saved, len) ?: check_small_blocks(small, nr);
	if (err)
		return err;
	if (!*machine || strlen(machine) > UINT8_MAX) {
		log_err("device state: '%s' is no machine type", machine);
		return -EINVAL;
	}
	f = open_memstream(&buf, out_len);
	if (!f)
		goto no_memory;
	fwrite(saved, HEADER_LEN, 1, f);
	put8(f, SECTION_CONFIGURATION);
	put32(f, (uint32_t)strlen(machine));
	fputs(machine, f);
	put_ram(f, small, nr);
	fwrite(saved + HEADER_LEN, len - HEADER_LEN, 1, f);
	put8(f, SECTION_VMDESCRIPTION);
	put32(f, sizeof vmdesc - 1);
	fputs(vmdesc, f);
	failed = ferror(f);
	if (fclose(f) || failed)
		goto no_memory;
	*out = (uint8_t *)buf;
	return 0;

no_memory:
	free(buf);
	log_err("device state: no memory for the stream of '%s'", machine);
	return -ENOMEM;
}
