// SPDX-License-Identifier: GPL-2.0-only
// The layout of a stream. Integers are little-endian, at these offsets.
#pragma once
#include <endian.h>
#include <stdint.h>
#include <string.h>

#define STREAM_MAGIC "CRIUVMST"
#define STREAM_VERSION 1U

enum { STREAM_VM = 1, STREAM_CHUNK, STREAM_DEVICE_STATE, STREAM_END };

// Header: magic, u32 version, u32 0, u64 features, u64 XXH3 of what is before it.
#define STREAM_HEADER_LEN 32U
// Before each record: u32 type, u32 0, u64 length, u64 XXH3 of so many bytes that follow, u64 XXH3 of the three before it.
#define STREAM_RECORD_LEN 32U
// CHUNK: u32 block, u32 stored, u64 chunk, u64 XXH3 of the stored bytes, which follow the record, 4 u64 present.
#define STREAM_CHUNK_LEN 56U
// END: u64 number of CHUNKs, u64 of their pages, u64 of their stored bytes, u64 XXH3 of the header and of what is before each record.
#define STREAM_END_LEN 32U

#define STREAM_POLL_MS 200

static inline void put_le32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof v);
}

static inline void put_le64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof v);
}

static inline uint32_t get_le32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof v);
	return le32toh(v);
}

static inline uint64_t get_le64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof v);
	return le64toh(v);
}
