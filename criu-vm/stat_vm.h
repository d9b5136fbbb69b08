// SPDX-License-Identifier: GPL-2.0-only
// What can be learnt about the VMs of a run directory without their help: each is a JSON object, the answer of its pager or,
// if there is none, what is recorded of the VM. Whatever it says, these keys are there:
//
//   name      of its directory
//   state     served     its pager answered
//             silent     its pager is there and does not answer
//             starting   it is being restored
//             unserved   its QEMU lives and has no pager: the guest waits
//             ended      its QEMU is gone, its directory not yet
//             unknown    there is no telling
//   message   for a person, what that means; not with "served"
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

// *vm is the caller's. Blocks, some seconds at most. -ENOENT (not logged): no VM of that name; -ENOMEM.
int stat_ask(const char *root, const char *name, json_t **vm);
// An array, by name. None is no error. Logs.
int stat_ask_all(const char *root, json_t **vms);

// Of what a pager said nothing is trusted: a number that is missing, or is none, is 0; a string, NULL. group: an object
// within vm, or NULL.
uint64_t stat_number(const json_t *vm, const char *group, const char *key);
double stat_real(const json_t *vm, const char *group, const char *key);
uint64_t stat_element(const json_t *array, size_t i);
const char *stat_string(const json_t *vm, const char *key);
bool stat_is_served(const json_t *vm);
// Served, and in private virtual memory: there is all that its pager knows.
bool stat_is_paged(const json_t *vm);
