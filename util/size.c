// SPDX-License-Identifier: GPL-2.0-only
#include "util/size.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int size_parse(const char *s, uint64_t *bytes)
{
	static const char suffix[] = "KMGT";
	unsigned shift = 0;
	long double v;
	char *end;

	if (!isdigit((unsigned char)*s) || (s[0] == '0' && (s[1] | 0x20) == 'x')) // strtold would take signs, hex, "inf"
		return -EINVAL;
	v = strtold(s, &end);
	if (*end) {
		const char *p = strchr(suffix, toupper((unsigned char)*end));

		if (p) {
			shift = 10 * (unsigned)(p - suffix + 1);
			end++;
		}
		if (!strcasecmp(end, "B") || (shift && !strcasecmp(end, "iB")))
			end += strlen(end);
		if (*end)
			return -EINVAL;
	}
	v = ldexpl(v, (int)shift);
	if (!(v < 0x1p64L))
		return -ERANGE;
	*bytes = (uint64_t)v;
	return 0;
}

const char *size_format(uint64_t bytes, char buf[16])
{
	static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	double v = (double)bytes;
	unsigned i = 0;

	while (v >= 1023.5 && i + 1 < ARRAY_SIZE(unit)) {
		v /= 1024;
		i++;
	}
	snprintf(buf, 16, v < 99.95 && v != (double)(uint64_t)v ? "%.1f %s" : "%.0f %s", v, unit[i]);
	return buf;
}
