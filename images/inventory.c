// SPDX-License-Identifier: GPL-2.0-only
#include "images/inventory_int.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "images/file_int.h"
#include "images/format.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

// The checksum is the last field of the message, a fixed64: it covers all bytes of the file before its value.
#define SUM_LEN sizeof(uint64_t)

int img_inventory_put(int dirfd, const char *dir, InventoryEntry *inv)
{
	_cleanup_free_ uint8_t *packed = NULL;
	uint32_t frame_len;
	struct img_out o;
	uint64_t sum;
	size_t len;
	int ret;

	inv->img_version = IMG_CRIU_VERSION;
	inv->has_vm_format = inv->has_vm_checksum = true;
	inv->vm_format = IMG_FORMAT;
	len = inventory_entry__get_packed_size(inv);
	packed = malloc(len);
	if (!packed)
		return img_io_error(dir, "write", -ENOMEM);
	inventory_entry__pack(inv, packed);
	frame_len = htole32((uint32_t)len);

	ret = img_out_open(&o, dirfd, dir, IMG_NAME_INVENTORY, IMG_MAGIC_INVENTORY);
	if (!ret)
		ret = img_out_hashed(&o, &frame_len, sizeof frame_len);
	if (!ret)
		ret = img_out_hashed(&o, packed, len - SUM_LEN);
	if (!ret) {
		inv->vm_checksum = img_out_digest(&o);
		sum = htole64(inv->vm_checksum);
		ret = img_out_hashed(&o, &sum, sizeof sum);
	}
	if (!ret)
		ret = img_out_close(&o);
	img_out_fini(&o);
	return ret;
}

static int check_sum(const struct img_in *in, const InventoryEntry *inv)
{
	size_t len = in->len;
	_cleanup_free_ uint8_t *file = malloc(len);
	uint64_t sum;
	int ret;

	if (!file)
		return img_io_error(in->path, "read", -ENOMEM);
	ret = io_pread_full(fileno(in->f), file, len, 0);
	if (ret)
		return img_io_error(in->path, "read", ret);
	memcpy(&sum, file + len - SUM_LEN, SUM_LEN);
	sum = le64toh(sum);
	if (!inv->has_vm_checksum || inv->vm_checksum != sum || XXH3_64bits(file, len - SUM_LEN) != sum)
		return img_damaged(in->path, "its checksum is wrong");
	return 0;
}

static int check_version(const char *path, const InventoryEntry *inv)
{
	if (inv->img_version == IMG_CRIU_VERSION && inv->vm_format == IMG_FORMAT && !(inv->vm_features & ~IMG_FEATURES))
		return 0;
	log_err("%s: format %u.%u with features %#" PRIx64 " is not known to this criu-vm, which reads %u.%u: use a newer one", path,
		inv->img_version, inv->vm_format, inv->vm_features, IMG_CRIU_VERSION, IMG_FORMAT);
	return -EOPNOTSUPP;
}

// CRIU's own checkpoints have an inventory without our fields.
static int check_is_vm(const char *path, const InventoryEntry *inv)
{
	if (inv->has_vm_format)
		return 0;
	log_err("%s: is of a checkpoint of processes, not of a VM: use criu", path);
	return -EINVAL;
}

static int check_features(const char *path, const InventoryEntry *inv)
{
	if (inv->has_vm_features == !inv->vm_features)
		return img_damaged(path, "its features are there, and are none");
	if (inv->has_vm_parent == !(inv->vm_features & IMG_FEATURE_PARENT))
		return img_damaged(path, "its parent and its features do not fit together");
	if (inv->vm_features & IMG_FEATURE_RAM_ONLY && inv->vm_features & IMG_FEATURE_RESIDENT)
		return img_damaged(path, "it is a pre-dump, and says what was in memory");
	return 0;
}

int img_inventory_get(int dirfd, const char *dir, InventoryEntry **out)
{
	InventoryEntry *inv = NULL;
	ProtobufCMessage *m;
	uint32_t magic;
	struct img_in in;
	int ret;

	if (faccessat(dirfd, IMG_NAME_INVENTORY, F_OK, 0) && errno == ENOENT) {
		log_err("%s: is no checkpoint: there is no %s in it", dir, IMG_NAME_INVENTORY);
		return -ENOENT;
	}
	ret = img_in_open(&in, dirfd, dir, IMG_NAME_INVENTORY, &magic);
	if (!ret && magic != IMG_MAGIC_INVENTORY)
		ret = img_damaged(in.path, "its magic is %#x instead of %#x", magic, IMG_MAGIC_INVENTORY);
	if (!ret)
		ret = img_in_get_last(&in, &inventory_entry__descriptor, IMG_INVENTORY_MAX, &m);
	if (!ret) {
		inv = (InventoryEntry *)m;
		ret = check_is_vm(in.path, inv);
	}
	if (!ret)
		ret = check_sum(&in, inv);
	if (!ret)
		ret = check_version(in.path, inv);
	if (!ret)
		ret = check_features(in.path, inv);
	img_in_fini(&in);
	if (ret)
		inventory_entry__free_unpacked(inv, NULL);
	else
		*out = inv;
	return ret;
}
