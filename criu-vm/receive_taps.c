// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/map_file.h"
#include "criu-vm/receive_int.h"
#include "criu-vm/tap.h"
#include "qemu/cmdline.h"
#include "util/cleanup.h"
#include "util/log.h"

static int describe(const struct receive *rv, const WireNet *net, struct tap_desc *d)
{
	const char *bridge = net->bridge ? map_file_bridge(rv->o->map, net->bridge) : "";

	if (strlen(bridge) >= sizeof d->bridge || net->n_vlans > TAP_VLANS_MAX)
		return -EINVAL;
	snprintf(d->bridge, sizeof d->bridge, "%s", bridge);
	d->mtu = net->has_mtu ? net->mtu : 0;
	d->queues = net->has_queues ? net->queues : 1;
	d->vnet_hdr = net->vnet_hdr;
	d->filters = net->has_pvid;
	d->pvid = net->pvid;
	for (d->nr_vlans = 0; d->nr_vlans < net->n_vlans; d->nr_vlans++)
		d->vlans[d->nr_vlans] = (uint16_t)net->vlans[d->nr_vlans];
	return d->queues <= TAP_QUEUES_MAX ? 0 : -EINVAL;
}

// The name that it had, if that is free here.
static const char *choose_ifname(const struct receive *rv, const WireNet *net)
{
	const char *mapped = map_file_net(rv->o->map, net->ifname);

	return mapped ? mapped : if_nametoindex(net->ifname) ? NULL : net->ifname;
}

// For the pager, which brings it up.
static int note(struct receive *rv, const char *name)
{
	char **taps = &rv->r.state.taps, *more;

	if (asprintf(&more, "%s%s%s", *taps ? *taps : "", *taps ? " " : "", name) < 0)
		return -ENOMEM;
	free(*taps);
	*taps = more;
	return 0;
}

static int make_tap(struct receive *rv, const WireNet *net)
{
	_cleanup_free_ struct tap_desc *d = calloc(1, sizeof *d);
	struct qemu_cmdline_net *new = &rv->nets[rv->nr_nets];
	char name[IFNAMSIZ];
	int *fds, err = d ? describe(rv, net, d) : -ENOMEM;

	if (err)
		return err;
	fds = calloc(d->queues, sizeof *fds);
	if (!fds)
		return -ENOMEM;
	err = tap_create(d, choose_ifname(rv, net), name, fds, d->queues);
	if (err) {
		free(fds);
		return err;
	}
	*new = (struct qemu_cmdline_net){ .id = net->netdev, .fds = fds, .nr_fds = d->queues };
	rv->nr_nets++;
	log_info("network interface %s takes the place of %s", name, net->ifname);
	return note(rv, name);
}

int receive_taps(void *ctx)
{
	struct receive *rv = ctx;
	const WireOffer *offer = rv->offer->offer;
	int err = 0;

	rv->nets = calloc(offer->n_nets + 1, sizeof *rv->nets);
	if (!rv->nets)
		return -ENOMEM;
	for (size_t i = 0; !err && i < offer->n_nets; i++)
		err = make_tap(rv, offer->nets[i]);
	if (err)
		receive_taps_undo(rv);
	rv->r.nets = rv->nets;
	rv->r.nr_nets = rv->nr_nets;
	return err;
}

// They go with the last descriptor: with QEMU's, once it has them.
void receive_taps_undo(void *ctx)
{
	struct receive *rv = ctx;

	for (size_t i = 0; i < rv->nr_nets; i++) {
		for (unsigned k = 0; k < rv->nets[i].nr_fds; k++)
			close(rv->nets[i].fds[k]);
		free((void *)rv->nets[i].fds);
	}
	free(steal_ptr(&rv->nets));
	rv->nr_nets = 0;
	rv->r.nets = NULL;
	rv->r.nr_nets = 0;
}
