// SPDX-License-Identifier: GPL-2.0-only
// Checks time: the 8254 interrupts 250 times a second; ticks must go on coming, and neither they nor the time stamp counter
// may go back. Says how many came, and the longest gap between two of them by the ACPI timer, in microseconds:
//
//	ok N ticks T gap US
#include "guest.h"

#define PIT_HZ		1193182u
#define HZ		250u

static volatile uint64_t ticks, tsc;
static volatile uint32_t last, longest;

__attribute__((interrupt)) static void tick(struct interrupt_frame *frame)
{
	uint64_t now = rdtsc();
	uint32_t gap = elapsed_us(last);

	(void)frame;
	if (now < tsc)
		bad((uint64_t)&tsc, tsc, now);
	if (ticks && gap > longest)
		longest = gap;
	tsc = now;
	last = timer_now();
	ticks++;
	irq_done();
}

void guest_main(void)
{
	uint64_t seen = 0;

	outb(0x43, 0x34);		// counter 0, rate generator
	outb(0x40, PIT_HZ / HZ & 0xff);
	outb(0x40, PIT_HZ / HZ >> 8);
	irq_handle(0, tick);
	asm volatile("sti");
	ready("timer");
	for (uint64_t n = 1; ; n++) {
		uint32_t start = timer_now();

		while (ticks < seen + HZ / 10) {
			if (ticks < seen || elapsed_us(start) > 3000000)
				bad((uint64_t)&ticks, seen + HZ / 10, ticks);
			asm volatile("hlt");
		}
		seen = ticks;
		say("ok %lu ticks %lu gap %u", n, seen, longest);
	}
}
