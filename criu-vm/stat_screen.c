// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_screen.h"

#include <ctype.h>
#include <langinfo.h>
#include <locale.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "criu-vm/stat_vm.h"
#include "util/size.h"

#define BAR_COLUMNS 60
#define TABLE_BAR_COLUMNS 20
#define QUEUE_COLUMNS 32
#define LABEL "  %-10s "

// What bars are drawn with: in a UTF-8 locale, and elsewhere.
static const struct charset {
	const char *resident, *leaving, *swapped, *remote, *empty;
	const char *level[9]; // none, to full
} charsets[] = {
	{ "#", "+", "=", "-", ".", { " ", ".", ":", "-", "=", "+", "*", "%", "#" } },
	{ "█", "▓", "▒", "░", "·", { " ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" } },
};

static const struct charset *charset(void)
{
	locale_t l = newlocale(LC_CTYPE_MASK, "", NULL);
	bool utf8 = l && !strcmp(nl_langinfo_l(CODESET, l), "UTF-8");

	if (l)
		freelocale(l);
	return &charsets[utf8];
}

// A string from elsewhere must not drive the terminal.
static void print_safe(FILE *f, const char *s)
{
	for (; *s; s++)
		fputc(iscntrl((unsigned char)*s) ? '?' : *s, f);
}

static void print_pid(FILE *f, const json_t *vm, const char *what, const char *key)
{
	if (stat_number(vm, NULL, key))
		fprintf(f, ", %s %lu", what, stat_number(vm, NULL, key));
}

static const char *format_uptime(double seconds, char buf[32])
{
	uint64_t s = seconds < 1e9 ? (uint64_t)seconds : 0;

	if (s >= 24 * 3600)
		snprintf(buf, 32, "%u d %u h", (unsigned)(s / 24 / 3600), (unsigned)(s / 3600 % 24));
	else if (s >= 3600)
		snprintf(buf, 32, "%u h %02u min", (unsigned)(s / 3600), (unsigned)(s / 60 % 60));
	else if (s >= 60)
		snprintf(buf, 32, "%u min %02u s", (unsigned)(s / 60), (unsigned)(s % 60));
	else
		snprintf(buf, 32, "%u s", (unsigned)s);
	return buf;
}

static const char *format_ns(double ns, char buf[16])
{
	double us = ns / 1e3;

	if (us < 1000)
		snprintf(buf, 16, "%.0f us", us);
	else if (us < 1e6)
		snprintf(buf, 16, us < 1e4 ? "%.1f ms" : "%.0f ms", us / 1e3);
	else
		snprintf(buf, 16, "%.1f s", us / 1e6);
	return buf;
}

// How many of a count there were a second since before; negative: there is no telling.
static double per_second(const json_t *vm, const json_t *before, uint64_t (*count)(const json_t *vm))
{
	double seconds = stat_real(vm, "uptime_s") - stat_real(before, "uptime_s");
	uint64_t now = count(vm), then = count(before);

	if (!before || seconds <= 0 || now < then || stat_number(vm, NULL, "pager_pid") != stat_number(before, NULL, "pager_pid"))
		return -1;
	return (double)(now - then) / seconds;
}

static uint64_t counted(const json_t *vm, const char *key)
{
	return stat_number(vm, "counts", key);
}

static uint64_t faults(const json_t *vm)
{
	return counted(vm, "faults");
}

static uint64_t pages_read(const json_t *vm)
{
	return counted(vm, "pages_in_swap") + counted(vm, "pages_in_source");
}

static uint64_t pages_written(const json_t *vm)
{
	return counted(vm, "pages_out_written");
}

// Of pages, as bytes.
static void print_flow(FILE *f, double pages_per_s)
{
	if (pages_per_s >= 0)
		fprintf(f, "   now %.1f MiB/s", pages_per_s * PAGE_SIZE / MiB);
}

// Where the guest's pages are.
struct places {
	uint64_t resident, leaving, swapped, remote, empty; // bytes
};

static struct places places(const json_t *vm)
{
	uint64_t valid = stat_number(vm, "memory", "resident");
	uint64_t leaving = stat_number(vm, "memory", "standby") + stat_number(vm, "memory", "page_out_under_way");
	struct places p = { .swapped = stat_number(vm, "memory", "swapped"), .remote = stat_number(vm, "memory", "remote"),
			    .empty = stat_number(vm, "memory", "empty") };

	p.leaving = leaving < valid ? leaving : valid;
	p.resident = valid - p.leaving;
	return p;
}

static void print_bar(FILE *f, const struct charset *cs, const struct places *p, unsigned columns)
{
	const char *const mark[] = { cs->resident, cs->leaving, cs->swapped, cs->remote, cs->empty };
	const uint64_t part[] = { p->resident, p->leaving, p->swapped, p->remote, p->empty };
	unsigned drawn = 0;
	double all = 0, sum = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(part); i++)
		all += (double)part[i];
	for (unsigned i = 0; i < ARRAY_SIZE(part); i++) {
		sum += (double)part[i];
		while (all > 0 && drawn < columns && drawn < (unsigned)(sum / all * columns + 0.5)) {
			fputs(mark[i], f);
			drawn++;
		}
	}
	while (drawn++ < columns)
		fputc(' ', f);
}

static void print_legend(FILE *f, const char *mark, const char *what, uint64_t bytes)
{
	char size[16];

	fprintf(f, "   %s %s %s", mark, what, size_format(bytes, size));
}

static void print_memory(FILE *f, const json_t *vm, const struct charset *cs)
{
	uint64_t budget = stat_number(vm, "memory", "budget"), taken = stat_number(vm, "memory", "memfd");
	uint64_t over = stat_number(vm, "memory", "overdraft"), over_max = stat_number(vm, "memory", "overdraft_max");
	struct places p = places(vm);
	char a[16], b[16];

	fprintf(f, LABEL, "ram");
	print_bar(f, cs, &p, BAR_COLUMNS);
	fprintf(f, " %s\n%10s", size_format(stat_number(vm, NULL, "ram"), a), "");
	print_legend(f, cs->resident, "resident", p.resident);
	print_legend(f, cs->leaving, "standby", p.leaving);
	print_legend(f, cs->swapped, "swapped", p.swapped);
	print_legend(f, cs->remote, "remote", p.remote);
	print_legend(f, cs->empty, "empty", p.empty);
	fprintf(f, "\n" LABEL "%s, of which %s are taken", "budget", size_format(budget, a), size_format(taken, b));
	if (budget)
		fprintf(f, " (%.0f %%)", 100.0 * (double)taken / (double)budget);
	if (over || over_max)
		fprintf(f, "; overdraft for I/O in flight %s, at most %s", size_format(over, a), size_format(over_max, b));
	fputc('\n', f);
}

static const char *format_counted(const json_t *vm, const char *key, char buf[16])
{
	return size_format(counted(vm, key) * PAGE_SIZE, buf);
}

static void print_faults(FILE *f, const json_t *vm, const json_t *before)
{
	uint64_t all = faults(vm), minor = counted(vm, "minor_faults"), vcpu = counted(vm, "vcpu_faults");
	double rate = per_second(vm, before, faults);

	fprintf(f, LABEL "%lu: %lu missing, %lu minor; %lu of vCPUs, %lu of QEMU; %lu made to wait", "faults", all,
		all > minor ? all - minor : 0, minor, vcpu, all > vcpu ? all - vcpu : 0, counted(vm, "faults_delayed"));
	if (rate >= 0)
		fprintf(f, "   now %.0f/s", rate);
	fputc('\n', f);
}

static void print_traffic(FILE *f, const json_t *vm, const json_t *before)
{
	char a[16], b[16], c[16];

	fprintf(f, LABEL "%s from swap, %s from images, %s zero", "in", format_counted(vm, "pages_in_swap", a),
		format_counted(vm, "pages_in_source", b), format_counted(vm, "pages_in_zero", c));
	print_flow(f, per_second(vm, before, pages_read));
	fprintf(f, "\n" LABEL "%s written, %s clean, %s zero", "out", format_counted(vm, "pages_out_written", a),
		format_counted(vm, "pages_out_clean", b), format_counted(vm, "pages_out_zero", c));
	print_flow(f, per_second(vm, before, pages_written));
	fprintf(f, "\n" LABEL "%lu out, %lu rescued on their way; %s discarded by the guest\n", "chunks", counted(vm, "chunks_out"),
		counted(vm, "chunks_rescued"), format_counted(vm, "pages_discarded", a));
}

static void print_drains(FILE *f, const json_t *vm)
{
	uint64_t nr = counted(vm, "drains");
	char mean[16], max[16];

	fprintf(f, LABEL "%lu", "drains", nr);
	if (nr)
		fprintf(f, ", %s on average, %s at most", format_ns((double)counted(vm, "drain_ns") / (double)nr, mean),
			format_ns((double)counted(vm, "drain_ns_max"), max));
	fputc('\n', f);
}

static uint64_t element(const json_t *array, size_t i)
{
	json_int_t n = json_integer_value(json_array_get(array, i));

	return n > 0 ? (uint64_t)n : 0;
}

// Bucket i of the histogram counts what took less than 2^i microseconds, the last one all that took longer too.
static void print_latency(FILE *f, const json_t *vm)
{
	static const unsigned percent[] = { 50, 90, 99 };
	const json_t *hist = json_object_get(vm, "page_in_latency_log2_us");
	size_t nr = json_array_size(hist) < 63 ? json_array_size(hist) : 63;
	double all = 0, sum;

	for (size_t i = 0; i < nr; i++)
		all += (double)element(hist, i);
	fprintf(f, LABEL, "page-in");
	for (unsigned p = 0; all > 0 && p < ARRAY_SIZE(percent); p++) {
		char buf[16];
		size_t i = 0;

		for (sum = (double)element(hist, 0); sum < all * percent[p] / 100 && i + 1 < nr;)
			sum += (double)element(hist, ++i);
		fprintf(f, "%s%u %% %s %s", p ? ", " : "", percent[p], i + 1 < nr ? "within" : "beyond",
			format_ns((double)(1ULL << (i + 1 < nr || !i ? i : i - 1)) * 1e3, buf));
	}
	fputs(all > 0 ? "\n" : "none yet\n", f);
}

static void print_queues(FILE *f, const json_t *vm, const struct charset *cs)
{
	const json_t *queues = json_object_get(vm, "queues");
	size_t nr = json_array_size(queues);
	uint64_t column[QUEUE_COLUMNS] = { 0 }, max = 0, all = 0;

	for (size_t i = 0; i < nr; i++)
		column[i * QUEUE_COLUMNS / nr] += element(queues, i);
	for (unsigned i = 0; i < QUEUE_COLUMNS; i++) {
		max = column[i] > max ? column[i] : max;
		all += column[i];
	}
	fprintf(f, LABEL "cold |", "queues");
	for (unsigned i = 0; i < QUEUE_COLUMNS; i++)
		fputs(cs->level[column[i] ? 1 + (unsigned)(7.0 * (double)column[i] / (double)max) : 0], f);
	fprintf(f, "| hot   %lu chunks\n", all);
}

static void print_line(FILE *f, const char *label, const char *text, const char *rest)
{
	if (!text)
		return;
	fprintf(f, LABEL, label);
	print_safe(f, text);
	fprintf(f, "%s\n", rest);
}

static void print_host(FILE *f, const json_t *vm)
{
	char a[16], b[16], c[16];

	fprintf(f, LABEL "QEMU has %s in the host's swap and %s of page tables; the pager takes %s\n", "host",
		size_format(stat_number(vm, NULL, "qemu_host_swap"), a), size_format(stat_number(vm, NULL, "qemu_page_tables"), b),
		size_format(stat_number(vm, NULL, "pager_memory"), c));
}

static void print_waiting(FILE *f, const json_t *vm)
{
	uint64_t reads = stat_number(vm, NULL, "reads_waiting"), writes = counted(vm, "write_errors");
	const char *trouble = stat_string(vm, "trouble");

	if (!trouble && !reads && !writes) {
		print_line(f, "waits", "nothing", "");
		return;
	}
	fprintf(f, LABEL, "waits");
	print_safe(f, trouble ? trouble : "nothing now");
	fprintf(f, " (%lu reads wait, %lu writes have failed)\n", reads, writes);
}

static void print_paging(FILE *f, const json_t *vm, const json_t *before)
{
	const struct charset *cs = charset();

	print_memory(f, vm, cs);
	print_faults(f, vm, before);
	print_traffic(f, vm, before);
	print_drains(f, vm);
	print_latency(f, vm);
	print_queues(f, vm, cs);
}

static void print_needs(FILE *f, const json_t *vm)
{
	uint64_t remote = stat_number(vm, "memory", "remote");
	char size[16], rest[64];

	if (!remote)
		return;
	snprintf(rest, sizeof rest, ": %s of its pages are only there", size_format(remote, size));
	print_line(f, "needs", stat_string(vm, "images"), rest);
}

void stat_print_vm(FILE *f, const json_t *vm, const json_t *before)
{
	bool served = stat_is_served(vm);
	const char *guest = stat_string(vm, "guest"), *name = stat_string(vm, "name"), *state = stat_string(vm, "state");
	char buf[32];

	fprintf(f, "%s: ", name ? name : "?");
	print_safe(f, !served ? state ? state : "unknown" : guest ? guest : "unknown");
	if (served)
		fprintf(f, " for %s", format_uptime(stat_real(vm, "uptime_s"), buf));
	print_pid(f, vm, "QEMU", "qemu_pid");
	print_pid(f, vm, "pager", "pager_pid");
	fputc('\n', f);
	print_line(f, "why", stat_string(vm, "message"), "");
	if (served && json_is_true(json_object_get(vm, "paging")))
		print_paging(f, vm, before);
	else if (stat_number(vm, NULL, "ram"))
		print_line(f, "ram", size_format(stat_number(vm, NULL, "ram"), buf), served ? ", all in physical memory" : "");
	if (served) {
		print_host(f, vm);
		print_waiting(f, vm);
		print_needs(f, vm);
	}
	print_line(f, "swap", stat_string(vm, "swap"), "");
	print_line(f, "log", stat_string(vm, "log"), "");
}

static const json_t *find(const json_t *vms, const char *name)
{
	size_t i;
	json_t *vm;

	json_array_foreach(vms, i, vm)
		if (name && stat_string(vm, "name") && !strcmp(name, stat_string(vm, "name")))
			return vm;
	return NULL;
}

static void print_row(FILE *f, const json_t *vm, const json_t *before, int width, const struct charset *cs)
{
	bool served = stat_is_served(vm), paging = json_is_true(json_object_get(vm, "paging"));
	const char *guest = stat_string(vm, "guest"), *what = served ? guest : stat_string(vm, "state");
	struct places p = places(vm);
	double rate = per_second(vm, before, faults);
	char ram[16], taken[16], budget[16], swapped[16], remote[16], count[32];

	snprintf(count, sizeof count, rate < 0 ? "%.0f" : "%.0f/s", rate < 0 ? (double)faults(vm) : rate);
	fprintf(f, "%-*s  ", width, stat_string(vm, "name"));
	print_safe(f, what ? what : "unknown");
	fprintf(f, "%*s%8lu  %9s", what && strlen(what) < 9 ? 9 - (int)strlen(what) : 1, "",
		stat_number(vm, NULL, "qemu_pid"), size_format(stat_number(vm, NULL, "ram"), ram));
	if (served && paging) {
		fprintf(f, "  %9s of %-9s%9s  %9s  %10s  ", size_format(stat_number(vm, "memory", "memfd"), taken),
			size_format(stat_number(vm, "memory", "budget"), budget), size_format(p.swapped, swapped),
			size_format(p.remote, remote), count);
		print_bar(f, cs, &p, TABLE_BAR_COLUMNS);
	}
	fputc('\n', f);
	for (const char *key = "message"; key; key = strcmp(key, "trouble") ? "trouble" : NULL) {
		if (!stat_string(vm, key))
			continue;
		fprintf(f, "%*s  ^ ", width, "");
		print_safe(f, stat_string(vm, key));
		fputc('\n', f);
	}
}

void stat_print_table(FILE *f, const json_t *vms, const json_t *before, const char *run_dir)
{
	const struct charset *cs = charset();
	int width = 4;
	size_t i;
	json_t *vm;

	if (!json_array_size(vms)) {
		fprintf(f, "no VM runs here (%s)\n", run_dir);
		return;
	}
	json_array_foreach(vms, i, vm)
		if ((int)strlen(stat_string(vm, "name")) > width)
			width = (int)strlen(stat_string(vm, "name"));
	fprintf(f, "%-*s  STATE        QEMU        RAM     MEMORY of BUDGET     SWAPPED     REMOTE      FAULTS\n", width, "NAME");
	json_array_foreach(vms, i, vm)
		print_row(f, vm, find(before, stat_string(vm, "name")), width, cs);
}
