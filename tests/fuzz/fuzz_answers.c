// SPDX-License-Identifier: GPL-2.0-only
// What a QEMU says about itself, taken in by all that asks it before a dump. An input's first line is the command line of the VM, each
// other one a command, with its path and property or line, a tab, and what QEMU returns to it; a command that is not there fails.
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "qemu/cmdline.h"
#include "qemu/disks.h"
#include "qemu/now.h"
#include "qemu/qmp.h"
#include "qemu/ramblock.h"
#include "qemu/refuse.h"
#include "qemu/vm.h"
#include "tests/fuzz/fuzz.h"
#include "util/io.h"
#include "util/size.h"

#define WORDS_MAX 128
#define LINES_MAX 128
#define CALLS_MAX 300 // then it hangs up
#define TIMEOUT_MS 1000
#define RAM_AT 0x200000000000UL // where the inputs say that RAM blocks lie
#define RAM_LEN (64 * MiB)
#define DISK "/etc/passwd" // the disk of the inputs: any file that is there

struct qemu {
	int fd;
	char *lines[LINES_MAX];
	size_t nr_lines;
};

static const char greeting[] = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 13, \"minor\": 0, \"major\": 10}}, \"capabilities\": []}}\n";

// Memory where a QEMU would have its RAM blocks: one long mapping, and some of lengths that blocks have, which QEMU 7 has one by one.
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static const uint64_t lens[] = { 32 * MiB, 2 * MiB, 256 * KiB, 128 * KiB, 64 * KiB, 4 * KiB };
	char *at = (char *)RAM_AT;

	(void)argc, (void)argv;
	fuzz_quiet();
	FUZZ_HOLDS(open(DISK, O_RDONLY | O_CLOEXEC) >= 0); // as QEMU has
	FUZZ_HOLDS(mmap(at, RAM_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) == at);
	at += 2 * RAM_LEN;
	for (size_t i = 0; i < ARRAY_SIZE(lens); i++, at += RAM_LEN)
		FUZZ_HOLDS(mmap(at, lens[i], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
				0) == at &&
			   !madvise(at, lens[i], MADV_DONTFORK));
	return 0;
}

// What the input returns to a command, NULL if nothing.
static const char *find_answer(const struct qemu *q, const json_t *request)
{
	const char *name = json_string_value(json_object_get(request, "execute"));
	const json_t *args = json_object_get(request, "arguments");
	static const char *const parts[] = { "path", "property", "command-line" };
	char key[512];
	int len = snprintf(key, sizeof key, "%s", name ?: "");

	if (name && !strcmp(name, "qmp_capabilities"))
		return "{}";
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		const char *value = json_string_value(json_object_get(args, parts[i]));

		if (value && len < (int)sizeof key)
			len += snprintf(key + len, sizeof key - (size_t)len, " %s", value);
	}
	for (size_t i = 0; i < q->nr_lines && len < (int)sizeof key; i++)
		if (!strncmp(q->lines[i], key, (size_t)len) && q->lines[i][len] == '\t')
			return q->lines[i] + len + 1;
	return NULL;
}

// false: it hangs up, as when an answer is none, for the rest of which would be waited.
static bool answer(const struct qemu *q, FILE *out, const char *line)
{
	json_t *request = json_loads(line, 0, NULL), *value;
	const char *ret = find_answer(q, request);
	long long id = json_integer_value(json_object_get(request, "id"));

	if (ret)
		fprintf(out, "{\"return\": %s, \"id\": %lld}\n", ret, id);
	else
		fprintf(out, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": %lld}\n", id);
	json_decref(request);
	value = ret ? json_loads(ret, JSON_DECODE_ANY, NULL) : NULL;
	json_decref(value);
	return !fflush(out) && (value || !ret);
}

static void *serve(void *ctx)
{
	struct qemu *q = ctx;
	FILE *in = fdopen(q->fd, "r"), *out = fdopen(dup(q->fd), "w");
	char *line = NULL;
	size_t room = 0;

	FUZZ_HOLDS(in && out);
	fputs(greeting, out);
	fflush(out);
	for (unsigned i = 0; i < CALLS_MAX && getline(&line, &room, in) > 0 && answer(q, out, line);)
		i++;
	free(line);
	fclose(out);
	fclose(in);
	return NULL;
}

static void ask(struct qemu_vm *vm)
{
	struct qemu_ramblock *blocks = NULL;
	VmDiskEntry **disks = NULL;
	size_t nr = 0, nr_disks = 0;
	char **argv = NULL;
	int argc = 0;

	if (!qemu_ramblocks(vm, &blocks, &nr))
		for (size_t i = 0; i < nr; i++)
			FUZZ_HOLDS(blocks[i].hva >= RAM_AT && blocks[i].len <= blocks[i].max_len && blocks[i].page_size);
	qemu_refuse(vm, blocks, nr, &(struct qemu_ours){ .uffd = -1 });
	if (!qemu_now_cmdline(vm, &argv, &argc))
		FUZZ_HOLDS(argc > 0 && argv[argc - 1] && !argv[argc]);
	qemu_disks(vm, &disks, &nr_disks);
	qemu_disks_free(disks, nr_disks);
	qemu_cmdline_free(argv);
	free(blocks);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	char *text = fuzz_text(data, len), *words[WORDS_MAX + 1], *first;
	struct qemu_vm vm = { .pid = getpid(), .pidfd = -1, .qmp_path = "fuzz", .exe = "qemu", .cwd = "/", .machine = "pc-i440fx-7.2",
			      .run_state = "running", .argv = words };
	struct qemu q = { 0 };
	pthread_t thread;
	int pair[2];

	q.nr_lines = fuzz_split(text, '\n', q.lines, LINES_MAX);
	first = q.nr_lines ? q.lines[0] : text;
	vm.argc = (int)fuzz_split(first, ' ', words, WORDS_MAX);
	words[vm.argc] = NULL;
	FUZZ_HOLDS(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	q.fd = pair[1];
	FUZZ_HOLDS(!pthread_create(&thread, NULL, serve, &q));
	if (!qmp_open_fd(pair[0], "fuzz", TIMEOUT_MS, &vm.qmp)) {
		ask(&vm);
		qmp_close(vm.qmp);
	}
	pthread_join(thread, NULL);
	free(text);
	return 0;
}
