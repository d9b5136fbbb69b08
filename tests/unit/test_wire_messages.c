// SPDX-License-Identifier: GPL-2.0-only
// What a control message may hold: both sides of each bound.
#include <errno.h>
#include <stdio.h>

#include "tests/unit/wire_sample.h"
#include "wire/messages_int.h"

// What a receiver says to the sample; what a sender says must be the same.
static int judge(void)
{
	const char *fault = NULL;
	WireMsg *m = NULL;
	size_t len;
	uint8_t *buf = pack(&s.m, &len);
	int ret = wire_msg_parse(buf, len, &m, &fault);

	ck_assert_int_eq(!fault, !ret);
	ck_assert_int_eq(!wire_msg_fault(&s.m), !ret);
	ck_assert_int_eq(!m, !!ret);
	if (m)
		wire_msg__free_unpacked(m, NULL);
	free(buf);
	return ret;
}

#define accepted(kind, change) \
	do { \
		sample(KIND(kind)); \
		change; \
		ck_assert_msg(!judge(), "refused: %s", #change); \
	} while (0)
#define refused(kind, change) \
	do { \
		sample(KIND(kind)); \
		change; \
		ck_assert_msg(judge() == -EBADMSG, "accepted: %s", #change); \
	} while (0)

START_TEST(hello_has_bounds)
{
	refused(hello, s.hello.version = s.hello.version_min = 0);
	refused(hello, s.hello.version_min = 2);
	accepted(hello, s.hello.version = 2);
	accepted(hello, s.hello.features = UINT64_MAX);
	refused(hello, s.hello.software = "");
	refused(hello, s.hello.software = "a\x1b[2J");
	refused(hello, s.hello.software = "a\x7f");
	accepted(hello, s.hello.software = "\xc3\xa4");
	accepted(hello, s.hello.software = text(512));
	refused(hello, s.hello.software = text(513));
	refused(hello, s.hello.token.len = 15);
	refused(hello, s.hello.token.len = 17);
	refused(hello, s.hello.token.len = 0);
}
END_TEST

START_TEST(names_of_vms_have_bounds)
{
	refused(offer, s.offer.name = "");
	refused(offer, s.offer.name = ".");
	refused(offer, s.offer.name = "..");
	refused(offer, s.offer.name = "-v");
	refused(offer, s.offer.name = "_v");
	refused(offer, s.offer.name = "v/w");
	refused(offer, s.offer.name = "v w");
	refused(offer, s.offer.name = "v\n");
	refused(offer, s.offer.name = "\xc3\xa4");
	accepted(offer, s.offer.name = "9-._A");
	accepted(offer, s.offer.name = text(64));
	refused(offer, s.offer.name = text(65));
	refused(admit, s.admit.name = "../v");
	refused(admit, s.admit.name = "");
	refused(status, s.status.name = "../v");
	accepted(status, s.status.name = "v");
}
END_TEST

static void blocks(size_t nr)
{
	static WireBlock block[300];
	static char names[300][24];

	for (size_t i = 0; i < nr; i++) {
		block[i] = s.block[0];
		snprintf(names[i], sizeof names[i], "b%zu", i);
		block[i].name = names[i];
		block[i].len = PAGE_SIZE;
		s.blocks[i] = &block[i];
	}
	s.offer.n_blocks = nr;
	s.offer.ram = nr * PAGE_SIZE;
}

static void two_blocks(uint64_t first, uint64_t second)
{
	s.block[0].len = first;
	s.block[1].len = second;
	s.offer.ram = first + second;
}

START_TEST(offer_has_bounds_of_ram)
{
	refused(offer, blocks(0));
	accepted(offer, blocks(1));
	accepted(offer, blocks(256));
	refused(offer, blocks(257));
	refused(offer, blocks(256); s.blocks[255]->name = "b7");
	refused(offer, s.block[0].name = "");
	refused(offer, s.block[0].name = "a\tb");
	accepted(offer, s.block[0].name = text(255));
	refused(offer, s.block[0].name = text(256));
	refused(offer, two_blocks(0, PAGE_SIZE));
	refused(offer, two_blocks(PAGE_SIZE - 1, PAGE_SIZE));
	refused(offer, two_blocks(PAGE_SIZE + 1, PAGE_SIZE));
	accepted(offer, two_blocks(PAGE_SIZE, 16384 * GiB));
	refused(offer, two_blocks(PAGE_SIZE, 16384 * GiB + PAGE_SIZE));
	refused(offer, two_blocks(1UL << 63, 1UL << 63));
	refused(offer, s.offer.ram += PAGE_SIZE);
	refused(offer, s.offer.ram -= PAGE_SIZE);
	accepted(offer, blocks(4); for (int i = 0; i < 4; i++) s.blocks[i]->len = 16384 * GiB; s.offer.ram = 65536 * GiB);
	refused(offer, blocks(5); for (int i = 0; i < 4; i++) s.blocks[i]->len = 16384 * GiB; s.offer.ram = 65536 * GiB + PAGE_SIZE);
}
END_TEST

START_TEST(offer_has_bounds)
{
	refused(offer, s.offer.has_budget = true);
	refused(offer, s.offer.has_budget = true; s.offer.budget = 4095);
	accepted(offer, s.offer.has_budget = true; s.offer.budget = 4096);
	accepted(offer, s.offer.has_budget = true; s.offer.budget = 65536 * GiB);
	refused(offer, s.offer.has_budget = true; s.offer.budget = 65536 * GiB + 1);
	refused(offer, s.offer.swap = "");
	refused(offer, s.offer.swap = "/a\nb");
	accepted(offer, s.offer.swap = text(4095));
	refused(offer, s.offer.swap = text(4096));
	refused(offer, s.offer.channels = 0);
	accepted(offer, s.offer.channels = 1);
	accepted(offer, s.offer.channels = 32);
	refused(offer, s.offer.channels = 33);
	refused(offer, s.offer.has_zstd = true);
	accepted(offer, s.offer.has_zstd = true; s.offer.zstd = 1);
	accepted(offer, s.offer.has_zstd = true; s.offer.zstd = 19);
	refused(offer, s.offer.has_zstd = true; s.offer.zstd = 20);
	refused(offer, s.offer.vm_len = 0);
	accepted(offer, s.offer.vm_len = 1);
	accepted(offer, s.offer.vm_len = MiB);
	refused(offer, s.offer.vm_len = MiB + 1);
}
END_TEST

static void hand_on(char *dir)
{
	s.offer.has_lazy = s.offer.lazy = true;
	s.offer.images_dir = dir;
	s.offer.has_images_id = true;
	s.offer.images_id = UINT64_MAX;
}

static char *path(size_t len)
{
	text(len)[0] = '/';
	return s.text;
}

START_TEST(images_handed_on_have_bounds)
{
	accepted(offer, s.offer.has_lazy = true);
	accepted(offer, s.offer.has_lazy = s.offer.lazy = true);
	accepted(offer, hand_on("/"));
	accepted(offer, hand_on(path(4095)));
	refused(offer, hand_on(path(4096)));
	refused(offer, hand_on(""));
	refused(offer, hand_on("a/b"));
	refused(offer, hand_on("/a\nb"));
	refused(offer, hand_on("/a\x7f"));
	refused(offer, hand_on("/a"); s.offer.has_images_id = false);
	refused(offer, hand_on("/a"); s.offer.images_dir = NULL);
	refused(offer, hand_on("/a"); s.offer.lazy = false);
	refused(offer, hand_on("/a"); s.offer.has_lazy = false);
	accepted(admit, s.admit.has_images = true);
	accepted(admit, s.admit.has_images = s.admit.images = true);
}
END_TEST

START_TEST(checkpoint_has_bounds)
{
	accepted(checkpoint, s.checkpoint.id = 0);
	refused(checkpoint, s.checkpoint.vm_len = 0);
	accepted(checkpoint, s.checkpoint.vm_len = 1);
	accepted(checkpoint, s.checkpoint.vm_len = MiB);
	refused(checkpoint, s.checkpoint.vm_len = MiB + 1);
	refused(checkpoint, s.checkpoint.chunks = 0);
	accepted(checkpoint, s.checkpoint.chunks = 1);
	accepted(checkpoint, s.checkpoint.chunks = 64 * MiB + 256);
	refused(checkpoint, s.checkpoint.chunks = 64 * MiB + 257);
	refused(checkpoint, s.checkpoint.chunks = UINT64_MAX);
}
END_TEST

static void nets(size_t nr)
{
	static WireNet net[70];
	static char names[70][24];

	for (size_t i = 0; i < nr; i++) {
		net[i] = s.net[1];
		snprintf(names[i], sizeof names[i], "n%zu", i);
		net[i].netdev = names[i];
		s.nets[i] = &net[i];
	}
	s.offer.n_nets = nr;
}

START_TEST(nets_have_bounds)
{
	static const char *const no_names[] = { "", ".", "..", "a/b", "a b", "a:b", "a\nb", "a\x7f" };

	accepted(offer, nets(0));
	accepted(offer, nets(64));
	refused(offer, nets(65));
	refused(offer, nets(64); s.nets[63]->netdev = "n0");
	refused(offer, s.net[0].netdev = "");
	accepted(offer, s.net[0].netdev = text(255));
	refused(offer, s.net[0].netdev = text(256));
	for (size_t i = 0; i < ARRAY_SIZE(no_names); i++) {
		refused(offer, s.net[1].ifname = (char *)no_names[i]);
		refused(offer, s.net[1].bridge = (char *)no_names[i]);
	}
	accepted(offer, s.net[1].ifname = s.net[1].bridge = text(15));
	refused(offer, s.net[1].ifname = text(16));
	refused(offer, s.net[1].bridge = text(16));
	refused(offer, s.net[1].has_mtu = true; s.net[1].mtu = 67);
	accepted(offer, s.net[1].has_mtu = true; s.net[1].mtu = 68);
	accepted(offer, s.net[1].has_mtu = true; s.net[1].mtu = 65535);
	refused(offer, s.net[1].has_mtu = true; s.net[1].mtu = 65536);
	accepted(offer, s.net[0].n_vlans = 4094);
	refused(offer, s.net[0].n_vlans = 4095);
	refused(offer, s.net[1].ifname = "all");
	refused(offer, s.net[1].bridge = "default");
	accepted(offer, s.net[0].n_vlans = 0);
	refused(offer, s.net[0].n_vlans = 0; s.net[0].has_pvid = s.net[0].pvid = true);
	accepted(offer, s.net[0].n_vlans = 1; s.net[0].has_pvid = s.net[0].pvid = true);
	refused(offer, s.vlans[1] = 0);
	accepted(offer, s.vlans[1] = 4094);
	refused(offer, s.vlans[1] = 4095);
	refused(offer, s.net[0].has_queues = true);
	accepted(offer, s.net[0].has_queues = true; s.net[0].queues = 256);
	refused(offer, s.net[0].has_queues = true; s.net[0].queues = 257);
}
END_TEST

START_TEST(admit_has_bounds)
{
	refused(admit, s.admit.budget = 0);
	accepted(admit, s.admit.budget = 1);
	accepted(admit, s.admit.budget = 65536 * GiB);
	refused(admit, s.admit.budget = 65536 * GiB + 1);
	accepted(admit, s.admit.swap = 0);
	refused(admit, s.admit.swap = 65536 * GiB + 1);
	refused(admit, s.admit.channels = 0);
	refused(admit, s.admit.channels = 33);
	refused(admit, s.admit.key.len = 15);
	refused(admit, s.admit.key.len = 17);
	refused(admit, s.admit.host.len = 15);
	refused(status, s.status.host.len = 17);
}
END_TEST

static void piece(uint64_t len, uint64_t off, size_t have, bool checksum)
{
	s.piece.len = len;
	s.piece.off = off;
	s.piece.data.len = have;
	s.piece.has_checksum = checksum;
}

START_TEST(pieces_have_bounds)
{
	const uint64_t full = WIRE_PIECE_MAX, most = WIRE_DOC_MAX;

	refused(piece, s.piece.kind = 0);
	accepted(piece, s.piece.kind = 5);
	refused(piece, s.piece.kind = 6);
	refused(piece, s.piece.kind = -1);
	refused(piece, piece(0, 0, 0, true));
	refused(piece, piece(1, 0, 0, true));
	refused(piece, piece(1, 0, 1, false));
	refused(piece, piece(1, 1, 0, true));
	refused(piece, piece(1, 0, 2, true));
	refused(piece, piece(10, 5, 5, true));
	accepted(piece, piece(full, 0, full, true));
	refused(piece, piece(full, 0, full, false));
	refused(piece, piece(full + 1, 0, full, true));
	accepted(piece, piece(full + 1, 0, full, false));
	refused(piece, piece(full + 1, 0, full + 1, true));
	refused(piece, piece(full + 1, 0, full - 1, false));
	accepted(piece, piece(full + 1, full, 1, true));
	refused(piece, piece(full + 1, full, 0, false));
	accepted(piece, piece(most, most - full, full, true));
	refused(piece, piece(most + 1, 0, full, false));
	refused(piece, piece(most, most, 0, true));
	refused(piece, piece(most, -full, full, false));
}
END_TEST

START_TEST(rounds_have_bounds)
{
	accepted(round_begin, s.round_begin.round = 65535);
	refused(round_begin, s.round_begin.round = 65536);
	refused(round_begin, s.round_begin.frames = s.frames; s.round_begin.n_frames = 1);
	refused(round_begin, s.round_begin.has_ram_pages = true);
	refused(round_begin, s.round_begin.has_swap_pages = true);
	accepted(round_done, s.round_done.n_frames = 32);
	refused(round_done, s.round_done.n_frames = 33);
	refused(round_done, s.round_done.n_frames = 0);
	refused(round_done, s.round_done.round = 65536);
	refused(round_done, s.round_done.has_ram_pages = true);
	refused(round_done, s.round_done.has_swap_pages = true);
	refused(round_taken, s.round_taken.round = 65536);
	refused(round_taken, s.round_taken.has_ram_pages = false);
	refused(round_taken, s.round_taken.has_swap_pages = false);
	refused(round_taken, s.round_taken.frames = s.frames; s.round_taken.n_frames = 1);
}
END_TEST

START_TEST(the_end_has_bounds)
{
	refused(ready, s.ready.reason = "a");
	refused(commit, s.commit.reason = "a");
	refused(committed, s.committed.reason = "a");
	refused(done, s.done.reason = "a");
	refused(keepalive, s.keepalive.reason = "a");
	refused(abort, s.abort.reason = "");
	refused(abort, s.abort.reason = "a\nb");
	accepted(abort, s.abort.reason = text(512));
	refused(abort, s.abort.reason = text(513));
	refused(running, s.running.error = "");
	accepted(running, s.running.error = text(512));
	refused(running, s.running.error = text(513));
	refused(status, s.status.state = 3);
	refused(status, s.status.state = -1);
	refused(status, s.status.token.len = 15);
}
END_TEST

START_TEST(every_truncation_is_found)
{
	const char *fault;
	WireMsg *m;
	size_t len;
	uint8_t *packed = pack(sample(kinds[_i]), &len);

	for (size_t n = 0; n < len; n++)
		ck_assert_int_eq(wire_msg_parse(packed, n, &m, &fault), n ? -EBADMSG : -EPROTO);
	free(packed);
}
END_TEST

// Whatever is accepted is within bounds.
START_TEST(flipped_bits_do_no_harm)
{
	size_t len;
	uint8_t *packed = pack(sample(kinds[_i]), &len);
	const char *fault;

	for (size_t bit = 0; bit < 8 * len; bit++) {
		WireMsg *m;

		packed[bit / 8] ^= (uint8_t)(1 << bit % 8);
		if (!wire_msg_parse(packed, len, &m, &fault)) {
			ck_assert_ptr_null(wire_msg_fault(m));
			wire_msg__free_unpacked(m, NULL);
		}
		packed[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	free(packed);
}
END_TEST

static TCase *bounds_case(void)
{
	TCase *tc = tcase_create("bounds");

	tcase_add_test(tc, hello_has_bounds);
	tcase_add_test(tc, names_of_vms_have_bounds);
	tcase_add_test(tc, offer_has_bounds_of_ram);
	tcase_add_test(tc, offer_has_bounds);
	tcase_add_test(tc, images_handed_on_have_bounds);
	tcase_add_test(tc, checkpoint_has_bounds);
	tcase_add_test(tc, nets_have_bounds);
	tcase_add_test(tc, admit_has_bounds);
	tcase_add_test(tc, pieces_have_bounds);
	tcase_add_test(tc, rounds_have_bounds);
	tcase_add_test(tc, the_end_has_bounds);
	tcase_add_loop_test(tc, every_truncation_is_found, 0, (int)ARRAY_SIZE(kinds));
	tcase_add_loop_test(tc, flipped_bits_do_no_harm, 0, (int)ARRAY_SIZE(kinds));
	return tc;
}

int main(void)
{
	Suite *suite = suite_create("wire_messages");
	SRunner *sr;
	int failed;

	suite_add_tcase(suite, bounds_case());
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
