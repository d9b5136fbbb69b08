// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/swap_trailer.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

#include "util/cleanup.h"
#include "util/io.h"

#define MAGIC "cvmswap\n"
#define VERSION 1

int pv_boot_id(char id[PV_BOOT_ID_LEN + 1])
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = io_read_file("/proc/sys/kernel/random/boot_id", 4096, &text, &len);

	if (r)
		return r;
	if (len != PV_BOOT_ID_LEN + 1)
		return -EPROTO;
	memcpy(id, text, PV_BOOT_ID_LEN);
	id[PV_BOOT_ID_LEN] = 0;
	return 0;
}

int pv_swap_trailer_new(struct pv_swap_trailer *t, uint64_t len)
{
	uint8_t random[PV_SWAP_TOKEN_LEN / 2];
	char boot[PV_BOOT_ID_LEN + 1], hex[PV_SWAP_TOKEN_LEN + 1];
	int r = pv_boot_id(boot);

	if (r)
		return r;
	if (getrandom(random, sizeof random, 0) != sizeof random)
		return -EIO;
	*t = (struct pv_swap_trailer){ .version = htole32(VERSION), .len = htole64(len) };
	memcpy(t->magic, MAGIC, sizeof t->magic);
	for (size_t i = 0; i < sizeof random; i++)
		snprintf(hex + 2 * i, 3, "%02x", random[i]);
	memcpy(t->token, hex, sizeof t->token);
	memcpy(t->boot_id, boot, sizeof t->boot_id);
	return 0;
}

static uint64_t checksum(const struct pv_swap_trailer *t)
{
	return htole64(XXH3_64bits(t, offsetof(struct pv_swap_trailer, checksum)));
}

int pv_swap_trailer_write(int fd, uint64_t off, struct pv_swap_trailer *t)
{
	int r;

	t->checksum = checksum(t);
	r = io_pwrite_full(fd, t, sizeof *t, off);
	return r ? r : fdatasync(fd) < 0 ? -errno : 0;
}

int pv_swap_trailer_read(int fd, uint64_t off, struct pv_swap_trailer *t)
{
	int r = io_pread_full(fd, t, sizeof *t, off);

	if (r)
		return r == -ENODATA ? -EBADMSG : r;
	if (memcmp(t->magic, MAGIC, sizeof t->magic) || t->checksum != checksum(t))
		return -EBADMSG;
	return le32toh(t->version) == VERSION ? 0 : -EPROTO;
}

bool pv_swap_trailer_is_stale(const struct pv_swap_trailer *t)
{
	char boot[PV_BOOT_ID_LEN + 1];

	return !pv_boot_id(boot) && memcmp(t->boot_id, boot, sizeof t->boot_id) != 0;
}
