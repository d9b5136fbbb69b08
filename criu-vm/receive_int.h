// SPDX-License-Identifier: GPL-2.0-only
// Shared by the files of a receiver only:
//
//   receive.c         the stages, the control channel, answers to ASK
//   receive_offer.c   what is offered, and whether it can be had
//   receive_lazy.c    what is different if pages may be missing when the VM is to run
//   receive_taps.c    the VM's network interfaces
//   receive_rounds.c  documents, data channels, rounds
//   receive_commit.c  from "all pages are here" to "it runs"
#pragma once
#include "criu-vm/migration_record.h"
#include "criu-vm/receive.h"
#include "criu-vm/receive_pages.h"
#include "criu-vm/restore.h"
#include "qemu/cmdline.h"
#include "wire/control.h"

struct receive {
	struct restore r; // the first, for its stages
	struct restore_opts ro;
	const struct receive_opts *o;
	struct wire_conn *c;
	struct wire_keepalive *keepalive;

	uint64_t features; // of both
	WireMsg *offer;
	WireMsg *early; // came before the data channels were all there, or NULL
	VmEntry *vm;
	struct qemu_cmdline_net *nets; // its taps, until QEMU has them
	size_t nr_nets;

	struct wire_conn *channels[WIRE_MAX_CHANNELS];
	unsigned nr_channels;
	uint8_t key[WIRE_KEY_LEN];
	struct pv_placement placement;
	struct receive_pages *pages;
	unsigned round;
	uint64_t announced_ns; // when the last round was
	uint64_t stood_ns;     // from then until the VM ran

	struct qemu_small_block *small; // as they came before the VM stood
	size_t nr_small;
	DeviceStateEntry *state;
	uint64_t page_ins, page_outs;
	uint64_t (*in_images)[PV_WORDS]; // pages that come from images, mapped; NULL: none can
	bool told;      // the source knows that this failed, or has said so itself
	bool committed; // the VM is this host's
};

// receive.c
// The next message; the caller's. Meanwhile QEMU, the pager and the data channels are watched. timeout_ms: 0: as long as the line
// lives. Logs; -ETIMEDOUT too.
int receive_message(struct receive *rv, unsigned timeout_ms, WireMsg **m);
// The same; anything but kind (offsetof(WireMsg, KIND)) is -EPROTO, logged.
int receive_expect(struct receive *rv, unsigned timeout_ms, size_t kind, WireMsg **m);
// restore.gives_up, while it is the destination's turn: the source does not want it any more, or something has ended. Logs.
bool receive_gives_up(void *r);
// An undo: the source learns that it was in vain, and why, before all of that is undone.
void receive_tell_abort(void *ctx);

// receive_offer.c: a stage.
int receive_offer(void *ctx);
void receive_offer_undo(void *ctx);

// receive_lazy.c: all of these do nothing if the source has not offered that.
// The state that its pagers begin with; it is laid out, and has its key. Logs.
int receive_lazy_offer(struct receive *rv);
// Before the source is admitted: its lines may come from then on. Logs.
int receive_lazy_admit(struct receive *rv);
// All that comes before it runs has come: its pager finds in the state what has not. Logs.
int receive_lazy_arrived(struct receive *rv);
// It runs: is TOKEN.lazy still there, for the source's lines? If nothing was missing, waits a little until its pager has removed it.
bool receive_lazy_goes_on(const struct receive *rv);
void receive_lazy_fini(struct receive *rv);

// receive_taps.c: a stage.
int receive_taps(void *ctx);
void receive_taps_undo(void *ctx);

// receive_rounds.c: stages.
int receive_admit(void *ctx);
void receive_admit_undo(void *ctx);
int receive_rounds(void *ctx);
// Threads, channels and plan, in the end. May be called again.
void receive_rounds_fini(struct receive *rv);

// receive_commit.c: stages.
int receive_plant(void *ctx);
int receive_attach(void *ctx);
int receive_serve(void *ctx);
int receive_load(void *ctx);
int receive_ready(void *ctx);
int receive_commit(void *ctx);
int receive_running(void *ctx);
int receive_done(void *ctx);
