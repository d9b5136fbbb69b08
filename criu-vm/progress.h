// SPDX-License-Identifier: GPL-2.0-only
// A line that tells how far long work is: redrawn on a terminal, nowhere else.
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct progress {
	const char *what;
	uint64_t total, done; // bytes
	uint64_t begun_ns, drawn_ns;
	bool on;
};

void progress_begin(struct progress *p, const char *what, uint64_t total);
void progress_add(struct progress *p, uint64_t bytes);
// Something to be read between two of them.
void progress_line(const char *text);
// Ends the line.
void progress_end(struct progress *p);
