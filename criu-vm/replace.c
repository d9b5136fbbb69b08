// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/replace.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/restore_peer.h"
#include "criu-vm/supervisor.h"
#include "criu-vm/swap_registry.h"
#include "images/reader.h"
#include "lazy-pages/control.h"
#include "pvmem/swap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define ASK_TIMEOUT_MS 5000
#define SERVE_TIMEOUT_NS (30 * NSEC_PER_SEC)
#define LOOK_US 20000
#define SUPERVISOR_NS NSEC_PER_SEC // in which one has begun

struct replacing {
	const struct replace_opts *o;
	struct run_dir *rd;
	struct vm_state state;
	char control[PATH_MAX], exe[PATH_MAX];
	char *swap, *images; // absolute, or NULL
	char *remote, *remote_tls; // as in the state, or NULL
	int old_pager;       // 0: none answered
};

static int check_swap(struct replacing *p)
{
	const struct vm_state *s = &p->state;
	struct pv_swap swap;
	int r;

	if (!p->o->swap)
		return 0;
	if (!s->swap_path) {
		log_err("VM '%s' has no swap image", p->rd->name);
		return -EINVAL;
	}
	p->swap = realpath(p->o->swap, NULL);
	r = p->swap ? pv_swap_find(p->swap, s->nr_chunks * PV_CHUNK_SIZE, s->swap_token, &swap) : -errno;
	if (!r)
		pv_swap_close(&swap);
	else
		log_err("%s is not the swap image of VM '%s': %s", p->o->swap, p->rd->name, pv_swap_reason(r));
	return r;
}

static int check_images(struct replacing *p)
{
	struct img_dir *d;
	int r;

	if (!p->o->images)
		return 0;
	if (!p->state.images) {
		log_err("VM '%s' needs no images any more", p->rd->name);
		return -EINVAL;
	}
	p->images = realpath(p->o->images, NULL);
	r = img_dir_open(p->o->images, &d);
	if (r)
		return r;
	if (img_dir_id(d) != p->state.images_id || !p->images) {
		log_err("%s is another checkpoint than the one that VM '%s' was restored from", p->o->images, p->rd->name);
		r = -ESTALE;
	}
	img_dir_close(d);
	return r;
}

static int check_server(struct replacing *p)
{
	struct restore_peer_opts o = { .server = p->o->server, .insecure = p->o->insecure,
				       .tls_creds = p->o->tls_creds || p->o->insecure ? p->o->tls_creds : p->state.remote_tls };

	if (!p->o->server)
		return 0;
	if (p->state.remote && p->state.remote_connects)
		return restore_peer_find(&o, p->state.remote_id, &p->remote, &p->remote_tls);
	if (p->state.remote)
		log_err("VM '%s' has its pages from the host that it came from, which looks for this one: criu-vm migrate --resume there tells it "
			"another address", p->rd->name);
	else
		log_err("VM '%s' needs no server of its pages", p->rd->name);
	return -EINVAL;
}

static int pager_pid(const struct replacing *p, const char **trouble, json_t **answer)
{
	if (lp_control_ask(p->control, "stat", ASK_TIMEOUT_MS, answer))
		return 0;
	*trouble = json_string_value(json_object_get(*answer, "trouble"));
	return (int)json_integer_value(json_object_get(*answer, "pager_pid"));
}

// One of an earlier version would write down the state that the next one begins with, and leave that out of it. now: its stat.
static int check_paging(const struct replacing *p, const json_t *now)
{
	if (!p->o->paging)
		return 0;
	if (!p->state.paging) {
		log_err("VM '%s' is not paged: it was restored without --ram and --lazy-pages", p->rd->name);
		return -EINVAL;
	}
	if (!p->old_pager || json_object_get(now, "tuning"))
		return 0;
	log_err("VM '%s': its pager is of an earlier version, which knows no --paging; replace it without that first: "
		"criu-vm lazy-pages --name %s", p->rd->name, p->rd->name);
	return -EPROTO;
}

// The pager makes room for another by itself.
static int ask_pager(struct replacing *p)
{
	json_t *request = json_pack("{s:s s:s}", "execute", "replace", "exe", p->exe), *answer = NULL;
	const char *error;
	int r;

	if (p->swap)
		json_object_set_new(request, "swap", json_string(p->swap));
	if (p->images)
		json_object_set_new(request, "images", json_string(p->images));
	if (p->o->paging)
		json_object_set_new(request, "paging", json_string(p->o->paging));
	if (p->remote) {
		json_object_set_new(request, "remote", json_string(p->remote));
		json_object_set_new(request, "remote_insecure", json_boolean(p->o->insecure));
		json_object_set_new(request, "remote_tls", p->remote_tls ? json_string(p->remote_tls) : json_null());
	}
	r = lp_control_request(p->control, request, ASK_TIMEOUT_MS, &answer);
	error = json_string_value(json_object_get(answer, "error"));
	if (error) {
		log_err("VM '%s': %s", p->rd->name, error);
		r = -EBUSY;
	} else if (r) {
		log_err("VM '%s': its pager does not answer (%s); if it never does, kill -9 it: another follows", p->rd->name, strerror(-r));
	}
	json_decref(answer);
	return r;
}

static int replace_serving(struct replacing *p)
{
	int r = 0;

	if (!run_dir_is_held(p->rd, "supervisor")) // its first pager waits for the lock until this one has left
		r = supervisor_start(p->rd, &p->state);
	for (unsigned i = 0; !r && !run_dir_is_held(p->rd, "supervisor"); i++) {
		if (i * LOOK_US > 1000UL * ASK_TIMEOUT_MS)
			r = -ETIMEDOUT;
		usleep(LOOK_US);
	}
	return r ? r : ask_pager(p);
}

static int replace_string(char **to, const char *s)
{
	char *copy = s ? strdup(s) : NULL;

	if (s && !copy)
		return -ENOMEM;
	if (s) {
		free(*to);
		*to = copy;
	}
	return 0;
}

// Nobody serves: what the next pager is to find is written here.
static int prepare(struct replacing *p)
{
	int r = run_dir_mark(p->rd, "exe", p->exe);
	char why[128];

	if (p->o->paging)
		pv_tuning_parse(p->o->paging, &p->state.tuning, why);
	if (!r)
		r = replace_string(&p->state.swap_path, p->swap);
	if (!r)
		r = replace_string(&p->state.images, p->images);
	if (p->remote) { // with what it says of it, or does not
		p->state.remote_insecure = p->o->insecure;
		free(steal_ptr(&p->state.remote_tls));
	}
	if (!r)
		r = replace_string(&p->state.remote, p->remote);
	if (!r)
		r = replace_string(&p->state.remote_tls, p->remote_tls);
	return r || (!p->swap && !p->images && !p->remote && !p->o->paging) ? r : vm_state_save(p->rd, &p->state);
}

// The supervisor that there is starts a pager by itself, or we start one that does.
static int start_pager(struct replacing *p)
{
	int r;

	if (run_dir_lock(p->rd)) {
		log_err("VM '%s' is being restored, or its pager is starting; try again", p->rd->name);
		return -EBUSY;
	}
	r = prepare(p);
	flock(p->rd->fd, LOCK_UN);
	return r || run_dir_is_held(p->rd, "supervisor") ? r : supervisor_start(p->rd, &p->state);
}

// Whoever was to start the pager may have been killed since.
static void keep_supervised(const struct replacing *p, uint64_t *next)
{
	if (clock_now_ns() < *next)
		return;
	if (!run_dir_is_held(p->rd, "supervisor"))
		supervisor_start(p->rd, &p->state);
	*next = clock_now_ns() + SUPERVISOR_NS;
}

static int wait_until_served(const struct replacing *p)
{
	uint64_t end = clock_now_ns() + SERVE_TIMEOUT_NS, look = clock_now_ns() + SUPERVISOR_NS;
	json_t *answer = NULL;
	const char *trouble = NULL;
	int pid;

	for (;;) {
		pid = pager_pid(p, &trouble, &answer);
		if ((pid && pid != p->old_pager && !trouble) || clock_now_ns() > end || !vm_state_qemu_alive(&p->state, NULL))
			break;
		json_decref(answer);
		answer = NULL;
		trouble = NULL;
		if (!pid)
			keep_supervised(p, &look);
		usleep(LOOK_US);
	}
	if (pid && pid != p->old_pager && !trouble)
		printf("%s: served by pager %d\n", p->rd->name, pid);
	else if (!vm_state_qemu_alive(&p->state, NULL))
		log_err("VM '%s' has ended", p->rd->name);
	else
		log_err("VM '%s': %s; the guest waits; see %s", p->rd->name, trouble ? trouble : "no pager serves it", p->state.log ? p->state.log : "its log");
	json_decref(answer);
	return pid && pid != p->old_pager && !trouble ? CMD_OK : CMD_ATTENTION;
}

static int find_exe(struct replacing *p)
{
	ssize_t len = readlink("/proc/self/exe", p->exe, sizeof p->exe - 1);

	if (len < 0)
		return -errno;
	p->exe[len] = 0;
	return 0;
}

int replace_pager(const struct replace_opts *o, struct run_dir *rd)
{
	struct replacing p = { .o = o, .rd = rd };
	json_t *answer = NULL;
	const char *trouble;
	int r = vm_state_load(rd, &p.state);

	if (r == -ENOENT)
		log_err("VM '%s' is being restored", rd->name);
	if (r)
		return CMD_FAILED;
	run_dir_file(rd, "control.sock", p.control, sizeof p.control);
	if (!vm_state_qemu_alive(&p.state, NULL)) {
		log_err("VM '%s' has ended", rd->name);
		r = -ESRCH;
	}
	if (!r && !(r = find_exe(&p)) && !(r = check_swap(&p)) && !(r = check_images(&p)) && !(r = check_server(&p))) {
		p.old_pager = pager_pid(&p, &trouble, &answer);
		r = check_paging(&p, answer);
		json_decref(answer);
		if (!r)
			r = p.old_pager ? replace_serving(&p) : start_pager(&p);
	}
	if (!r && p.swap)
		swap_registry_add(rd->name, p.swap, p.state.swap_token);
	r = r ? CMD_FAILED : wait_until_served(&p);
	free(p.swap);
	free(p.images);
	free(p.remote);
	free(p.remote_tls);
	vm_state_fini(&p.state);
	return r;
}
