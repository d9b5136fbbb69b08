// SPDX-License-Identifier: GPL-2.0-only
// Being another user: what root does for a user's VM, by names and programs of that user's choice, it does with their rights only.
#pragma once
#include <stdbool.h>
#include <sys/types.h>

// Whether this host has the user in the group. Blocks on the user database.
bool user_in_group(uid_t uid, gid_t gid);

// For good: user, group, and the groups that the user is in. Who is not root stays who they are; so does root for uid 0. 0 or
// -errno; does not log. Blocks on the user database.
int user_become(uid_t uid, gid_t gid);

// Calls fn as that user, in a child with a session of its own whose descriptors, but for 0 to 2, no program that it starts gets; where
// there is nobody to become, without one. Returns what fn did, 0 or -errno; else -ECHILD (it was killed), or what becoming the
// user gave. Blocks until fn is done.
int user_call(uid_t uid, gid_t gid, int (*fn)(void *ctx), void *ctx);
