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

#include "criu-vm/map_file.h"
#include "criu-vm/receive_int.h"
#include "criu-vm/swap_registry.h"
#include "images/format.h"
#include "images/valid.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

#define SAY_MS 15000
#define SOFTWARE "criu-vm"

static int answer_hello(struct receive *rv, const WireHello *hello)
{
	WireHello answer = WIRE_HELLO__INIT;
	WireMsg m = WIRE_MSG__INIT;

	if (hello->token.len != WIRE_TOKEN_LEN || memcmp(hello->token.data, rv->o->token, WIRE_TOKEN_LEN) != 0) {
		log_err("%s: its connection began with another token than it says it has: somebody in between has changed it", wire_peer(rv->c));
		return -EPROTO;
	}
	if (hello->version_min > WIRE_VERSION || hello->version < WIRE_VERSION) {
		log_err("%s speaks versions %u to %u of the protocol, and this host version %u; use the same criu-vm on both", hello->software,
			hello->version_min, hello->version, WIRE_VERSION);
		return -EPROTONOSUPPORT;
	}
	answer.version = answer.version_min = WIRE_VERSION;
	answer.features = hello->features & WIRE_FEATURE_ZSTD;
	answer.software = SOFTWARE;
	answer.token.data = (uint8_t *)rv->o->token;
	answer.token.len = WIRE_TOKEN_LEN;
	m.hello = &answer;
	return wire_send(rv->c, &m);
}

static int say_hello(struct receive *rv)
{
	WireMsg *m;
	int err = receive_expect(rv, SAY_MS, offsetof(WireMsg, hello), &m);

	if (err)
		return err;
	err = answer_hello(rv, m->hello);
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
	if (!fault && rv->vm->cwd[0] != '/')
		fault = "its folder is no absolute path";
	if (!fault)
		return 0;
	log_err("%s: the description of the VM is not accepted: %s", wire_peer(rv->c), fault);
	return -EBADMSG;
}

// What root runs because another host says so has to be a QEMU, and root's. What --qemu names is the server's matter.
static int check_qemu(const struct receive *rv)
{
	const char *path = rv->o->server->qemu ? rv->o->server->qemu : rv->vm->qemu_path;
	_cleanup_free_ char *real = realpath(path, NULL);
	const char *base = real ? strrchr(real, '/') + 1 : "";
	struct stat st;

	if (!real || path[0] != '/' || stat(real, &st) < 0 || !S_ISREG(st.st_mode) || access(real, X_OK) < 0) {
		log_err("there is no QEMU %s on this host; start its server with --qemu FILE", path);
		return -ENOENT;
	}
	if (rv->o->server->qemu || geteuid())
		return 0;
	if (strncmp(base, "qemu-", 5) != 0 && strcmp(base, "kvm") != 0) {
		log_err("%s does not look like a QEMU; if it is one, start the server with --qemu FILE", real);
		return -EPERM;
	}
	if (!st.st_uid && !(st.st_mode & (S_IWGRP | S_IWOTH)))
		return 0;
	log_err("%s is not root's, or others may write it; if you trust it, start the server with --qemu FILE", real);
	return -EPERM;
}

// In the clear, and not for all the world, the server lets in only root of this host, and who it runs as.
static bool peer_is_root(const struct receive *rv)
{
	return !rv->o->tls && !rv->o->server->insecure;
}

// -1 is nobody, but becoming that changes nothing.
static bool is_root(const VmEntry *vm)
{
	return !vm->uid || !vm->gid || vm->uid == (uid_t)-1 || vm->gid == (gid_t)-1;
}

static int choose_user(struct receive *rv)
{
	const char *name = rv->o->server->user;
	uid_t uid;
	gid_t gid;

	if (!name && !geteuid() && !peer_is_root(rv) && is_root(rv->vm)) {
		log_err("VM '%s' runs as user %u of group %u, and other hosts do not decide what runs as root here: start this host's server with "
			"--user USER, or, if all that it lets in may be root here, --user root", rv->offer->offer->name, rv->vm->uid, rv->vm->gid);
		return -EPERM;
	}
	if (!name)
		return 0;
	if (server_user(name, &uid, &gid)) {
		log_err("there is no user '%s' on this host, as whom the server was told to run VMs", name);
		return -ENOENT;
	}
	rv->vm->uid = uid;
	rv->vm->gid = gid;
	return 0;
}

static int choose_folder(VmEntry *vm)
{
	struct stat st;
	char *root;

	if (!stat(vm->cwd, &st) && S_ISDIR(st.st_mode))
		return 0;
	log_warn("there is no folder %s here, in which the VM was started: it is started in /, so all its paths have to be absolute", vm->cwd);
	root = strdup("/");
	if (!root)
		return -ENOMEM;
	free(vm->cwd);
	vm->cwd = root;
	return 0;
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

	if (err || (err = check_qemu(rv)) || (err = choose_user(rv)) || (err = choose_folder(rv->vm)) || (err = check_disks(rv->vm)))
		return err;
	if (offer->swap && (err = check_swap(rv, offer->swap)))
		return err;
	rv->ro = (struct restore_opts){ .name = offer->name, .run_dir = s->run_dir, .log_file = s->log_file, .ram = choose_budget(rv), .qemu = s->qemu,
					.swap = offer->swap ? offer->swap : s->swap, .swap_sparse = s->swap_sparse };
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
