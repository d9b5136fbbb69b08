// SPDX-License-Identifier: GPL-2.0-only
// What happened to a VM between two looks at it, or since its pager began: rates, and how long page-ins took.
#pragma once
#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

// A latency histogram: bucket i counts what took less than 2^i microseconds, and no less than the bucket before says; the
// last one all that took longer, too. How many microseconds the quickest part (0 to 1) of it all took at most: interpolated
// within a bucket, which is up to half of it off. Of a part that ends in the last bucket the least that it can be.
double stat_percentile(const uint64_t *bucket, size_t nr, double part);

// Gives a VM (stat_vm.h) that is in private virtual memory this; before: the same VM a moment ago, or NULL.
//
//   interval: {
//     seconds               how long it is: since before, or since the pager's start if there is none of this pager
//     faults_per_s
//     bytes_in_per_s        read from swap and images
//     bytes_out_per_s       written to swap
//     bytes_filled_per_s    brought in the background
//     page_ins_log2_us      a histogram as above, of page-ins that ended
//     page_in_us            { p50, p90, p99, max }, or null if none did
//   }
void stat_add_interval(json_t *vm, const json_t *before);
