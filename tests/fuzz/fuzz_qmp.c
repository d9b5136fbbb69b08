// SPDX-License-Identifier: GPL-2.0-only
// All that comes out of a QMP socket, from the greeting on.
#include <sys/socket.h>
#include <unistd.h>

#include "qemu/qmp.h"
#include "tests/fuzz/fuzz.h"
#include "util/io.h"
#include "util/size.h"

#define ROUNDS 3

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	return 0;
}

static void receive_all(struct qmp *q)
{
	struct qmp_msg m;
	int ret;

	while (!(ret = qmp_receive(q, &m))) {
		FUZZ_HOLDS(m.kind == QMP_EVENT ? m.text != NULL : m.ok ? m.data && !m.text : m.text && !m.data);
		qmp_msg_fini(&m);
	}
	FUZZ_HOLDS(ret < 0);
}

static void talk(struct qmp *q)
{
	json_t *reply = NULL;
	char *text = NULL;
	int ret;

	FUZZ_HOLDS(strlen(qmp_version(q)) >= 5);
	for (uint64_t round = 0; round < ROUNDS; round++) {
		ret = qmp_try(q, "query-status", NULL, &reply);
		FUZZ_HOLDS(!ret == (reply != NULL));
		json_decref(reply);
		ret = qmp_hmp(q, "info mtree -f", &text);
		FUZZ_HOLDS(!ret == (text != NULL));
		free(text);
		qmp_send(q, "stop", NULL, round);
		receive_all(q);
	}
	FUZZ_HOLDS(qmp_last_error(q));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct qmp *q;
	int pair[2];

	if (len > 128 * KiB) // what a socket takes at once
		return 0;
	FUZZ_HOLDS(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	FUZZ_HOLDS(!io_write_full(pair[1], data, len) && !shutdown(pair[1], SHUT_WR));
	if (!qmp_open_fd(pair[0], "fuzz", 1000, &q)) {
		talk(q);
		qmp_close(q);
	}
	close(pair[1]);
	return 0;
}
