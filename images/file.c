// SPDX-License-Identifier: GPL-2.0-only
#include "images/file_int.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "images/format.h"
#include "util/cleanup.h"
#include "util/log.h"

int img_damaged(const char *path, const char *fmt, ...)
{
	char what[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof what, fmt, ap);
	va_end(ap);
	log_err("%s: damaged: %s", path, what);
	return -EBADMSG;
}

int img_io_error(const char *path, const char *what, int err)
{
	log_err("%s: cannot %s: %s%s", path, what, strerror(-err),
		err == -ENOSPC || err == -EDQUOT ? "; free some space or name a directory elsewhere" : "");
	return err;
}

static int set_path(char path[PATH_MAX], const char *dir, const char *name)
{
	int n = snprintf(path, PATH_MAX, "%s%s%s", dir ? dir : "", dir ? "/" : "", name);

	if (n < PATH_MAX)
		return 0;
	log_err("%.64s...: path is too long", path);
	return -ENAMETOOLONG;
}

static uint32_t leading_magic(uint32_t magic)
{
	return magic == IMG_MAGIC_INVENTORY ? 0 : magic == IMG_MAGIC_STATS ? IMG_MAGIC_SERVICE : IMG_MAGIC_COMMON;
}

static int put_u32(struct img_out *o, uint32_t v)
{
	v = htole32(v);
	return img_out_hashed(o, &v, sizeof v);
}

int img_out_open(struct img_out *o, int dirfd, const char *dir, const char *name, uint32_t magic)
{
	uint32_t lead = leading_magic(magic);
	int fd, ret;

	memset(o, 0, sizeof *o);
	ret = set_path(o->path, dir, name);
	if (ret)
		return ret;
	o->hash = XXH3_createState();
	if (!o->hash)
		return img_io_error(o->path, "create", -ENOMEM);
	XXH3_64bits_reset(o->hash);
	fd = openat(dirfd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return img_io_error(o->path, "create", -errno);
	o->f = fdopen(fd, "w");
	if (!o->f) {
		close(fd);
		return img_io_error(o->path, "create", -ENOMEM);
	}
	ret = lead ? put_u32(o, lead) : 0;
	return ret ? ret : put_u32(o, magic);
}

int img_out_hashed(struct img_out *o, const void *buf, size_t len)
{
	errno = 0;
	if (fwrite(buf, 1, len, o->f) != len)
		return img_io_error(o->path, "write", errno ? -errno : -EIO);
	XXH3_64bits_update(o->hash, buf, len);
	o->len += len;
	return 0;
}

int img_out_put(struct img_out *o, const ProtobufCMessage *m)
{
	size_t len = protobuf_c_message_get_packed_size(m);
	_cleanup_free_ uint8_t *heap = NULL;
	uint8_t stack[256], *buf = stack;
	int ret;

	if (len > sizeof stack) {
		buf = heap = malloc(len);
		if (!heap)
			return img_io_error(o->path, "write", -ENOMEM);
	}
	protobuf_c_message_pack(m, buf);
	ret = put_u32(o, (uint32_t)len);
	return ret ? ret : img_out_hashed(o, buf, len);
}

uint64_t img_out_digest(const struct img_out *o)
{
	return XXH3_64bits_digest(o->hash);
}

int img_out_close(struct img_out *o)
{
	FILE *f = o->f;
	int err = 0;

	// An earlier error, already told, sticks to the stream.
	if (ferror(f))
		err = -EIO;
	else if (fflush(f) || fsync(fileno(f)))
		err = -errno;
	o->f = NULL;
	if (fclose(f) && !err)
		err = -errno;
	return err ? img_io_error(o->path, "write", err) : 0;
}

void img_out_fini(struct img_out *o)
{
	if (o->f)
		fclose(o->f);
	XXH3_freeState(o->hash);
	o->f = NULL;
	o->hash = NULL;
}

static int get_bytes(struct img_in *in, void *buf, uint64_t len)
{
	if (len > in->len - in->off)
		return img_damaged(in->path, "ends at byte %" PRIu64 ", in the middle of an entry", in->len);
	errno = 0;
	if (fread(buf, 1, len, in->f) != len) {
		if (ferror(in->f))
			return img_io_error(in->path, "read", errno ? -errno : -EIO);
		return img_damaged(in->path, "became shorter while it was read");
	}
	XXH3_64bits_update(in->hash, buf, len);
	in->off += len;
	return 0;
}

static int get_u32(struct img_in *in, uint32_t *v)
{
	uint32_t le = 0;
	int ret = get_bytes(in, &le, sizeof le);

	*v = le32toh(le);
	return ret;
}

static int get_magic(struct img_in *in, uint32_t *magic)
{
	uint32_t lead;
	int ret;

	if (in->len < 2 * sizeof lead) {
		log_err("%s: is no image (only %" PRIu64 " bytes long)", in->path, in->len);
		return -EBADMSG;
	}
	ret = get_u32(in, &lead);
	if (ret)
		return ret;
	*magic = lead;
	if (lead == IMG_MAGIC_COMMON || lead == IMG_MAGIC_SERVICE)
		ret = get_u32(in, magic);
	else
		lead = 0;
	if (!ret && lead != leading_magic(*magic)) {
		log_err("%s: is no image (its magic is %#x)", in->path, lead ? lead : *magic);
		ret = -EBADMSG;
	}
	return ret;
}

int img_in_open(struct img_in *in, int dirfd, const char *dir, const char *name, uint32_t *magic)
{
	struct stat st;
	int fd, ret;

	memset(in, 0, sizeof *in);
	ret = set_path(in->path, dir, name);
	if (ret)
		return ret;
	in->hash = XXH3_createState();
	if (!in->hash)
		return img_io_error(in->path, "open", -ENOMEM);
	XXH3_64bits_reset(in->hash);
	// O_NONBLOCK: a FIFO of this name must not hold us up.
	fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		return img_io_error(in->path, "open", -errno);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		close(fd);
		log_err("%s: is no regular file", in->path);
		return -EINVAL;
	}
	in->len = (uint64_t)st.st_size;
	in->f = fdopen(fd, "r");
	if (!in->f) {
		close(fd);
		return img_io_error(in->path, "open", -ENOMEM);
	}
	return get_magic(in, magic);
}

int img_in_get(struct img_in *in, const ProtobufCMessageDescriptor *type, uint32_t max, ProtobufCMessage **m)
{
	uint8_t stack[256], *buf = stack;
	_cleanup_free_ uint8_t *heap = NULL;
	uint64_t at = in->off;
	uint32_t len;
	int ret;

	*m = NULL;
	if (in->off == in->len)
		return 0;
	ret = get_u32(in, &len);
	if (ret)
		return ret;
	if (len > max)
		return img_damaged(in->path, "entry at byte %" PRIu64 " has %u bytes, more than %u", at, len, max);
	// Before memory is taken for it.
	if (len > in->len - in->off)
		return img_damaged(in->path, "ends at byte %" PRIu64 ", in the middle of an entry", in->len);
	if (len > sizeof stack) {
		buf = heap = malloc(len);
		if (!heap)
			return img_io_error(in->path, "read", -ENOMEM);
	}
	ret = get_bytes(in, buf, len);
	if (ret)
		return ret;
	*m = protobuf_c_message_unpack(type, NULL, len, buf);
	return *m ? 1 : img_damaged(in->path, "entry at byte %" PRIu64 " cannot be decoded", at);
}

int img_in_get_last(struct img_in *in, const ProtobufCMessageDescriptor *type, uint32_t max, ProtobufCMessage **m)
{
	int ret = img_in_get(in, type, max, m);

	if (ret < 0)
		return ret;
	if (!ret)
		return img_damaged(in->path, "there is nothing behind its magic");
	if (in->off == in->len)
		return 0;
	protobuf_c_message_free_unpacked(*m, NULL);
	*m = NULL;
	return img_damaged(in->path, "there is more behind its only entry");
}

uint64_t img_in_digest(const struct img_in *in)
{
	return XXH3_64bits_digest(in->hash);
}

void img_in_fini(struct img_in *in)
{
	if (in->f)
		fclose(in->f);
	XXH3_freeState(in->hash);
	in->f = NULL;
	in->hash = NULL;
}
