// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/receive_int.h"
#include "images/valid.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

#define CHANNELS_MS 30000
#define GLANCE_MS 100
#define CHANNEL_MS 10000

// ---- data channels

static int admit(struct receive *rv)
{
	WireAdmit a = WIRE_ADMIT__INIT;
	WireMsg m = WIRE_MSG__INIT;
	uint8_t host[WIRE_TOKEN_LEN];
	int err = migration_host_id(host);

	if (err)
		return err;

	a.name = rv->r.name;
	a.budget = rv->r.state.budget;
	a.swap = rv->r.state.budget < rv->r.ram ? rv->r.nr_chunks * PV_CHUNK_SIZE : 0;
	a.channels = rv->offer->offer->channels;
	a.host.data = host;
	a.host.len = sizeof host;
	a.key.data = rv->key;
	a.key.len = sizeof rv->key;
	a.has_images = a.images = rv->in_images != NULL;
	m.admit = &a;
	return wire_send(rv->c, &m);
}

// Whoever knows the token can come, since that is said in the clear; the key is known to the source only.
static bool knows_key(const struct receive *rv, struct wire_conn *c)
{
	uint8_t key[WIRE_KEY_LEN];

	wire_set_timeout(c, CHANNEL_MS);
	if (wire_read(c, key, sizeof key) || memcmp(key, rv->key, sizeof key) != 0) {
		log_warn("%s: a data channel that does not belong to the migration is closed", wire_peer(c));
		return false;
	}
	wire_set_timeout(c, WIRE_LOST_MS);
	return true;
}

// What the source says while its channels come: that it gives up, or the first of what follows.
static int listen_meanwhile(struct receive *rv)
{
	int err;

	if (rv->early || wire_poll(rv->c, 0) <= 0)
		return 0;
	err = wire_receive(rv->c, 1, &rv->early);
	if (err && err != -ECONNABORTED && err != -ETIMEDOUT)
		log_err("%s: the line is lost: %s", wire_peer(rv->c), strerror(-err));
	rv->told |= err == -ECONNABORTED;
	return err == -ETIMEDOUT ? 0 : err;
}

// -ETIMEDOUT: none has come by then.
static int next_channel(struct receive *rv, uint64_t end, unsigned *i, int *fd)
{
	int err = -ETIMEDOUT;

	while (err == -ETIMEDOUT && clock_now_ns() < end) {
		err = listen_meanwhile(rv);
		if (!err)
			err = server_line_channel(rv->o->line, GLANCE_MS, i, fd);
	}
	return err;
}

static int take_channels(struct receive *rv)
{
	uint64_t end = clock_now_ns() + CHANNELS_MS * NSEC_PER_MSEC;
	unsigned nr = rv->offer->offer->channels;

	for (unsigned have = 0; have < nr;) {
		struct wire_conn *c;
		unsigned i;
		int fd, err = next_channel(rv, end, &i, &fd);

		if (err) {
			log_err("%s: %u of %u data channels have come: %s", wire_peer(rv->c), have, nr, strerror(-err));
			return err;
		}
		if (wire_accept(fd, rv->o->tls, CHANNEL_MS, &c))
			continue;
		wire_set_interrupted(c, cmd_interrupted);
		if (i >= nr || rv->channels[i] || !knows_key(rv, c)) {
			wire_close(c);
			continue;
		}
		rv->channels[i] = c;
		have++;
	}
	rv->nr_channels = nr;
	return 0;
}

int receive_admit(void *ctx)
{
	struct receive *rv = ctx;
	struct restore *r = &rv->r;
	int err = pv_placement_init(&rv->placement, &r->swap, r->blocks, r->nr_blocks, r->pages, r->nr_chunks,
				    r->state.budget < r->ram ? pv_placement_budget(r->state.budget) : r->nr_chunks * PV_CHUNK_SIZE);

	if (!err)
		err = receive_lazy_admit(rv);
	if (!err)
		err = admit(rv);
	if (!err)
		err = take_channels(rv);
	if (err)
		receive_admit_undo(rv);
	return err;
}

void receive_rounds_fini(struct receive *rv)
{
	receive_pages_stop(rv->pages);
	receive_pages_free(steal_ptr(&rv->pages));
	for (unsigned i = 0; i < WIRE_MAX_CHANNELS; i++)
		wire_close(steal_ptr(&rv->channels[i]));
	pv_placement_fini(&rv->placement);
	rv->nr_channels = 0;
}

void receive_admit_undo(void *ctx)
{
	struct receive *rv = ctx;

	if (rv->nr_channels)
		receive_tell_abort(rv);
	receive_rounds_fini(rv);
}

// ---- documents

static int take_plan(struct receive *rv)
{
	_cleanup_free_ void *hotness = NULL;
	size_t len, want = rv->r.nr_chunks * WIRE_HOTNESS_LEN;
	int err;

	if (rv->early && !rv->early->piece) {
		log_err("%s: said something else than was its turn to say", wire_peer(rv->c));
		return -EPROTO;
	}
	err = wire_receive_document_from(rv->c, rv->early, WIRE_DOCUMENT_KIND__WIRE_DOC_HOTNESS, want, &hotness, &len);
	if (err)
		return err;
	err = len == want ? pv_placement_plan(&rv->placement, hotness, rv->r.nr_chunks) : -EBADMSG;
	if (err)
		log_err("%s: what it says of how hot its chunks are cannot be of this VM", wire_peer(rv->c));
	return err || !rv->r.paging ? err : restore_note_hotness(&rv->r, hotness);
}

static int unpack_state(struct receive *rv, const void *packed, size_t len, const char *(*find_fault)(const DeviceStateEntry *ds),
			DeviceStateEntry **out)
{
	DeviceStateEntry *ds = device_state_entry__unpack(NULL, len, packed);
	const char *fault = ds ? find_fault(ds) : "it cannot be read";

	if (!fault) {
		*out = ds;
		return 0;
	}
	log_err("%s: the device state is not accepted: %s", wire_peer(rv->c), fault);
	if (ds)
		device_state_entry__free_unpacked(ds, NULL);
	return -EBADMSG;
}

static int take_small(struct receive *rv)
{
	_cleanup_free_ void *packed = NULL;
	DeviceStateEntry *ds = NULL;
	size_t len;
	int err = wire_receive_document(rv->c, WIRE_DOCUMENT_KIND__WIRE_DOC_SMALL, WIRE_DOC_MAX, &packed, &len);

	if (!err)
		err = unpack_state(rv, packed, len, img_small_blocks_fault, &ds);
	if (!err)
		err = restore_expand_small(ds, &rv->small, &rv->nr_small);
	if (ds)
		device_state_entry__free_unpacked(ds, NULL);
	return err;
}

static int take_state(struct receive *rv, const WireMsg *first)
{
	_cleanup_free_ void *packed = NULL;
	size_t len;
	int err = wire_receive_document_from(rv->c, first, WIRE_DOCUMENT_KIND__WIRE_DOC_DEVICE_STATE, WIRE_DOC_MAX, &packed, &len);

	if (!err)
		err = unpack_state(rv, packed, len, img_device_state_fault, &rv->state);
	return err ? err : restore_update_small(rv->state, rv->small, rv->nr_small);
}

// ---- rounds

static int say_taken(struct receive *rv)
{
	WireRound taken = WIRE_ROUND__INIT;
	WireMsg m = WIRE_MSG__INIT;

	taken.round = rv->round;
	taken.has_ram_pages = taken.has_swap_pages = true;
	taken.ram_pages = rv->placement.nr_ram;
	taken.swap_pages = rv->placement.nr_swap;
	m.round_taken = &taken;
	return wire_send(rv->c, &m);
}

static int end_round(struct receive *rv, const WireRound *done)
{
	int err = receive_pages_wait(rv->pages, rv->round, done->frames);

	log_dbg("round %u: %s, %lu pages to memory and %lu to the swap image by now", rv->round, err ? strerror(-err) : "taken", rv->placement.nr_ram,
		rv->placement.nr_swap);
	if (!err && rv->round == 1)
		pv_placement_settle(&rv->placement);
	return err ? err : say_taken(rv);
}

// The next message of the rounds, in_round: between the beginning and the end of one.
static int take_message(struct receive *rv, const WireMsg *m, bool *in_round)
{
	const WireRound *begin = m->round_begin, *done = m->round_done;

	if (begin && !*in_round && begin->round == rv->round + 1) {
		rv->round++;
		rv->announced_ns = clock_now_ns();
		*in_round = true;
		return 0;
	}
	if (done && *in_round && done->round == rv->round && done->n_frames == rv->nr_channels) {
		*in_round = false;
		return end_round(rv, done);
	}
	if (m->piece && !*in_round && rv->round)
		return take_state(rv, m);
	log_err("%s: said something else than was its turn to say, in round %u", wire_peer(rv->c), rv->round);
	return -EPROTO;
}

// Until the device state has come, which is sent when the VM stands and all of its memory is on the way.
static int take_rounds(struct receive *rv)
{
	bool in_round = false;
	int err = 0;

	while (!err && !rv->state) {
		WireMsg *m;

		err = receive_message(rv, 0, &m);
		if (err)
			break;
		err = take_message(rv, m, &in_round);
		wire_msg__free_unpacked(m, NULL);
	}
	return err;
}

int receive_rounds(void *ctx)
{
	struct receive *rv = ctx;
	struct receive_pages_opts o = { .placement = &rv->placement, .channels = rv->channels, .nr_channels = rv->nr_channels,
					.lazy = rv->offer->offer->lazy, .in_images = rv->in_images };
	int err = take_plan(rv);

	if (!err)
		err = take_small(rv);
	if (!err)
		err = receive_pages_start(&o, &rv->pages);
	if (!err)
		err = take_rounds(rv);
	if (err)
		receive_tell_abort(rv);
	receive_pages_stop(rv->pages); // the VM stands: what they had is freed when it runs
	return err;
}
