// SPDX-License-Identifier: GPL-2.0-only
// Data channels of a VM that arrives, over real sockets: what comes is where it belongs when a round is complete, and what does not
// belong there is refused.
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "criu-vm/cmd.h"
#include "criu-vm/receive_pages.h"
#include "util/clock.h"

#define CHUNKS 70
#define FIRST_BLOCK 37
#define SHORT 100
#include "tests/unit/place_target.h"
#include "tests/unit/wire_pair.h"

#define RAM_PAGES (20 * PV_CHUNK_PAGES + 10)
#define MAX_CHANNELS 4
#define OF_FIRST_CHANNEL 3 // chunks, whatever the number of channels
#define OF_SECOND_CHANNEL 20

struct rig {
	struct target t;
	unsigned nr, round;
	struct pair pair[MAX_CHANNELS];
	struct wire_conn *in[MAX_CHANNELS];
	struct wire_pages *out[MAX_CHANNELS];
	uint64_t frames[MAX_CHANNELS];
	uint64_t in_images[CHUNKS][PV_WORDS], want_images[CHUNKS][PV_WORDS]; // is, and is to be
	struct receive_pages *receive;
};

static char packed[PV_CHUNK_SIZE] __attribute__((aligned(PAGE_SIZE))); // what is being sent

static void rig_init_lazy(struct rig *r, unsigned channels, uint64_t ram_pages, bool lazy, bool images)
{
	struct receive_pages_opts o = { .placement = &r->t.placement, .channels = r->in, .nr_channels = channels, .lazy = lazy,
					.in_images = images ? r->in_images : NULL };

	*r = (struct rig){ .nr = channels, .round = 1 };
	said_clear();
	target_init(&r->t, ram_pages, ram_pages < NR_PAGES);
	for (unsigned i = 0; i < channels; i++) {
		pair_must_open(&r->pair[i]);
		r->in[i] = r->pair[i].server;
		ck_assert_int_eq(wire_pages_new(r->pair[i].client, &r->out[i]), 0);
	}
	ck_assert_int_eq(receive_pages_start(&o, &r->receive), 0);
}

static void rig_init(struct rig *r, unsigned channels, uint64_t ram_pages)
{
	rig_init_lazy(r, channels, ram_pages, false, false);
}

static void rig_fini(struct rig *r)
{
	uint64_t begin = clock_now_ns();

	receive_pages_stop(r->receive);
	receive_pages_stop(r->receive);
	receive_pages_free(r->receive);
	ck_assert_uint_lt(clock_now_ns() - begin, 5 * NSEC_PER_SEC);
	for (unsigned i = 0; i < r->nr; i++) {
		wire_pages_free(r->out[i]);
		pair_close(&r->pair[i]);
	}
	target_fini(&r->t);
}

// Of so many pages of a chunk from the first on; their content is in `packed`.
static struct wire_frame frame_of(const struct rig *r, uint64_t chunk, unsigned pages)
{
	uint32_t block = chunk >= FIRST_BLOCK;
	struct wire_frame f = { .type = WIRE_PAGES, .round = (uint16_t)r->round, .block = block, .chunk = chunk - block * FIRST_BLOCK };

	bitmap_set_range(f.present, 0, pages);
	for (unsigned i = 0; i < pages; i++)
		fill(packed + i * PAGE_SIZE, chunk * PV_CHUNK_PAGES + i, 0xffff);
	return f;
}

static void send_on(struct rig *r, unsigned channel, struct wire_frame *f, int zstd)
{
	ck_assert_int_eq(wire_pages_send(r->out[channel], f, packed, zstd), 0);
	r->frames[channel]++;
}

static void send_frame(struct rig *r, uint64_t chunk, struct wire_frame *f, int zstd)
{
	send_on(r, wire_channel_of(chunk, r->nr), f, zstd);
}

// New content for some pages, zeros for others; the model has it.
static void send_new(struct rig *r, uint64_t chunk, bool whole)
{
	struct wire_frame f = frame_of(r, chunk, 0);
	static unsigned version;
	bool sparse = rand() % 2;
	size_t n = 0;

	version++;
	for (unsigned i = 0; i < chunk_pages(chunk); i++) {
		size_t page = chunk * PV_CHUNK_PAGES + i;

		if (!whole && (sparse ? rand() % 16 : rand() % 3))
			continue;
		if (rand() % 5) {
			bitmap_set(f.present, i);
			fill(packed + n++ * PAGE_SIZE, page, version);
			r->t.version[page] = version;
		} else {
			bitmap_set(f.zero, i);
			r->t.version[page] = 0;
		}
		bitmap_clear(r->want_images[chunk], i);
	}
	if (rand() % 4 == 0)
		f.flags = WIRE_FLAG_TO_RAM;
	if (!bitmap_empty(f.present, PV_CHUNK_PAGES) || !bitmap_empty(f.zero, PV_CHUNK_PAGES))
		send_frame(r, chunk, &f, rand() % 2);
}

// Some pages come later.
static void send_later(struct rig *r, uint64_t chunk, bool whole, bool images)
{
	struct wire_frame f = frame_of(r, chunk, 0);

	f.type = WIRE_LATER;
	f.flags = images ? WIRE_FLAG_IN_IMAGES : 0;
	for (unsigned i = 0; i < chunk_pages(chunk); i++) {
		if (!whole && rand() % 3)
			continue;
		bitmap_set(f.present, i);
		r->t.version[chunk * PV_CHUNK_PAGES + i] = LATER;
		(images ? bitmap_set : bitmap_clear)(r->want_images[chunk], i);
	}
	if (!bitmap_empty(f.present, PV_CHUNK_PAGES))
		send_frame(r, chunk, &f, 0);
}

static void end_on(struct rig *r, unsigned channel, uint64_t frames)
{
	struct wire_frame f = { .type = WIRE_ROUND_END, .round = (uint16_t)r->round, .chunk = frames };

	ck_assert_int_eq(wire_pages_send(r->out[channel], &f, NULL, 0), 0);
}

static int end_round(struct rig *r)
{
	int err;

	for (unsigned i = 0; i < r->nr; i++)
		end_on(r, i, r->frames[i]);
	err = receive_pages_wait(r->receive, r->round, r->frames);
	memset(r->frames, 0, sizeof r->frames);
	r->round++;
	return err;
}

static void plan(struct rig *r)
{
	uint8_t heat[CHUNKS * 3];

	for (uint64_t i = 0; i < CHUNKS; i++) {
		heat[3 * i] = (uint8_t)(rand() % 4);
		heat[3 * i + 1] = (uint8_t)chunk_pages(i);
		heat[3 * i + 2] = (uint8_t)(chunk_pages(i) >> 8);
	}
	ck_assert_int_eq(pv_placement_plan(&r->t.placement, heat, CHUNKS), 0);
}

START_TEST(rounds)
{
	static const unsigned channels[] = { 1, 2, 3, 4 };
	static const uint64_t ram[] = { RAM_PAGES, NR_PAGES, 0, RAM_PAGES };
	static struct rig r;

	srand((unsigned)_i);
	rig_init(&r, channels[_i], ram[_i]);
	plan(&r);
	for (uint64_t i = 0; i < CHUNKS; i++)
		send_new(&r, (i * 11 + 5) % CHUNKS, true);
	ck_assert_int_eq(end_round(&r), 0);
	verify(&r.t);
	for (unsigned n = 0; n < 6; n++) {
		for (unsigned i = 0; i < 60; i++) {
			uint64_t chunk = (uint64_t)rand() % CHUNKS;

			for (int again = rand() % 4; again >= 0; again--) // one right behind the other
				send_new(&r, chunk, false);
		}
		ck_assert_int_eq(end_round(&r), 0);
		verify(&r.t);
		ck_assert_uint_le(memory_pages(&r.t), ram[_i]);
	}
	ck_assert_int_eq(end_round(&r), 0); // nothing came
	verify(&r.t);
	ck_assert_int_eq(receive_pages_error(r.receive), 0);
	ck_assert_str_eq(said_text, "");
	rig_fini(&r);
	ck_assert_str_eq(said_text, "");
}
END_TEST

// Pages come, come later after all, from here or there, and come again.
START_TEST(later)
{
	static const uint64_t ram[] = { RAM_PAGES, NR_PAGES, 0, RAM_PAGES };
	bool images = _i % 2 || _i == 0, from_source, from_images;
	static struct rig r;

	srand((unsigned)_i);
	rig_init_lazy(&r, 1 + (unsigned)_i, ram[_i], true, images);
	plan(&r);
	receive_pages_later(r.receive, &from_source, &from_images);
	ck_assert(!from_source && !from_images);
	for (uint64_t i = 0; i < CHUNKS; i++)
		if (i % 3)
			send_new(&r, i, true);
		else
			send_later(&r, i, true, images);
	ck_assert_int_eq(end_round(&r), 0);
	receive_pages_later(r.receive, &from_source, &from_images);
	ck_assert(from_source == !images && from_images == images);
	for (unsigned n = 0; n < 6; n++) {
		verify(&r.t);
		ck_assert_mem_eq(r.in_images, r.want_images, sizeof r.in_images);
		for (unsigned i = 0; i < 60; i++) {
			uint64_t chunk = (uint64_t)rand() % CHUNKS;

			for (int again = rand() % 4; again >= 0; again--)
				if (rand() % 2)
					send_new(&r, chunk, false);
				else
					send_later(&r, chunk, false, images && rand() % 2);
		}
		ck_assert_int_eq(end_round(&r), 0);
		ck_assert_uint_le(memory_pages(&r.t), ram[_i]);
	}
	verify(&r.t);
	ck_assert_mem_eq(r.in_images, r.want_images, sizeof r.in_images);
	receive_pages_later(r.receive, &from_source, &from_images);
	ck_assert(from_source && from_images == images);
	ck_assert_str_eq(said_text, "");
	rig_fini(&r);
}
END_TEST

// What the VM needs at once goes to memory, though its chunk is in swap.
START_TEST(wanted)
{
	static struct rig r;
	struct wire_frame f;

	rig_init(&r, 2, 5);
	f = frame_of(&r, CHUNKS - 1, 10);
	send_frame(&r, CHUNKS - 1, &f, 0);
	f = frame_of(&r, CHUNKS - 1, 5);
	f.flags = WIRE_FLAG_TO_RAM;
	send_frame(&r, CHUNKS - 1, &f, 1);
	for (unsigned i = 0; i < 10; i++)
		r.t.version[(CHUNKS - 1) * PV_CHUNK_PAGES + i] = 0xffff;
	ck_assert_int_eq(end_round(&r), 0);
	verify(&r.t);
	for (unsigned i = 0; i < 10; i++)
		ck_assert_int_eq(is_valid(&r.t, (CHUNKS - 1) * PV_CHUNK_PAGES + i), i < 5);
	rig_fini(&r);
}
END_TEST

// A source that does not wait for a round to be taken is made to: the next one stays in the line.
START_TEST(ahead)
{
	uint64_t frames[2];
	static struct rig r;

	rig_init(&r, 2, NR_PAGES);
	send_new(&r, 0, true);
	for (unsigned i = 0; i < 2; i++)
		end_on(&r, i, frames[i] = r.frames[i]);
	r.round = 2;
	r.frames[0] = 0;
	send_new(&r, 1, true);
	send_new(&r, 2, true);
	for (unsigned i = 0; i < 2; i++)
		end_on(&r, i, r.frames[i]);
	usleep(100000);
	ck_assert(!bitmap_count(r.t.pages[1].valid, PV_CHUNK_PAGES));
	ck_assert_int_eq(receive_pages_wait(r.receive, 1, frames), 0);
	ck_assert_int_eq(receive_pages_wait(r.receive, 2, r.frames), 0);
	verify(&r.t);
	rig_fini(&r);
}
END_TEST

static bool has_failed(struct receive_pages *r, unsigned ms)
{
	while (!receive_pages_error(r) && ms--)
		usleep(1000);
	return receive_pages_error(r);
}

// Whoever waits is told, and nothing was placed but what was right.
static void expect_error(struct rig *r, int err, const char *text)
{
	ck_assert(has_failed(r->receive, 30000));
	ck_assert_int_eq(receive_pages_error(r->receive), err);
	ck_assert_int_eq(receive_pages_wait(r->receive, r->round, r->frames), err);
	ck_said(text);
	verify(&r->t);
}

static void another_block(struct rig *r)
{
	struct wire_frame f = frame_of(r, 0, 5);

	f.block = 2;
	send_on(r, 0, &f, 0);
}

static void far_block(struct rig *r)
{
	struct wire_frame f = frame_of(r, 0, 5);

	f.block = UINT32_MAX;
	send_on(r, 0, &f, 0);
}

static void next_chunk(struct rig *r) // the first of the next block, if nobody looked
{
	struct wire_frame f = frame_of(r, FIRST_BLOCK - 1, 5);

	f.chunk++;
	send_on(r, 0, &f, 0);
}

static void far_chunk(struct rig *r)
{
	struct wire_frame f = frame_of(r, FIRST_BLOCK, 5);

	f.chunk = UINT64_MAX / PV_CHUNK_SIZE;
	send_on(r, 0, &f, 0);
}

static void pages_behind(struct rig *r)
{
	struct wire_frame f = frame_of(r, FIRST_BLOCK - 1, SHORT + 1);

	send_on(r, 0, &f, 1);
}

static void zeros_behind(struct rig *r)
{
	struct wire_frame f = frame_of(r, FIRST_BLOCK - 1, SHORT);

	bitmap_set(f.zero, PV_CHUNK_PAGES - 1);
	send_on(r, 0, &f, 1);
}

static void later_behind(struct rig *r)
{
	struct wire_frame f = frame_of(r, FIRST_BLOCK - 1, SHORT + 1);

	f.type = WIRE_LATER;
	send_on(r, 0, &f, 0);
}

static void other_channel(struct rig *r)
{
	struct wire_frame f = frame_of(r, OF_SECOND_CHANNEL, 5);

	send_on(r, 0, &f, 0);
}

static void round_before(struct rig *r)
{
	struct wire_frame f = frame_of(r, OF_FIRST_CHANNEL, 5);

	f.round--;
	send_on(r, 0, &f, 0);
}

static void round_behind(struct rig *r)
{
	struct wire_frame f = frame_of(r, OF_FIRST_CHANNEL, 5);

	f.round++;
	send_on(r, 0, &f, 0);
}

static void end_too_many(struct rig *r)
{
	end_on(r, 0, r->frames[0] + 1);
}

static void end_of_another(struct rig *r)
{
	r->round++;
	end_on(r, 0, r->frames[0]);
	r->round--;
}

static void garbage(struct rig *r)
{
	memset(packed, 0x5a, WIRE_FRAME_LEN);
	ck_assert_int_eq(wire_write(r->pair[0].client, packed, WIRE_FRAME_LEN), 0);
}

static void bad_checksum(struct rig *r)
{
	struct wire_frame f = frame_of(r, OF_FIRST_CHANNEL, 1);
	uint8_t head[WIRE_FRAME_LEN];

	f.length = PAGE_SIZE;
	wire_frame_pack(&f, 1, head);
	ck_assert_int_eq(wire_write(r->pair[0].client, head, sizeof head), 0);
	ck_assert_int_eq(wire_write(r->pair[0].client, packed, PAGE_SIZE), 0);
}

static const struct {
	void (*send)(struct rig *r);
	const char *text;
} wrong[] = {
	{ another_block, "a chunk of memory that the VM does not have" },
	{ far_block, "a chunk of memory that the VM does not have" },
	{ next_chunk, "a chunk of memory that the VM does not have" },
	{ far_chunk, "a chunk of memory that the VM does not have" },
	{ pages_behind, "behind the end" },
	{ zeros_behind, "behind the end" },
	{ later_behind, "behind the end" },
	{ other_channel, "another channel" },
	{ round_before, "another round" },
	{ round_behind, "another round" },
	{ end_too_many, "another number of frames" },
	{ end_of_another, "another round" },
	{ garbage, "magic" },
	{ bad_checksum, "checksum" },
};

START_TEST(wrong_frames)
{
	static struct rig r;

	rig_init(&r, 2, RAM_PAGES);
	for (uint64_t i = 0; i < CHUNKS; i++)
		send_new(&r, i, true);
	ck_assert_int_eq(end_round(&r), 0);
	wrong[_i].send(&r);
	expect_error(&r, -EBADMSG, wrong[_i].text);
	rig_fini(&r);
}
END_TEST

static const struct {
	uint8_t type, flags;
	bool lazy;
	const char *text;
} out_of_place[] = {
	{ WIRE_LATER, 0, false, "no place in a round" },
	{ WIRE_LATER, WIRE_FLAG_IN_IMAGES, false, "no place in a round" },
	{ WIRE_LATER, WIRE_FLAG_IN_IMAGES, true, "cannot be read here" },
	{ WIRE_WANT, 0, true, "" },
};

// What nobody has offered does not come.
START_TEST(frames_out_of_place)
{
	static struct rig r;
	struct wire_frame f;

	rig_init_lazy(&r, 2, RAM_PAGES, out_of_place[_i].lazy, false);
	f = frame_of(&r, OF_FIRST_CHANNEL, 5);
	f.type = out_of_place[_i].type;
	f.flags = out_of_place[_i].flags;
	f.round = f.type == WIRE_WANT ? 0 : f.round;
	send_on(&r, 0, &f, 0);
	expect_error(&r, -EBADMSG, out_of_place[_i].text);
	rig_fini(&r);
}
END_TEST

// What the control channel says about a round must be so.
START_TEST(wrong_count)
{
	static struct rig r;

	rig_init(&r, 2, RAM_PAGES);
	for (uint64_t i = 0; i < CHUNKS; i++)
		send_new(&r, i, true);
	end_on(&r, 0, r.frames[0]);
	end_on(&r, 1, r.frames[1]);
	r.frames[1]++;
	ck_assert_int_eq(receive_pages_wait(r.receive, 1, r.frames), -EBADMSG);
	ck_said("data channel 1 brought");
	rig_fini(&r);
}
END_TEST

START_TEST(wrong_round)
{
	static const unsigned round[] = { 0, 1, 3, 65536 + 2 };
	static struct rig r;

	rig_init(&r, 2, RAM_PAGES);
	ck_assert_int_eq(end_round(&r), 0);
	ck_assert_int_eq(receive_pages_wait(r.receive, round[_i], r.frames), -EBADMSG);
	rig_fini(&r);
}
END_TEST

// Which channel is cut, after so many bytes of a frame.
START_TEST(cut)
{
	static const size_t len[] = { 0, 1, WIRE_FRAME_LEN, WIRE_FRAME_LEN + 5000 };
	static uint8_t bytes[WIRE_FRAME_LEN + 5000];
	static struct rig r;
	struct wire_frame f;

	rig_init(&r, 2, RAM_PAGES);
	for (uint64_t i = 0; i < CHUNKS; i++)
		send_new(&r, i, true);
	ck_assert_int_eq(end_round(&r), 0);
	f = frame_of(&r, OF_SECOND_CHANNEL, 3);
	f.length = 3 * PAGE_SIZE;
	wire_frame_pack(&f, 0, bytes);
	ck_assert_int_eq(wire_write(r.pair[1].client, bytes, len[_i]), 0);
	wire_shutdown(r.pair[1].client);
	expect_error(&r, -ECONNRESET, "data channel 1: the line is lost");
	rig_fini(&r);
}
END_TEST

// A source that says it has sent everything, and has not; another one says nothing yet.
START_TEST(silence)
{
	uint64_t begin = clock_now_ns(), frames[2] = { 0 };
	static struct rig said, silent;

	rig_init(&silent, 2, NR_PAGES);
	end_on(&silent, 0, 0);
	rig_init(&said, 2, RAM_PAGES);
	end_on(&said, 0, 0);
	ck_assert_int_eq(receive_pages_wait(said.receive, 1, frames), -ETIMEDOUT);
	ck_assert_uint_ge(clock_now_ns() - begin, WIRE_LOST_MS * NSEC_PER_MSEC);
	ck_assert_uint_le(clock_now_ns() - begin, 2 * WIRE_LOST_MS * NSEC_PER_MSEC);
	ck_said("data channel 1: the line is lost");
	ck_assert(!has_failed(silent.receive, 2000));
	end_on(&silent, 1, 0);
	ck_assert_int_eq(receive_pages_wait(silent.receive, 1, frames), 0);
	rig_fini(&said);
	rig_fini(&silent);
}
END_TEST

START_TEST(interrupted)
{
	uint64_t frames[2] = { 0 };
	static struct rig r;

	rig_init(&r, 2, RAM_PAGES);
	cmd_catch_signals();
	raise(SIGTERM);
	ck_assert_int_eq(receive_pages_wait(r.receive, 1, frames), -EINTR);
	rig_fini(&r);
}
END_TEST

// Threads end wherever they are: in a frame, waiting for its round to be taken, with writes under way.
START_TEST(stop)
{
	static struct rig r;

	for (int i = 0; i < 20; i++) {
		rig_init(&r, 2, _i ? 0 : RAM_PAGES);
		for (uint64_t n = 0; n < CHUNKS / 8; n++)
			send_new(&r, n * 8, true);
		end_on(&r, 1, r.frames[1]);
		ck_assert_int_eq(wire_write(r.pair[0].client, "CVPG", 4), 0);
		usleep((useconds_t)(i * 1000));
		rig_fini(&r);
		ck_assert_str_eq(said_text, "");
	}
}
END_TEST

// The disk fills up, which shows with pages whose writing ends when nothing comes any more.
// All that was sent of the first chunks is in the swap image.
static bool is_written(const struct rig *r, size_t chunks)
{
	for (size_t i = 0; i < chunks * PV_CHUNK_PAGES; i++)
		if (r->t.version[i] && pv_page_home(&r->t.pages[i / PV_CHUNK_PAGES], i % PV_CHUNK_PAGES) != PV_HOME_SWAP)
			return false;
	return true;
}

START_TEST(full_swap)
{
	struct rlimit limit = { .rlim_cur = 3 * PV_CHUNK_SIZE, .rlim_max = RLIM_INFINITY };
	static struct rig r;
	struct wire_frame f;

	signal(SIGXFSZ, SIG_IGN);
	rig_init(&r, 2, 0);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	for (uint64_t i = 0; i < 3; i++)
		send_new(&r, i, true);
	for (unsigned i = 0; i < 3000 && !is_written(&r, 3); i++) // what is under way when the error comes is lost with it
		usleep(10000);
	f = frame_of(&r, 5, PV_CHUNK_PAGES);
	send_frame(&r, 5, &f, 0);
	expect_error(&r, -EFBIG, "chunk 5 of guest RAM");
	limit.rlim_cur = RLIM_INFINITY;
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	rig_fini(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("receive_pages");
	TCase *t = tcase_create("receive_pages");
	SRunner *sr;
	int failed;

	log_init(-1, LOG_ERROR, NULL, false); // to nobody
	tcase_set_timeout(t, 120);
	tcase_add_unchecked_fixture(t, make_dir, remove_dir);
	tcase_add_checked_fixture(t, remove_file, NULL);
	tcase_add_loop_test(t, rounds, 0, 4);
	tcase_add_loop_test(t, later, 0, 4);
	tcase_add_loop_test(t, frames_out_of_place, 0, ARRAY_SIZE(out_of_place));
	tcase_add_test(t, wanted);
	tcase_add_test(t, ahead);
	tcase_add_loop_test(t, wrong_frames, 0, ARRAY_SIZE(wrong));
	tcase_add_test(t, wrong_count);
	tcase_add_loop_test(t, wrong_round, 0, 4);
	tcase_add_loop_test(t, cut, 0, 4);
	tcase_add_test(t, silence);
	tcase_add_test(t, interrupted);
	tcase_add_loop_test(t, stop, 0, 2);
	tcase_add_test(t, full_swap);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
