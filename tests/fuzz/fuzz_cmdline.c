// SPDX-License-Identifier: GPL-2.0-only
// A command line out of a checkpoint, a word a line, behind an empty line the options that a person gave to the restore.
#include "qemu/cmdline.h"
#include "tests/fuzz/fuzz.h"
#include "util/size.h"

#define WORDS_MAX 512

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	return 0;
}

static int nr_of(char *const *argv)
{
	int n = 0;

	while (argv[n])
		n++;
	return n;
}

// That of a restored VM, dumped and restored once more, is the same.
static void rebuild_again(struct qemu_cmdline_opts o, char **once)
{
	char **twice = NULL;

	o.recorded = once;
	o.nr_recorded = nr_of(once);
	FUZZ_HOLDS(!qemu_cmdline_rebuild(&o, &twice));
	FUZZ_HOLDS(nr_of(twice) == o.nr_recorded);
	for (int i = 0; i < o.nr_recorded; i++)
		FUZZ_HOLDS(!strcmp(once[i], twice[i]));
	qemu_cmdline_free(twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const struct qemu_cmdline_ram ram[] = { { "m0", 64 * MiB, 10 }, { "m1", 32 * MiB, 11 } };
	bool our_names = memmem(data, len, "criu-vm-", 8); // those that rebuilding gives are not for others
	char *text = fuzz_text(data, len), *words[WORDS_MAX + 1], **argv = NULL;
	struct qemu_cmdline_opts o = { .qemu = "/usr/bin/qemu-system-x86_64", .recorded = words, .machine = "pc-i440fx-7.2",
				       .qmp_fd = 12, .commands_fd = 13, .ram = ram };
	int nr = (int)fuzz_split(text, '\n', words, WORDS_MAX);

	words[nr] = NULL;
	while (o.nr_recorded < nr && *words[o.nr_recorded])
		o.nr_recorded++;
	o.replace = words + o.nr_recorded + (o.nr_recorded < nr);
	o.nr_replace = nr - o.nr_recorded - (o.nr_recorded < nr);
	qemu_cmdline_check(words, o.nr_recorded);
	for (o.nr_ram = 1; o.nr_ram <= ARRAY_SIZE(ram); o.nr_ram++) {
		if (qemu_cmdline_rebuild(&o, &argv))
			continue;
		FUZZ_HOLDS(!strcmp(argv[0], o.qemu));
		// What a person gave is kept once, even what is dropped from a recorded one.
		if (!o.nr_replace && !our_names)
			rebuild_again(o, argv);
		qemu_cmdline_free(argv);
	}
	free(text);
	return 0;
}
