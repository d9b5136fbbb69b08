// SPDX-License-Identifier: GPL-2.0-only
// Sizes and numbers that a person writes and reads.
#pragma once
#include <stdint.h>

#define KiB (1UL << 10)
#define MiB (1UL << 20)
#define GiB (1UL << 30)

#define PAGE_SHIFT 12
#define PAGE_SIZE (1UL << PAGE_SHIFT)

#define DIV_ROUND_UP(n, d) (((n) + (d) - 1) / (d))
#define ROUND_UP(n, d) (DIV_ROUND_UP(n, d) * (d))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

// "4096", "256M", "1.5G"; suffix K M G T (powers of 1024, either case, an "iB" or "B" behind it is accepted).
// 0, or -EINVAL if it is no size, -ERANGE if it does not fit 64 bits.
int size_parse(const char *s, uint64_t *bytes);

// "1.5 GiB", "256 MiB", "12 KiB", "0 B". Returns buf.
const char *size_format(uint64_t bytes, char buf[16]);
