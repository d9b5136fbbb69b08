// SPDX-License-Identifier: GPL-2.0-only
// What clients send to a pager's control socket: a pager that serves nothing yet, and the commands of a VM that has none. The parts
// of an input, ended by a NUL each, come one after another on one connection.
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "criu-vm/vm_pager_int.h"
#include "tests/fuzz/fuzz.h"
#include "util/size.h"

#define PARTS_MAX 8
#define ROUNDS_MAX 64 // within which the pager answers

static struct run_dir rd = RUN_DIR_NONE;
static struct vm_pager vm = { .rd = &rd, .started = true, .swap.fd = -1, .launch_fd = -1 };
static struct sockaddr_un address;
static socklen_t address_len = sizeof address;

static void drain(void *ctx)
{
	(void)ctx;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct lp_opts o = { .qemu = getpid(), .drain = drain, .describe = vm_commands_describe, .source_done = drain, .command = vm_commands_do,
			     .ctx = &vm };
	struct sockaddr_un any = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)argc, (void)argv;
	fuzz_quiet();
	FUZZ_HOLDS(!run_dir_create(fuzz_folder(), "vm", &rd));
	FUZZ_HOLDS(!bind(fd, (struct sockaddr *)&any, sizeof any.sun_family) && !listen(fd, 4)); // the kernel makes up a name
	FUZZ_HOLDS(!getsockname(fd, (struct sockaddr *)&address, &address_len));
	o.control_fd = vm.control_fd = fd;
	o.qemu_pidfd = vm.qemu_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	vm.state.ram = vm.state.budget = 64 * MiB;
	FUZZ_HOLDS(o.qemu_pidfd >= 0 && !lp_pager_new(&o, &vm.lp));
	return 0;
}

// Until it has hung up, having answered in JSON, or with nothing.
static void await_answer(int fd)
{
	static char text[MiB];
	size_t have = 0;
	ssize_t n = -1;

	for (unsigned i = 0; i < ROUNDS_MAX && n; i++) {
		FUZZ_HOLDS(!loop_round(lp_pager_loop(vm.lp), false));
		while ((n = recv(fd, text + have, sizeof text - have, MSG_DONTWAIT)) > 0)
			have += (size_t)n;
	}
	FUZZ_HOLDS(!n);
	if (have) {
		json_t *j = json_loadb(text, have, 0, NULL);

		FUZZ_HOLDS(json_is_object(j));
		json_decref(j);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	char *text = fuzz_text(data, len);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	size_t at = 0;

	FUZZ_HOLDS(fd >= 0 && !connect(fd, (struct sockaddr *)&address, address_len));
	vm.state.paging = len % 2;
	for (size_t i = 0; i < PARTS_MAX && at < len; i++, at += strlen(text + at) + 1) {
		send(fd, text + at, strlen(text + at), MSG_DONTWAIT | MSG_NOSIGNAL);
		FUZZ_HOLDS(!loop_round(lp_pager_loop(vm.lp), false));
	}
	shutdown(fd, SHUT_WR);
	await_answer(fd);
	close(fd);
	free(text);
	return 0;
}
