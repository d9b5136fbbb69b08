// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/vm_remote.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/migration_lazy.h"
#include "criu-vm/server.h"
#include "criu-vm/vm_pager_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

_Static_assert(WIRE_KEY_LEN == WIRE_TOKEN_LEN && WIRE_LINE_ID_LEN == 2 * WIRE_TOKEN_LEN, "a key is written as a token is, an id as two");

char *vm_remote_format_id(const uint8_t id[WIRE_LINE_ID_LEN])
{
	char first[WIRE_TOKEN_TEXT], second[WIRE_TOKEN_TEXT], *text;

	return asprintf(&text, "%s%s", wire_token_format(id, first), wire_token_format(id + WIRE_TOKEN_LEN, second)) < 0 ? NULL : text;
}

static int parse_id(const char *text, uint8_t id[WIRE_LINE_ID_LEN])
{
	char first[WIRE_TOKEN_TEXT];

	if (strlen(text) != 2 * (WIRE_TOKEN_TEXT - 1))
		return -EINVAL;
	snprintf(first, sizeof first, "%.*s", WIRE_TOKEN_TEXT - 1, text);
	return wire_token_parse(first, id) ? -EINVAL : wire_token_parse(text + WIRE_TOKEN_TEXT - 1, id + WIRE_TOKEN_LEN);
}

static uint64_t count_missing(const struct vm_pager *v)
{
	return lp_pager_serves(v->lp) ? pv_engine_missing(lp_pager_engine(v->lp)) : 0;
}

static uint64_t missing(void *ctx)
{
	return count_missing(ctx);
}

// fn of the VM's migration. Logs.
static void note(const struct vm_pager *v, void (*fn)(const uint8_t token[WIRE_TOKEN_LEN]))
{
	uint8_t token[WIRE_TOKEN_LEN];

	if (!arrival_token(v->rd, token))
		fn(token);
}

static void over(void *ctx)
{
	log_info("no other host holds pages of the VM any more");
	note(ctx, migration_forget); // it knows
	note(ctx, migration_lazy_remove);
}

// ---- the page source

static int set_addresses(struct vm_pager *v, struct lp_remote_opts *o)
{
	const struct vm_state *s = &v->state;
	int r = parse_id(s->remote_id, o->id);

	free(steal_ptr(&v->remote.host));
	if (!r && s->remote_connects)
		r = wire_parse_address(s->remote, &v->remote.host, &o->port);
	if (!r && !s->remote_connects)
		r = wire_token_parse(s->remote_key, o->key);
	if (r || s->remote_lines > LP_REMOTE_LINES_MAX) {
		log_err("%s/state: what it says of the host that has pages of the VM cannot be used", v->rd->path);
		return -EPROTO;
	}
	o->host = v->remote.host;
	memcpy(o->token, o->id, sizeof o->token);
	return 0;
}

static int load_tls(struct vm_pager *v)
{
	int r = v->state.remote_tls && !v->remote.tls ? wire_tls_load(v->state.remote_tls, !v->state.remote_connects, &v->remote.tls) : 0;

	v->remote.awaits_tls = r;
	return r;
}

int vm_remote_start(struct vm_pager *v)
{
	const struct vm_state *s = &v->state;
	struct lp_remote_opts o = { .loop = lp_pager_loop(v->lp), .blocks = v->blocks, .nr_blocks = s->nr_blocks, .nr_lines = s->remote_lines,
				    .ctx = v, .missing = missing, .over = over };
	int r;

	if (!s->remote || v->remote.lp)
		return 0;
	r = set_addresses(v, &o);
	if (r)
		return r;
	r = load_tls(v);
	if (r && (s->remote_connects || vm_arrival_is_pending(v)))
		return r; // else what is here is served meanwhile
	o.tls = v->remote.tls;
	if (s->remote_connects && !o.tls && !s->remote_insecure)
		o.trusts = server_peer_is_ours; // as restore has asked; anybody may listen where the server was
	r = lp_remote_new(&o, &v->remote.lp);
	if (r)
		log_err("cannot set up what fetches pages from %s: %s", s->remote, strerror(-r));
	return r;
}

// A file of the run directory that has so many bytes for each chunk: which no other VM's has.
static int open_list(const struct vm_pager *v, const char *file, size_t len, int *fd)
{
	struct stat st;
	int r = 0;

	*fd = openat(v->rd->fd, file, O_RDONLY | O_CLOEXEC);
	if (*fd < 0 || fstat(*fd, &st) < 0)
		r = -errno;
	else if ((uint64_t)st.st_size != len)
		r = -EBADMSG;
	return r;
}

static int map_in_images(struct vm_pager *v)
{
	size_t len = v->state.nr_chunks * sizeof *v->remote.in_images;
	_cleanup_close_ int fd = -1;
	void *p = MAP_FAILED;
	int r;

	if (v->remote.in_images)
		return 0;
	r = open_list(v, "in-images", len, &fd);
	if (!r && (p = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
		r = -errno;
	if (r)
		log_err("%s/in-images, which pages of the VM are in images: %s", v->rd->path, strerror(-r));
	else
		v->remote.in_images = p;
	return r;
}

int vm_remote_describe_paging(struct vm_pager *v, struct lp_paging *paging)
{
	int r;

	if (!v->state.remote)
		return 0;
	r = v->state.images ? map_in_images(v) : 0;
	if (r)
		return r;
	paging->remote = v->remote.lp;
	paging->in_images = v->state.images ? (const uint64_t (*)[PV_WORDS])v->remote.in_images : NULL;
	paging->source_once = !v->state.remote_connects;
	return 0;
}

void vm_remote_stop(struct vm_pager *v)
{
	lp_remote_stop(v->remote.lp);
}

void vm_remote_fini(struct vm_pager *v)
{
	lp_remote_free(v->remote.lp);
	wire_tls_free(v->remote.tls);
	free(v->remote.host);
	if (v->remote.in_images)
		munmap(v->remote.in_images, v->state.nr_chunks * sizeof *v->remote.in_images);
}

// ---- its life

// A source that has connected lines waits to hear, on them, that nothing is missing, also if nothing ever was.
int vm_remote_arrived(struct vm_pager *v)
{
	struct vm_state now;
	int r;

	if (!v->state.remote)
		return 0;
	r = vm_state_load(v->rd, &now);
	if (r)
		return r == -ENOENT ? -EPROTO : r;
	free(v->state.images);
	v->state.images = steal_ptr(&now.images);
	if (!now.remote && !v->remote.has_had_line) {
		free(steal_ptr(&v->state.remote));
		lp_remote_stop(v->remote.lp);
		v->remote.is_dropped = true;
	} else if (!now.remote) {
		r = vm_state_save(v->rd, &v->state);
	}
	vm_state_fini(&now);
	return r;
}

// If that cannot be written, the server asks us, or who follows, and is told.
static void note_complete(const uint8_t token[WIRE_TOKEN_LEN])
{
	struct migration_lazy l;

	if (migration_lazy_find(token, &l))
		return;
	if (l.state == WIRE_LINE_WANTS) {
		l.state = WIRE_LINE_COMPLETE;
		migration_lazy_save(token, &l);
	}
	migration_lazy_fini(&l);
}

void vm_remote_complete(struct vm_pager *v)
{
	if (!v->remote.lp || v->remote.is_dropped)
		return;
	if (!v->state.remote_connects)
		note(v, note_complete);
	lp_remote_complete(v->remote.lp);
}

void vm_remote_begun(struct vm_pager *v)
{
	if (v->remote.is_dropped)
		note(v, migration_lazy_remove);
	else if (!v->state.remote)
		note(v, note_complete); // the pager before us may have been killed in between
	if (v->remote.is_done)
		vm_pager_source_done(v);
	v->remote.is_done = false;
}

// ---- what clients ask for

static json_t *error(const char *what)
{
	return json_pack("{s:s}", "error", what);
}

// A copy of a socket of the server's child; what else it may be is not taken.
static int fetch_socket(const json_t *request, int *fd)
{
	pid_t pid = (pid_t)json_integer_value(json_object_get(request, "pid"));
	int number = (int)json_integer_value(json_object_get(request, "fd"));
	char path[48], kind[64] = "";

	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, number);
	if (pid <= 0 || readlink(path, kind, sizeof kind - 1) < 0 || strncmp(kind, "socket:[", strlen("socket:[")) != 0)
		return -EINVAL;
	return mm_fetch_fd(pid, number, kind, fd);
}

json_t *vm_remote_take_line(struct vm_pager *v, const json_t *request)
{
	json_int_t line = json_integer_value(json_object_get(request, "line"));
	int fd, r;

	if (v->state.remote_connects && v->state.remote)
		return error("its pages come from a served checkpoint");
	if (!v->state.remote && vm_arrival_is_pending(v))
		return error("it is not this host's yet");
	if (!v->state.remote && (!v->remote.lp || v->remote.is_dropped))
		return json_pack("{s:b}", "complete", true);
	r = v->remote.lp ? 0 : -EAGAIN;
	if (!r && (line < 0 || line >= LP_REMOTE_LINES_MAX))
		r = -EINVAL;
	if (!r && v->remote.awaits_tls) {
		r = load_tls(v);
		lp_remote_set_tls(v->remote.lp, v->remote.tls);
	}
	if (!r)
		r = fetch_socket(request, &fd);
	if (!r)
		r = lp_remote_accept(v->remote.lp, (unsigned)line, fd);
	if (r)
		return error(strerror(-r));
	v->remote.has_had_line = true;
	return json_object();
}

json_t *vm_remote_describe(const struct vm_pager *v)
{
	struct lp_remote_stats s;
	json_t *j;

	if (!v->state.remote)
		return json_null();
	j = json_pack("{s:s s:i s:I}", "from", v->state.remote, "lines_wanted", (int)v->state.remote_lines, "pages_left",
		      (json_int_t)count_missing(v));
	if (!j || !v->remote.lp)
		return j ? j : json_null();
	lp_remote_stats(v->remote.lp, &s);
	json_object_set_new(j, "lines", json_integer(s.lines));
	json_object_set_new(j, "pages_read", json_integer((json_int_t)s.pages));
	json_object_set_new(j, "zero_pages", json_integer((json_int_t)s.zero_pages));
	json_object_set_new(j, "bytes", json_integer((json_int_t)s.bytes));
	json_object_set_new(j, "waiting", json_integer(s.waiting));
	if (v->remote.awaits_tls)
		snprintf(s.trouble, sizeof s.trouble, "the credentials in %.80s cannot be read", v->state.remote_tls);
	json_object_set_new(j, "trouble", s.trouble[0] ? json_string(s.trouble) : json_null());
	json_object_set_new(j, "alone_s", json_real((double)s.alone_ns / NSEC_PER_SEC));
	return j;
}
