// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_interval.h"

#include <stdbool.h>

#include "criu-vm/stat_vm.h"
#include "util/size.h"

#define MAX_BUCKETS 64

double stat_percentile(const uint64_t *bucket, size_t nr, double part)
{
	double all = 0, below = 0;
	size_t i = 0;

	for (size_t b = 0; b < nr; b++)
		all += (double)bucket[b];
	while (i + 1 < nr && (!bucket[i] || below + (double)bucket[i] < part * all))
		below += (double)bucket[i++];
	if (i + 1 >= nr)
		return (double)(1ULL << (nr - 2));

	double from = i ? (double)(1ULL << (i - 1)) : 0, to = (double)(1ULL << i);

	return from + (to - from) * (part * all - below) / (double)bucket[i];
}

// The sum of some of its counts.
static uint64_t counted(const json_t *vm, const char *const keys[])
{
	uint64_t n = 0;

	for (; *keys; keys++)
		n += stat_number(vm, "counts", *keys);
	return n;
}

static json_t *rate(const json_t *vm, const json_t *before, const char *const keys[], uint64_t unit, double seconds)
{
	uint64_t now = counted(vm, keys), then = counted(before, keys);

	return json_real(seconds > 0 && now > then ? (double)((now - then) * unit) / seconds : 0);
}

static json_t *percentiles(const uint64_t *bucket, size_t nr)
{
	uint64_t all = 0;

	for (size_t i = 0; i < nr; i++)
		all += bucket[i];
	if (!all || nr < 2)
		return json_null();
	return json_pack("{s:f s:f s:f s:f}", "p50", stat_percentile(bucket, nr, 0.5), "p90", stat_percentile(bucket, nr, 0.9), "p99",
			 stat_percentile(bucket, nr, 0.99), "max", stat_percentile(bucket, nr, 1));
}

void stat_add_interval(json_t *vm, const json_t *before)
{
	static const char *const faults[] = { "faults", NULL }, *const in[] = { "pages_in_swap", "pages_in_source", NULL },
				 *const out[] = { "pages_out_written", NULL }, *const fill[] = { "pages_filled_memory", "pages_filled_swap", NULL };
	const json_t *now = json_object_get(vm, "page_in_latency_log2_us"), *then;
	bool same = stat_number(vm, NULL, "pager_pid") == stat_number(before, NULL, "pager_pid") &&
		    stat_real(vm, NULL, "uptime_s") > stat_real(before, NULL, "uptime_s");
	json_t *interval, *hist = json_array();
	uint64_t bucket[MAX_BUCKETS] = { 0 };
	size_t nr = json_array_size(now) < MAX_BUCKETS ? json_array_size(now) : MAX_BUCKETS;
	double seconds;

	if (!same)
		before = NULL;
	seconds = stat_real(vm, NULL, "uptime_s") - stat_real(before, NULL, "uptime_s");
	then = json_object_get(before, "page_in_latency_log2_us");
	for (size_t i = 0; i < nr; i++) {
		bucket[i] = stat_element(now, i) > stat_element(then, i) ? stat_element(now, i) - stat_element(then, i) : 0;
		json_array_append_new(hist, json_integer((json_int_t)bucket[i]));
	}
	interval = json_pack("{s:f s:o s:o s:o s:o s:o s:o}", "seconds", seconds, "faults_per_s", rate(vm, before, faults, 1, seconds), "bytes_in_per_s",
			     rate(vm, before, in, PAGE_SIZE, seconds), "bytes_out_per_s", rate(vm, before, out, PAGE_SIZE, seconds),
			     "bytes_filled_per_s", rate(vm, before, fill, PAGE_SIZE, seconds), "page_ins_log2_us", hist, "page_in_us", percentiles(bucket, nr));
	json_object_set_new(vm, "interval", interval);
}
