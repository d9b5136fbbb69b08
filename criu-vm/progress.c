// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/size.h"

#define REDRAW_NS (100 * NSEC_PER_MSEC)

void progress_begin(struct progress *p, const char *what, uint64_t total)
{
	*p = (struct progress){ .what = what, .total = total, .begun_ns = clock_now_ns(), .on = isatty(STDERR_FILENO) };
}

static void draw(struct progress *p, uint64_t now)
{
	double s = (double)(now - p->begun_ns) / 1e9;
	char done[16], total[16], rate[16];

	fprintf(stderr, "\r%s  %s of %s  %3.0f %%  %s/s  %.1f s \033[K", p->what, size_format(p->done, done), size_format(p->total, total),
		p->total ? 100.0 * (double)p->done / (double)p->total : 100.0, size_format(s > 0 ? (uint64_t)((double)p->done / s) : 0, rate), s);
	p->drawn_ns = now;
}

void progress_add(struct progress *p, uint64_t bytes)
{
	uint64_t now;

	p->done += bytes;
	if (!p->on)
		return;
	now = clock_now_ns();
	if (now - p->drawn_ns >= REDRAW_NS)
		draw(p, now);
}

void progress_end(struct progress *p)
{
	if (!p->on)
		return;
	draw(p, clock_now_ns());
	fputc('\n', stderr);
	p->on = false;
}

void progress_line(const char *text)
{
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "%s\n", text);
}
