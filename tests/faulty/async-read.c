// SPDX-License-Identifier: GPL-2.0-only
// Begins to read FILE by O_DIRECT into a memfd, says so, and waits for its death: what it has in flight may outlive it.
//
//	async-read FILE LEN MEMFD	LEN bytes from the beginning of both; MEMFD is a descriptor's number
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t len = argc == 4 ? strtoul(argv[2], NULL, 0) : 0;
	int fd = argc == 4 ? open(argv[1], O_RDONLY | O_DIRECT) : -1;
	void *dest = len ? mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[3]), 0) : MAP_FAILED;
	struct io_uring ring;

	if (fd < 0 || dest == MAP_FAILED || io_uring_queue_init(4, &ring, 0) < 0)
		return 1;
	io_uring_prep_read(io_uring_get_sqe(&ring), fd, dest, (unsigned)len, 0);
	if (io_uring_submit(&ring) != 1)
		return 1;
	puts("begun");
	fflush(stdout);
	pause();
	return 0;
}
