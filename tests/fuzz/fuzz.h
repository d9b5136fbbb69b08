// SPDX-License-Identifier: GPL-2.0-only
// What the fuzzers share. Each is a fuzz_*.c of its own; libFuzzer has the main(), or replay.c, which runs the inputs it is given.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/log.h"

// libFuzzer's interface: once at the start; each input; and, where inputs have a shape, how one is changed.
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max_len, unsigned int seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max_len);

// What must hold whatever the input is.
#define FUZZ_HOLDS(expr) \
	do { \
		if (!(expr)) { \
			fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #expr); \
			abort(); \
		} \
	} while (0)

// Messages are made, so that what they print is looked at, and go nowhere.
static inline void fuzz_quiet(void)
{
	log_init(getenv("VERBOSE") ? 2 : -1, LOG_DEBUG, NULL, false);
}

// A new folder, removed by who runs the fuzzer. Memory: nothing here is about a disk.
static inline const char *fuzz_folder(void)
{
	static char path[256];
	const char *where = getenv("FUZZ_DIR");

	snprintf(path, sizeof path, "%s/fuzz-XXXXXX", where ? where : "/dev/shm");
	FUZZ_HOLDS(mkdtemp(path));
	return path;
}

// The words of a text, split in place at the separator; at most max of them. Returns how many.
static inline size_t fuzz_split(char *text, char separator, char **words, size_t max)
{
	char *const delimiter = (char[]){ separator, 0 };
	size_t nr = 0;

	while (nr < max && text)
		words[nr++] = strsep(&text, delimiter);
	return nr;
}

// The input as text that ends with a NUL, of exactly that length: the caller's.
static inline char *fuzz_text(const uint8_t *data, size_t len)
{
	char *text = malloc(len + 1);

	FUZZ_HOLDS(text);
	memcpy(text, data, len);
	text[len] = 0;
	return text;
}
