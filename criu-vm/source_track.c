// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <string.h>

#include "criu-vm/find_vm.h"
#include "criu-vm/source.h"
#include "criu-vm/uffd_dev.h"
#include "mm/track.h"
#include "qemu/refuse.h"
#include "util/log.h"
#include "util/process.h"

// The tracker that is in the process, whatever its record says: a dump may have been killed between the two, or have had another run
// directory. What the record knows, it knows of its own tracker.
void source_find_tracker(struct source *s)
{
	pid_t pid = s->vm->pid;
	int uffd = mm_track_find(pid);

	s->is_tracked = !tracked_load(s->run_root, pid, &s->tracked);
	if (s->is_tracked && mm_track_id(pid, uffd) != s->tracked.uffd_id)
		s->tracked.known = false;
	if (!s->is_tracked && uffd >= 0)
		s->tracked = (struct tracked){ .pid = pid, .start = process_start(pid) };
	s->is_tracked |= uffd >= 0;
	s->tracked.uffd = uffd;
}

// Of a VM that criu-vm runs: has it a pager, and which userfaultfd is that one's?
static int ask_state(struct source *s, struct qemu_ours *ours)
{
	struct vm_state state;
	struct run_dir rd;
	int r = run_dir_open(s->run_root, s->name, &rd);

	if (r) {
		log_err("VM '%s' is ending: %s", s->name, strerror(-r));
		return r;
	}
	r = vm_state_load(&rd, &state);
	if (!r && state.remote) {
		log_err("the pages of VM '%s' have not all come from %s yet (criu-vm stat %s); it can be %s when they have", s->name, state.remote, s->name,
			s->taken);
		r = -EBUSY;
	}
	if (!r && state.paging)
		*ours = (struct qemu_ours){ .uffd = state.target_uffd, .paged = true };
	vm_state_fini(&state);
	run_dir_close(&rd);
	return r;
}

int source_find_ours(struct source *s, struct qemu_ours *ours)
{
	int r = tracked_lock(s->vm->pid, &s->lock_fd);

	if (r)
		return r;
	*ours = (struct qemu_ours){ .uffd = -1 };
	s->discards = !qmp_try(s->vm->qmp, "query-balloon", NULL, NULL); // the other one, virtio-mem, is refused
	s->is_ours = find_vm_name(s->run_root, s->vm->pid, s->name);
	if (s->is_ours && (r = ask_state(s, ours)))
		return r;
	if (ours->paged) {
		s->is_tracked = !tracked_load(s->run_root, s->vm->pid, &s->tracked);
		return 0;
	}
	source_find_tracker(s);
	ours->uffd = s->is_tracked ? s->tracked.uffd : -1;
	return 0;
}

void source_untrack(struct source *s)
{
	if (!s->is_tracked)
		return;
	if (s->tracked.uffd >= 0)
		mm_track_end(s->vm->pid, s->tracked.uffd, s->ram ? ram_ranges(s->ram) : NULL, s->ram ? s->nr_guest : 0);
	tracked_remove(s->run_root, s->vm->pid);
	s->is_tracked = false;
}

static int plant_tracker(struct source *s)
{
	int dev, r = uffd_dev_give(s->vm->qmp, s->vm->pid, &dev);

	if (r)
		return r;
	r = mm_track_begin(s->vm->pid, dev, ram_ranges(s->ram), s->nr_guest, &s->tracked.uffd);
	uffd_dev_take_back(s->vm->qmp, dev);
	if (!r)
		s->tracked.uffd_id = mm_track_id(s->vm->pid, s->tracked.uffd);
	return r;
}

int source_track(struct source *s)
{
	int r = 0;

	source_untrack(s);
	s->tracked = (struct tracked){ .pid = s->vm->pid, .start = process_start(s->vm->pid), .uffd = -1 };
	if (!ram_is_paged(s->ram))
		r = plant_tracker(s);
	if (r)
		return r;
	s->is_tracked = true;
	r = tracked_save(s->run_root, &s->tracked);
	if (r)
		source_untrack(s);
	return r;
}
