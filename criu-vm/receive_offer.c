// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/hello.h"
#include "criu-vm/map_file.h"
#include "criu-vm/peer_vm.h"
#include "criu-vm/receive_int.h"
#include "criu-vm/swap_registry.h"
#include "images/format.h"
#include "images/valid.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

#define SAY_MS 15000
#define FEATURES (WIRE_FEATURE_ZSTD | WIRE_FEATURE_LAZY)

static int say_hello(struct receive *rv)
{
	WireMsg *m;
	int err = receive_expect(rv, SAY_MS, offsetof(WireMsg, hello), &m);

	if (err)
		return err;
	rv->features = m->hello->features & FEATURES;
	err = hello_answer(rv->c, m->hello, rv->o->token, FEATURES);
	wire_msg__free_unpacked(m, NULL);
	if (!err)
		err = wire_keepalive_start(rv->c, &rv->keepalive);
	return err;
}

static const char *blocks_fault(const WireOffer *offer, const VmEntry *vm)
{
	if (offer->n_blocks != vm->n_blocks)
		return "the offer and the description have not the same blocks of RAM";
	for (size_t i = 0; i < vm->n_blocks; i++)
		if (strcmp(offer->blocks[i]->name, vm->blocks[i]->name) != 0 || offer->blocks[i]->len != vm->blocks[i]->len)
			return "the offer and the description have not the same blocks of RAM";
	return NULL;
}

static int receive_vm(struct receive *rv)
{
	_cleanup_free_ void *packed = NULL;
	const char *fault = NULL;
	size_t len;
	int err = receive_expect(rv, SAY_MS, offsetof(WireMsg, offer), &rv->offer);

	if (!err)
		err = wire_receive_document(rv->c, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, IMG_VM_MAX, &packed, &len);
	if (err)
		return err;
	rv->vm = len == rv->offer->offer->vm_len ? vm_entry__unpack(NULL, len, packed) : NULL;
	if (!rv->vm)
		fault = "it cannot be read";
	else if (!(fault = img_vm_fault(rv->vm)))
		fault = blocks_fault(rv->offer->offer, rv->vm);
	if (!fault)
		fault = peer_vm_fault(rv->vm);
	if (!fault)
		return 0;
	log_err("%s: the description of the VM is not accepted: %s", wire_peer(rv->c), fault);
	return -EBADMSG;
}

// In the clear, and not for all the world, the server lets in only root of this host, and who it runs as.
static bool peer_is_root(const struct receive *rv)
{
	return !rv->o->tls && !rv->o->server->insecure;
}

static int check_peer_vm(const struct receive *rv)
{
	const struct server_opts *s = rv->o->server;
	struct peer_vm_opts o = { .qemu = s->qemu, .user = s->user, .is_root = peer_is_root(rv), .give_qemu = "start its server with --qemu FILE",
				  .give_user = "start this host's server with --user USER, or, if all that it lets in may be root here, --user root" };

	return peer_vm_check(&o, rv->vm, rv->offer->offer->name);
}

// They change until the source stands, so that nothing but their being there can be checked. QEMU and the device state do the rest.
static int check_disks(const VmEntry *vm)
{
	int err = 0;

	for (size_t i = 0; i < vm->n_disks; i++) {
		const VmDiskEntry *d = vm->disks[i];
		struct stat st;

		if (d->has_size && (stat(d->path, &st) < 0 || !(S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))) {
			log_err("disk %s of the VM is not on this host: make it reachable there, or say with the server's --map where it is", d->path);
			err = -ENOENT;
		}
	}
	return err;
}

static uint64_t choose_budget(const struct receive *rv)
{
	const struct server_opts *s = rv->o->server;
	const WireOffer *offer = rv->offer->offer;
	uint64_t want = offer->ram, least = pv_min_budget(offer->ram);

	if (offer->has_budget) // too little is refused, with figures
		return offer->budget / PAGE_SIZE * PAGE_SIZE;
	if (s->vm_ram)
		want = s->vm_ram;
	else if (s->vm_percent)
		want = (uint64_t)((double)offer->ram * s->vm_percent / 100);
	want = want / PAGE_SIZE * PAGE_SIZE;
	return want > offer->ram ? offer->ram : want < least ? least : want;
}

static int reserve(struct receive *rv)
{
	char reason[512];
	int err = server_line_reserve(rv->o->line, rv->r.name, rv->r.state.budget, reason);

	if (err)
		log_err("%s", reason);
	return err;
}

// The folder, or the device, that a swap image of that path is in. The caller's; NULL: there is none.
static char *place_of(const char *path)
{
	_cleanup_free_ char *real = realpath(path, NULL), *copy = strdup(real ? real : path);
	struct stat st;

	if (!copy || (real && !stat(real, &st) && !S_ISREG(st.st_mode)))
		return steal_ptr(&real);
	return realpath(dirname(copy), NULL);
}

// What root writes because another host says so is where the server was told, or where swap images usually are.
static int check_swap(const struct receive *rv, const char *path)
{
	char usual[PATH_MAX];
	const char *allowed = rv->o->server->swap ? rv->o->server->swap : swap_registry_dir(usual);
	_cleanup_free_ char *place = place_of(path), *root = realpath(allowed, NULL);
	size_t len = root ? strlen(root) : 0;

	if (path[0] == '/' && place && root && !strncmp(place, root, len) && (!place[len] || place[len] == '/'))
		return 0;
	log_err("--swap %s: on this host swap images of VMs that arrive are in %s; start its server with another --swap, or leave it out", path, allowed);
	return -EPERM;
}

static int check_offer(struct receive *rv)
{
	const struct server_opts *s = rv->o->server;
	const WireOffer *offer = rv->offer->offer;
	int err = map_file_apply(rv->o->map, rv->vm);

	if (err || (err = check_peer_vm(rv)) || (err = check_disks(rv->vm)))
		return err;
	if (offer->swap && (err = check_swap(rv, offer->swap)))
		return err;
	rv->ro = (struct restore_opts){ .name = offer->name, .run_dir = s->run_dir, .log_file = s->log_file, .ram = choose_budget(rv), .qemu = s->qemu,
					.swap = offer->swap ? offer->swap : s->swap, .swap_sparse = s->swap_sparse,
					.tuning = s->tuning };
	rv->r.from_peer = true;
	rv->r.vm = rv->vm;
	rv->r.argv = rv->vm->argv;
	rv->r.argc = (int)rv->vm->n_argv;
	err = restore_lay_out(&rv->r);
	rv->r.state.arriving = true;
	return err;
}

int receive_offer(void *ctx)
{
	struct receive *rv = ctx;
	int err = say_hello(rv);

	// The commands' own monitor is free until it runs; the other is the pager's from the beginning.
	rv->r.monitor = "commands.sock";
	if (!err)
		err = receive_vm(rv);
	if (!err)
		err = check_offer(rv);
	if (!err && getrandom(rv->key, sizeof rv->key, 0) != sizeof rv->key)
		err = -EIO;
	if (!err)
		err = receive_lazy_offer(rv);
	if (!err)
		err = reserve(rv);
	if (!err)
		err = migration_prepare(rv->o->token, rv->r.name);
	if (!err)
		log_info("%s: VM '%s' is offered by %s", rv->r.name, rv->r.name, wire_peer(rv->c));
	return err;
}

void receive_offer_undo(void *ctx)
{
	struct receive *rv = ctx;

	migration_unprepare(rv->o->token);
}
