// SPDX-License-Identifier: GPL-2.0-only
// The pager's control socket: a client sends one JSON object in a line, gets one back, and is disconnected.
#pragma once
#include <jansson.h>

#include "util/loop.h"

struct lp_control;

// answer makes the reply to a request, never NULL. listen_fd is borrowed. -ENOMEM.
int lp_control_new(struct loop *l, int listen_fd, json_t *(*answer)(void *ctx, const json_t *request), void *ctx, struct lp_control **c);
void lp_control_free(struct lp_control *c);

// The client's side. Blocks, at most timeout_ms. -ENOENT, -ECONNREFUSED: no pager; -ECONNRESET: it ended
// meanwhile; -ETIMEDOUT, -EPROTO. Silent.
int lp_control_request(const char *path, json_t *request, int timeout_ms, json_t **reply); // request is stolen
int lp_control_ask(const char *path, const char *command, int timeout_ms, json_t **reply);  // a command without arguments
