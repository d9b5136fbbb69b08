// SPDX-License-Identifier: GPL-2.0-only
// Intrusive doubly linked list; an element is on at most one list a node.
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct list {
	struct list *next, *prev;
};

static inline void list_init(struct list *l)
{
	l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
	return l->next == l;
}

static inline void list_append(struct list *l, struct list *node)
{
	node->next = l;
	node->prev = l->prev;
	l->prev->next = node;
	l->prev = node;
}

// The node may be removed again harmlessly.
static inline void list_prepend(struct list *l, struct list *node)
{
	list_append(l->next, node);
}

static inline void list_remove(struct list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	list_init(node);
}

#define list_entry(node, type, member) ((type *)((char *)(node) - offsetof(type, member)))
#define list_first(l, type, member) list_entry((l)->next, type, member)
// The body may remove the current node.
#define list_for_each(l, node) \
	for (struct list *node = (l)->next, *node##_next = node->next; node != (l); node = node##_next, node##_next = node->next)

// Appends all of other, which becomes empty.
static inline void list_splice(struct list *l, struct list *other)
{
	if (list_empty(other))
		return;
	other->next->prev = l->prev;
	l->prev->next = other->next;
	other->prev->next = l;
	l->prev = other->prev;
	list_init(other);
}
