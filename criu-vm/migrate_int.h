// SPDX-License-Identifier: GPL-2.0-only
// Shared by the files of a migration's source only:
//
//   migrate.c          the stages
//   migrate_offer.c    the line; what is offered, and what comes back
//   migrate_hot.c      what is hot
//   migrate_rounds.c   rounds of pre-copy: how many, and what they foresee
//   migrate_pages.c    a round: what is chosen, that it is sent, that it was taken
//   migrate_send.c     channels, and the threads that read and send chunks
//   migrate_lazy.c     pages that come when the VM runs there
//   migrate_commit.c   the point of no return, the guardian
//   migrate_ask.c      asking what was decided
//   migrate_resume.c   --resume
#pragma once
#include <pthread.h>

#include "criu-vm/migrate.h"
#include "criu-vm/migrate_lines.h"
#include "criu-vm/migrate_pace.h"
#include "criu-vm/migration_source.h"
#include "criu-vm/progress.h"
#include "criu-vm/source.h"
#include "wire/control.h"
#include "wire/pages.h"

#define CHUNK_SIZE WIRE_CHUNK_SIZE
#define CHUNK_PAGES WIRE_CHUNK_PAGES
#define CHUNK_WORDS 4

// Pages of a chunk that are touched as soon as the VM runs.
struct hot_pages {
	uint64_t chunk, pages[CHUNK_WORDS];
};

// Of each chunk of all blocks, each block beginning anew on a chunk. A page is in one of the first three at most; else it is zero there.
struct chunk_pages {
	uint64_t sent[CHUNK_WORDS];    // what the destination has that is not zero
	uint64_t later[CHUNK_WORDS];   // what it will ask for, and gets as it is then
	uint64_t images[CHUNK_WORDS];  // what it will take from the images
	uint64_t due[CHUNK_WORDS];     // what it may have that is old
	uint64_t content[CHUNK_WORDS]; // of that, to be sent in this round
	uint64_t zero[CHUNK_WORDS];    // to become zero there
	uint64_t file[CHUNK_WORDS];    // when last looked at: not QEMU's own, but those of the file that it maps privately
};

struct worker {
	struct channel *channel;
	pthread_t thread;
	char *buf; // a chunk
	bool started;
	bool quick; // what was read here can be looked at again in no time
	uint64_t read_ns, nr_read, look_ns, nr_looked; // of the round; pages
};

struct channel {
	struct migrate *m;
	struct wire_conn *conn;
	struct worker *workers;
	unsigned nr_working; // under the migration's lock
	uint64_t next; // atomic: where the next chunk of the round is looked for: all are gone through twice, the hot ones in the end
	pthread_mutex_t lock; // of the rest: who sends
	struct wire_pages *pages;
	uint64_t frames, nr_pages, nr_zero; // of the round
};

struct migrate {
	const struct migrate_opts *o;
	struct source src;
	struct migrate_result *result;
	uint64_t begun_ns;

	char *host;
	uint16_t port;
	struct wire_tls *tls;
	uint8_t token[WIRE_TOKEN_LEN];
	struct wire_conn *control;
	struct wire_keepalive *keepalive;
	bool zstd; // both can
	bool images; // it can read those that the VM has pages in
	uint8_t key[WIRE_KEY_LEN];
	uint8_t host_id[WIRE_TOKEN_LEN]; // who will know what became of it
	bool offered_running, tracking;

	WireNet **nets;
	char (*ifnames)[16];
	size_t nr_nets;

	uint64_t nr_chunks, *first; // first: of a block
	struct chunk_pages *chunks;
	uint8_t *hotness;	    // WIRE_HOTNESS_LEN bytes a chunk
	struct hot_pages *hot;	    // sorted by chunk
	size_t nr_hot;
	bool goes_lazy;		    // decided at the end of pre-copy
	bool deferring;		    // in this round and the next: but for what is hot, pages come when the VM runs there
	struct lines *lines;	    // then: what they come over
	struct migration_source record;
	int claim;		    // on that; -1
	bool last;		    // the round is the last one: what is hot is to be in memory
	bool few;		    // and all else that is in it, since that is not much
	uint8_t **small;	    // as the destination has them

	struct channel *channels;
	unsigned nr_channels, nr_workers; // nr_workers: of a channel
	unsigned round;
	// Under the lock.
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned begun, nr_sending; // begun: the round that workers are at, or were; nr_sending: workers
	bool ending;
	int err;		    // of the first worker that failed
	uint64_t bytes;		    // sent in this round
	uint64_t read_ns, nr_read;  // what reading took of a CPU, in all rounds; pages
	uint64_t look_ns, nr_looked; // and looking whether they are zero by now
	bool quick_look;	    // which takes next to no time
	struct progress progress;
	struct pace pace;

	uint64_t dirty_rate, rate;  // bytes a second of the VM's memory, as measured
	uint64_t choosing_ns;	    // to find what was written
	uint64_t least_idle_ns;	    // a standstill with nothing to send, as foreseen; the least so far
	uint64_t trip_ns;	    // from the end of a short round until the destination had it; 0: there was none
	uint64_t nr_again;	    // pages that the last round has to look at, written or not
	bool looks;		    // that takes so little time that each round does it

	bool said_commit, committed, undecided;
};

// migrate_offer.c: what the destination says: of this kind (offsetof(WireMsg, KIND)), or it is an error, which is logged: "..., while <when>".
int migrate_expect(struct migrate *m, unsigned timeout_ms, size_t kind, const char *when, WireMsg **msg);
// Stages.
// Logs what became of sending (0: nothing to say): "..., while <when>". Returns r.
int migrate_sent(struct migrate *m, int r, const char *when);
// Begins to track it. The undo of the stage `track` ends that.
int migrate_track_now(struct migrate *m);
// How long the VM may stand yet until all is at the destination: then it goes on here.
unsigned migrate_standing_ms(const struct migrate *m);
int migrate_connect(void *ctx);
void migrate_disconnect(void *ctx);
int migrate_offer(void *ctx);
int migrate_send_small(struct migrate *m);
int migrate_send_state(struct migrate *m);
void migrate_offer_fini(struct migrate *m);

// migrate_hot.c
// Once more, what was written since it was called before counts as hot.
int migrate_sample(struct migrate *m);
int migrate_send_hotness(void *ctx); // a stage
// What is touched first is to be sent in the last round, changed or not, where it may be missing. Once; before the VM stands.
int migrate_find_hot_pages(struct migrate *m);
const struct hot_pages *migrate_hot_pages_of(const struct migrate *m, uint64_t chunk); // or NULL

// migrate_lazy.c: stages; they do nothing if it does not go lazily.
int migrate_later(void *ctx);
int migrate_open_lines(void *ctx);
void migrate_close_lines(void *ctx);
void migrate_hold_lines(void *ctx); // undo of the last round
// It runs there: ran is what is known of that. Returns that, or what became of it here.
int migrate_end_lazily(struct migrate *m, int ran);
// Who served is interrupted; its successor waits already.
void migrate_say_unfinished(const struct migration_source *s, uint64_t pages);

// migrate_rounds.c: stages.
int migrate_precopy(void *ctx);
int migrate_last(void *ctx);

// migrate_pages.c
// What was sent of the block is looked at again, in the last round: some of it may be zero by now, and nobody can tell.
bool migrate_looks_again(const struct migrate *m, uint32_t block);
// All that is to be sent of what ram_take() has found; first: all there is. Counts the pages.
int migrate_choose(struct migrate *m, bool first, bool last, uint64_t *nr_pages);
// Sends it; returns when it is sent, not when it has come. Looks at the control channel meanwhile.
int migrate_send_round(struct migrate *m);
int migrate_round_taken(struct migrate *m); // the destination has it
// -EINTR, or what the destination says; else 0.
int migrate_look_up(struct migrate *m);

// migrate_send.c
int migrate_send_init(struct migrate *m); // after the channels are open
// What was chosen, in m->round, by all channels; returns at once.
void migrate_begin_sending(struct migrate *m);
void migrate_send_fini(struct migrate *m); // closes the channels

// migrate_ask.c
struct migrate_question {
	const char *host;
	uint16_t port;
	const struct wire_tls *tls;
	const uint8_t *token, *host_id;
};
// Until it answers, or somebody presses Ctrl-C: -EINTR; or the record of that migration is gone, since somebody else has learnt it: -ENOENT,
// silently. If another host is in that record by now, it is asked.
int migrate_ask(const struct migrate_question *q, bool *committed);

// migrate_commit.c
// Stages.
int migrate_record(void *ctx);
void migrate_record_undo(void *ctx);
int migrate_commit(void *ctx);
int migrate_end(void *ctx);
void migrate_orphan(void *ctx, char word); // struct source
