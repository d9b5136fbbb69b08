// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a page line comes
//
// What TOKEN.lazy says (migration_lazy.h) is what its source gets:
//
//	wanted             the VM's pager takes a copy of the connection, unread but for the preamble; it asks for the key
//	complete, ended    that, by us, if it has the key; TOKEN.lazy goes when it says that it holds nothing any more
//	nothing            it is refused
//
// A pager that has no use for a line, since all has come, and nobody has noted that yet, is a "complete". One that does not answer may
// have taken the connection nevertheless: then nobody else says a word on it.
#include <errno.h>
#include <gnutls/gnutls.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/cmd.h"
#include "criu-vm/migration_lazy.h"
#include "criu-vm/migration_record.h"
#include "criu-vm/receive.h"
#include "lazy-pages/control.h"
#include "util/clock.h"
#include "util/log.h"
#include "wire/conn.h"
#include "wire/pages.h"

#define ACCEPT_MS 10000
#define PAGER_MS 5000
#define SILENT_MS WIRE_LINE_LOST_MS
#define FINISH_MS 2000

enum passed { PASSED, ALL_HAVE_COME, HAS_ENDED, NOT_NOW, NOT_KNOWN };

static int accept_line(const struct receive_opts *o, int fd, struct wire_conn **c, struct wire_pages **pages)
{
	int err = wire_accept(fd, o->tls, ACCEPT_MS, c);

	if (err)
		return err;
	wire_set_interrupted(*c, cmd_interrupted);
	err = wire_pages_new(*c, pages);
	if (err)
		wire_close(*c);
	return err;
}

static void refuse(const struct receive_opts *o, int fd, enum wire_refusal why)
{
	struct wire_conn *c;
	struct wire_pages *pages;

	if (accept_line(o, fd, &c, &pages))
		return;
	log_info("%s: a page line is refused: %s", wire_peer(c), wire_refusal_text(why));
	if (!wire_line_refuse(pages, why))
		wire_finish(c, FINISH_MS); // its key is unread
	wire_pages_free(pages);
	wire_close(c);
}

// Whoever has seen the token, which is no secret, must not make us forget what the source does not know yet.
static int check_key(struct wire_conn *c, struct wire_pages *pages, const struct migration_lazy *l)
{
	uint8_t key[WIRE_KEY_LEN];
	int err;

	wire_set_deadline(c, clock_now_ns() + ACCEPT_MS * NSEC_PER_MSEC);
	err = wire_read(c, key, sizeof key);
	if (err || !gnutls_memcmp(key, l->key, sizeof key))
		return err;
	log_warn("%s: a page line with a wrong key was refused", wire_peer(c));
	if (!wire_line_refuse(pages, WIRE_REFUSED_KEY))
		wire_finish(c, FINISH_MS);
	return -EACCES;
}

// It may take its time to end a big QEMU, and then says ALIVE meanwhile.
static int wait_for_over(struct wire_conn *c, struct wire_pages *pages)
{
	struct wire_frame f;
	int r;

	do {
		wire_set_deadline(c, clock_now_ns() + SILENT_MS * NSEC_PER_MSEC);
		r = wire_poll(c, SILENT_MS); // the deadline is of what has begun
		if (r <= 0)
			return r ? r : -ETIMEDOUT;
		r = wire_pages_receive(pages, &f, NULL);
	} while (!r && f.type == WIRE_ALIVE);
	return r ? r : f.type == WIRE_OVER ? 0 : -EPROTO;
}

static int say_end(const struct receive_opts *o, int fd, const struct migration_lazy *l)
{
	uint8_t id[WIRE_LINE_ID_LEN];
	struct wire_conn *c;
	struct wire_pages *pages;
	int err = accept_line(o, fd, &c, &pages);

	if (err)
		return err;
	memcpy(id, o->token, WIRE_TOKEN_LEN);
	memcpy(id + WIRE_TOKEN_LEN, l->host_id, WIRE_TOKEN_LEN);
	err = check_key(c, pages, l);
	if (!err)
		err = wire_line_left(pages, l->state, 0, id);
	if (!err)
		err = wait_for_over(c, pages);
	if (!err) {
		log_info("%s holds nothing of VM '%s' any more", wire_peer(c), l->name);
		migration_forget(o->token); // it knows
		migration_lazy_remove(o->token);
	}
	wire_pages_free(pages);
	wire_close(c);
	return err;
}

static enum passed ask_pager(const struct run_dir *rd, unsigned line, int fd)
{
	char path[PATH_MAX];
	json_t *request = json_pack("{s:s s:i s:i s:i}", "execute", "line", "pid", (int)getpid(), "fd", fd, "line", (int)line), *answer = NULL;
	int err = lp_control_request(run_dir_file(rd, "control.sock", path, sizeof path), request, PAGER_MS, &answer);
	const char *error = json_string_value(json_object_get(answer, "error"));
	enum passed passed = err == -ENOENT || err == -ECONNREFUSED || error ? NOT_NOW : PASSED;

	if (!err && json_is_true(json_object_get(answer, "complete")))
		passed = ALL_HAVE_COME;
	if (error || err)
		log_info("VM '%s': its pager does not take a page line: %s", rd->name, error ? error : strerror(-err));
	json_decref(answer);
	return passed;
}

// All of it was killed at once: nobody is left who would have noted that.
static bool has_ended(const struct run_dir *rd)
{
	struct vm_state s;
	bool ended = !vm_state_load(rd, &s) && !vm_state_qemu_alive(&s, NULL);

	vm_state_fini(&s);
	return ended && !run_dir_is_held(rd, "supervisor");
}

static enum passed note_end(const struct receive_opts *o, const struct run_dir *rd)
{
	arrival_note_end(rd);
	return migration_lazy_is_there(o->token) ? HAS_ENDED : NOT_KNOWN;
}

static enum passed pass(const struct receive_opts *o, const struct migration_lazy *l, unsigned line, int fd)
{
	uint8_t its[WIRE_TOKEN_LEN];
	enum passed passed = NOT_NOW;
	struct run_dir rd;

	if (run_dir_open(l->run_root, l->name, &rd)) {
		log_warn("VM '%s' has no run directory in %s any more; whether it runs cannot be told", l->name, l->run_root);
		return NOT_NOW;
	}
	if (!arrival_token(&rd, its) && !memcmp(its, o->token, sizeof its))
		passed = has_ended(&rd) ? note_end(o, &rd) : ask_pager(&rd, line, fd);
	run_dir_close(&rd);
	return passed;
}

int receive_line(const struct receive_opts *o, unsigned line, int fd)
{
	struct migration_lazy l;
	int err = migration_lazy_find(o->token, &l);
	enum passed passed = l.state == WIRE_LINE_ENDED ? HAS_ENDED : ALL_HAVE_COME;

	if (err)
		passed = err == -ENOENT ? NOT_KNOWN : NOT_NOW;
	else if (l.state == WIRE_LINE_WANTS)
		passed = pass(o, &l, line, fd);
	if (passed == NOT_NOW || passed == NOT_KNOWN) {
		refuse(o, fd, passed == NOT_KNOWN ? WIRE_REFUSED_UNKNOWN : WIRE_REFUSED_NOW);
	} else if (passed == ALL_HAVE_COME || passed == HAS_ENDED) {
		l.state = passed == HAS_ENDED ? WIRE_LINE_ENDED : WIRE_LINE_COMPLETE;
		err = say_end(o, fd, &l);
	} else {
		close(fd);
	}
	migration_lazy_fini(&l);
	return err ? CMD_FAILED : CMD_OK;
}
