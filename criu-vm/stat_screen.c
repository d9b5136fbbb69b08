// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_screen.h"

#include <stdarg.h>
#include <string.h>

#include "criu-vm/stat_paging.h"
#include "criu-vm/stat_remote.h"
#include "criu-vm/stat_vm.h"
#include "util/size.h"

#define BAR_COLUMNS 60
#define TABLE_BAR_COLUMNS 20
#define QUEUE_COLUMNS 32
#define MAX_BUCKETS 64
#define LABEL "  %-10s "
#define LONG_S 1.0 // a read or a drain that takes no longer is nothing to speak of

static void print_label(const struct stat_pen *pen, const char *label)
{
	fprintf(pen->f, LABEL, label);
}

static const char *format_pages(const json_t *vm, const char *key, char buf[16])
{
	return size_format(stat_number(vm, "counts", key) * PAGE_SIZE, buf);
}

static const json_t *interval(const json_t *vm)
{
	return json_object_get(vm, "interval");
}

static void where_pages_are(const json_t *vm, uint64_t part[STAT_NR_PLACES])
{
	uint64_t valid = stat_number(vm, "memory", "resident");
	uint64_t leaving = stat_number(vm, "memory", "standby") + stat_number(vm, "memory", "page_out_under_way");

	part[STAT_STANDBY] = leaving < valid ? leaving : valid;
	part[STAT_RESIDENT] = valid - part[STAT_STANDBY];
	part[STAT_SWAPPED] = stat_number(vm, "memory", "swapped");
	part[STAT_REMOTE] = stat_number(vm, "memory", "remote");
	part[STAT_EMPTY] = stat_number(vm, "memory", "empty");
}

static void print_legend(const struct stat_pen *pen, const uint64_t part[STAT_NR_PLACES])
{
	static const char *const name[STAT_NR_PLACES] = { "resident", "standby", "swapped", "remote", "empty" };
	char size[16];

	for (enum stat_place i = 0; i < STAT_NR_PLACES; i++) {
		if (i)
			fputs("  ", pen->f);
		stat_draw_mark(pen, i);
		fprintf(pen->f, " %s%s%s", name[i], part ? " " : "", part ? stat_format_short((double)part[i], size) : "");
	}
	fputc('\n', pen->f);
}

static void print_memory(const struct stat_pen *pen, const json_t *vm)
{
	uint64_t budget = stat_number(vm, "memory", "budget"), taken = stat_number(vm, "memory", "memfd"), part[STAT_NR_PLACES];
	uint64_t over = stat_number(vm, "memory", "overdraft"), over_max = stat_number(vm, "memory", "overdraft_max");
	char a[16], b[16];

	where_pages_are(vm, part);
	print_label(pen, "ram");
	stat_draw_bar(pen, part, BAR_COLUMNS);
	fprintf(pen->f, " %s\n", stat_format_short((double)stat_number(vm, NULL, "ram"), a));
	print_label(pen, "");
	print_legend(pen, part);
	print_label(pen, "budget");
	fprintf(pen->f, "%s, of which %s are taken", size_format(budget, a), size_format(taken, b));
	if (budget)
		fprintf(pen->f, " (%.0f %%)", 100.0 * (double)taken / (double)budget);
	if (over || over_max)
		fprintf(pen->f, "\n" LABEL "%s beyond it for I/O in flight, %s at most", "", size_format(over, a), size_format(over_max, b));
	fputc('\n', pen->f);
}

static void print_queues(const struct stat_pen *pen, const json_t *vm)
{
	const json_t *queues = json_object_get(vm, "queues");
	size_t nr = json_array_size(queues);
	double column[QUEUE_COLUMNS] = { 0 };
	uint64_t all = 0;

	for (size_t i = 0; i < nr; i++) {
		column[i * QUEUE_COLUMNS / nr] += (double)stat_element(queues, i);
		all += stat_element(queues, i);
	}
	fprintf(pen->f, LABEL "cold |", "queues");
	stat_draw_columns(pen, column, QUEUE_COLUMNS);
	fprintf(pen->f, "| hot   %lu chunks\n", all);
}

// How a rate was in the last rounds; and that it is an average, if there were none.
static void print_history(const struct stat_pen *pen, const json_t *history, const char *key)
{
	size_t nr = json_array_size(history);
	double value[STAT_HISTORY];

	if (!nr)
		fputs(" on average", pen->f);
	for (size_t i = 0; i < nr && i < STAT_HISTORY; i++)
		value[i] = stat_real(json_array_get(history, i), NULL, key);
	stat_draw_columns(pen, value, nr < STAT_HISTORY ? nr : STAT_HISTORY);
	fputc('\n', pen->f);
}

static void print_faults(const struct stat_pen *pen, const json_t *vm, const json_t *history)
{
	uint64_t all = stat_number(vm, "counts", "faults"), vcpu = stat_number(vm, "counts", "vcpu_faults");
	char rate[16];

	snprintf(rate, sizeof rate, "%.0f/s", stat_real(vm, "interval", "faults_per_s"));
	fprintf(pen->f, LABEL "%-14s", "faults", rate);
	print_history(pen, history, "faults_per_s");
	fprintf(pen->f, LABEL "%lu: %lu in memory, %lu in swap, %lu at a source, %lu empty\n", "", all, stat_number(vm, "counts", "faults_memory"),
		stat_number(vm, "counts", "faults_swap"), stat_number(vm, "counts", "faults_source"), stat_number(vm, "counts", "faults_zero"));
	fprintf(pen->f, LABEL "%lu of vCPUs, %lu of QEMU; %lu had to wait for memory\n", "", vcpu, all > vcpu ? all - vcpu : 0,
		stat_number(vm, "counts", "faults_delayed"));
}

static void print_flow(const struct stat_pen *pen, const char *label, const json_t *vm, const json_t *history, const char *key)
{
	char size[16], rate[24];

	snprintf(rate, sizeof rate, "%s/s", stat_format_size(stat_real(vm, "interval", key), size));
	fprintf(pen->f, LABEL "%-14s", label, rate);
	print_history(pen, history, key);
}

static void print_traffic(const struct stat_pen *pen, const json_t *vm, const json_t *history)
{
	char a[16], b[16], c[16];

	print_flow(pen, "in", vm, history, "bytes_in_per_s");
	fprintf(pen->f, LABEL "%s from swap, %s from a source, %s of zeros\n", "", format_pages(vm, "pages_in_swap", a),
		format_pages(vm, "pages_in_source", b), format_pages(vm, "pages_in_zero", c));
	if (stat_number(vm, "counts", "pages_filled_memory") || stat_number(vm, "counts", "pages_filled_swap")) {
		print_flow(pen, "fill", vm, history, "bytes_filled_per_s");
		fprintf(pen->f, LABEL "%s to memory, %s to swap\n", "", format_pages(vm, "pages_filled_memory", a),
			format_pages(vm, "pages_filled_swap", b));
	}
	print_flow(pen, "out", vm, history, "bytes_out_per_s");
	fprintf(pen->f, LABEL "%s written, %s clean, %s of zeros\n", "", format_pages(vm, "pages_out_written", a),
		format_pages(vm, "pages_out_clean", b), format_pages(vm, "pages_out_zero", c));
	fprintf(pen->f, LABEL "%lu chunks; %s touched on their way, and kept; %s given back by the guest\n", "",
		stat_number(vm, "counts", "chunks_out"), format_pages(vm, "pages_kept", a), format_pages(vm, "pages_discarded", b));
}

static void print_latency(const struct stat_pen *pen, const json_t *vm)
{
	static const struct {
		const char *key, *name, *in;
	} part[] = { { "p50", "50 %", "in ~" }, { "p90", "90 %", "in ~" }, { "p99", "99 %", "in ~" }, { "max", "all", "in " } };
	const json_t *us = json_object_get(interval(vm), "page_in_us"), *hist = json_object_get(interval(vm), "page_ins_log2_us");
	size_t nr = json_array_size(hist) < MAX_BUCKETS ? json_array_size(hist) : MAX_BUCKETS;
	double column[MAX_BUCKETS], bound = nr > 1 ? (double)(1ULL << (nr - 2)) : 0;
	char buf[16];

	print_label(pen, "page-in");
	if (!json_is_object(us)) {
		fputs("none\n", pen->f);
		return;
	}
	for (size_t i = 0; i < ARRAY_SIZE(part); i++)
		fprintf(pen->f, "%s%s %s%s", i ? ", " : "", part[i].name, stat_real(us, NULL, part[i].key) >= bound ? "beyond " : part[i].in,
			stat_format_us(stat_real(us, NULL, part[i].key), buf));
	for (size_t i = 0; i < nr; i++)
		column[i] = (double)stat_element(hist, i);
	fprintf(pen->f, "\n" LABEL "1 us |", "");
	stat_draw_columns(pen, column, nr);
	fprintf(pen->f, "| %s\n", stat_format_us(bound, buf));
}

static void print_drains(const struct stat_pen *pen, const json_t *vm)
{
	uint64_t nr = stat_number(vm, "counts", "drains");
	char mean[16], max[16];

	fprintf(pen->f, LABEL "%lu", "drains", nr);
	if (nr)
		fprintf(pen->f, ", %s on average, %s at most", stat_format_us((double)stat_number(vm, "counts", "drain_ns") / 1e3 / (double)nr, mean),
			stat_format_us((double)stat_number(vm, "counts", "drain_ns_max") / 1e3, max));
	fputc('\n', pen->f);
}

// One thing that waits; "nothing" is said when there was none.
static void __attribute__((format(printf, 3, 4))) print_wait(const struct stat_pen *pen, unsigned *nr, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	print_label(pen, (*nr)++ ? "" : "waits");
	stat_draw_text(pen, STAT_RED, text);
	fputc('\n', pen->f);
}

static void print_waiting(const struct stat_pen *pen, const json_t *vm)
{
	const char *trouble = stat_string(vm, "trouble");
	uint64_t failing = stat_number(vm, NULL, "reads_waiting"), reads = stat_number(vm, NULL, "reads");
	uint64_t faults = stat_number(vm, NULL, "faults_waiting"), errors = stat_number(vm, "counts", "write_errors");
	unsigned nr = 0;
	char t[32], remote[400];

	if (stat_format_remote_trouble(vm, remote, sizeof remote))
		print_wait(pen, &nr, "%s", remote);
	if (trouble)
		print_wait(pen, &nr, "%s, for %s", trouble, stat_format_duration(stat_real(vm, NULL, "trouble_s"), t));
	if (failing)
		print_wait(pen, &nr, "%lu reads have failed and are tried again; who touches these pages waits", failing);
	if (reads > failing && stat_real(vm, NULL, "oldest_read_s") >= LONG_S)
		print_wait(pen, &nr, "%lu reads are under way, the oldest for %s", reads, stat_format_duration(stat_real(vm, NULL, "oldest_read_s"), t));
	if (faults)
		print_wait(pen, &nr, "%lu faults, until memory is free", faults);
	if (stat_real(vm, NULL, "drain_s") >= LONG_S)
		print_wait(pen, &nr, "page-out, for QEMU's block I/O, for %s", stat_format_duration(stat_real(vm, NULL, "drain_s"), t));
	if (!nr)
		fprintf(pen->f, LABEL "nothing\n", "waits");
	if (errors)
		fprintf(pen->f, LABEL "%lu writes to swap have failed since the pager's start\n", "", errors);
}

static void print_host(const struct stat_pen *pen, const json_t *vm)
{
	char a[16], b[16], c[16], d[16];

	fprintf(pen->f, LABEL "QEMU: %s in the host's swap, %s of page tables; the pager takes %s, and %s of page tables\n", "host",
		size_format(stat_number(vm, NULL, "qemu_host_swap"), a), size_format(stat_number(vm, NULL, "qemu_page_tables"), b),
		size_format(stat_number(vm, NULL, "pager_memory"), c), size_format(stat_number(vm, NULL, "pager_page_tables"), d));
	if (stat_string(vm, "cgroup")) {
		fprintf(pen->f, LABEL "%s in cgroup ", "", size_format(stat_number(vm, NULL, "cgroup_memory"), a));
		stat_draw_text(pen, STAT_PLAIN, stat_string(vm, "cgroup"));
		fputc('\n', pen->f);
	}
}

static void print_line(const struct stat_pen *pen, const char *label, const char *text)
{
	if (!text)
		return;
	print_label(pen, label);
	stat_draw_text(pen, STAT_PLAIN, text);
	fputc('\n', pen->f);
}

static void print_remote(const struct stat_pen *pen, const json_t *vm)
{
	char text[400];

	if (stat_format_remote(vm, text, sizeof text))
		print_line(pen, "remote", text);
}

static void print_images(const struct stat_pen *pen, const json_t *vm)
{
	uint64_t source = stat_number(vm, "memory", "source");
	char size[16];

	if (!stat_string(vm, "images"))
		return;
	print_label(pen, "images");
	if (stat_is_paged(vm) && source)
		fprintf(pen->f, "still needed for %s of its pages%s: ", size_format(source, size),
			json_is_true(json_object_get(vm, "filling")) ? ", which come in the background" : "");
	else
		fputs(stat_is_paged(vm) ? "no longer needed: " : strcmp(stat_string(vm, "state"), "ended") != 0 ? "perhaps still needed: " : "", pen->f);
	stat_draw_text(pen, STAT_PLAIN, stat_string(vm, "images"));
	fputc('\n', pen->f);
}

static void print_state(const struct stat_pen *pen, const json_t *vm, int width)
{
	bool served = stat_is_served(vm);
	const char *state = stat_string(vm, served ? "guest" : "state");
	bool good = served && !stat_string(vm, "trouble");

	if (!state)
		state = "unknown";
	stat_draw_text(pen, !good ? STAT_RED : !strcmp(state, "running") ? STAT_GREEN : STAT_YELLOW, state);
	fprintf(pen->f, "%*s", (int)strlen(state) < width ? width - (int)strlen(state) : 0, "");
}

static void print_pid(const struct stat_pen *pen, const json_t *vm, const char *what, const char *key)
{
	if (stat_number(vm, NULL, key))
		fprintf(pen->f, ", %s %lu", what, stat_number(vm, NULL, key));
}

void stat_print_vm(const struct stat_pen *pen, const json_t *vm, const json_t *history)
{
	const char *name = stat_string(vm, "name");
	char buf[32];

	if (stat_is_leaving(vm)) {
		stat_print_leaving(pen, vm);
		return;
	}
	fprintf(pen->f, "%s: ", name ? name : "?");
	print_state(pen, vm, 0);
	if (stat_is_served(vm))
		fprintf(pen->f, ", served for %s", stat_format_duration(stat_real(vm, NULL, "uptime_s"), buf));
	print_pid(pen, vm, "QEMU", "qemu_pid");
	print_pid(pen, vm, "pager", "pager_pid");
	print_pid(pen, vm, "supervisor", "supervisor_pid");
	fputc('\n', pen->f);
	print_line(pen, "why", stat_string(vm, "message"));
	if (stat_is_served(vm))
		print_waiting(pen, vm);
	if (stat_is_paged(vm))
		print_memory(pen, vm);
	else if (stat_number(vm, NULL, "ram"))
		fprintf(pen->f, LABEL "%s%s\n", "ram", size_format(stat_number(vm, NULL, "ram"), buf),
			stat_is_served(vm) && !stat_string(vm, "trouble") ? ", all in physical memory" : "");
	print_remote(pen, vm);
	print_images(pen, vm);
	if (stat_is_paged(vm)) {
		print_faults(pen, vm, history);
		print_traffic(pen, vm, history);
		print_latency(pen, vm);
		stat_print_paging(pen, vm);
		print_queues(pen, vm);
		print_drains(pen, vm);
	}
	if (stat_is_served(vm))
		print_host(pen, vm);
	print_line(pen, "swap", stat_string(vm, "swap"));
	print_line(pen, "log", stat_string(vm, "log"));
}

static void print_paged(const struct stat_pen *pen, const json_t *vm)
{
	const json_t *us = json_object_get(interval(vm), "page_in_us");
	uint64_t part[STAT_NR_PLACES];
	char a[16], b[16];

	where_pages_are(vm, part);
	fprintf(pen->f, "%7s %7s ", stat_format_short((double)stat_number(vm, "memory", "memfd"), a),
		stat_format_short((double)stat_number(vm, "memory", "budget"), b));
	fprintf(pen->f, "%7s %7s", stat_format_short((double)part[STAT_SWAPPED], a), stat_format_short((double)part[STAT_REMOTE], b));
	fprintf(pen->f, " %8.0f", stat_real(vm, "interval", "faults_per_s"));
	fprintf(pen->f, " %7s %7s", stat_format_short(stat_real(vm, "interval", "bytes_in_per_s"), a),
		stat_format_short(stat_real(vm, "interval", "bytes_out_per_s"), b));
	fprintf(pen->f, "  %7s  ", json_is_object(us) ? stat_format_us(stat_real(us, NULL, "p99"), a) : "-");
	stat_draw_bar(pen, part, TABLE_BAR_COLUMNS);
}

// What there is to say of a row, below it.
static void print_note(const struct stat_pen *pen, int width, enum stat_color color, const char *text)
{
	if (!text)
		return;
	fprintf(pen->f, "%*s  ^ ", width, "");
	stat_draw_text(pen, color, text);
	fputc('\n', pen->f);
}

static void print_row(const struct stat_pen *pen, const json_t *vm, int width)
{
	char ram[16], remote[400];

	if (stat_is_leaving(vm)) {
		stat_print_leaving_row(pen, vm, width);
		return;
	}
	fprintf(pen->f, "%-*s  ", width, stat_string(vm, "name"));
	print_state(pen, vm, 8);
	fprintf(pen->f, "%8lu %7s ", stat_number(vm, NULL, "qemu_pid"), stat_format_short((double)stat_number(vm, NULL, "ram"), ram));
	if (stat_is_paged(vm))
		print_paged(pen, vm);
	fputc('\n', pen->f);
	print_note(pen, width, STAT_RED, stat_string(vm, "message"));
	print_note(pen, width, STAT_RED, stat_string(vm, "trouble"));
	if (stat_format_remote_trouble(vm, remote, sizeof remote))
		print_note(pen, width, STAT_RED, remote);
	else if (stat_format_remote(vm, remote, sizeof remote))
		print_note(pen, width, STAT_DIM, remote);
}

void stat_print_table(const struct stat_pen *pen, const json_t *vms, const char *run_dir)
{
	bool paged = false;
	int width = 4;
	size_t i;
	json_t *vm;

	if (!json_array_size(vms)) {
		fprintf(pen->f, "no VM runs here (%s)\n", run_dir);
		return;
	}
	json_array_foreach(vms, i, vm) {
		if ((int)strlen(stat_string(vm, "name")) > width)
			width = (int)strlen(stat_string(vm, "name"));
		paged |= stat_is_paged(vm);
	}
	fprintf(pen->f, "%-*s  STATE       QEMU     RAM  MEMORY  BUDGET  SWAPPED  REMOTE FAULTS/s    IN/s   OUT/s     99 %%\n", width, "NAME");
	json_array_foreach(vms, i, vm)
		print_row(pen, vm, width);
	if (paged) {
		fprintf(pen->f, "%*s  ", width, "");
		print_legend(pen, NULL);
	}
}
