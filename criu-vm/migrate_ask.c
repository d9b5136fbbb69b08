// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/migrate_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define ASK_MS 10000
#define FIRST_PAUSE_NS (200 * NSEC_PER_MSEC)
#define MAX_PAUSE_NS (10 * NSEC_PER_SEC)
#define PAUSE_STEP_US 50000

static int ask(const struct migrate_question *q, bool *committed)
{
	struct wire_connect_opts o = { .host = q->host, .port = q->port, .tls = q->tls, .timeout_ms = ASK_MS, .quiet = true,
				       .preamble = { .kind = WIRE_ASK } };
	struct wire_conn *c;
	WireMsg *m = NULL;
	int r;

	memcpy(o.preamble.token, q->token, sizeof o.preamble.token);
	r = wire_connect(&o, &c);
	if (r)
		return r;
	r = wire_expect(c, ASK_MS, offsetof(WireMsg, status), &m);
	if (!r) {
		if (m->status->state == WIRE_STATE__WIRE_UNKNOWN)
			r = -EAGAIN;
		if (memcmp(m->status->token.data, q->token, WIRE_TOKEN_LEN) || memcmp(m->status->host.data, q->host_id, WIRE_TOKEN_LEN))
			r = -EXDEV; // it is not the one that the VM was offered to
		if (!r)
			*committed = m->status->state == WIRE_STATE__WIRE_COMMITTED;
		wire_msg__free_unpacked(m, NULL);
	}
	wire_close(c);
	return r;
}

// Where somebody else has said, by its record, that it is to be asked. *was: where that was to be before. -ENOENT: it is settled.
static int look_for_host(struct migrate_question *q, char **was, char **host)
{
	struct migration_source s;
	int r = migration_source_load(q->token, &s);

	if (r)
		return r == -ENOENT ? r : 0;
	if (*was && strcmp(*was, s.host) != 0) {
		free(steal_ptr(host));
		if (!wire_parse_address(s.host, host, &q->port))
			q->host = *host;
	}
	free(*was);
	*was = steal_ptr(&s.host);
	migration_source_fini(&s);
	return 0;
}

int migrate_ask(const struct migrate_question *question, bool *committed)
{
	_cleanup_free_ char *was = NULL, *host = NULL;
	struct migrate_question q = *question;
	uint64_t pause = FIRST_PAUSE_NS;
	int r, err = look_for_host(&q, &was, &host);

	if (err)
		return err;
	while ((r = ask(&q, committed))) {
		uint64_t end = clock_now_ns() + pause;

		log_warn("%s, port %u, is asked what became of the VM: %s; asking again", q.host, q.port,
			 r == -EXDEV ? "it is another host than the one that the VM was offered to, or has lost its records" : strerror(-r));
		while (clock_now_ns() < end && !cmd_interrupted())
			usleep(PAUSE_STEP_US);
		if (cmd_interrupted())
			return -EINTR;
		err = look_for_host(&q, &was, &host);
		if (err)
			return err;
		pause = pause * 2 < MAX_PAUSE_NS ? pause * 2 : MAX_PAUSE_NS;
	}
	return 0;
}
