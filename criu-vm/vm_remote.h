// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a VM whose pages another host has, as its pagers see it
//
// What its state says of that (run_dir.h) becomes a page source (lazy-pages/remote.h), of each pager anew, in two ways:
//
//	a migration            the source connects, to the server, which hands the connection over: the command "line"
//	a served checkpoint    the pager connects
//
// Pages of the first kind come once. When none is missing any more, the next pager must not look for them; then TOKEN.lazy is "complete", for a
// source that asks; then the lines say so. Before the VM is this host's, nobody is told anything: all that is put off until it runs.
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "lazy-pages/pager.h"
#include "lazy-pages/remote.h"

struct vm_pager;
struct vm_state;

// Part of struct vm_pager; zeros: there is none.
struct vm_remote {
	struct lp_remote *lp;
	struct wire_tls *tls;
	char *host;		       // that we connect to
	uint64_t (*in_images)[PV_WORDS]; // mapped
	bool awaits_tls; // its credentials cannot be read: it takes no line
	bool has_had_line;
	bool is_dropped; // nothing is missing since all had come before the VM arrived: TOKEN.lazy is still there
	bool is_done;	 // the pager was told that nothing is missing, and nobody else yet
};

// vm_state.remote_id of this id. The caller's; NULL: out of memory.
char *vm_remote_format_id(const uint8_t id[WIRE_LINE_ID_LEN]);

// The page source, if the state names one and it is not there yet. Guest RAM's blocks are mapped. May be tried again after an error. Logs.
int vm_remote_start(struct vm_pager *v);
// It is told to whom the pages go. May be tried again, too. Logs.
int vm_remote_describe_paging(struct vm_pager *v, struct lp_paging *paging);
// All that comes before the VM runs has come: is anything left, and where? The receiver has noted that in the state. Logs.
int vm_remote_arrived(struct vm_pager *v);
// The VM runs: what was put off is done. Blocks on the disk, if there is something.
void vm_remote_begun(struct vm_pager *v);
// No page is missing any more, and the state says so.
void vm_remote_complete(struct vm_pager *v);
// Before, and after, the pager's loop and engine are freed.
void vm_remote_stop(struct vm_pager *v);
void vm_remote_fini(struct vm_pager *v);

// The command "line": {"pid", "fd", "line"}. {} when it was taken; {"complete": true}: nothing is missing any more; {"error"}.
json_t *vm_remote_take_line(struct vm_pager *v, const json_t *request);
// Of stat: an object, or null. Never NULL.
json_t *vm_remote_describe(const struct vm_pager *v);
