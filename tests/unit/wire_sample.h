// SPDX-License-Identifier: GPL-2.0-only
// One control message of each kind, to be changed.
#pragma once
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "util/size.h"
#include "wire/control.h"

#define KIND(k) offsetof(WireMsg, k)

static const size_t kinds[] = { KIND(hello), KIND(offer), KIND(admit), KIND(piece), KIND(round_begin), KIND(round_done), KIND(round_taken),
				KIND(ready), KIND(commit), KIND(committed), KIND(running), KIND(done), KIND(abort), KIND(status),
				KIND(keepalive), KIND(checkpoint) };

// One message of each kind, within all bounds; m refers to what is to be one.
struct sample {
	WireMsg m;
	WireHello hello;
	WireOffer offer;
	WireAdmit admit;
	WirePiece piece;
	WireRound round_begin, round_done, round_taken;
	WireAbort ready, commit, committed, done, abort, keepalive;
	WireRunning running;
	WireStatus status;
	WireCheckpoint checkpoint;
	WireBlock block[2];
	WireNet net[2];
	WireBlock *blocks[300];
	WireNet *nets[70];
	uint32_t vlans[4095];
	uint64_t frames[40];
	uint8_t bytes[WIRE_PIECE_MAX + 1];
	char text[5000];
};

static struct sample s;

static void sample_offer(void)
{
	WireOffer *o = &s.offer;

	s.block[0].name = "pc.ram";
	s.block[0].len = 3 * GiB;
	s.block[1].name = "/objects/m1";
	s.block[1].len = PAGE_SIZE;
	s.net[0].netdev = "hub0port0";
	s.net[0].ifname = "vmtap0";
	s.net[0].bridge = "br0";
	s.net[0].vlans = s.vlans;
	s.net[0].n_vlans = 2;
	s.net[1].netdev = "n1";
	s.net[1].ifname = "tap1";
	o->name = "vm.1";
	o->ram = 3 * GiB + PAGE_SIZE;
	o->blocks = s.blocks;
	o->n_blocks = 2;
	o->channels = 4;
	o->run = true;
	o->nets = s.nets;
	o->n_nets = 2;
	o->vm_len = 1000;
}

static void sample_rest(void)
{
	s.hello.version = s.hello.version_min = 1;
	s.hello.software = "criu-vm 0.1";
	s.hello.token = (ProtobufCBinaryData){ 16, s.bytes };
	s.admit.name = "vm.1";
	s.admit.budget = GiB;
	s.admit.swap = 3 * GiB;
	s.admit.channels = 2;
	s.admit.key = s.admit.host = (ProtobufCBinaryData){ 16, s.bytes };
	s.piece.kind = WIRE_DOCUMENT_KIND__WIRE_DOC_SMALL;
	s.piece.len = 5;
	s.piece.data = (ProtobufCBinaryData){ 5, s.bytes };
	s.piece.has_checksum = true;
	s.round_begin.round = s.round_done.round = s.round_taken.round = 7;
	s.round_done.frames = s.frames;
	s.round_done.n_frames = 4;
	s.round_taken.has_ram_pages = s.round_taken.has_swap_pages = true;
	s.ready.reason = s.commit.reason = s.committed.reason = s.done.reason = s.keepalive.reason = "";
	s.abort.reason = "it hurts";
	s.checkpoint.id = 0x123456789abcdef0;
	s.checkpoint.vm_len = 1000;
	s.checkpoint.chunks = 3073;
	s.status.state = WIRE_STATE__WIRE_COMMITTED;
	s.status.token = s.status.host = (ProtobufCBinaryData){ 16, s.bytes };
}

// A new one of that kind.
static const WireMsg *sample(size_t kind)
{
	static const WireBlock block = WIRE_BLOCK__INIT;
	static const WireNet net = WIRE_NET__INIT;
	static const WireRound no_round = WIRE_ROUND__INIT;
	static const WireAbort no_abort = WIRE_ABORT__INIT;

	s = (struct sample){ .m = WIRE_MSG__INIT, .hello = WIRE_HELLO__INIT, .offer = WIRE_OFFER__INIT, .admit = WIRE_ADMIT__INIT,
			     .piece = WIRE_PIECE__INIT, .running = WIRE_RUNNING__INIT, .status = WIRE_STATUS__INIT,
			     .checkpoint = WIRE_CHECKPOINT__INIT };
	s.round_begin = s.round_done = s.round_taken = no_round;
	s.ready = s.commit = s.committed = s.done = s.abort = s.keepalive = no_abort;
	for (size_t i = 0; i < ARRAY_SIZE(s.blocks); i++)
		s.blocks[i] = &s.block[i ? 1 : 0];
	for (size_t i = 0; i < ARRAY_SIZE(s.nets); i++)
		s.nets[i] = &s.net[i ? 1 : 0];
	s.block[0] = s.block[1] = block;
	s.net[0] = s.net[1] = net;
	for (size_t i = 0; i < ARRAY_SIZE(s.vlans); i++)
		s.vlans[i] = (uint32_t)i % 4094 + 1;
	sample_offer();
	sample_rest();
	void *const content[] = { &s.hello, &s.offer, &s.admit, &s.piece, &s.round_begin, &s.round_done, &s.round_taken, &s.ready, &s.commit,
				  &s.committed, &s.running, &s.done, &s.abort, &s.status, &s.keepalive, &s.checkpoint };
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (kinds[i] == kind)
			*(void **)((char *)&s.m + kind) = content[i];
	return &s.m;
}

// Text of that length, which is the sample's.
static char *text(size_t len)
{
	memset(s.text, 'a', len);
	s.text[len] = '\0';
	return s.text;
}

static uint8_t *pack(const WireMsg *m, size_t *len)
{
	uint8_t *buf;

	*len = wire_msg__get_packed_size(m);
	buf = malloc(*len + 1);
	ck_assert_uint_eq(wire_msg__pack(m, buf), *len);
	return buf;
}
