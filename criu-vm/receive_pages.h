// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the data channels of a VM that arrives
//
// A thread each: a frame is received into a free buffer, checked, and its pages go to their place (pvmem/place.h), into
// memory at once, or to the swap image while the next frames arrive. All pages of a chunk come over the same channel, one frame after
// the other, so a thread only has to look that none of its own writes to that chunk is under way.
//
//	thread     frame, frame, ..., ROUND_END -> its writes have ended -> waits -> frame of the next round, ...
//	                                                  |                   ^
//	receive_pages_wait(round)            ------------ all threads -> counts are right
//
// Each thread has 8 buffers of 1 MiB.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pvmem/place.h"
#include "wire/pages.h"

struct receive_pages;

struct receive_pages_opts {
	struct pv_placement *placement; // shared by the threads; its blocks are those of the frames, in their order
	struct wire_conn **channels;    // their keys were read; owned by the caller
	unsigned nr_channels;
	bool lazy;                       // pages may come later
	uint64_t (*in_images)[PV_WORDS]; // a bit a page of each chunk: later, from images; NULL: no page can
};

// Starts the threads. What o points to must outlive them. -ENOMEM, -EAGAIN; logs.
int receive_pages_start(const struct receive_pages_opts *o, struct receive_pages **r);
// Waits until every channel has ended this round and all its pages are in their places, written. Called when the source says that
// it has sent all of it, for one round after the other from 1 on. frames: how many of pages it has sent on each channel, as it says.
// 0; -EINTR; or the first error of a thread (logged there): the line (-ETIMEDOUT: nothing came for WIRE_LOST_MS), -EBADMSG (a wrong frame,
// count or round; logged), the disk. Thereafter all that is left to do is to stop.
int receive_pages_wait(struct receive_pages *r, unsigned round, const uint64_t *frames);
// Whether pages were to come later: from the source, from images. What may have come of them since does not count.
void receive_pages_later(const struct receive_pages *r, bool *from_source, bool *from_images);
// The error of the first thread that failed, 0: none.
int receive_pages_error(struct receive_pages *r);
// Ends the threads (shuts their channels down) and waits for them, and for what they are writing. Accepts NULL; may be called again.
void receive_pages_stop(struct receive_pages *r);
// Frees what they had, tens of MiB, after they were stopped. Accepts NULL.
void receive_pages_free(struct receive_pages *r);
