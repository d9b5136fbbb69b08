// SPDX-License-Identifier: GPL-2.0-only
// The little that a guest without an operating system needs. A guest is one file with a guest_main(), loaded by QEMU's
// -kernel; its options are words NAME=NUMBER[KMG] of -append. All take words=N: of each page's 512 words write and check
// only N, a power of two, where the processor is slow. It speaks on COM1, in lines:
//
//	ready NAME			it is set up and begins to check
//	ok N [...]			N passes ended well
//	BAD WHERE EXPECTED GOT		what it has seen is wrong; repeated for ever
//
// Nobody has to read: output that nobody takes is dropped, a verdict comes again. All but "timer" take these, too:
//
//	tick=1		the first processor gets an interrupt each millisecond, and says "gap US" every second: the longest time
//			between two of them since it was said last
//	tick=2		and writes a byte to COM2 each time, for a reader with a clock of its own: the guest's may stand still with it
//	pulse=1		another processor (but with "smp") does nothing but say "pulse N", ten times a second
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pattern.h"

void guest_main(void);
void guest_cpu(unsigned cpu);		// where processors other than the first begin; see start_cpus()

uint64_t option(const char *name, uint64_t otherwise);

void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));	// %s %u %lu %lx
void ready(const char *name);
void pass(uint64_t nr);			// "ok NR", at most 50 a second
void bad(uint64_t where, uint64_t expected, uint64_t got) __attribute__((noreturn));
int serial_getc(void);			// a byte that has come in, or -1

// The memory to check: all RAM from 2 MiB on. Pages are numbered without gaps.
uint64_t nr_pages(void);
uint64_t *page_at(uint64_t nr);
void fill_page(uint64_t nr, uint64_t key);
void check_page(uint64_t nr, uint64_t key);	// or bad()
uint64_t *claim_pages(uint64_t nr);	// takes pages from the front, zeroed, for the guest's own use

// Time that neither stops nor jumps but with the VM: the ACPI timer, 3.58 MHz, 24 bits. elapsed_us() is right up to 4 s.
uint32_t timer_now(void);
uint32_t elapsed_us(uint32_t since);
void sleep_ms(unsigned ms);

unsigned nr_cpus(void);
void start_cpus(void);			// returns when each has been told to begin

// A handler of a hardware interrupt 0..15 (the PIC's), which unmasks that line. It must end with irq_done().
struct interrupt_frame;
void irq_handle(unsigned irq, void (*handler)(struct interrupt_frame *));
void irq_done(void);

uint32_t pci_read(unsigned devfn, unsigned reg);
void pci_write(unsigned devfn, unsigned reg, uint32_t value);

static inline void outb(uint16_t port, uint8_t v)   { asm volatile("outb %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outw(uint16_t port, uint16_t v)  { asm volatile("outw %0, %1" : : "a"(v), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t v)  { asm volatile("outl %0, %1" : : "a"(v), "Nd"(port)); }
static inline uint8_t inb(uint16_t port)   { uint8_t v;  asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint16_t inw(uint16_t port)  { uint16_t v; asm volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint32_t inl(uint16_t port)  { uint32_t v; asm volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

static inline uint64_t rdtsc(void)
{
	uint32_t lo, hi;

	asm volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return (uint64_t)hi << 32 | lo;
}

static inline void relax(void)
{
	asm volatile("pause" : : : "memory");
}
