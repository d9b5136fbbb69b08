// SPDX-License-Identifier: GPL-2.0-only
// The swap image as a file: made, found again wherever it went, told from any other.
#include <signal.h>
#include <sys/file.h>
#include <sys/resource.h>

#include "tests/unit/swap_fixture.h"

static void remove_image(void)
{
	unlink(image);
}

START_TEST(created)
{
	struct pv_swap_trailer t;
	struct pv_swap s, other;
	struct stat st;

	ck_assert_int_eq(pv_swap_create(image, LEN, false, &s), 0);
	ck_assert_int_eq(fstat(s.fd, &st), 0);
	ck_assert_int_eq(st.st_mode & 07777, 0600);
	ck_assert_uint_eq((uint64_t)st.st_size, LEN + PAGE_SIZE);
	ck_assert_uint_ge((uint64_t)st.st_blocks * 512, LEN + PAGE_SIZE); // reserved
	ck_assert(fcntl(s.fd, F_GETFL) & O_DIRECT);
	ck_assert(fcntl(s.fd, F_GETFD) & FD_CLOEXEC);
	ck_assert(!s.device && !strcmp(s.path, image) && s.len == LEN);
	ck_assert_uint_eq(strspn(s.token, "0123456789abcdef"), PV_SWAP_TOKEN_LEN);
	ck_assert_int_eq(pv_swap_trailer_read(s.fd, LEN, &t), 0);
	ck_assert_mem_eq(t.token, s.token, PV_SWAP_TOKEN_LEN);
	ck_assert(!pv_swap_trailer_is_stale(&t));
	pv_swap_forget(&s, 0, MiB); // a reservation is kept
	ck_assert_int_eq(fstat(s.fd, &st), 0);
	ck_assert_uint_ge((uint64_t)st.st_blocks * 512, LEN);

	ck_assert_int_eq(pv_swap_create(image, LEN, false, &other), -EEXIST);
	ck_assert_int_eq(other.fd, -1);
	ck_assert_int_eq(pv_swap_open(image, LEN, s.token, false, &other), -EWOULDBLOCK);
	expect_said(image, "locked");
	ck_assert_int_eq(other.fd, -1);
	pv_swap_destroy(&s);
	ck_assert_int_eq(access(image, F_OK), -1);
	pv_swap_destroy(&s); // harmless

	ck_assert_int_eq(pv_swap_create(image, LEN, false, &s), 0);
	ck_assert_mem_ne(t.token, s.token, PV_SWAP_TOKEN_LEN); // another one each time
	pv_swap_destroy(&s);
}
END_TEST

START_TEST(sparse)
{
	struct pv_swap s;
	struct stat st;

	ck_assert_int_eq(pv_swap_create(image, LEN, true, &s), 0);
	ck_assert_int_eq(fstat(s.fd, &st), 0);
	ck_assert(st.st_size == LEN + PAGE_SIZE && st.st_blocks == PAGE_SIZE / 512);
	put_page(&s, MiB, 'x');
	put_page(&s, 2 * MiB, 'x');
	pv_swap_forget(&s, MiB, MiB);
	ck_assert_int_eq(fstat(s.fd, &st), 0);
	ck_assert(st.st_size == LEN + PAGE_SIZE && st.st_blocks == 2 * PAGE_SIZE / 512);
	pv_swap_destroy(&s);
}
END_TEST

// Nothing stays behind, and the message says what was wanted.
static void refused(const char *path, uint64_t len, bool is_sparse, int err, const char *says)
{
	struct pv_swap s;

	ck_assert_int_eq(pv_swap_create(path, len, is_sparse, &s), err);
	ck_assert_int_eq(s.fd, -1);
	ck_assert_ptr_null(s.path);
	ck_assert_int_eq(access(path, F_OK), -1);
	expect_said(path, says);
}

START_TEST(impossible)
{
	struct rlimit limit = { .rlim_cur = MiB, .rlim_max = RLIM_INFINITY };
	char in_memory[] = "/dev/shm/criu-vm-test.XXXXXX", path[64];

	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	refused("/nowhere/at/all", MiB, false, -ENOENT, "No such file");
	refused(image, 3 * MiB, false, -EFBIG, "3 MiB");
	refused(image, 3 * MiB, true, -EFBIG, "3 MiB");
	refused(image, 0, false, -EINVAL, "reserve 0 B"); // a file system that cannot reserve says something like it
	if (mkdtemp(in_memory)) {
		snprintf(path, sizeof path, "%s/swap", in_memory);
		refused(path, MiB, false, -EOPNOTSUPP, "memory");
		rmdir(in_memory);
	}
}
END_TEST

static void copy(const char *from, const char *to)
{
	char command[256];

	snprintf(command, sizeof command, "cp --sparse=always %s %s", from, to);
	ck_assert_int_eq(system(command), 0);
}

// The image under another path is the same image; and what it holds is there.
START_TEST(moved)
{
	char token[PV_SWAP_TOKEN_LEN + 1], elsewhere[64], link[64];
	struct pv_swap s;

	snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", dir);
	snprintf(link, sizeof link, "%s/link", dir);
	ck_assert_int_eq(pv_swap_create(image, LEN, false, &s), 0);
	strcpy(token, s.token);
	put_page(&s, 3 * MiB, 'm');
	pv_swap_close(&s);

	ck_assert_int_eq(rename(image, elsewhere), 0);
	ck_assert_int_eq(pv_swap_open(elsewhere, LEN, token, true, &s), 0);
	ck_assert(s.sparse && s.len == LEN && !strcmp(s.token, token));
	ck_assert(fcntl(s.fd, F_GETFL) & O_DIRECT);
	expect_page(&s, 3 * MiB, 'm');
	pv_swap_close(&s);

	ck_assert_int_eq(symlink("elsewhere", link), 0);
	ck_assert_int_eq(pv_swap_open(link, LEN, token, false, &s), 0);
	ck_assert_str_eq(s.path, elsewhere);
	pv_swap_close(&s);
	unlink(link);

	copy(elsewhere, image);
	ck_assert_int_eq(pv_swap_open(image, LEN, token, false, &s), 0);
	expect_page(&s, 3 * MiB, 'm');
	pv_swap_destroy(&s);
	ck_assert_int_eq(access(image, F_OK), -1);
	ck_assert_int_eq(access(elsewhere, F_OK), 0);

	copy(elsewhere, image); // of the old one a part was not copied
	ck_assert_int_eq(truncate(image, LEN), 0);
	ck_assert_int_eq(pv_swap_open(image, LEN, token, false, &s), -EBADMSG);
	unlink(elsewhere);
}
END_TEST

static void expect_none(const char *path, uint64_t len, const char *token, int err, const char *says)
{
	struct pv_swap s;

	ck_assert_int_eq(pv_swap_open(path, len, token, false, &s), err);
	ck_assert(s.fd == -1 && !s.path);
	expect_said(path, says);
	ck_assert_int_eq(pv_swap_find(path, len, token, &s), err);
	ck_assert(s.fd == -1 && !s.path);
}

static void of_another_version(struct pv_swap_trailer *t)
{
	t->version++;
}

static void of_another_length(struct pv_swap_trailer *t)
{
	t->len += PAGE_SIZE;
}

START_TEST(not_this_one)
{
	static const char none[] = "0123456789abcdef0123456789abcdef";
	char token[PV_SWAP_TOKEN_LEN + 1];
	struct pv_swap s;

	ck_assert_int_eq(pv_swap_create(image, LEN, true, &s), 0);
	strcpy(token, s.token);
	pv_swap_close(&s);
	expect_none(image, LEN, none, -EMEDIUMTYPE, "another VM");
	expect_none(image, LEN, "", -EMEDIUMTYPE, "another VM");
	token[PV_SWAP_TOKEN_LEN - 1] ^= 1;
	expect_none(image, LEN, token, -EMEDIUMTYPE, "another VM");
	token[PV_SWAP_TOKEN_LEN - 1] ^= 1;
	expect_none(image, LEN - MiB, token, -EBADMSG, "no swap image");
	expect_none(image, LEN + MiB, token, -EBADMSG, "no swap image");
	expect_none(dir, LEN, token, -EISDIR, "directory");
	expect_none("/nowhere/at/all", LEN, token, -ENOENT, "No such file");
	expect_none("/dev/zero", LEN, token, -EINVAL, "Invalid");
	ck_assert_int_eq(pv_swap_open(image, LEN, token, false, &s), 0); // and it is none the worse for it
	pv_swap_close(&s);

	forge(image, LEN, of_another_length);
	expect_none(image, LEN, token, -EBADMSG, "no swap image");
	forge(image, LEN, of_another_version);
	expect_none(image, LEN, token, -EPROTO, "version");
	ck_assert_int_eq(truncate(image, 0), 0);
	expect_none(image, LEN, token, -EBADMSG, "no swap image");
	ck_assert_int_eq(truncate(image, LEN + PAGE_SIZE), 0);
	expect_none(image, LEN, token, -EBADMSG, "no swap image");
}
END_TEST

// Of each byte of the trailer one bit.
START_TEST(flipped_bits)
{
	uint8_t good, bad;
	struct pv_swap s, other;
	int fd;

	ck_assert_int_eq(pv_swap_create(image, LEN, true, &s), 0);
	fd = open(image, O_RDWR | O_CLOEXEC);
	for (uint64_t i = LEN; i < LEN + PAGE_SIZE; i++) {
		ck_assert_int_eq(io_pread_full(fd, &good, 1, i), 0);
		bad = good ^ (uint8_t)(1U << i % 8);
		ck_assert_int_eq(io_pwrite_full(fd, &bad, 1, i), 0);
		ck_assert_int_eq(pv_swap_find(image, LEN, s.token, &other), -EBADMSG);
		ck_assert_int_eq(pv_swap_find_stale(image, &other), -EBADMSG);
		ck_assert_int_eq(io_pwrite_full(fd, &good, 1, i), 0);
	}
	ck_assert_int_eq(pv_swap_find(image, LEN, s.token, &other), 0);
	pv_swap_close(&other);
	close(fd);
	pv_swap_destroy(&s);
}
END_TEST

// What has its path by now is not deleted with it.
START_TEST(deleted)
{
	struct pv_swap s;
	struct stat st;
	int fd;

	ck_assert_int_eq(pv_swap_create(image, LEN, true, &s), 0);
	ck_assert_int_eq(unlink(image), 0);
	fd = open(image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ck_assert_int_ge(fd, 0);
	pv_swap_destroy(&s);
	ck_assert_int_eq(stat(image, &st), 0);
	close(fd);
	unlink(image);

	ck_assert_int_eq(pv_swap_create(image, LEN, true, &s), 0);
	ck_assert_int_eq(unlink(image), 0);
	pv_swap_destroy(&s); // nothing is there: nothing to complain about
}
END_TEST

START_TEST(stale)
{
	struct pv_swap s, other;
	int fd;

	ck_assert_int_eq(pv_swap_create(image, LEN, true, &s), 0);
	ck_assert_int_eq(pv_swap_find_stale(image, &other), -EBUSY);
	pv_swap_close(&s);
	ck_assert_int_eq(pv_swap_find_stale(image, &other), -EBUSY); // its VM may be waiting for a pager
	forge(image, LEN, of_another_boot);
	fd = open(image, O_RDONLY | O_CLOEXEC);
	ck_assert_int_eq(flock(fd, LOCK_SH | LOCK_NB), 0);
	ck_assert_int_eq(pv_swap_find_stale(image, &other), -EWOULDBLOCK);
	close(fd);
	ck_assert_int_eq(pv_swap_find_stale(image, &other), 0);
	ck_assert(other.len == LEN && !strcmp(other.path, image));
	ck_assert_int_eq(pv_swap_find_stale(image, &s), -EWOULDBLOCK); // it is ours now
	pv_swap_destroy(&other);
	ck_assert_int_eq(access(image, F_OK), -1);
	ck_assert_int_eq(pv_swap_find_stale(image, &other), -ENOENT);
}
END_TEST

START_TEST(not_stale)
{
	struct pv_swap s;

	ck_assert_int_eq(mkfifo(image, 0600), 0);
	ck_assert_int_eq(pv_swap_find_stale(image, &s), -EBADMSG); // and does not wait for a writer
	unlink(image);
	ck_assert_int_eq(pv_swap_find_stale(dir, &s), -EBADMSG);
	ck_assert_int_eq(pv_swap_create(image, LEN, true, &s), 0);
	forge(image, LEN, of_another_boot);
	pv_swap_close(&s);
	ck_assert_int_eq(truncate(image, LEN + 2 * PAGE_SIZE), 0); // not in its last page
	ck_assert_int_eq(pv_swap_find_stale(image, &s), -EBADMSG);
	ck_assert_int_eq(truncate(image, PAGE_SIZE - 1), 0);
	ck_assert_int_eq(pv_swap_find_stale(image, &s), -EBADMSG);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("file");

	log_init(-1, LOG_ERROR, NULL, false); // to nobody
	tcase_add_unchecked_fixture(t, make_dir, remove_dir);
	tcase_add_checked_fixture(t, remove_image, NULL); // of a test that failed
	tcase_add_test(t, created);
	tcase_add_test(t, sparse);
	tcase_add_test(t, impossible);
	tcase_add_test(t, moved);
	tcase_add_test(t, not_this_one);
	tcase_add_test(t, flipped_bits);
	tcase_add_test(t, deleted);
	tcase_add_test(t, stale);
	tcase_add_test(t, not_stale);
	return run_suite("swap", t);
}
