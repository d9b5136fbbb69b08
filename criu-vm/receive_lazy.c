// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: pages that are missing when the VM is to run
//
// The source has offered so, whether it comes to that or not. All that the VM's pagers need for it stands in its state before the first of
// them attaches, and TOKEN.lazy (migration_lazy.h) is there before the source is admitted: its page lines may come before its last page
// does. If in the end nothing is missing, the pager drops it (vm_remote.h).
//
// Some pages may be in a checkpoint that this host can read, too: they are neither sent nor asked for then. The run directory's file
// in-images says which.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "criu-vm/migration_lazy.h"
#include "criu-vm/owner.h"
#include "criu-vm/receive_int.h"
#include "criu-vm/vm_remote.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/user.h"

#define DROP_MS 2000
#define GLANCE_MS 50

// ---- its images

static bool fits(const struct receive *rv, const struct img_dir *d)
{
	bool same = img_dir_nr_blocks(d) == rv->r.nr_blocks;

	for (uint32_t i = 0; same && i < rv->r.nr_blocks; i++)
		same = img_dir_block_len(d, i) == rv->r.blocks[i].len;
	return same;
}

// As the VM's user.
static int try_open(void *ctx)
{
	const struct receive *rv = ctx;
	struct img_dir *d;
	int err = img_dir_open(rv->offer->offer->images_dir, &d);

	if (err)
		return err;
	if (img_dir_id(d) != rv->offer->offer->images_id)
		err = -ESTALE;
	img_dir_close(d);
	return err;
}

// Whoever has a VM run as some user gets to read, through its memory, no checkpoint that this user could not.
static bool can_use_images(struct receive *rv)
{
	const WireOffer *offer = rv->offer->offer;
	struct img_dir *d;
	bool can;

	if (!offer->images_dir || access(offer->images_dir, R_OK) || img_dir_open(offer->images_dir, &d))
		return false;
	can = img_dir_id(d) == offer->images_id && fits(rv, d) && !owner_check_chain(d);
	img_dir_close(d);
	return can && !user_call(rv->vm->uid, rv->vm->gid, try_open, rv);
}

static int choose_images(struct receive *rv)
{
	const WireOffer *offer = rv->offer->offer;

	if (!offer->images_dir)
		return 0;
	if (!can_use_images(rv)) {
		log_info("%s, which pages of VM '%s' are in, cannot be used here: its source reads them", offer->images_dir, rv->r.name);
		return 0;
	}
	rv->r.state.images = realpath(offer->images_dir, NULL);
	rv->r.state.images_id = offer->images_id;
	return rv->r.state.images ? 0 : -ENOMEM;
}

// A new file in the run directory, of zeros.
static int map_in_images(struct receive *rv)
{
	size_t len = rv->r.nr_chunks * sizeof *rv->in_images;
	_cleanup_close_ int fd = openat(rv->r.rd.fd, "in-images", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	void *p = MAP_FAILED;
	int err;

	if (fd >= 0 && !fallocate(fd, 0, 0, (off_t)len))
		p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p != MAP_FAILED) {
		rv->in_images = p;
		return 0;
	}
	err = -errno;
	log_err("%s/in-images: %s", rv->r.rd.path, strerror(-err));
	return err;
}

void receive_lazy_fini(struct receive *rv)
{
	if (rv->in_images)
		munmap(rv->in_images, rv->r.nr_chunks * sizeof *rv->in_images);
	rv->in_images = NULL;
}

// ---- its state

// Its address; the port is one that it will not come from again.
static char *source_of(const struct receive *rv)
{
	char *text = strdup(wire_peer(rv->c)), *end;

	if (!text)
		return NULL;
	text[strcspn(text, " ")] = 0;
	end = strrchr(text, ':');
	if (end)
		*end = 0;
	return text;
}

static int set_remote(struct receive *rv)
{
	const char *tls = rv->o->server->tls_creds;
	struct vm_state *s = &rv->r.state;
	uint8_t id[WIRE_LINE_ID_LEN];
	char key[WIRE_TOKEN_TEXT];
	int err = migration_host_id(id + WIRE_TOKEN_LEN);

	if (err)
		return err;
	memcpy(id, rv->o->token, WIRE_TOKEN_LEN);
	s->remote = source_of(rv);
	s->remote_id = vm_remote_format_id(id);
	s->remote_key = strdup(wire_token_format(rv->key, key));
	s->remote_tls = rv->o->tls ? realpath(tls, NULL) : NULL;
	s->remote_lines = migration_lazy_lines(rv->offer->offer->channels);
	s->fill = true;
	return s->remote && s->remote_id && s->remote_key && (s->remote_tls || !rv->o->tls) ? 0 : -ENOMEM;
}

int receive_lazy_offer(struct receive *rv)
{
	int err;

	if (!rv->offer->offer->lazy)
		return 0;
	if (!(rv->features & WIRE_FEATURE_LAZY)) {
		log_err("%s: offers a VM whose pages may come later, but has not said that it can do that", wire_peer(rv->c));
		return -EPROTO;
	}
	rv->r.paging = rv->r.state.paging = true;
	err = set_remote(rv);
	return err ? err : choose_images(rv);
}

int receive_lazy_admit(struct receive *rv)
{
	struct migration_lazy l = { .state = WIRE_LINE_WANTS, .run_root = rv->r.rd.root };
	int err;

	if (!rv->offer->offer->lazy)
		return 0;
	snprintf(l.name, sizeof l.name, "%s", rv->r.name);
	memcpy(l.key, rv->key, sizeof l.key);
	err = migration_host_id(l.host_id);
	if (!err && rv->r.state.images)
		err = map_in_images(rv);
	return err ? err : migration_lazy_save(rv->o->token, &l);
}

int receive_lazy_arrived(struct receive *rv)
{
	struct vm_state *s = &rv->r.state;
	bool from_source, from_images;

	if (!rv->offer->offer->lazy)
		return 0;
	receive_pages_later(rv->pages, &from_source, &from_images);
	if (!from_source)
		free(steal_ptr(&s->remote));
	if (!from_images)
		free(steal_ptr(&s->images));
	return from_source && (from_images || !rv->in_images) ? 0 : vm_state_save(&rv->r.rd, s);
}

bool receive_lazy_goes_on(const struct receive *rv)
{
	if (!rv->offer->offer->lazy)
		return false;
	for (unsigned ms = 0; !rv->r.state.remote && ms < DROP_MS && migration_lazy_is_there(rv->o->token); ms += GLANCE_MS)
		usleep(GLANCE_MS * 1000);
	return migration_lazy_is_there(rv->o->token);
}
