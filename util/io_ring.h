// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: I/O that outlives its process, and the fence
//
// A process that is killed leaves the reads and writes that it has submitted to the kernel: they may land seconds after its
// death, over what its successor has put there since. So a pager's reads and writes go through an io_uring that it does not
// own: a descriptor of it stays open in a process that outlives the pager (QEMU, which knows nothing of it), and the ring
// counts. One completion is posted for each request, whoever is there to take it; when as many have been posted as requests
// were taken, nothing can land any more.
//
//     dead pager -- submits --> [ring, held open in QEMU] <-- map, wait until posted == taken, go on -- its successor
//
// Only reads and writes go there: a poll or a timer could stay outstanding for ever.
#pragma once
#include <liburing.h>
#include <stdbool.h>

// A ring that several processes can use, one after the other. Returns a descriptor (close-on-exec) or -errno. Silent.
int io_ring_new(unsigned entries);

// Maps a ring made by io_ring_new() with so many entries, here or in another process. What somebody else had prepared and not
// submitted is forgotten. io_ring_unmap() leaves the descriptor alone. -EBADF: it is no such ring; or -errno. Silent.
int io_ring_map(int fd, unsigned entries, struct io_uring *ring);
void io_ring_unmap(struct io_uring *ring);

// For a successor, before its first request: how many requests of those before it have not completed. Does not block.
unsigned io_ring_abandoned(struct io_uring *ring);
