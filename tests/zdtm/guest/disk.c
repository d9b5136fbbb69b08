// SPDX-License-Identifier: GPL-2.0-only
// Checks DMA: keeps a virtio disk's queue full of requests, each of them consecutive blocks of the disk to or from pages
// scattered over all memory, and verifies what arrived: some at once, some a long time after. Meanwhile the processor verifies
// and rewrites pages that no request holds. Data lost between disk and memory, in either direction, is a page with a wrong key.
// Half of the pages are touched before the request begins and half are not, so that DMA meets pages that are there, and
// leave, and pages that are not. A pass is as many requests as the queue takes. The disk's first contents are its own writes.
//
//	depth=N		requests in flight (the queue's size)
//	segs=N		pages a request, up to 64 (64)
//	disk=SIZE	how much of the disk is used (64M)
//
// The disk must be the first virtio-blk-pci on bus 0, spoken to by the legacy interface.
#include "guest.h"

#define MAX_SEGS	64u

#define DESC_NEXT	1
#define DESC_WRITE	2		// the device writes
#define DESC_INDIRECT	4
#define F_INDIRECT	(1u << 28)

enum { HOST_FEATURES = 0, GUEST_FEATURES = 4, QUEUE_PFN = 8, QUEUE_SIZE = 12, QUEUE_SELECT = 14, NOTIFY = 16, STATUS = 18, CAPACITY = 20 };

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct avail { uint16_t flags, idx, ring[]; };
struct used { uint16_t flags, idx; struct { uint32_t id, len; } ring[]; };

struct request {
	struct { uint32_t type, reserved; uint64_t sector; } header;
	struct desc table[MAX_SEGS + 2];
	uint32_t slots[MAX_SEGS];
	uint32_t group;
	uint8_t status;
	bool in_flight;
};

// A slot is a page that requests and the processor use; a group is the blocks of the disk that one request covers.
static struct { uint64_t key; bool busy; } *slots;
static struct { int users; uint64_t keys[MAX_SEGS]; } *groups;	// users: that many reads in flight, or -1: a write
static struct request *requests;
static uint64_t nr_slots, nr_groups, keys_used, dice;
static unsigned segs, depth, queue_size;
static uint16_t io, used_seen;
static struct desc *ring;
static volatile struct avail *avail;
static volatile struct used *used;

static uint64_t random_below(uint64_t n)
{
	return pattern_hash(++dice) % n;
}

static uint64_t new_key(void)
{
	return pattern_hash(~++keys_used) | 1;
}

static void *claim(uint64_t len)
{
	return claim_pages((len + PAGE_SIZE - 1) / PAGE_SIZE);
}

static uint64_t find_disk(void)
{
	unsigned devfn = 0;
	uint64_t used_at;

	while (pci_read(devfn, 0) != 0x10011af4)
		if (++devfn == 256)
			bad(0, 0x10011af4, 0);
	if (!(pci_read(devfn, 0x10) & ~3u))
		pci_write(devfn, 0x10, 0xc000);		// the firmware gave it no ports
	pci_write(devfn, 4, pci_read(devfn, 4) | 5);	// I/O ports, bus master
	io = pci_read(devfn, 0x10) & ~3u;
	outb(io + STATUS, 0);
	outb(io + STATUS, 3);				// a driver is here
	if (!(inl(io + HOST_FEATURES) & F_INDIRECT))
		bad(io, F_INDIRECT, 0);
	outl(io + GUEST_FEATURES, F_INDIRECT);
	outw(io + QUEUE_SELECT, 0);
	queue_size = inw(io + QUEUE_SIZE);
	used_at = (queue_size * sizeof(struct desc) + 6 + 2 * queue_size + PAGE_SIZE - 1) & -(uint64_t)PAGE_SIZE;
	ring = claim(used_at + 6 + 8 * queue_size);
	avail = (void *)(ring + queue_size);
	used = (void *)((char *)ring + used_at);
	outl(io + QUEUE_PFN, (uint64_t)ring / PAGE_SIZE);
	outb(io + STATUS, 7);
	return (inl(io + CAPACITY) | (uint64_t)inl(io + CAPACITY + 4) << 32) * 512;
}

static void touch_slot(uint32_t s)
{
	check_page(s, slots[s].key);
	if (!random_below(4)) {
		slots[s].key = random_below(16) ? new_key() : 0;
		fill_page(s, slots[s].key);
	}
}

static uint32_t take_slot(void)
{
	uint32_t s = random_below(nr_slots);

	while (slots[s].busy)
		s = (s + 1) % nr_slots;
	slots[s].busy = true;
	return s;
}

static void submit(struct request *r, uint32_t group, bool write)
{
	bool touch = random_below(2);
	unsigned id = r - requests;

	r->header.type = write;
	r->header.sector = (uint64_t)group * segs * (PAGE_SIZE / 512);
	r->group = group;
	r->status = 0xff;
	r->in_flight = true;
	groups[group].users += write ? -1 : 1;
	r->table[0] = (struct desc){ (uint64_t)&r->header, sizeof(r->header), DESC_NEXT, 1 };
	for (unsigned i = 0; i < segs; i++) {
		uint32_t s = r->slots[i] = take_slot();

		if (touch)
			touch_slot(s);
		r->table[i + 1] = (struct desc){ (uint64_t)page_at(s), PAGE_SIZE, DESC_NEXT | (write ? 0 : DESC_WRITE), i + 2 };
	}
	r->table[segs + 1] = (struct desc){ (uint64_t)&r->status, 1, DESC_WRITE, 0 };
	ring[id] = (struct desc){ (uint64_t)r->table, (segs + 2) * sizeof(struct desc), DESC_INDIRECT, 0 };
	avail->ring[avail->idx % queue_size] = id;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	avail->idx++;
}

static void complete(struct request *r)
{
	bool write = r->header.type, check = random_below(2);

	if (r->status)
		bad((uint64_t)&r->status, 0, r->status);
	for (unsigned i = 0; i < segs; i++) {
		uint32_t s = r->slots[i];
		uint64_t *key = &groups[r->group].keys[i];

		if (write)
			*key = slots[s].key;
		else
			slots[s].key = *key;
		if (check)
			check_page(s, slots[s].key);
		slots[s].busy = false;
	}
	groups[r->group].users += write ? 1 : -1;
	r->in_flight = false;
}

// Returns how many requests ended.
static unsigned reap(void)
{
	unsigned nr = 0;

	for (; used_seen != used->idx; used_seen++, nr++)
		complete(&requests[used->ring[used_seen % queue_size].id]);
	return nr;
}

static void refill(void)
{
	uint16_t before = avail->idx;

	for (unsigned i = 0; i < depth; i++) {
		uint32_t group = random_below(nr_groups);
		bool write = !random_below(4);

		if (!requests[i].in_flight && (write ? !groups[group].users : groups[group].users >= 0))
			submit(&requests[i], group, write);
	}
	if (avail->idx != before)
		outw(io + NOTIFY, 0);
}

static void write_whole_disk(void)
{
	for (uint32_t g = 0; g < nr_groups; g++) {
		while (requests[g % depth].in_flight)
			reap();
		submit(&requests[g % depth], g, true);
		outw(io + NOTIFY, 0);
	}
	while (used_seen != avail->idx)
		reap();
}

void guest_main(void)
{
	uint64_t capacity = find_disk(), size = option("disk", 64 << 20), ended = 0;

	segs = option("segs", MAX_SEGS);
	segs = segs < MAX_SEGS ? segs : MAX_SEGS;
	depth = option("depth", queue_size);
	depth = depth < queue_size ? depth : queue_size;
	nr_groups = (size < capacity ? size : capacity) / PAGE_SIZE / segs;
	groups = claim(nr_groups * sizeof(*groups));
	requests = claim(depth * sizeof(*requests));
	slots = claim(nr_pages() * sizeof(*slots));
	nr_slots = nr_pages();
	if (depth * segs > nr_slots / 2)
		depth = nr_slots / 2 / segs;
	for (uint64_t s = 0; s < nr_slots; s++) {
		slots[s].key = new_key();
		fill_page(s, slots[s].key);
	}
	write_whole_disk();
	ready("disk");
	for (uint64_t n = 1; ; n++) {
		for (; ended < depth; ended += reap()) {
			uint32_t s = take_slot();

			refill();
			touch_slot(s);
			slots[s].busy = false;
		}
		ended = 0;
		pass(n);
	}
}
