// SPDX-License-Identifier: GPL-2.0-only
// Instead of libFuzzer: runs each input that is named, once. With any compiler and sanitizer.
#include "tests/fuzz/fuzz.h"
#include "util/io.h"
#include "util/size.h"

// For the mutators, which are not called here.
size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max_len)
{
	(void)data, (void)max_len;
	return len;
}

int main(int argc, char **argv)
{
	LLVMFuzzerInitialize(&argc, &argv);
	for (int i = 1; i < argc; i++) {
		uint8_t *exact;
		char *data;
		size_t len;

		if (io_read_file(argv[i], 64 * MiB, &data, &len)) {
			fprintf(stderr, "%s: cannot be read\n", argv[i]);
			return 1;
		}
		exact = malloc(len ?: 1); // exactly as long, so that asan sees a read behind its end
		FUZZ_HOLDS(exact);
		memcpy(exact, data, len);
		LLVMFuzzerTestOneInput(exact, len);
		free(exact);
		free(data);
	}
	return 0;
}
