// SPDX-License-Identifier: GPL-2.0-only
#include "wire/control.h"

#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "wire/messages_int.h"

#define HEAD_LEN 12
#define MSG_MS 60000 // for the rest of a message that has begun

static void pack_head(uint8_t *buf, uint32_t len)
{
	uint64_t checksum = htole64(XXH3_64bits(buf + HEAD_LEN, len));

	len = htole32(len);
	memcpy(buf, &len, sizeof len);
	memcpy(buf + sizeof len, &checksum, sizeof checksum);
}

static void parse_head(const uint8_t *buf, uint32_t *len, uint64_t *checksum)
{
	memcpy(len, buf, sizeof *len);
	memcpy(checksum, buf + sizeof *len, sizeof *checksum);
	*len = le32toh(*len);
	*checksum = le64toh(*checksum);
}

int wire_send(struct wire_conn *c, const WireMsg *m)
{
	const char *fault = wire_msg_fault(m);
	size_t len = fault ? 0 : wire_msg__get_packed_size(m);
	_cleanup_free_ uint8_t *buf = NULL;
	int ret;

	if (!fault && len > WIRE_MSG_MAX)
		fault = "it is too long";
	if (fault) {
		log_err("%s: a message cannot be sent: %s", wire_peer(c), fault);
		return -EINVAL;
	}
	buf = malloc(HEAD_LEN + len);
	if (!buf)
		return -ENOMEM;
	wire_msg__pack(m, buf + HEAD_LEN);
	pack_head(buf, (uint32_t)len);
	wire_lock(c);
	ret = wire_write(c, buf, HEAD_LEN + len);
	wire_unlock(c);
	return ret;
}

int wire_send_plain(struct wire_conn *c, size_t kind)
{
	WireAbort empty = WIRE_ABORT__INIT;
	WireMsg m = WIRE_MSG__INIT;

	empty.reason = (char *)"";
	*(WireAbort **)((char *)&m + kind) = &empty;
	return wire_send(c, &m);
}

void wire_send_abort(struct wire_conn *c, const char *fmt, ...)
{
	char reason[WIRE_TEXT_MAX + 1];
	WireAbort a = WIRE_ABORT__INIT;
	WireMsg m = WIRE_MSG__INIT;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(reason, sizeof reason, fmt, ap);
	va_end(ap);
	if (!*reason)
		snprintf(reason, sizeof reason, "no reason was given");
	for (char *p = reason; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = ' ';
	a.reason = reason;
	m.abort = &a;
	wire_send(c, &m);
}

// Until there is something to read. -ETIMEDOUT at the time `end`, unless that is 0.
static int await_message(struct wire_conn *c, uint64_t end)
{
	for (;;) {
		uint64_t now = clock_now_ns(), left;
		unsigned ms = wire_lost_in(c);
		bool lost = !ms;
		int ret;

		if (end) {
			left = end > now ? (end - now + NSEC_PER_MSEC - 1) / NSEC_PER_MSEC : 0;
			if (left < ms)
				ms = (unsigned)left;
		}
		ret = wire_poll(c, (int)ms);
		if (ret)
			return ret < 0 ? ret : 0;
		if (lost)
			return -ECONNRESET;
		if (end && clock_now_ns() >= end)
			return -ETIMEDOUT;
	}
}

// A whole message. -ECONNRESET also when it stops in the middle.
static int read_message(struct wire_conn *c, WireMsg **m)
{
	_cleanup_free_ uint8_t *buf = NULL;
	const char *fault = NULL;
	uint8_t head[HEAD_LEN];
	uint64_t checksum;
	uint32_t len;
	int ret;

	wire_set_deadline(c, clock_now_ns() + MSG_MS * NSEC_PER_MSEC);
	ret = wire_read(c, head, HEAD_LEN);
	if (!ret)
		parse_head(head, &len, &checksum);
	if (!ret && len > WIRE_MSG_MAX) {
		log_err("%s: sent a message of %u bytes, more than one can have", wire_peer(c), len);
		ret = -EBADMSG;
	}
	if (!ret) {
		buf = malloc(len + 1); // an empty one is looked at, too
		ret = buf ? wire_read(c, buf, len) : -ENOMEM;
	}
	wire_set_deadline(c, 0);
	if (ret)
		return ret == -ETIMEDOUT ? -ECONNRESET : ret;
	if (XXH3_64bits(buf, len) == checksum) {
		ret = wire_msg_parse(buf, len, m, &fault);
	} else {
		ret = -EBADMSG;
		fault = "its checksum is wrong";
	}
	if (ret)
		log_err("%s: sent a message that is not accepted: %s", wire_peer(c), fault);
	return ret;
}

static int take_abort(struct wire_conn *c, WireMsg **m)
{
	log_err("%s: %s", wire_peer(c), (*m)->abort->reason);
	wire_msg__free_unpacked(*m, NULL);
	*m = NULL;
	return -ECONNABORTED;
}

int wire_receive(struct wire_conn *c, unsigned timeout_ms, WireMsg **m)
{
	uint64_t end = timeout_ms ? clock_now_ns() + timeout_ms * NSEC_PER_MSEC : 0;

	*m = NULL;
	for (;;) {
		int ret = await_message(c, end);

		if (!ret)
			ret = read_message(c, m);
		if (ret)
			return ret;
		if (!(*m)->keepalive)
			break;
		wire_msg__free_unpacked(*m, NULL);
		*m = NULL;
	}
	return (*m)->abort ? take_abort(c, m) : 0;
}

int wire_expect(struct wire_conn *c, unsigned timeout_ms, size_t kind, WireMsg **m)
{
	int ret = wire_receive(c, timeout_ms, m);

	if (ret || wire_msg_kind(*m) == kind)
		return ret;
	log_err("%s: sent the message '%s' where '%s' was expected", wire_peer(c), wire_kind_name(wire_msg_kind(*m)), wire_kind_name(kind));
	wire_msg__free_unpacked(*m, NULL);
	*m = NULL;
	return -EPROTO;
}
