// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a control group for each VM
//
//   cgroup v2   ROOT/criu-vm/NAME                                        memory.swap.max = 0
//   cgroup v1   ROOT OF memory/criu-vm/NAME                              memory.swappiness = 0
//   systemd     ROOT/criu.slice/criu-vm.slice/criu-vm-NAME.scope         MemorySwapMax=0, and as above
//
// holds QEMU, its pager and its supervisor: not that of the shell or server that started them, so that stopping these touches no
// VM, and the memory of all three is accounted for as one. A host may have both hierarchies, the controller in one of them; the VM
// is then in a group of each. Where systemd is process 1 it is the only one who may make groups, so it is asked for a scope.
//
// v2's is a promise: nothing that is charged to the group gets a place in swap (zswap included), however short memory is.
// v1's is a preference: memory is not swapped while there are file pages to drop instead. Once hardly any are left, the host's
// reclaim takes it all the same; v1 knows nothing stronger but mlock.
//
// A page is charged to the group of who touches it first, and stays charged there wherever that process goes. So a process enters
// before it allocates (exec starts afresh), and what a restore fills on behalf of its VM, it fills from inside.
#pragma once
#include <stdint.h>
#include <sys/types.h>

enum { CGROUP_V2, CGROUP_V1_MEMORY, CGROUP_NR };

// Where a process is, or is to be. The strings outlive their maker in the VM's state file, since another process cleans up.
struct cgroup {
	char *path[CGROUP_NR]; // its folder in each hierarchy; NULL: none there
	char *scope;           // the systemd unit whose group it is, and who removes it; NULL: made by hand
};

#define CGROUP_NONE ((struct cgroup){ .scope = NULL })

// Which hierarchy of this host has the memory controller, CGROUP_NR if none has.
int cgroup_memory_hierarchy(void);

// A new group with the process `first` (0: this one) in it. NAME-2, NAME-3 and so on if another run directory's VM has the name.
// May block as long as scope_start(). A VM lives without a group too: whatever prevents one is a warning, and
// *cg is CGROUP_NONE then. -ESRCH: there is no such process. End with cgroup_fini() or cgroup_destroy().
int cgroup_create(const char *name, pid_t first, struct cgroup *cg);

// Where this process is now, to come back to with cgroup_enter(): CGROUP_NONE where there are no groups.
void cgroup_own(struct cgroup *cg);

// Moves a process (0: this one) with all its threads; later children are born in it. 0, or -errno, logged; 0 for CGROUP_NONE.
int cgroup_enter(const struct cgroup *cg, pid_t pid);

// Memory charged to the group: guest pages that are resident, the processes' own, page tables, and files that it was first to read.
// -ENOENT: nobody counts it. Does not log.
int cgroup_memory_current(const struct cgroup *cg, uint64_t *bytes);

// Removes it and ends with cgroup_fini(). If this process is still in it, it goes to the root first; others must be gone, and are
// waited for, a few 100 ms at most: a warning names who stays. systemd removes a scope by itself when it is empty.
void cgroup_destroy(struct cgroup *cg);

void cgroup_fini(struct cgroup *cg);
