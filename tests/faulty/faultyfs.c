// SPDX-License-Identifier: GPL-2.0-only
// A directory seen through FUSE, whose reads and writes fail, take their time, or are held, on command: for swap images and
// image directories. Nothing is cached, and O_DIRECT I/O is asynchronous: its pages stay pinned until it is answered here,
// whoever has died meanwhile.
//
//	faultyfs BACKING MOUNT_POINT CONTROL_SOCKET	in the foreground, until unmounted; killed: all that is held ends in an error
//
// The unix socket CONTROL_SOCKET takes commands, a line each, and answers by a line. They concern requests that come later:
//
//	read-errno NAME		reads fail so, as EIO; 0: they no longer do
//	write-errno NAME	the same for writes and allocations, as ENOSPC
//	delay-ms N		reads and writes take so much longer
//	hold-reads, hold-writes	are taken and not answered
//	pass			no longer; what is held stays held
//	release			the same, and what is held is done and answered, in the order in which it came
//	status			reads N writes N: how many are held
#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_THREADS	4096 // a request that is held keeps one
#define DIRECT_IO_ALIGN 4096

enum kind { READ, WRITE };

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct rule {
		bool hold;
		int err;
		uint64_t taken, released, done; // requests that were held: numbers given out, up to which they may go on, have gone
	} rules[2];
	unsigned delay_ms;
} g = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static int backing; // the directory

// A request that was held goes on when it is its turn, and calls leave() when it has been done.
static int enter(enum kind kind, bool *held)
{
	struct rule *r = &g.rules[kind];
	unsigned delay_ms;
	int err;

	pthread_mutex_lock(&g.lock);
	*held = r->hold;
	if (*held) {
		uint64_t number = r->taken++;

		while (number >= r->released || number != r->done)
			pthread_cond_wait(&g.changed, &g.lock);
	}
	err = r->err;
	delay_ms = g.delay_ms;
	pthread_mutex_unlock(&g.lock);
	usleep(delay_ms * 1000);
	return -err;
}

static void leave(enum kind kind, bool held)
{
	if (!held)
		return;
	pthread_mutex_lock(&g.lock);
	g.rules[kind].done++;
	pthread_cond_broadcast(&g.changed);
	pthread_mutex_unlock(&g.lock);
}

// ---- files: an open one is two descriptors, with O_DIRECT and without, for what is not aligned

static uint64_t pack(int direct, int buffered)
{
	return (uint64_t)direct << 32 | (unsigned)buffered;
}

static int buffered_fd(const struct fuse_file_info *fi)
{
	return (int)(uint32_t)fi->fh;
}

static int fd_for(const struct fuse_file_info *fi, size_t len, off_t off)
{
	return len % DIRECT_IO_ALIGN || off % DIRECT_IO_ALIGN ? buffered_fd(fi) : (int)(fi->fh >> 32);
}

static const char *at(const char *path)
{
	return path[1] ? path + 1 : ".";
}

static int result(int r)
{
	return r < 0 ? -errno : 0;
}

static int open_with(const char *path, int flags, mode_t mode, struct fuse_file_info *fi)
{
	int direct, fd = openat(backing, at(path), (flags & ~(O_APPEND | O_NOFOLLOW | O_DIRECT)) | O_CLOEXEC, mode);

	if (fd < 0)
		return -errno;
	direct = openat(backing, at(path), (flags & O_ACCMODE) | O_DIRECT | O_CLOEXEC);
	fi->fh = pack(direct < 0 ? fd : direct, fd);
	fi->direct_io = 1;
	return 0;
}

static int do_open(const char *path, struct fuse_file_info *fi)
{
	return open_with(path, fi->flags & ~(O_CREAT | O_EXCL), 0, fi);
}

static int do_create(const char *path, mode_t mode, struct fuse_file_info *fi)
{
	return open_with(path, fi->flags | O_CREAT, mode, fi);
}

static int do_release(const char *path, struct fuse_file_info *fi)
{
	int direct = (int)(fi->fh >> 32);

	(void)path;
	if (direct != buffered_fd(fi))
		close(direct);
	close(buffered_fd(fi));
	return 0;
}

// What is aligned in memory too may use O_DIRECT.
static struct fuse_bufvec *aligned_buffer(size_t len)
{
	struct fuse_bufvec *v = malloc(sizeof *v);

	if (!v)
		return NULL;
	*v = FUSE_BUFVEC_INIT(len);
	v->buf[0].mem = aligned_alloc(DIRECT_IO_ALIGN, (len + DIRECT_IO_ALIGN - 1) / DIRECT_IO_ALIGN * DIRECT_IO_ALIGN);
	if (v->buf[0].mem)
		return v;
	free(v);
	return NULL;
}

static int do_read(const char *path, struct fuse_bufvec **out, size_t len, off_t off, struct fuse_file_info *fi)
{
	struct fuse_bufvec *v = aligned_buffer(len);
	ssize_t n;
	bool held;
	int err;

	(void)path;
	if (!v)
		return -ENOMEM;
	err = enter(READ, &held);
	n = err ? err : pread(fd_for(fi, len, off), v->buf[0].mem, len, off);
	if (n < 0 && !err)
		err = -errno;
	leave(READ, held);
	v->buf[0].size = err ? 0 : (size_t)n;
	*out = v;
	return err;
}

static int do_write(const char *path, struct fuse_bufvec *in, off_t off, struct fuse_file_info *fi)
{
	size_t len = fuse_buf_size(in);
	struct fuse_bufvec *v = aligned_buffer(len);
	ssize_t n;
	bool held;

	(void)path;
	if (!v)
		return -ENOMEM;
	n = fuse_buf_copy(v, in, 0);
	if (n == (ssize_t)len) {
		int err = enter(WRITE, &held);

		n = err ? err : pwrite(fd_for(fi, len, off), v->buf[0].mem, len, off);
		if (n < 0 && !err)
			n = -errno;
		leave(WRITE, held);
	}
	free(v->buf[0].mem);
	free(v);
	return (int)n;
}

static int do_fallocate(const char *path, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
	(void)path;
	if (!(mode & FALLOC_FL_PUNCH_HOLE) && g.rules[WRITE].err)
		return -g.rules[WRITE].err;
	return result(fallocate(buffered_fd(fi), mode, off, len));
}

static int do_truncate(const char *path, off_t len, struct fuse_file_info *fi)
{
	int fd = fi ? buffered_fd(fi) : openat(backing, at(path), O_WRONLY | O_CLOEXEC), r;

	if (fd < 0)
		return -errno;
	r = result(ftruncate(fd, len));
	if (!fi)
		close(fd);
	return r;
}

static int do_fsync(const char *path, int datasync, struct fuse_file_info *fi)
{
	(void)path;
	return result(datasync ? fdatasync(buffered_fd(fi)) : fsync(buffered_fd(fi)));
}

static int do_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	return result(fi ? fstat(buffered_fd(fi), st) : fstatat(backing, at(path), st, AT_SYMLINK_NOFOLLOW));
}

// ---- names

static int do_opendir(const char *path, struct fuse_file_info *fi)
{
	int fd = openat(backing, at(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	fi->fh = (uintptr_t)(fd < 0 ? NULL : fdopendir(fd));
	return fi->fh ? 0 : -errno;
}

static int do_readdir(const char *path, void *buf, fuse_fill_dir_t fill, off_t off, struct fuse_file_info *fi,
		      enum fuse_readdir_flags flags)
{
	DIR *d = (DIR *)(uintptr_t)fi->fh;
	struct dirent *e;

	(void)path, (void)off, (void)flags;
	rewinddir(d);
	while ((e = readdir(d)))
		fill(buf, e->d_name, &(struct stat){ .st_ino = e->d_ino, .st_mode = (mode_t)e->d_type << 12 }, 0, 0);
	return 0;
}

static int do_releasedir(const char *path, struct fuse_file_info *fi)
{
	(void)path;
	closedir((DIR *)(uintptr_t)fi->fh);
	return 0;
}

static int do_readlink(const char *path, char *buf, size_t size)
{
	ssize_t n = readlinkat(backing, at(path), buf, size - 1);

	if (n >= 0)
		buf[n] = 0;
	return result((int)n);
}

static int do_symlink(const char *target, const char *path)
{
	return result(symlinkat(target, backing, at(path)));
}

static int do_mkdir(const char *path, mode_t mode)
{
	return result(mkdirat(backing, at(path), mode));
}

static int do_unlink(const char *path)
{
	return result(unlinkat(backing, at(path), 0));
}

static int do_rmdir(const char *path)
{
	return result(unlinkat(backing, at(path), AT_REMOVEDIR));
}

static int do_rename(const char *from, const char *to, unsigned flags)
{
	return result(renameat2(backing, at(from), backing, at(to), flags));
}

static int do_chmod(const char *path, mode_t mode, struct fuse_file_info *fi)
{
	(void)fi;
	return result(fchmodat(backing, at(path), mode, 0));
}

static int do_chown(const char *path, uid_t uid, gid_t gid, struct fuse_file_info *fi)
{
	(void)fi;
	return result(fchownat(backing, at(path), uid, gid, AT_SYMLINK_NOFOLLOW));
}

static int do_statfs(const char *path, struct statvfs *st)
{
	(void)path;
	return result(fstatvfs(backing, st));
}

static void *do_init(struct fuse_conn_info *conn, struct fuse_config *c)
{
	conn->want |= conn->capable & FUSE_CAP_ASYNC_DIO;
	conn->max_background = MAX_THREADS; // what is held must not fill it
	c->use_ino = 1;
	c->hard_remove = 1;
	c->nullpath_ok = 1;
	c->attr_timeout = c->entry_timeout = 0;
	return NULL;
}

static const struct fuse_operations operations = {
	.init = do_init, .getattr = do_getattr, .statfs = do_statfs,
	.opendir = do_opendir, .readdir = do_readdir, .releasedir = do_releasedir,
	.readlink = do_readlink, .symlink = do_symlink, .mkdir = do_mkdir, .unlink = do_unlink, .rmdir = do_rmdir,
	.rename = do_rename, .chmod = do_chmod, .chown = do_chown,
	.open = do_open, .create = do_create, .release = do_release, .read_buf = do_read, .write_buf = do_write,
	.fallocate = do_fallocate, .truncate = do_truncate, .fsync = do_fsync,
};

// ---- commands

static int errno_of(const char *name)
{
	static const struct { const char *name; int number; } known[] = {
		{ "0", 0 }, { "EIO", EIO }, { "ENOSPC", ENOSPC }, { "ENODEV", ENODEV }, { "ETIMEDOUT", ETIMEDOUT }, { "EACCES", EACCES },
	};

	for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
		if (!strcmp(name, known[i].name))
			return known[i].number;
	return -1;
}

static void set_held(bool reads, bool writes, bool release)
{
	bool hold[2] = { [READ] = reads, [WRITE] = writes };

	for (enum kind k = READ; k <= WRITE; k++) {
		g.rules[k].hold = hold[k];
		if (release)
			g.rules[k].released = g.rules[k].taken;
	}
}

// False: there is no such command.
static bool obey(const char *line)
{
	char name[16];
	int err;

	if (sscanf(line, "read-errno %15s", name) == 1 && (err = errno_of(name)) >= 0)
		g.rules[READ].err = err;
	else if (sscanf(line, "write-errno %15s", name) == 1 && (err = errno_of(name)) >= 0)
		g.rules[WRITE].err = err;
	else if (sscanf(line, "delay-ms %15[0-9]", name) == 1)
		g.delay_ms = (unsigned)strtoul(name, NULL, 10);
	else if (!strcmp(line, "hold-reads"))
		set_held(true, g.rules[WRITE].hold, false);
	else if (!strcmp(line, "hold-writes"))
		set_held(g.rules[READ].hold, true, false);
	else if (!strcmp(line, "pass") || !strcmp(line, "release"))
		set_held(false, false, *line == 'r');
	else if (strcmp(line, "status"))
		return false;
	return true;
}

static void *serve(void *arg)
{
	int listener = (int)(intptr_t)arg;

	for (;;) {
		int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		FILE *f = fdopen(client, "r");
		char line[128];

		while (f && fgets(line, sizeof line, f)) {
			const struct rule *r = g.rules;

			line[strcspn(line, "\n")] = 0;
			pthread_mutex_lock(&g.lock);
			if (obey(line))
				dprintf(client, "reads %lu writes %lu\n", r[READ].taken - r[READ].done, r[WRITE].taken - r[WRITE].done);
			else
				dprintf(client, "no such command\n");
			pthread_cond_broadcast(&g.changed);
			pthread_mutex_unlock(&g.lock);
		}
		if (f)
			fclose(f);
	}
	return NULL;
}

static int listen_on(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof a.sun_path)
		return -ENAMETOOLONG;
	strcpy(a.sun_path, path);
	return fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 16) ? -errno : fd;
}

static int mount_and_loop(const char *mount_point)
{
	char *argv[] = { "faultyfs", "-o", "allow_other,default_permissions,fsname=faultyfs", NULL };
	struct fuse_args args = FUSE_ARGS_INIT(3, argv);
	struct fuse *fuse = fuse_new(&args, &operations, sizeof operations, NULL);
	struct fuse_loop_config *config = fuse_loop_cfg_create();

	if (!fuse || fuse_mount(fuse, mount_point))
		return 1;
	puts("mounted");
	fflush(stdout);
	fuse_loop_cfg_set_max_threads(config, MAX_THREADS);
	return fuse_loop_mt(fuse, config);
}

int main(int argc, char **argv)
{
	pthread_t t;
	int listener;

	if (argc != 4) {
		fprintf(stderr, "usage: faultyfs BACKING MOUNT_POINT CONTROL_SOCKET\n");
		return 2;
	}
	umask(0);
	backing = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
	listener = listen_on(argv[3]);
	if (backing < 0 || listener < 0 || pthread_create(&t, NULL, serve, (void *)(intptr_t)listener)) {
		fprintf(stderr, "faultyfs: %s\n", strerror(backing < 0 ? errno : -listener));
		return 1;
	}
	return mount_and_loop(argv[2]);
}
