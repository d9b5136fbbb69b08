// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/swap_registry.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/state_dir.h"
#include "pvmem/swap_trailer.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

const char *swap_registry_dir(char buf[PATH_MAX])
{
	return state_dir("swap", buf);
}

static const char *clean_path(char buf[PATH_MAX])
{
	return state_dir("swap/.clean", buf);
}

static const char *link_path(const char *name, const char *token, char buf[PATH_MAX])
{
	char file[NAME_MAX];

	snprintf(file, sizeof file, "swap/%s-%.*s.swap", name, SWAP_REGISTRY_TOKEN_LEN, token);
	return state_dir(file, buf);
}

int swap_registry_make(void)
{
	char dir[PATH_MAX];
	int r = state_dir_make(swap_registry_dir(dir));

	if (r > 0)
		swap_registry_set_clean();
	return r < 0 ? r : 0;
}

void swap_registry_add(const char *name, const char *path, const char *token)
{
	char dir[PATH_MAX], link[PATH_MAX];
	_cleanup_free_ char *real = realpath(swap_registry_dir(dir), NULL);
	size_t len = real ? strlen(real) : 0;

	swap_registry_remove(name, token);
	if (real && !strncmp(path, real, len) && path[len] == '/' && !strchr(path + len + 1, '/'))
		return; // it is there itself
	if (symlink(path, link_path(name, token, link)) < 0)
		log_warn("cannot register swap image %s as %s: %s; should this host crash, delete the image by hand", path, link, strerror(errno));
}

void swap_registry_remove(const char *name, const char *token)
{
	char link[PATH_MAX];

	if (unlink(link_path(name, token, link)) < 0 && errno != ENOENT)
		log_warn("cannot remove %s: %s", link, strerror(errno));
}

int swap_registry_prepare_image(const char *name, const char *at, uint64_t len, bool sparse, struct pv_swap *s)
{
	char path[2 * PATH_MAX], dir[PATH_MAX];
	const char *where = at ? at : swap_registry_dir(dir);
	struct stat st;
	int r = swap_registry_make();

	if (r && !at) {
		log_err("cannot create %s: %s; say where the swap image shall be with --swap", where, strerror(-r));
		return r;
	}
	if (!stat(where, &st) && S_ISDIR(st.st_mode))
		snprintf(path, sizeof path, "%s/%s.swap", where, name);
	else
		snprintf(path, sizeof path, "%s", where);
	return pv_swap_prepare(path, len, sparse, s);
}

int swap_registry_publish_image(const char *name, struct pv_swap *s)
{
	int r = pv_swap_publish(s);

	if (r)
		pv_swap_close(s);
	else
		swap_registry_add(name, s->path, s->token);
	return r;
}

void swap_registry_destroy_image(const char *name, struct pv_swap *s)
{
	swap_registry_remove(name, s->token);
	pv_swap_destroy(s);
}

bool swap_registry_is_clean(void)
{
	char path[PATH_MAX], boot[PV_BOOT_ID_LEN + 1];
	_cleanup_free_ char *text = NULL;
	size_t len;

	return !pv_boot_id(boot) && !io_read_file(clean_path(path), 4096, &text, &len) && !strcmp(text, boot);
}

void swap_registry_set_clean(void)
{
	char path[PATH_MAX], boot[PV_BOOT_ID_LEN + 1];
	_cleanup_close_ int fd = open(clean_path(path), O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd >= 0 && !pv_boot_id(boot) && io_write_full(fd, boot, PV_BOOT_ID_LEN))
		log_dbg("cannot write %s: %s", path, strerror(errno));
}
