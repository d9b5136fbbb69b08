// SPDX-License-Identifier: GPL-2.0-only
// stat's figures and its screens, of VMs that say all, little, or nonsense.
#include <check.h>
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/stat_interval.h"
#include "criu-vm/stat_prometheus.h"
#include "criu-vm/stat_screen.h"
#include "criu-vm/stat_vm.h"
#include "util/size.h"

#define NR 24

static const struct {
	struct {
		unsigned bucket;
		uint64_t nr;
	} counts[4];
	double part, us;
} latencies[] = {
	{ { { 10, 100 } }, 1, 1024 },
	{ { { 10, 100 } }, 0.5, 768 }, // half the way from 512 to 1024
	{ { { 10, 1 } }, 0.01, 512 + 5.12 },
	{ { { 0, 10 } }, 0.5, 0.5 },
	{ { { 1, 10 } }, 0.5, 1.5 },
	{ { { 3, 50 }, { 10, 50 } }, 0.5, 8 },
	{ { { 3, 50 }, { 10, 50 } }, 0.75, 768 },
	{ { { 3, 99 }, { 15, 1 } }, 0.99, 8 },
	{ { { 3, 99 }, { 15, 1 } }, 1, 32768 },
	{ { { 3, 90 }, { 4, 0 }, { 5, 10 } }, 0.95, 24 },
	{ { { NR - 2, 10 } }, 1, 1 << (NR - 2) },
	{ { { NR - 1, 10 } }, 0.5, 1 << (NR - 2) }, // it has no upper end
	{ { { 3, 50 }, { NR - 1, 50 } }, 0.99, 1 << (NR - 2) },
	{ { { 3, UINT64_MAX / 4 }, { 4, UINT64_MAX / 4 } }, 1, 16 },
};

START_TEST(percentiles)
{
	uint64_t bucket[NR] = { 0 };
	double us;

	for (unsigned i = 0; i < ARRAY_SIZE(latencies[_i].counts); i++)
		bucket[latencies[_i].counts[i].bucket] += latencies[_i].counts[i].nr;
	us = stat_percentile(bucket, NR, latencies[_i].part);
	ck_assert_msg(fabs(us - latencies[_i].us) < 1e-6 * us, "%f us, not %f", us, latencies[_i].us);
}
END_TEST

// A VM at a second of its pager's life, n of everything countable.
static json_t *vm_at(double uptime, int pager, int n)
{
	json_t *hist = json_array(), *queues = json_array(), *vm;

	for (int i = 0; i < NR; i++)
		json_array_append_new(hist, json_integer(i == 10 ? n : 0));
	for (int i = 0; i < 256; i++)
		json_array_append_new(queues, json_integer(i % 16 ? 0 : n));
	vm = json_pack("{s:s s:s s:s s:i s:i s:f s:I s:{s:I s:I s:I s:I s:I s:I} s:{s:i s:i s:i s:i s:i s:i s:i s:i} s:o s:o s:n}", "name", "web",
		       "state", "served", "guest", "running", "qemu_pid", 4711, "pager_pid", pager, "uptime_s", uptime, "ram", (json_int_t)GiB,
		       "memory", "budget", (json_int_t)(256 * MiB), "resident", (json_int_t)(200 * MiB), "swapped", (json_int_t)(300 * MiB),
		       "remote", (json_int_t)(300 * MiB), "source", (json_int_t)(322 * MiB), "empty", (json_int_t)(202 * MiB), "counts", "faults", n,
		       "vcpu_faults", n / 2, "pages_in_swap", n, "pages_in_source", n, "pages_out_written", n, "pages_filled_memory", n,
		       "pages_filled_swap", 2 * n, "page_in_ns", n * 1000, "page_in_latency_log2_us", hist, "queues", queues, "trouble");
	json_object_set_new(vm, "tuning", json_pack("{s:s s:s s:i s:b s:b}", "method", "adaptive", "access", "auto", "queue_bits", 8, "spin", 1, "folios", 1));
	json_object_set_new(vm, "access", json_string("minor"));
	json_object_set_new(vm, "folios", json_false());
	json_object_set_new(vm, "images", json_string("/images/web"));
	json_object_set_new(vm, "log", json_string("/log"));
	json_object_set_new(vm, "remote", json_null());
	ck_assert_ptr_nonnull(vm);
	return vm;
}

static void interval_is(const json_t *before, double seconds, double faults_per_s, uint64_t page_ins)
{
	json_t *vm = vm_at(20, 100, 1000);

	stat_add_interval(vm, before);
	ck_assert_double_eq(stat_real(vm, "interval", "seconds"), seconds);
	ck_assert_double_eq(stat_real(vm, "interval", "faults_per_s"), faults_per_s);
	ck_assert_double_eq(stat_real(vm, "interval", "bytes_in_per_s"), faults_per_s * 2 * PAGE_SIZE);
	ck_assert_double_eq(stat_real(vm, "interval", "bytes_out_per_s"), faults_per_s * PAGE_SIZE);
	ck_assert_double_eq(stat_real(vm, "interval", "bytes_filled_per_s"), faults_per_s * 3 * PAGE_SIZE);
	ck_assert_uint_eq(stat_element(json_object_get(json_object_get(vm, "interval"), "page_ins_log2_us"), 10), page_ins);
	ck_assert(json_is_object(json_object_get(json_object_get(vm, "interval"), "page_in_us")) == (page_ins > 0));
	json_decref(vm);
}

START_TEST(intervals)
{
	json_t *earlier = vm_at(18, 100, 600), *same = vm_at(19, 100, 1000), *other = vm_at(18, 99, 600), *later = vm_at(21, 100, 2000);
	json_t *unserved = json_pack("{s:s s:s}", "name", "web", "state", "unserved");

	interval_is(NULL, 20, 50, 1000);
	interval_is(earlier, 2, 200, 400);
	interval_is(same, 1, 0, 0);
	interval_is(other, 20, 50, 1000);    // another pager's: its counts say nothing of this one's
	interval_is(unserved, 20, 50, 1000); // there was none
	interval_is(later, 20, 50, 1000);    // a pid comes again
	json_decref(earlier);
	json_decref(same);
	json_decref(other);
	json_decref(later);
	json_decref(unserved);
}
END_TEST

enum as { AS_VM, AS_TABLE, AS_METRICS, NR_AS };

static char *printed(const json_t *vm, enum as as)
{
	json_t *vms = json_pack("[O]", vm), *history = json_array();
	char *text;
	size_t len;
	struct stat_pen pen = { .f = open_memstream(&text, &len) };

	for (int i = 0; i < STAT_HISTORY; i++)
		json_array_append(history, json_object_get(vm, "interval"));
	if (as == AS_VM) {
		stat_print_vm(&pen, vm, history);
		stat_print_vm(&pen, vm, NULL);
	} else if (as == AS_TABLE) {
		stat_print_table(&pen, vms, "run");
	} else {
		stat_print_prometheus(pen.f, vms);
	}
	fclose(pen.f);
	json_decref(vms);
	json_decref(history);
	return text;
}

static void says(const json_t *vm, enum as as, const char *what)
{
	char *text = printed(vm, as);

	ck_assert_msg(strstr(text, what), "'%s' is missing in: %s", what, text);
	free(text);
}

START_TEST(screen)
{
	json_t *vm = vm_at(20, 100, 1000);

	stat_add_interval(vm, NULL);
	says(vm, AS_VM, "waits      nothing");
	says(vm, AS_VM, "still needed for 322 MiB of its pages: /images/web");
	says(vm, AS_VM, "50 % in ~768 us, 90 % in ~973 us, 99 % in ~1.0 ms, all in 1.0 ms");
	json_object_set_new(vm, "trouble", json_string("the swap image cannot be read: Input/output error"));
	json_object_set_new(vm, "trouble_s", json_real(75.9));
	json_object_set_new(vm, "reads_waiting", json_integer(3));
	says(vm, AS_VM, "waits      the swap image cannot be read: Input/output error, for 1 min 15 s");
	says(vm, AS_VM, "3 reads have failed");
	says(vm, AS_TABLE, "^ the swap image cannot be read");
	json_object_set_new(vm, "filling", json_true());
	says(vm, AS_VM, "still needed for 322 MiB of its pages, which come in the background: /images/web");
	json_object_set_new(json_object_get(vm, "memory"), "source", json_integer(0));
	says(vm, AS_VM, "no longer needed");
	json_object_set_new(vm, "state", json_string("unserved"));
	says(vm, AS_VM, "perhaps still needed");
	says(vm, AS_METRICS, "criu_vm_up{vm=\"web\"} 0");
	json_decref(vm);
}
END_TEST

START_TEST(how_it_is_paged)
{
	json_t *vm = vm_at(20, 100, 1000), *counts = json_object_get(vm, "counts");
	char *text;

	stat_add_interval(vm, NULL);
	says(vm, AS_VM, "paging     method adaptive, access minor\n  queues"); // nothing was brought in so far
	json_object_set_new(counts, "page_ins_page", json_integer(600));
	json_object_set_new(counts, "page_ins_block", json_integer(300));
	json_object_set_new(counts, "page_ins_chunk", json_integer(100));
	says(vm, AS_VM, "access minor\n             a page-in brings 4 KiB (60 %), 64 KiB (30 %) or 1 MiB (10 %)\n  queues");
	json_object_set_new(counts, "pages_sampled", json_integer(40));
	json_object_set_new(counts, "pages_sampled_used", json_integer(30));
	json_object_set_new(counts, "pages_ahead", json_integer(512));
	json_object_set_new(counts, "pages_kept", json_integer(256));
	says(vm, AS_VM, "1 MiB (10 %); of what came unasked 75 % were used\n             2 MiB ahead of sequential or strided accesses\n");
	says(vm, AS_VM, "1 MiB touched on their way, and kept");
	json_object_set_new(vm, "folios", json_true());
	json_object_set_new(json_object_get(vm, "memory"), "idle", json_integer(12 << 20));
	says(vm, AS_VM, "method adaptive, access minor (12 MiB are watched), folios of 1 MiB\n");
	says(vm, AS_METRICS, "criu_vm_page_ins_total{vm=\"web\",window=\"block\"} 300\n");
	says(vm, AS_METRICS, "criu_vm_kept_bytes_total{vm=\"web\"} 1048576\n");
	json_object_set_new(vm, "replayed", json_integer(8 << 20));
	says(vm, AS_VM, "accesses\n             of what was in memory at the dump 8 MiB were brought back\n");
	json_object_set_new(vm, "replaying", json_true());
	json_object_set_new(vm, "replay_left", json_integer(3 << 20));
	says(vm, AS_VM, "of what was in memory at the dump 8 MiB are back, at most 3 MiB follow\n");
	json_object_del(vm, "tuning"); // a pager of an earlier version
	text = printed(vm, AS_VM);
	ck_assert(!strstr(text, "paging "));
	free(text);
	json_decref(vm);
}
END_TEST

START_TEST(pages_elsewhere)
{
	json_t *vm = vm_at(20, 100, 1000), *remote;

	stat_add_interval(vm, NULL);
	remote = json_pack("{s:s s:i s:i s:i s:i s:n s:f}", "from", "10.0.0.1", "lines", 3, "lines_wanted", 5, "pages_left", 256, "waiting", 0, "trouble",
			   "alone_s", 0.0);
	json_object_set(vm, "remote", remote);
	says(vm, AS_VM, "waits      nothing");
	says(vm, AS_VM, "remote     1 MiB are at 10.0.0.1 yet; 3 of 5 lines");
	says(vm, AS_TABLE, "^ 1 MiB are at 10.0.0.1 yet");
	says(vm, AS_METRICS, "criu_vm_remote_left_bytes{vm=\"web\"} 1048576\n");
	json_object_set_new(remote, "trouble", json_string("the source cannot read the page"));
	says(vm, AS_VM, "waits      pages that 10.0.0.1 has: the source cannot read the page");
	json_object_set_new(remote, "alone_s", json_real(65));
	json_object_set_new(remote, "waiting", json_integer(7));
	json_object_set_new(remote, "trouble", json_string("the line is lost"));
	says(vm, AS_VM, "waits      pages that 10.0.0.1 has: no line from there for 1 min 05 s: the line is lost; 7 reads wait for that");
	says(vm, AS_TABLE, "^ pages that 10.0.0.1 has: no line from there for 1 min 05 s");
	json_object_set_new(vm, "state", json_string("unserved"));
	says(vm, AS_VM, "some of its pages are at 10.0.0.1 yet");
	json_decref(remote);
	json_decref(vm);
}
END_TEST

START_TEST(pages_here_of_others)
{
	json_t *vm = json_pack("{s:s s:{s:s s:i s:i s:i s:i s:i s:i s:i s:n s:i}}", "name", "web", "leaving", "host", "h2:9723", "qemu_pid", 4711,
			       "server_pid", 4712, "pages_left", 512, "pages_served", 256, "bytes", 65536, "lines", 2, "lines_wanted", 3, "trouble",
			       "since_s", 61);
	char *text = printed(vm, AS_METRICS);

	ck_assert(!strstr(text, "criu_vm_up") && !strstr(text, "criu_vm_info")); // it is another host's
	free(text);
	says(vm, AS_METRICS, "criu_vm_departed_left_bytes{vm=\"web\"} 2097152\n");
	says(vm, AS_VM, "web: leaving, QEMU 4711, served by 4712\n  where      h2:9723, for 1 min 01 s\n");
	says(vm, AS_VM, "pages      2 MiB needed there yet; 1 MiB served in 64 KiB; 2 of 3 lines");
	says(vm, AS_TABLE, "web   leaving     4711  runs at h2:9723, which needs 2 MiB from here\n");
	json_object_set_new(json_object_get(vm, "leaving"), "trouble", json_string("no line\033"));
	says(vm, AS_VM, "waits      no line?");
	says(vm, AS_TABLE, "^ no line?");
	json_decref(vm);
}
END_TEST

// A pager of another version, or something that is none, may say anything, but does not drive the terminal.
START_TEST(nonsense)
{
	static const char *const values[] = { "null", "-1", "1e308", "18446744073709551615", "\"\\u001b[2J\\n\\\"\\\\\"", "[]", "{}",
					      "[-5, null, {}, \"x\"]", "true", "{\"budget\": -1, \"p50\": \"x\"}" };
	json_t *good = vm_at(20, 100, 1000), *value;
	const char *key;

	stat_add_interval(good, NULL);
	json_object_foreach(good, key, value) {
		json_t *vm = json_deep_copy(good);
		char *text;

		if (strcmp(key, "name") != 0 && strcmp(key, "state") != 0) // which stat_vm.h promises
			json_object_set_new(vm, key, json_loads(values[_i], JSON_DECODE_ANY, NULL));
		for (enum as as = 0; as < NR_AS; as++) {
			text = printed(vm, as);
			for (const char *s = text; *s && as != AS_METRICS; s++)
				ck_assert(*s == '\n' || !iscntrl((unsigned char)*s));
			free(text);
		}
		if (stat_is_paged(vm))
			stat_add_interval(vm, good);
		json_decref(vm);
	}
	json_decref(good);
}
END_TEST

START_TEST(labels_are_escaped)
{
	json_t *vm = vm_at(20, 100, 1000);

	json_object_set_new(vm, "images", json_string("/a \"b\" \\c\n}d"));
	says(vm, AS_METRICS, "images=\"/a \\\"b\\\" \\\\c\\n}d\"");
	says(vm, AS_METRICS, "criu_vm_page_in_seconds_bucket{vm=\"web\",le=\"0.000512\"} 0\n"
			"criu_vm_page_in_seconds_bucket{vm=\"web\",le=\"0.001024\"} 1000\n");
	says(vm, AS_METRICS, "criu_vm_page_in_seconds_bucket{vm=\"web\",le=\"+Inf\"} 1000\ncriu_vm_page_in_seconds_sum{vm=\"web\"} 0.001\n");
	json_decref(vm);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("stat");
	TCase *tc = tcase_create("stat");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_loop_test(tc, percentiles, 0, ARRAY_SIZE(latencies));
	tcase_add_test(tc, intervals);
	tcase_add_test(tc, screen);
	tcase_add_test(tc, how_it_is_paged);
	tcase_add_test(tc, pages_elsewhere);
	tcase_add_test(tc, pages_here_of_others);
	tcase_add_loop_test(tc, nonsense, 0, 10);
	tcase_add_test(tc, labels_are_escaped);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed > 0;
}
