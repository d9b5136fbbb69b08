// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: idle pages
//
// The kernel's bitmap of idle pages (CONFIG_IDLE_PAGE_TRACKING; Documentation/admin-guide/mm/idle_page_tracking.rst) says whether
// a page was touched since it was marked, through whatever page table maps it, a guest's EPT too, without unmapping it: nobody
// faults, and no vCPU is stopped. It goes by page frame, and only frames that are on one of the kernel's LRU lists can be marked.
//
//      process, address --pagemap--> frame --kpageflags--> head of its folio --bitmap--> marked, touched
//
// A folio of many pages has one mark. A frame may come to hold another page, or a page move to another frame: a mark is good for
// the address and the frame together. Who looks must not touch: a read of the page through any mapping counts as anybody's.
#pragma once
#include <stdint.h>
#include <sys/types.h>

struct mm_idle;

// A page that was marked, where it was then.
struct mm_idle_page {
	uint64_t hva;
	uint64_t frame, head; // the page's, and that of its folio's first page
};

enum mm_idle_answer {
	MM_IDLE_UNKNOWN, // the page is not where it was, or is not there at all
	MM_IDLE_UNTOUCHED,
	MM_IDLE_TOUCHED,
};

// For pages of process pid. None of these calls blocks for longer than the process's mmap lock is held.
// -EOPNOTSUPP: this kernel has no such bitmap; does not log. -EACCES, -EPERM: root is needed; -ESRCH; logs.
int mm_idle_open(pid_t pid, struct mm_idle **idle);
void mm_idle_close(struct mm_idle *idle);

// Marks the page at hva as idle, if it is in the process's page table. A few microseconds.
// -ENOENT: it is not; -EAGAIN: it cannot be marked now, as a page that is too new for an LRU list.
int mm_idle_mark(struct mm_idle *idle, uint64_t hva, struct mm_idle_page *mark);

// Whether it was touched since it was marked. It stays marked if not. A few microseconds.
enum mm_idle_answer mm_idle_look(struct mm_idle *idle, const struct mm_idle_page *mark);
