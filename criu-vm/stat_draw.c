// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_draw.h"

#include <ctype.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>

#include "util/size.h"

static const struct {
	const char *ascii, *utf8;
	enum stat_color color;
} marks[STAT_NR_PLACES] = {
	[STAT_RESIDENT] = { "#", "█", STAT_GREEN }, [STAT_STANDBY] = { "+", "▓", STAT_YELLOW }, [STAT_SWAPPED] = { "=", "▒", STAT_BLUE },
	[STAT_REMOTE] = { "-", "░", STAT_MAGENTA }, [STAT_EMPTY] = { ".", "·", STAT_DIM },
};

static const char *const escapes[STAT_NR_COLORS] = { "", "\033[32m", "\033[33m", "\033[34m", "\033[35m", "\033[2m", "\033[1;31m" };

struct stat_pen stat_pen(FILE *f, bool terminal)
{
	locale_t l = newlocale(LC_CTYPE_MASK, "", NULL);
	const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
	struct stat_pen pen = { .f = f, .utf8 = l && !strcmp(nl_langinfo_l(CODESET, l), "UTF-8"),
				.color = terminal && !(no && *no) && term && *term && strcmp(term, "dumb") != 0 };

	if (l)
		freelocale(l);
	return pen;
}

void stat_draw_text(const struct stat_pen *pen, enum stat_color color, const char *s)
{
	bool colored = pen->color && color != STAT_PLAIN;

	if (colored)
		fputs(escapes[color], pen->f);
	for (; *s; s++)
		fputc(iscntrl((unsigned char)*s) ? '?' : *s, pen->f);
	if (colored)
		fputs("\033[0m", pen->f);
}

static const char *mark_of(const struct stat_pen *pen, enum stat_place place)
{
	return pen->utf8 ? marks[place].utf8 : marks[place].ascii;
}

void stat_draw_mark(const struct stat_pen *pen, enum stat_place place)
{
	stat_draw_text(pen, marks[place].color, mark_of(pen, place));
}

void stat_draw_bar(const struct stat_pen *pen, const uint64_t part[STAT_NR_PLACES], unsigned columns)
{
	unsigned drawn = 0;
	double all = 0, sum = 0;

	for (unsigned i = 0; i < STAT_NR_PLACES; i++)
		all += (double)part[i];
	for (unsigned i = 0; all > 0 && i < STAT_NR_PLACES; i++) {
		sum += (double)part[i];
		for (; drawn < columns && drawn < (unsigned)(sum / all * columns + 0.5); drawn++)
			stat_draw_mark(pen, i);
	}
	fprintf(pen->f, "%*s", (int)(columns - drawn), "");
}

void stat_draw_columns(const struct stat_pen *pen, const double *value, size_t nr)
{
	static const char *const level[2][9] = { { " ", ".", ":", "-", "=", "+", "*", "%", "#" },
						 { " ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" } };
	double max = 0;

	for (size_t i = 0; i < nr; i++)
		max = value[i] > max ? value[i] : max;
	for (size_t i = 0; i < nr; i++)
		fputs(level[pen->utf8][value[i] > 0 ? 1 + (unsigned)(7.0 * value[i] / max) : 0], pen->f);
}

const char *stat_format_us(double us, char buf[16])
{
	if (us < 1000)
		snprintf(buf, 16, us < 10 ? "%.1f us" : "%.0f us", us);
	else if (us < 1e6)
		snprintf(buf, 16, us < 1e4 ? "%.1f ms" : "%.0f ms", us / 1e3);
	else
		snprintf(buf, 16, "%.1f s", us / 1e6);
	return buf;
}

const char *stat_format_duration(double seconds, char buf[32])
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

const char *stat_format_size(double bytes, char buf[16])
{
	return size_format(bytes < 0x1p63 ? (uint64_t)bytes : 0, buf);
}

const char *stat_format_short(double bytes, char buf[16])
{
	char *space;

	stat_format_size(bytes, buf);
	space = strchr(buf, ' ');
	space[0] = space[1] == 'B' ? 0 : space[1];
	space[1] = 0;
	return buf;
}
