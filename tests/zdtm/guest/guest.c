// SPDX-License-Identifier: GPL-2.0-only
// Serial line, options, memory map, clock, processors, interrupts, PCI.
#include <stdarg.h>

#include "guest.h"

#define COM1		0x3f8
#define COM2		0x2f8
#define ACPI_TIMER	0x608		// where SeaBIOS puts it, on pc as on q35
#define TIMER_HZ	3579545u
#define FW_CFG		0x510
#define FW_CFG_NR_CPUS	5
#define LAPIC(reg)	(*(volatile uint32_t *)(uintptr_t)(0xfee00000 + (reg)))
#define LAPIC_SPURIOUS	0xf0
#define LAPIC_ICR	0x300
#define LAPIC_LINT0	0x350
#define AP_START	0x8000u
#define FIRST_PAGE	((uint64_t)2 << 20)
#define MAPPED_END	((uint64_t)32 << 30)
#define PIT_HZ		1193182u

struct multiboot_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};

struct mmap_entry {
	uint32_t size;			// of what follows
	uint64_t addr, len;
	uint32_t type;			// 1: RAM
} __attribute__((packed));

struct gate {
	uint16_t offset_low, selector, attributes, offset_middle;
	uint32_t offset_high, zero;
};

static struct { uint64_t start, nr; } regions[8];
static unsigned nr_regions, stride;
static char cmdline[512];
static struct gate idt[48];
static int say_lock;
static struct { uint64_t tsc_per_ms, last, said, gap; bool sends; } ticker;	// of the time stamp counter

static void putc(char c)
{
	// A reader that does not read must not stop the guest: wait a while, then drop.
	for (int i = 0; i < 100000 && !(inb(COM1 + 5) & 0x20); i++)
		relax();
	outb(COM1, c);
}

int serial_getc(void)
{
	return inb(COM1 + 5) & 1 ? inb(COM1) : -1;
}

static void put_number(uint64_t v, unsigned base)
{
	char buf[24], *p = buf + sizeof(buf);

	*--p = 0;
	do
		*--p = "0123456789abcdef"[v % base];
	while (v /= base);
	while (*p)
		putc(*p++);
}

void say(const char *fmt, ...)
{
	va_list ap;
	uint64_t flags;

	asm volatile("pushfq; pop %0; cli" : "=r"(flags) : : "memory");	// a tick may say something, too
	while (__atomic_exchange_n(&say_lock, 1, __ATOMIC_ACQUIRE))
		relax();
	va_start(ap, fmt);
	for (; *fmt; fmt++) {
		bool is_long = fmt[0] == '%' && fmt[1] == 'l';

		if (*fmt != '%') {
			putc(*fmt);
			continue;
		}
		fmt += 1 + is_long;
		if (*fmt == 's')
			for (const char *s = va_arg(ap, const char *); *s; s++)
				putc(*s);
		else
			put_number(is_long ? va_arg(ap, uint64_t) : va_arg(ap, unsigned), *fmt == 'x' ? 16 : 10);
	}
	va_end(ap);
	putc('\n');
	__atomic_store_n(&say_lock, 0, __ATOMIC_RELEASE);
	asm volatile("push %0; popfq" : : "r"(flags) : "memory", "cc");
}

void ready(const char *name)
{
	say("ready %s", name);
}

void pass(uint64_t nr)
{
	static uint32_t last;

	while (elapsed_us(last) < 20000)
		relax();
	last = timer_now();
	say("ok %lu", nr);
}

void bad(uint64_t where, uint64_t expected, uint64_t got)
{
	for (;;) {
		say("BAD 0x%lx 0x%lx 0x%lx", where, expected, got);
		sleep_ms(500);
	}
}

uint64_t option(const char *name, uint64_t otherwise)
{
	for (const char *p = cmdline; *p; p++) {
		const char *n = name;
		uint64_t v = 0;

		if (p != cmdline && p[-1] != ' ')
			continue;
		while (*n && *n == *p)
			n++, p++;
		if (*n || *p != '=') {
			while (p[0] && p[1] && *p != ' ')
				p++;
			continue;
		}
		for (p++; *p >= '0' && *p <= '9'; p++)
			v = v * 10 + *p - '0';
		return v << (*p == 'K' ? 10 : *p == 'M' ? 20 : *p == 'G' ? 30 : 0);
	}
	return otherwise;
}

uint64_t nr_pages(void)
{
	uint64_t nr = 0;

	for (unsigned i = 0; i < nr_regions; i++)
		nr += regions[i].nr;
	return nr;
}

uint64_t *page_at(uint64_t nr)
{
	unsigned i = 0;

	while (nr >= regions[i].nr)
		nr -= regions[i++].nr;
	return (uint64_t *)(regions[i].start + nr * PAGE_SIZE);
}

void fill_page(uint64_t nr, uint64_t key)
{
	pattern_fill(page_at(nr), key, stride);
}

void check_page(uint64_t nr, uint64_t key)
{
	uint64_t *page = page_at(nr);
	unsigned i = pattern_check(page, key, stride);

	if (i < PAGE_WORDS)
		bad((uint64_t)&page[i], pattern_word(key, i), page[i]);
}

uint64_t *claim_pages(uint64_t nr)
{
	uint64_t *mem = page_at(0);

	if (nr > regions[0].nr)
		bad(0, nr, regions[0].nr);
	regions[0].start += nr * PAGE_SIZE;
	regions[0].nr -= nr;
	for (uint64_t i = 0; i < nr * PAGE_WORDS; i++)
		mem[i] = 0;
	return mem;
}

uint32_t timer_now(void)
{
	return inl(ACPI_TIMER) & 0xffffff;
}

uint32_t elapsed_us(uint32_t since)
{
	return (uint64_t)((timer_now() - since) & 0xffffff) * 1000000 / TIMER_HZ;
}

void sleep_ms(unsigned ms)
{
	for (uint32_t start = timer_now(); elapsed_us(start) < ms * 1000; )
		relax();
}

unsigned nr_cpus(void)
{
	unsigned lo;

	outw(FW_CFG, FW_CFG_NR_CPUS);
	lo = inb(FW_CFG + 1);
	return lo | inb(FW_CFG + 1) << 8;
}

static void send_to_all_others(uint32_t ipi)
{
	LAPIC(LAPIC_ICR) = 3 << 18 | ipi;
	while (LAPIC(LAPIC_ICR) & 1 << 12)
		relax();
}

void start_cpus(void)
{
	extern const uint8_t ap_start[], ap_end[];

	for (long i = 0; i < ap_end - ap_start; i++)
		((volatile uint8_t *)(uintptr_t)AP_START)[i] = ap_start[i];
	send_to_all_others(0x4500);			// INIT
	sleep_ms(10);
	send_to_all_others(0x4600 | AP_START >> 12);	// start-up
}

static void idt_set(unsigned vector, void (*handler)(struct interrupt_frame *))
{
	uint64_t addr = (uint64_t)handler;

	idt[vector] = (struct gate){ .offset_low = addr, .offset_middle = addr >> 16, .offset_high = addr >> 32,
				     .selector = 8, .attributes = 0x8e00 };
}

__attribute__((interrupt)) static void trap(struct interrupt_frame *frame)
{
	bad((uint64_t)frame, 0, ((uint64_t *)frame)[0]);
}

static void irq_init(void)
{
	static const uint8_t pic[2][4] = { { 0x11, 32, 4, 1 }, { 0x11, 40, 2, 1 } };
	struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idtr = { sizeof(idt) - 1, (uint64_t)idt };

	for (unsigned i = 0; i < 32; i++)
		idt_set(i, trap);
	for (unsigned chip = 0; chip < 2; chip++) {
		uint16_t port = chip ? 0xa0 : 0x20;

		outb(port, pic[chip][0]);
		for (unsigned i = 1; i < 4; i++)
			outb(port + 1, pic[chip][i]);
		outb(port + 1, 0xff);
	}
	asm volatile("lidt %0" : : "m"(idtr));
	LAPIC(LAPIC_SPURIOUS) = 0x1ff;
	LAPIC(LAPIC_LINT0) = 0x700;		// the PIC's interrupts pass through; not every firmware leaves it so
}

void irq_handle(unsigned irq, void (*handler)(struct interrupt_frame *))
{
	uint16_t mask = irq < 8 ? 0x21 : 0xa1;

	idt_set(32 + irq, handler);
	outb(mask, inb(mask) & ~(1 << irq % 8));
}

void irq_done(void)
{
	outb(0x20, 0x20);
}

__attribute__((interrupt)) static void tick(struct interrupt_frame *frame)
{
	uint64_t now = rdtsc(), gap = now - ticker.last;

	(void)frame;
	if (ticker.sends)
		outb(COM2, '.');
	ticker.last = now;
	if (gap > ticker.gap)
		ticker.gap = gap;
	if (now - ticker.said > 1000 * ticker.tsc_per_ms) {
		say("gap %lu", ticker.gap * 1000 / ticker.tsc_per_ms);
		ticker.said = now;
		ticker.gap = 0;
	}
	irq_done();
}

static void start_ticker(void)
{
	uint64_t begin = rdtsc();

	sleep_ms(50);
	ticker.last = rdtsc();
	ticker.tsc_per_ms = (ticker.last - begin) / 50;
	outb(0x43, 0x34);			// counter 0, rate generator
	outb(0x40, PIT_HZ / 1000 & 0xff);
	outb(0x40, PIT_HZ / 1000 >> 8);
	irq_handle(0, tick);
	asm volatile("sti");
}

uint32_t pci_read(unsigned devfn, unsigned reg)
{
	outl(0xcf8, 1u << 31 | devfn << 8 | reg);
	return inl(0xcfc);
}

void pci_write(unsigned devfn, unsigned reg, uint32_t value)
{
	outl(0xcf8, 1u << 31 | devfn << 8 | reg);
	outl(0xcfc, value);
}

static void find_memory(const struct multiboot_info *mbi)
{
	const char *end = (const char *)(uintptr_t)mbi->mmap_addr + mbi->mmap_length;

	for (const char *p = end - mbi->mmap_length; p < end; ) {
		const struct mmap_entry *e = (const void *)p;
		uint64_t start = e->addr > FIRST_PAGE ? e->addr : FIRST_PAGE, stop = e->addr + e->len;

		start = (start + PAGE_SIZE - 1) & -(uint64_t)PAGE_SIZE;
		stop = stop < MAPPED_END ? stop & -(uint64_t)PAGE_SIZE : MAPPED_END;
		if (e->type == 1 && start < stop && nr_regions < sizeof(regions) / sizeof(regions[0])) {
			regions[nr_regions].start = start;
			regions[nr_regions++].nr = (stop - start) / PAGE_SIZE;
		}
		p += e->size + sizeof(e->size);
	}
}

void guest_start(const struct multiboot_info *mbi);

void guest_start(const struct multiboot_info *mbi)
{
	const char *options = (const char *)(uintptr_t)mbi->cmdline;

	for (unsigned i = 0; options[i] && i < sizeof(cmdline) - 1; i++)
		cmdline[i] = options[i];
	stride = PAGE_WORDS / option("words", PAGE_WORDS);
	outb(COM1 + 1, 0);			// no interrupts, FIFO on, 8 bits
	outb(COM1 + 2, 7);
	outb(COM1 + 3, 3);
	find_memory(mbi);
	irq_init();
	ticker.sends = option("tick", 0) > 1;
	if (option("tick", 0))
		start_ticker();
	if (option("pulse", 0))
		start_cpus();
	guest_main();
}

__attribute__((weak)) void guest_cpu(unsigned cpu)
{
	for (uint64_t n = 1; cpu == 1; n++) {
		sleep_ms(100);
		say("pulse %lu", n);
	}
}
