// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_prometheus.h"

#include <stdbool.h>
#include <string.h>

#include "criu-vm/stat_remote.h"
#include "criu-vm/stat_vm.h"
#include "util/clock.h"
#include "util/size.h"

#define PREFIX "criu_vm_"
#define NS (1.0 / NSEC_PER_SEC)
#define C(key) "counts", key
#define M(key) "memory", key
#define TOP(key) NULL, key
#define REMOTE(key) "remote", key
#define LEAVING(key) "leaving", key
#define PLACE(where) "place=\"" where "\""
#define STAGE(stage) "stage=\"" stage "\""
#define WINDOW(window) "window=\"" window "\""
#define KIND(kind) "kind=\"" kind "\""

enum type { GAUGE, COUNTER };

// One series of a VM. Those of one metric stand together, and differ in a label.
static const struct series {
	const char *metric, *label; // NULL: none but vm
	enum type type;
	const char *help; // with the metric's first series
	const char *group, *key; // of the VM
	double unit;
} all[] = {
	{ "ram_bytes", NULL, GAUGE, "Guest RAM.", TOP("ram"), 1 },
	{ "budget_bytes", NULL, GAUGE, "Physical memory that guest RAM may take.", M("budget"), 1 },
	{ "resident_bytes", NULL, GAUGE, "Physical memory that guest RAM takes.", M("memfd"), 1 },
	{ "overdraft_bytes", NULL, GAUGE, "Of that, beyond the budget for the sake of I/O in flight.", M("overdraft"), 1 },
	{ "overdraft_max_bytes", NULL, GAUGE, "The most that it was since the pager's start.", M("overdraft_max"), 1 },
	{ "idle_bytes", NULL, GAUGE, "Pages in memory that are unmapped, to see whether they are used.", M("idle"), 1 },
	{ "leaving_bytes", STAGE("under_way"), GAUGE, "Pages in memory on their way out, or ready to be dropped.", M("page_out_under_way"), 1 },
	{ "leaving_bytes", STAGE("standby"), GAUGE, NULL, M("standby"), 1 },
	{ "guest_pages_bytes", PLACE("memory"), GAUGE, "Guest RAM by where the newest copy of its pages is.", M("resident"), 1 },
	{ "guest_pages_bytes", PLACE("swap"), GAUGE, NULL, M("swapped"), 1 },
	{ "guest_pages_bytes", PLACE("images"), GAUGE, NULL, M("remote"), 1 },
	{ "guest_pages_bytes", PLACE("nowhere"), GAUGE, NULL, M("empty"), 1 },
	{ "images_needed_bytes", NULL, GAUGE, "Pages of which only the images have a copy, or only they beside memory.", M("source"), 1 },
	{ "remote_left_bytes", NULL, GAUGE, "Pages that another host has yet.", REMOTE("pages_left"), PAGE_SIZE },
	{ "remote_lines", NULL, GAUGE, "Lines to that host.", REMOTE("lines"), 1 },
	{ "remote_alone_seconds", NULL, GAUGE, "For how long there has been no line; 0: there is one.", REMOTE("alone_s"), 1 },
	{ "departed_left_bytes", NULL, GAUGE, "Pages here of a VM that runs elsewhere, and needs them yet.", LEAVING("pages_left"), PAGE_SIZE },
	{ "departed_lines", NULL, GAUGE, "Lines to the host where it runs.", LEAVING("lines"), 1 },
	{ "faults_total", PLACE("memory"), COUNTER, "Page faults of QEMU on guest RAM, by where the page was.", C("faults_memory"), 1 },
	{ "faults_total", PLACE("swap"), COUNTER, NULL, C("faults_swap"), 1 },
	{ "faults_total", PLACE("images"), COUNTER, NULL, C("faults_source"), 1 },
	{ "faults_total", PLACE("nowhere"), COUNTER, NULL, C("faults_zero"), 1 },
	{ "vcpu_faults_total", NULL, COUNTER, "Of these faults, those of vCPUs.", C("vcpu_faults"), 1 },
	{ "delayed_faults_total", NULL, COUNTER, "Of these faults, those that had to wait for memory.", C("faults_delayed"), 1 },
	{ "page_in_bytes_total", PLACE("swap"), COUNTER, "Brought into memory, by where it came from.", C("pages_in_swap"), PAGE_SIZE },
	{ "page_in_bytes_total", PLACE("images"), COUNTER, NULL, C("pages_in_source"), PAGE_SIZE },
	{ "page_in_bytes_total", PLACE("nowhere"), COUNTER, NULL, C("pages_in_zero"), PAGE_SIZE },
	{ "filled_bytes_total", PLACE("memory"), COUNTER, "Brought from the images in the background, by where to.", C("pages_filled_memory"), PAGE_SIZE },
	{ "filled_bytes_total", PLACE("swap"), COUNTER, NULL, C("pages_filled_swap"), PAGE_SIZE },
	{ "page_ins_total", WINDOW("page"), COUNTER, "Page-ins by how much came with the page that was touched.", C("page_ins_page"), 1 },
	{ "page_ins_total", WINDOW("block"), COUNTER, NULL, C("page_ins_block"), 1 },
	{ "page_ins_total", WINDOW("chunk"), COUNTER, NULL, C("page_ins_chunk"), 1 },
	{ "page_in_ahead_bytes_total", NULL, COUNTER, "Of that, ahead of a sequential or strided access.", C("pages_ahead"), PAGE_SIZE },
	{ "sampled_pages_total", NULL, COUNTER, "Pages that came unasked, were looked at, and have left.", C("pages_sampled"), 1 },
	{ "sampled_pages_used_total", NULL, COUNTER, "Of these, those that were touched.", C("pages_sampled_used"), 1 },
	{ "replayed_bytes", NULL, GAUGE, "Of what was in memory at the dump, brought back in the background.", TOP("replayed"), 1 },
	{ "replay_left_bytes", NULL, GAUGE, "And of that, at most, yet to come.", TOP("replay_left"), 1 },
	{ "page_out_bytes_total", KIND("written"), COUNTER, "Taken out of memory; clean: there was a copy.", C("pages_out_written"), PAGE_SIZE },
	{ "page_out_bytes_total", KIND("clean"), COUNTER, NULL, C("pages_out_clean"), PAGE_SIZE },
	{ "page_out_bytes_total", KIND("zero"), COUNTER, NULL, C("pages_out_zero"), PAGE_SIZE },
	{ "discarded_bytes_total", NULL, COUNTER, "Given back by the guest.", C("pages_discarded"), PAGE_SIZE },
	{ "chunks_out_total", NULL, COUNTER, "Chunks of 1 MiB that were paged out.", C("chunks_out"), 1 },
	{ "kept_bytes_total", NULL, COUNTER, "Pages that were touched on their way out, and stayed.", C("pages_kept"), PAGE_SIZE },
	{ "page_tables_given_back_total", NULL, COUNTER, "Page tables of QEMU, of 4 KiB each, that were given back.", C("tables_given_back"), 1 },
	{ "drains_total", NULL, COUNTER, "How often QEMU's block I/O was drained.", C("drains"), 1 },
	{ "drain_seconds_total", NULL, COUNTER, "How long that took.", C("drain_ns"), NS },
	{ "write_errors_total", NULL, COUNTER, "Writes to swap that have failed.", C("write_errors"), 1 },
	{ "reads", NULL, GAUGE, "Reads from swap and images under way.", TOP("reads"), 1 },
	{ "oldest_read_seconds", NULL, GAUGE, "For how long the oldest of these reads has been under way.", TOP("oldest_read_s"), 1 },
	{ "failing_reads", NULL, GAUGE, "Of these reads, those that have failed and are tried again.", TOP("reads_waiting"), 1 },
	{ "waiting_faults", NULL, GAUGE, "Faults that wait for memory.", TOP("faults_waiting"), 1 },
	{ "drain_under_way_seconds", NULL, GAUGE, "How long the drain under way has taken; 0: there is none.", TOP("drain_s"), 1 },
	{ "trouble_seconds", NULL, GAUGE, "For how long something has kept pages from being read or written; 0: nothing does.", TOP("trouble_s"), 1 },
	{ "qemu_host_swap_bytes", NULL, GAUGE, "Of QEMU in the host's swap.", TOP("qemu_host_swap"), 1 },
	{ "qemu_page_tables_bytes", NULL, GAUGE, "Page tables of QEMU.", TOP("qemu_page_tables"), 1 },
	{ "pager_page_tables_bytes", NULL, GAUGE, "Page tables of the pager.", TOP("pager_page_tables"), 1 },
	{ "pager_memory_bytes", NULL, GAUGE, "Memory of the pager's own.", TOP("pager_memory"), 1 },
	{ "cgroup_memory_bytes", NULL, GAUGE, "All memory that is charged to the VM's cgroup.", TOP("cgroup_memory"), 1 },
	{ "pager_uptime_seconds", NULL, GAUGE, "For how long the pager has served; counters begin with it.", TOP("uptime_s"), 1 },
};

static void print_head(FILE *f, const char *metric, const char *type, const char *help)
{
	fprintf(f, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", metric, help, metric, type);
}

// A label's value: escaped.
static void print_value(FILE *f, const char *s)
{
	for (; s && *s; s++) {
		if (*s == '\\' || *s == '"' || *s == '\n')
			fputc('\\', f);
		fputc(*s == '\n' ? 'n' : *s, f);
	}
}

// metric{vm="NAME", and what the caller adds to it.
static void print_name(FILE *f, const char *metric, const json_t *vm)
{
	fprintf(f, PREFIX "%s{vm=\"", metric);
	print_value(f, stat_string(vm, "name"));
	fputc('"', f);
}

static bool has(const json_t *vm, const struct series *s)
{
	return json_is_number(json_object_get(s->group ? json_object_get(vm, s->group) : vm, s->key));
}

// The series of one metric, of all VMs that have it. Returns the next metric's.
static const struct series *print_metric(FILE *f, const json_t *vms, const struct series *first)
{
	const struct series *s = first, *end = all + ARRAY_SIZE(all);
	bool head = false;
	const json_t *vm;
	size_t i;

	for (; s < end && !strcmp(s->metric, first->metric); s++) {
		json_array_foreach(vms, i, vm) {
			if (!has(vm, s))
				continue;
			if (!head)
				print_head(f, s->metric, s->type == GAUGE ? "gauge" : "counter", first->help);
			head = true;
			print_name(f, s->metric, vm);
			if (s->label)
				fprintf(f, ",%s", s->label);
			fprintf(f, "} %.16g\n", stat_real(vm, s->group, s->key) * s->unit);
		}
	}
	return s;
}

static void print_info_of(FILE *f, const json_t *vm)
{
	static const char *const label[] = { "state", "guest", "images", "swap" };

	print_name(f, "info", vm);
	for (size_t l = 0; l < ARRAY_SIZE(label); l++) {
		fprintf(f, ",%s=\"", label[l]);
		print_value(f, stat_string(vm, label[l]));
		fputc('"', f);
	}
	fputs("} 1\n", f);
}

// Of those that are here.
static void print_info(FILE *f, const json_t *vms)
{
	size_t i, nr = 0;
	const json_t *vm;

	json_array_foreach(vms, i, vm) {
		if (stat_is_leaving(vm))
			continue;
		if (!nr++)
			print_head(f, "info", "gauge", "What is known of the VM; always 1.");
		print_info_of(f, vm);
	}
	if (nr)
		print_head(f, "up", "gauge", "Whether the VM has a pager that answers.");
	json_array_foreach(vms, i, vm) {
		if (stat_is_leaving(vm))
			continue;
		print_name(f, "up", vm);
		fprintf(f, "} %d\n", stat_is_served(vm));
	}
}

static void print_histogram(FILE *f, const json_t *vm)
{
	const json_t *hist = json_object_get(vm, "page_in_latency_log2_us");
	size_t nr = json_array_size(hist);
	uint64_t sum = 0;

	for (size_t i = 0; i < nr; i++) {
		sum += stat_element(hist, i);
		print_name(f, "page_in_seconds_bucket", vm);
		if (i + 1 < nr)
			fprintf(f, ",le=\"%.9g\"} %lu\n", (double)(1UL << i) / 1e6, sum);
		else
			fprintf(f, ",le=\"+Inf\"} %lu\n", sum);
	}
	print_name(f, "page_in_seconds_sum", vm);
	fprintf(f, "} %.16g\n", stat_real(vm, "counts", "page_in_ns") * NS);
	print_name(f, "page_in_seconds_count", vm);
	fprintf(f, "} %lu\n", sum);
}

void stat_print_prometheus(FILE *f, const json_t *vms)
{
	bool head = false;
	const json_t *vm;
	size_t i;

	print_info(f, vms);
	for (const struct series *s = all; s < all + ARRAY_SIZE(all);)
		s = print_metric(f, vms, s);
	json_array_foreach(vms, i, vm) {
		if (!json_array_size(json_object_get(vm, "page_in_latency_log2_us")))
			continue;
		if (!head)
			print_head(f, "page_in_seconds", "histogram", "How long page-ins took.");
		head = true;
		print_histogram(f, vm);
	}
}
