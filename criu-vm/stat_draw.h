// SPDX-License-Identifier: GPL-2.0-only
// What stat draws with: bars, sparklines, columns; figures short enough for them.
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum stat_color { STAT_PLAIN, STAT_GREEN, STAT_YELLOW, STAT_BLUE, STAT_MAGENTA, STAT_DIM, STAT_RED, STAT_NR_COLORS };

struct stat_pen {
	FILE *f;
	bool utf8, color;
};

// By the locale; in color if `terminal`, unless $NO_COLOR or $TERM forbid it.
struct stat_pen stat_pen(FILE *f, bool terminal);

// In color; a string from elsewhere does not drive the terminal.
void stat_draw_text(const struct stat_pen *pen, enum stat_color color, const char *s);

// Where a guest's pages are.
enum stat_place { STAT_RESIDENT, STAT_STANDBY, STAT_SWAPPED, STAT_REMOTE, STAT_EMPTY, STAT_NR_PLACES };
// In proportion, as many columns in all.
void stat_draw_bar(const struct stat_pen *pen, const uint64_t part[STAT_NR_PLACES], unsigned columns);
void stat_draw_mark(const struct stat_pen *pen, enum stat_place place);

// Columns of a height between 0 and the highest; a value that is not 0 is seen.
void stat_draw_columns(const struct stat_pen *pen, const double *value, size_t nr);

// These return buf. "1.5 us", "12 ms", "3.1 s"
const char *stat_format_us(double us, char buf[16]);
// "12 s", "3 min 05 s", "2 h 10 min", "5 d 3 h"
const char *stat_format_duration(double seconds, char buf[32]);
// As size_format(), of any figure.
const char *stat_format_size(double bytes, char buf[16]);
// "57.6M": as SIZE is written on the command line.
const char *stat_format_short(double bytes, char buf[16]);
