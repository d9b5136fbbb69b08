// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/leftovers.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/swap_registry.h"
#include "pvmem/swap.h"
#include "util/log.h"
#include "util/size.h"

// NAME-TOKEN.swap: where TOKEN begins. NULL: this is not ours.
static const char *token_of(const char *link)
{
	size_t len = strlen(link), behind = SWAP_REGISTRY_TOKEN_LEN + strlen(".swap");
	const char *token = link + len - behind;

	if (len < behind + 2 || token[-1] != '-' || strspn(token, "0123456789abcdef") != SWAP_REGISTRY_TOKEN_LEN ||
	    strcmp(token + SWAP_REGISTRY_TOKEN_LEN, ".swap"))
		return NULL;
	return token;
}

static void remove_image(struct pv_swap *s)
{
	char size[16];

	log_warn("deleting swap image %s (%s), left by a VM that ended when this host did", s->path, size_format(s->len, size));
	pv_swap_destroy(s);
}

// What a link does not lead to any more is no business of ours; but somebody may have forgotten to mount it.
static void remove_link(const char *path)
{
	char target[PATH_MAX];
	ssize_t len = readlink(path, target, sizeof target);

	if (!unlink(path) && len > 0)
		log_warn("swap image %.*s, of before this host's last boot, is not there any more; forgetting it", (int)len, target);
}

static void look_at(const char *dir, const char *entry)
{
	const char *token = token_of(entry);
	struct pv_swap s = PV_SWAP_NONE;
	char path[PATH_MAX];
	struct stat st;
	bool link;
	int r;

	if (snprintf(path, sizeof path, "%s/%s", dir, entry) >= (int)sizeof path || lstat(path, &st) < 0)
		return;
	link = S_ISLNK(st.st_mode) && token;
	if (!link && !S_ISREG(st.st_mode))
		return;
	r = pv_swap_find_stale(path, &s);
	if (!r && link && strncmp(s.token, token, SWAP_REGISTRY_TOKEN_LEN) != 0) { // somebody else's
		pv_swap_close(&s);
		r = -ENOENT;
	}
	if (!r)
		remove_image(&s);
	if (!r && link)
		unlink(path);
	else if (link && (r == -ENOENT || r == -EBADMSG))
		remove_link(path);
}

void leftovers_remove(void)
{
	char dir[PATH_MAX];
	struct dirent *d;
	DIR *all;

	if (swap_registry_is_clean())
		return;
	all = opendir(swap_registry_dir(dir));
	if (!all)
		return;
	while ((d = readdir(all)))
		if (d->d_name[0] != '.')
			look_at(dir, d->d_name);
	closedir(all);
	swap_registry_set_clean();
}
