// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/describe.h"

#include <string.h>
#include <sys/stat.h>

#include "pvmem/warm.h"
#include "util/clock.h"

static json_t *number(uint64_t n)
{
	return json_integer((json_int_t)n);
}

static json_t *bytes(uint64_t pages)
{
	return number(pages * PAGE_SIZE);
}

static json_t *seconds(uint64_t ns)
{
	return json_real((double)ns / NSEC_PER_SEC);
}

// What guest RAM takes, as the kernel knows it.
static uint64_t memfd_bytes(const struct pv_block *blocks, size_t nr)
{
	uint64_t sum = 0;
	struct stat st;

	for (size_t i = 0; i < nr; i++)
		if (!fstat(blocks[i].memfd, &st))
			sum += (uint64_t)st.st_blocks * 512;
	return sum;
}

static json_t *describe_memory(const struct pv_stats *s, uint64_t memfd)
{
	return json_pack("{s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o s:o}",
			 "budget", bytes(s->budget), "memfd", number(memfd), "resident", bytes(s->resident), "idle", bytes(s->idle),
			 "page_out_under_way", bytes(s->page_out_under_way), "standby", bytes(s->standby), "swapped", bytes(s->swapped),
			 "remote", bytes(s->remote), "source", bytes(s->source), "empty", bytes(s->empty), "reserve", bytes(s->reserve),
			 "overdraft", bytes(s->overdraft), "overdraft_max", bytes(s->overdraft_max), "snapshot_shadow", bytes(s->shadow));
}

static json_t *describe_counts(const struct pv_stats *s)
{
	const struct {
		const char *key;
		uint64_t nr;
	} counts[] = {
		{ "faults", s->faults },
		{ "faults_memory", s->faults_on[PV_HOME_NONE] },
		{ "faults_zero", s->faults_on[PV_HOME_ZERO] },
		{ "faults_swap", s->faults_on[PV_HOME_SWAP] },
		{ "faults_source", s->faults_on[PV_HOME_SOURCE] },
		{ "minor_faults", s->minor_faults },
		{ "vcpu_faults", s->vcpu_faults },
		{ "faults_delayed", s->faults_delayed },
		{ "pages_in_zero", s->in_zero },
		{ "pages_in_swap", s->in_swap },
		{ "pages_in_source", s->in_source },
		{ "pages_ahead", s->in_ahead },
		{ "page_ins_page", s->windows[PV_WINDOW_PAGE] },
		{ "page_ins_block", s->windows[PV_WINDOW_BLOCK] },
		{ "page_ins_chunk", s->windows[PV_WINDOW_CHUNK] },
		{ "pages_sampled", s->sampled },
		{ "pages_sampled_used", s->sampled_used },
		{ "pages_out_written", s->out_written },
		{ "pages_out_clean", s->out_clean },
		{ "pages_out_zero", s->out_zero },
		{ "chunks_out", s->chunks_out },
		{ "pages_kept", s->pages_kept },
		{ "tables_given_back", s->tables_given_back },
		{ "pages_filled_memory", s->filled_memory },
		{ "pages_filled_swap", s->filled_swap },
		{ "pages_discarded", s->discarded },
		{ "drains", s->drains },
		{ "drain_ns", s->drain_ns },
		{ "drain_ns_max", s->drain_ns_max },
		{ "page_in_ns", s->latency_ns },
		{ "write_errors", s->writes_failed },
	};
	json_t *o = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
		json_object_set_new(o, counts[i].key, number(counts[i].nr));
	return o;
}

static json_t *trouble(const struct pv_stats *s)
{
	if (!s->trouble)
		return json_null();
	return s->trouble_err ? json_sprintf("%s: %s", s->trouble, strerror(-s->trouble_err)) : json_string(s->trouble);
}

// What waits now, and for how long.
static void describe_waiting(const struct pv_stats *s, json_t *o)
{
	json_object_set_new(o, "trouble", trouble(s));
	json_object_set_new(o, "trouble_s", seconds(s->trouble_ns));
	json_object_set_new(o, "reads", number(s->reads));
	json_object_set_new(o, "reads_waiting", number(s->reads_waiting));
	json_object_set_new(o, "oldest_read_s", seconds(s->read_ns));
	json_object_set_new(o, "faults_waiting", number(s->faults_waiting));
	json_object_set_new(o, "drain_s", seconds(s->drain_now_ns));
}

static bool has_folios(const struct pv_block *blocks, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (blocks[i].huge)
			return true;
	return false;
}

json_t *lp_describe_paging(const struct pv_engine *e, const struct pv_block *blocks, size_t nr_blocks)
{
	json_t *hist = json_array(), *queues = json_array(), *o;
	uint64_t brought, left;
	struct pv_stats s;

	pv_engine_stats(e, &s);
	for (unsigned i = 0; i < PV_LATENCY_BUCKETS; i++)
		json_array_append_new(hist, number(s.latency[i]));
	for (unsigned i = 0; i < s.nr_queue_buckets; i++)
		json_array_append_new(queues, number(s.queue[i]));
	o = json_pack("{s:o s:o s:o s:o}", "memory", describe_memory(&s, memfd_bytes(blocks, nr_blocks)), "counts", describe_counts(&s),
		      "page_in_latency_log2_us", hist, "queues", queues);
	if (!o)
		return NULL;
	describe_waiting(&s, o);
	json_object_set_new(o, "filling", json_boolean(s.filling));
	json_object_set_new(o, "replaying", json_boolean(pv_warm_is_active(e, &brought, &left)));
	json_object_set_new(o, "replayed", bytes(brought));
	json_object_set_new(o, "replay_left", bytes(left));
	json_object_set_new(o, "access", json_string(pv_access_name(s.access)));
	json_object_set_new(o, "folios", json_boolean(has_folios(blocks, nr_blocks)));
	return o;
}
