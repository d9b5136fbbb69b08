// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/run_dir.h"

#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/swap_registry.h"
#include "pvmem/swap.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

#define RECLAIM_WAITS 100
#define LOCK_TRIES 20
#define LOCK_WAIT_US 5000
#define RECLAIM_WAIT_US 100000

bool run_dir_name_ok(const char *name)
{
	size_t len = strlen(name);

	if (!isalnum((unsigned char)name[0]) || len > RUN_DIR_NAME_MAX)
		return false;
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
			return false;
	return true;
}

static int set_paths(const char *root, const char *name, struct run_dir *rd)
{
	int r;

	*rd = RUN_DIR_NONE;
	rd->root = realpath(root, NULL);
	if (!rd->root)
		return errno > 0 ? -errno : -EIO;
	rd->name = strdup(name);
	r = rd->name ? asprintf(&rd->path, "%s/%s", rd->root, name) : -1;
	if (r > 0 && rd->path)
		return 0;
	rd->path = NULL;
	run_dir_close(rd);
	return -ENOMEM;
}

void run_dir_close(struct run_dir *rd)
{
	if (rd->fd >= 0)
		close(rd->fd);
	free(rd->root);
	free(rd->name);
	free(rd->path);
	*rd = RUN_DIR_NONE;
}

const char *run_dir_file(const struct run_dir *rd, const char *file, char *buf, size_t size)
{
	snprintf(buf, size, "%s/%s", rd->path, file);
	return buf;
}

int run_dir_open(const char *root, const char *name, struct run_dir *rd)
{
	int r = set_paths(root, name, rd);

	if (r)
		return r;
	assert(rd->path);
	rd->fd = open(rd->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (rd->fd >= 0)
		return 0;
	r = -errno;
	if (r != -ENOENT)
		log_err("cannot open %s: %s", rd->path, strerror(-r));
	run_dir_close(rd);
	return r;
}

bool run_dir_is_locked(const struct run_dir *rd)
{
	if (flock(rd->fd, LOCK_SH | LOCK_NB) < 0)
		return true;
	flock(rd->fd, LOCK_UN);
	return false;
}

bool run_dir_is_held(const struct run_dir *rd, const char *file)
{
	_cleanup_close_ int fd = openat(rd->fd, file, O_RDONLY | O_CLOEXEC);
	struct flock l = { .l_type = F_RDLCK, .l_whence = SEEK_SET };

	return fd >= 0 && !fcntl(fd, F_OFD_GETLK, &l) && l.l_type != F_UNLCK;
}

int run_dir_hold(const struct run_dir *rd, const char *file)
{
	_cleanup_close_ int fd = openat(rd->fd, file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if (fd < 0 || fcntl(fd, F_OFD_SETLK, &l) < 0)
		return -errno;
	return steal_fd(&fd);
}

// Somebody may just be looking whether it is locked.
static int try_lock(int fd)
{
	for (unsigned i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
		if (errno != EWOULDBLOCK || i == LOCK_TRIES)
			return -errno;
		usleep(LOCK_WAIT_US);
	}
	return 0;
}

int run_dir_lock(const struct run_dir *rd)
{
	return try_lock(rd->fd);
}

void run_dir_let_go(struct run_dir *rd)
{
	int fd = open(rd->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (rd->fd >= 0)
		close(rd->fd);
	rd->fd = fd;
}

bool run_dir_has(const struct run_dir *rd, const char *file)
{
	return !faccessat(rd->fd, file, F_OK, 0);
}

int run_dir_mark(const struct run_dir *rd, const char *file, const char *text)
{
	char tmp[64];
	_cleanup_close_ int fd = -1;
	int r = 0;

	snprintf(tmp, sizeof tmp, "%s.new", file);
	fd = openat(rd->fd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		r = -errno;
	else
		r = io_write_full(fd, text, strlen(text));
	if (!r && renameat(rd->fd, tmp, rd->fd, file) < 0)
		r = -errno;
	if (r)
		log_err("cannot write %s/%s: %s", rd->path, file, strerror(-r));
	return r;
}

// A pager that cleans up after its VM holds the lock a little longer. If not in use, it is locked.
static bool in_use(const struct run_dir *rd, const struct vm_state *s)
{
	for (unsigned i = 0; run_dir_lock(rd); i++) {
		if (i == RECLAIM_WAITS || !s->qemu || vm_state_qemu_alive(s, NULL))
			return true;
		usleep(RECLAIM_WAIT_US);
	}
	return false;
}

// What has this name already: somebody, or what somebody left behind?
static int reclaim(const char *root, const char *name)
{
	struct run_dir old;
	struct vm_state s;
	int r = run_dir_open(root, name, &old);

	if (r)
		return r == -ENOENT ? 0 : r;
	vm_state_load(&old, &s); // empty if there is none
	if (in_use(&old, &s)) {
		log_err("the name '%s' is in use by a running VM (criu-vm stat %s); choose another with --name", name, name);
		r = -EEXIST;
	} else if (vm_state_qemu_alive(&s, NULL)) {
		log_err("the name '%s' is in use: its QEMU, pid %d, is alive but has lost its pager, so that its guest waits; give it another "
			"with criu-vm lazy-pages --name %s, or choose another name",
			name, s.qemu, name);
		r = -EEXIST;
	}
	vm_state_fini(&s);
	if (r) {
		run_dir_close(&old);
		return r;
	}
	log_info("removing what an earlier VM '%s' left behind", name);
	run_dir_destroy(&old);
	return 0;
}

int run_dir_create(const char *root, const char *name, struct run_dir *rd)
{
	_cleanup_close_ int root_fd = -1; // locked: two who want the same name come one after the other
	int r;

	if (mkdir(root, 0755) < 0 && errno != EEXIST) {
		r = -errno;
		log_err("cannot create %s: %s", root, strerror(-r));
		return r;
	}
	root_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (root_fd < 0 || flock(root_fd, LOCK_EX) < 0) {
		r = -errno;
		log_err("cannot lock %s: %s", root, strerror(-r));
		return r;
	}
	r = reclaim(root, name);
	if (!r)
		r = set_paths(root, name, rd);
	if (r)
		return r;
	if (mkdir(rd->path, 0700) < 0) {
		r = -errno;
		log_err("cannot create %s: %s", rd->path, strerror(-r));
		run_dir_close(rd);
		return r;
	}
	rd->fd = open(rd->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = rd->fd < 0 ? -errno : run_dir_lock(rd);
	if (r) {
		log_err("cannot lock %s: %s", rd->path, strerror(-r));
		rmdir(rd->path);
		run_dir_close(rd);
		return r;
	}
	return 0;
}

void run_dir_destroy(struct run_dir *rd)
{
	struct pv_swap swap = PV_SWAP_NONE;
	struct stat ours, theirs;
	struct vm_state s;
	struct dirent *d;
	DIR *dir;

	if (rd->fd < 0)
		return;
	// Not another VM's that has got the name since.
	if (fstat(rd->fd, &ours) < 0 || lstat(rd->path, &theirs) < 0 || ours.st_ino != theirs.st_ino || ours.st_dev != theirs.st_dev) {
		run_dir_close(rd);
		return;
	}
	arrival_note_end(rd);
	if (!vm_state_load(rd, &s)) {
		if (s.swap_path && !pv_swap_find(s.swap_path, s.nr_chunks * PV_CHUNK_SIZE, s.swap_token, &swap))
			pv_swap_delete(&swap);
		if (s.swap_path)
			swap_registry_remove(rd->name, s.swap_token);
		cgroup_destroy(&s.cgroup);
	}
	vm_state_fini(&s);
	dir = opendir(rd->path);
	while (dir && (d = readdir(dir)))
		if (strcmp(d->d_name, ".") && strcmp(d->d_name, ".."))
			unlinkat(rd->fd, d->d_name, 0);
	if (dir)
		closedir(dir);
	if (rmdir(rd->path) < 0 && errno != ENOENT)
		log_warn("cannot remove %s: %s", rd->path, strerror(errno));
	run_dir_close(rd);
	pv_swap_close(&swap); // last: on a file system that discards, it takes seconds
}

int run_dir_map_pages(const struct run_dir *rd, uint64_t nr_chunks, bool create, struct pv_pages **pages)
{
	_cleanup_close_ int fd = openat(rd->fd, "pages", O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0600);
	size_t len = nr_chunks * sizeof **pages;
	struct stat st;
	void *p = MAP_FAILED;
	int r = 0;

	if (fd < 0 || (create && fallocate(fd, 0, 0, (off_t)len) < 0) || fstat(fd, &st) < 0)
		r = -errno;
	else if ((uint64_t)st.st_size != len)
		r = -EBADMSG;
	else if ((p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
		r = -errno;
	if (r)
		log_err("page table %s/pages: %s", rd->path, strerror(-r));
	else
		*pages = p;
	return r;
}

int run_dir_listen(const struct run_dir *rd, const char *file)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	char path[PATH_MAX];
	int r;

	run_dir_file(rd, file, path, sizeof path);
	if (strlen(path) >= sizeof at.sun_path) {
		log_err("%s: too long for a socket's path; use a shorter --run-dir", path);
		return -ENAMETOOLONG;
	}
	memcpy(at.sun_path, path, strlen(path) + 1);
	unlink(path);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&at, sizeof at) < 0 || chmod(path, 0600) < 0 || listen(fd, 16) < 0) {
		r = -errno;
		log_err("cannot listen on %s: %s", path, strerror(-r));
		return r;
	}
	return steal_fd(&fd);
}
