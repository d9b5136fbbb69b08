// SPDX-License-Identifier: GPL-2.0-only
// RAM of a VM that leaves, and of which some is read when it runs elsewhere already.
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>

#include "criu-vm/ram_int.h"
#include "util/process.h"

// Page tables of a process that ends are empty, which is no answer; that this is in place says that they were not.
static bool has_memory(const struct ram *r, uint32_t block)
{
	char byte;
	struct iovec ours = { &byte, 1 }, theirs = { (void *)(uintptr_t)r->o.blocks[block].hva, 1 };

	return process_vm_readv(r->o.pid, &ours, 1, &theirs, 1, 0) == 1;
}

// Who buries the VM wipes the trailer before the rest may be anybody's.
static bool swap_is_ours(const struct ram *r)
{
	struct pv_swap_trailer t;

	return r->swap.fd < 0 || (!pv_swap_trailer_read(r->swap.fd, r->swap.len, &t) && !memcmp(t.token, r->state.swap_token, sizeof t.token));
}

// A file without a name is nobody else's, now or later.
static bool is_unnamed(const struct block *b)
{
	struct stat st;

	return !fstat(b->source->fd, &st) && !st.st_nlink;
}

int ram_vouch(struct ram *r, int pidfd, uint32_t block)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };
	bool is_its_own = !r->paged && r->blocks[block].source->kind != MM_SRC_SHARED, good = !is_its_own || has_memory(r, block);
	char state = process_state(r->o.pid);

	// In this order: until then the pid is the process's. One that is traced has not ended for its pidfd before it is let go.
	if (poll(&p, 1, 0) || !state || state == 'Z' || state == 'X')
		good = r->paged ? swap_is_ours(r) : !is_its_own && is_unnamed(&r->blocks[block]);
	else if (state != 'T' && state != 't')
		return -EBUSY;
	return good ? 0 : -ESRCH;
}

const char *ram_images(const struct ram *r, uint64_t *id)
{
	*id = r->state.images_id;
	return r->images ? r->state.images : NULL;
}

void ram_in_images(struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[4])
{
	memset(map, 0, PV_WORDS * sizeof *map);
	if (r->images)
		pv_pages_of_home(&r->pages[r->blocks[block].first + chunk], PV_HOME_SOURCE, map);
}
