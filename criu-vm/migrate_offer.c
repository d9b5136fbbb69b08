// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/hello.h"
#include "criu-vm/migrate_int.h"
#include "criu-vm/tap.h"
#include "qemu/disks.h"
#include "qemu/netdevs.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

#define CONNECT_MS 15000
#define ADMIT_MS 180000 // a swap image is made, QEMU is started
#define SAMPLE_MS 100
#define FINISH_MS 2000
#define STAND_LEAST_MS 15000
#define STAND_TIMES 10 // the downtime that was foreseen

// ---- the line

unsigned migrate_standing_ms(const struct migrate *m)
{
	unsigned ms = m->o->downtime_ms < STAND_LEAST_MS / STAND_TIMES ? STAND_LEAST_MS : m->o->downtime_ms * STAND_TIMES;
	uint64_t stood = m->src.standing ? (clock_now_ns() - m->src.stopped_at_ns) / NSEC_PER_MSEC : 0;

	if (!m->src.standing)
		return UINT_MAX;
	return stood < ms ? ms - (unsigned)stood : 1;
}

// Logs why nothing was received, unless that was done. Returns r.
static int not_received(struct migrate *m, int r, const char *when)
{
	if (r == -EINTR)
		log_err("interrupted; the VM goes on here");
	else if (r != -ECONNABORTED && r != -EPROTO && r != -EBADMSG) // these are logged
		log_err("%s: %s, while %s", wire_peer(m->control), strerror(-r), when);
	return r;
}

int migrate_expect(struct migrate *m, unsigned timeout_ms, size_t kind, const char *when, WireMsg **msg)
{
	unsigned left = migrate_standing_ms(m);
	int r = wire_expect(m->control, timeout_ms < left ? timeout_ms : left, kind, msg);

	return r ? not_received(m, r, when) : 0;
}

int migrate_sent(struct migrate *m, int r, const char *when)
{
	WireMsg *msg;

	if (!r)
		return 0;
	// What it said before it closed the line is better than that it did.
	if (wire_poll(m->control, 0) > 0 && !wire_receive(m->control, 1, &msg))
		wire_msg__free_unpacked(msg, NULL);
	log_err("%s: %s, while %s", wire_peer(m->control), strerror(-r), when);
	return r;
}

static int say_hello(struct migrate *m)
{
	uint64_t both;
	int r = hello_say(m->control, m->token, WIRE_FEATURE_ZSTD | WIRE_FEATURE_LAZY, &both);

	if (r == -EPROTONOSUPPORT)
		return r;
	if (r)
		return not_received(m, r, "a greeting was waited for; is that a criu-vm lazy-pages server?");
	m->zstd = m->o->zstd_level && (both & WIRE_FEATURE_ZSTD);
	if (m->o->lazy == MIGRATE_WHOLE || (both & WIRE_FEATURE_LAZY))
		return 0;
	log_err("%s cannot take a VM whose pages come later, its criu-vm is too old for that: migrate without --lazy", wire_peer(m->control));
	return -EOPNOTSUPP;
}

static int open_line(struct migrate *m, enum wire_kind kind, uint8_t channel, struct wire_conn **c)
{
	struct wire_connect_opts o = { .host = m->host, .port = m->port, .tls = m->tls, .timeout_ms = CONNECT_MS, .interrupted = cmd_interrupted,
				       .preamble = { .kind = kind, .channel = channel } };

	memcpy(o.preamble.token, m->token, sizeof o.preamble.token);
	return wire_connect(&o, c);
}

int migrate_connect(void *ctx)
{
	struct migrate *m = ctx;
	int r = wire_parse_address(m->o->host, &m->host, &m->port);

	if (!r && m->o->tls_creds)
		r = wire_tls_load(m->o->tls_creds, false, &m->tls);
	if (!r && !m->tls && !m->o->insecure && !wire_is_loopback(m->host)) {
		log_err("%s is not this host: the VM's memory would cross the network in the clear; give --tls-creds DIR, or say --insecure", m->host);
		r = -EPERM;
	}
	if (!r)
		r = wire_token_new(m->token);
	if (!r)
		r = open_line(m, WIRE_CONTROL, 0, &m->control);
	if (!r)
		r = say_hello(m);
	if (!r)
		r = wire_keepalive_start(m->control, &m->keepalive);
	if (r)
		migrate_disconnect(m);
	return r;
}

void migrate_disconnect(void *ctx)
{
	struct migrate *m = ctx;
	const char *why = log_last_error();

	migrate_send_fini(m);
	wire_keepalive_stop(steal_ptr(&m->keepalive));
	if (m->control && !m->said_commit) { // from then on it decides
		wire_send_abort(m->control, "%s", why && *why ? why : "given up");
		wire_finish(m->control, FINISH_MS);
	}
	wire_close(steal_ptr(&m->control));
}

// ---- what is offered

static int describe_net(struct migrate *m, const struct qemu_netdev *n, size_t i)
{
	_cleanup_free_ struct tap_desc *d = calloc(1, sizeof *d);
	WireNet *net = calloc(1, sizeof *net);
	int r = d && net ? 0 : -ENOMEM;

	if (!r && !n->ifname) {
		log_err("the interface of QEMU's network device '%s' is not known", n->id);
		r = -EOPNOTSUPP;
	}
	if (!r)
		r = tap_describe(m->src.vm->pid, n->ifname, d);
	if (r) {
		free(net);
		return r;
	}
	wire_net__init(net);
	m->nets[m->nr_nets++] = net;
	net->netdev = strdup(n->id);
	net->ifname = strdup(n->ifname);
	net->bridge = *d->bridge ? strdup(d->bridge) : NULL;
	net->has_mtu = net->has_queues = net->has_vnet_hdr = true;
	net->has_pvid = d->filters; // the bridge keeps VLANs apart
	net->mtu = d->mtu;
	net->pvid = d->pvid;
	net->queues = d->queues;
	net->vnet_hdr = d->vnet_hdr;
	net->vlans = calloc(d->nr_vlans + 1, sizeof *net->vlans);
	if (!net->netdev || !net->ifname || !net->vlans)
		return -ENOMEM;
	for (net->n_vlans = 0; d->filters && net->n_vlans < d->nr_vlans; net->n_vlans++)
		net->vlans[net->n_vlans] = d->vlans[net->n_vlans];
	snprintf(m->ifnames[i], sizeof m->ifnames[i], "%s", n->ifname);
	return 0;
}

static int describe_nets(struct migrate *m)
{
	struct qemu_netdev *list;
	size_t nr;
	int r = qemu_netdevs_list(m->src.argv, m->src.argc, &list, &nr);

	if (r)
		return r;
	m->nets = calloc(nr + 1, sizeof *m->nets);
	m->ifnames = calloc(nr + 1, sizeof *m->ifnames);
	r = m->nets && m->ifnames ? qemu_netdevs_find(m->src.vm, list, nr) : -ENOMEM;
	for (size_t i = 0; !r && i < nr; i++)
		r = describe_net(m, &list[i], i);
	qemu_netdevs_free(list, nr);
	return r;
}

static void free_nets(struct migrate *m)
{
	for (size_t i = 0; i < m->nr_nets; i++) {
		free(m->nets[i]->netdev);
		free(m->nets[i]->ifname);
		free(m->nets[i]->bridge);
		free(m->nets[i]->vlans);
		free(m->nets[i]);
	}
	free(m->nets);
	free(m->ifnames);
}

static const char *name_of(const struct migrate *m)
{
	static char made[32];

	if (m->o->name)
		return m->o->name;
	if (m->src.is_ours)
		return m->src.name;
	if (m->src.vm->name && run_dir_name_ok(m->src.vm->name))
		return m->src.vm->name;
	snprintf(made, sizeof made, "vm-%d", m->src.vm->pid);
	return made;
}

static int send_offer(struct migrate *m, VmEntry *vm)
{
	_cleanup_free_ WireBlock *entries = calloc(m->src.nr_guest, sizeof *entries);
	_cleanup_free_ WireBlock **blocks = calloc(m->src.nr_guest, sizeof *blocks);
	size_t len = vm_entry__get_packed_size(vm);
	_cleanup_free_ uint8_t *packed = malloc(len);
	WireOffer offer = WIRE_OFFER__INIT;
	WireMsg msg = WIRE_MSG__INIT;
	int r;

	if (!entries || !blocks || !packed)
		return -ENOMEM;
	for (size_t i = 0; i < m->src.nr_guest; i++) {
		wire_block__init(&entries[i]);
		entries[i].name = (char *)m->src.blocks[i].name;
		entries[i].len = m->src.blocks[i].len;
		blocks[i] = &entries[i];
	}
	vm_entry__pack(vm, packed);
	offer.name = (char *)name_of(m);
	offer.ram = m->src.ram_len;
	offer.n_blocks = m->src.nr_guest;
	offer.blocks = blocks;
	offer.has_budget = m->o->ram > 0;
	offer.budget = m->o->ram;
	offer.swap = (char *)m->o->swap;
	offer.channels = m->o->channels;
	offer.has_zstd = m->zstd;
	offer.zstd = (uint32_t)m->o->zstd_level;
	offer.run = m->offered_running = m->src.was_running;
	offer.n_nets = m->nr_nets;
	offer.nets = m->nets;
	offer.vm_len = len;
	offer.has_lazy = offer.lazy = m->o->lazy != MIGRATE_WHOLE;
	offer.images_dir = offer.lazy ? (char *)ram_images(m->src.ram, &offer.images_id) : NULL;
	offer.has_images_id = offer.images_dir != NULL;
	msg.offer = &offer;
	r = wire_send(m->control, &msg);
	if (!r)
		r = wire_send_document(m->control, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, packed, len);
	return migrate_sent(m, r, "the VM was offered");
}

static int open_channels(struct migrate *m, const WireAdmit *admit)
{
	int r = 0;

	if (admit->channels < 1 || admit->channels > m->o->channels || admit->key.len != WIRE_KEY_LEN) {
		log_err("%s admits the VM with %u channels", wire_peer(m->control), admit->channels);
		return -EPROTO;
	}
	memcpy(m->key, admit->key.data, sizeof m->key);
	m->channels = calloc(admit->channels, sizeof *m->channels);
	if (!m->channels)
		return -ENOMEM;
	for (unsigned i = 0; !r && i < admit->channels; i++) {
		struct channel *ch = &m->channels[i];

		*ch = (struct channel){ .m = m, .lock = PTHREAD_MUTEX_INITIALIZER };
		m->nr_channels++;
		r = open_line(m, WIRE_DATA, (uint8_t)i, &ch->conn);
		if (!r)
			r = migrate_sent(m, wire_write(ch->conn, admit->key.data, admit->key.len), "a data channel was opened");
	}
	return r ? r : migrate_send_init(m);
}

// The destination needs a while; what the VM writes meanwhile is hot.
static int wait_admitted(struct migrate *m, WireMsg **answer)
{
	uint64_t end = clock_now_ns() + ADMIT_MS * NSEC_PER_MSEC;
	int r;

	do {
		r = m->tracking ? migrate_sample(m) : 0;
		if (r)
			return r;
		r = cmd_interrupted() ? -EINTR : wire_poll(m->control, SAMPLE_MS);
		if (r > 0)
			r = wire_receive(m->control, 1, answer);
		else if (!r)
			r = -ETIMEDOUT;
	} while (r == -ETIMEDOUT && clock_now_ns() < end);
	if (r)
		return not_received(m, r, "it was to say whether it admits the VM");
	if ((*answer)->admit)
		return 0;
	log_err("%s does not say whether it admits the VM", wire_peer(m->control));
	wire_msg__free_unpacked(*answer, NULL);
	return -EPROTO;
}

int migrate_offer(void *ctx)
{
	struct migrate *m = ctx;
	VmEntry *vm = NULL;
	WireMsg *answer;
	int r = describe_nets(m);

	if (!r)
		r = qemu_disks(m->src.vm, &m->src.disks, &m->src.nr_disks);
	if (!r)
		r = (vm = source_describe(&m->src)) ? send_offer(m, vm) : -ENOMEM;
	source_free_description(vm);
	if (!r)
		r = wait_admitted(m, &answer);
	if (r)
		return r;
	if (!m->tracking)
		r = migrate_track_now(m);
	snprintf(m->result->name, sizeof m->result->name, "%s", answer->admit->name);
	m->result->budget = answer->admit->budget;
	m->result->swap = answer->admit->swap;
	m->images = answer->admit->images;
	memcpy(m->host_id, answer->admit->host.data, sizeof m->host_id);
	if (!r)
		r = open_channels(m, answer->admit);
	wire_msg__free_unpacked(answer, NULL);
	return r;
}

// ---- small blocks, and the device state

static int send_state(struct migrate *m, WireDocumentKind kind, const uint8_t *const *former)
{
	DeviceStateEntry ds;
	_cleanup_free_ uint8_t *packed = NULL;
	int r = source_device_state(&m->src, former, &ds);
	size_t len;

	if (r)
		return r;
	len = device_state_entry__get_packed_size(&ds);
	packed = malloc(len);
	if (packed)
		device_state_entry__pack(&ds, packed);
	source_free_device_state(&ds);
	return packed ? migrate_sent(m, wire_send_document(m->control, kind, packed, len), "firmware and device state were sent") : -ENOMEM;
}

// Before the VM stands: then only those pages have to be sent that are not as they were.
int migrate_send_small(struct migrate *m)
{
	int r = source_read_small(&m->src);

	if (!r)
		r = send_state(m, WIRE_DOCUMENT_KIND__WIRE_DOC_SMALL, NULL);
	m->small = steal_ptr(&m->src.small);
	return r;
}

int migrate_send_state(struct migrate *m)
{
	int r = source_read_small(&m->src);

	return r ? r : send_state(m, WIRE_DOCUMENT_KIND__WIRE_DOC_DEVICE_STATE, (const uint8_t *const *)m->small);
}

void migrate_offer_fini(struct migrate *m)
{
	free_nets(m);
	for (size_t i = 0; m->small && i < m->src.nr_blocks - m->src.nr_guest; i++)
		free(m->small[i]);
	free(m->small);
	wire_tls_free(m->tls);
	free(m->host);
}
