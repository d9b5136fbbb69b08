// SPDX-License-Identifier: GPL-2.0-only
// The swap image on a block device: a loop device, larger than the image.
#include <linux/loop.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>

#include "criu-vm/leftovers.h"
#include "criu-vm/swap_registry.h"
#include "tests/unit/swap_fixture.h"

#define DEVICE_LEN (10 * MiB + 512) // no whole number of pages
#define LAST (10 * MiB - PAGE_SIZE)

static char device[32], backing[sizeof dir + 8];

static void run(const char *fmt, const char *arg)
{
	char command[128];

	snprintf(command, sizeof command, fmt, arg);
	ck_assert_int_eq(system(command), 0);
}

static void make_device(void)
{
	struct loop_config config = { .info.lo_flags = LO_FLAGS_DIRECT_IO };
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), fd = -1, nr = -1;

	make_dir();
	snprintf(backing, sizeof backing, "%s/disk", dir);
	config.fd = (uint32_t)open(backing, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (!ftruncate((int)config.fd, DEVICE_LEN) && control >= 0)
		nr = ioctl(control, LOOP_CTL_GET_FREE);
	snprintf(device, sizeof device, "/dev/loop%d", nr);
	if (nr >= 0)
		fd = open(device, O_RDWR | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, LOOP_CONFIGURE, &config) < 0)
		device[0] = 0;
	close(fd);
	close(control);
	close((int)config.fd);
}

static void remove_device(void)
{
	int fd = open(device, O_RDONLY | O_CLOEXEC);

	ioctl(fd, LOOP_CLR_FD);
	close(fd);
	remove_dir();
}

static void empty_device(void)
{
	ck_assert_int_eq(truncate(backing, 0), 0);
	ck_assert_int_eq(truncate(backing, DEVICE_LEN), 0);
	run("blockdev --flushbufs %s", device);
}

static uint64_t backing_blocks(void)
{
	struct stat st;

	ck_assert_int_eq(stat(backing, &st), 0);
	return (uint64_t)st.st_blocks;
}

static void refused(const char *path, uint64_t len, int err, const char *says)
{
	uint64_t blocks = backing_blocks();
	struct pv_swap s;

	ck_assert_int_eq(pv_swap_create(path, len, false, &s), err);
	ck_assert(s.fd == -1 && !s.path);
	expect_said(device, says);
	ck_assert_int_eq(access(device, F_OK), 0);
	ck_assert_uint_eq(backing_blocks(), blocks); // nothing was written
}

START_TEST(created)
{
	char token[PV_SWAP_TOKEN_LEN + 1];
	struct pv_swap s, other;
	struct pv_swap_trailer t;

	ck_assert_int_eq(pv_swap_create(device, LEN, false, &s), 0);
	ck_assert(s.device && s.len == LEN && !strcmp(s.path, device));
	ck_assert(fcntl(s.fd, F_GETFL) & O_DIRECT);
	strcpy(token, s.token);
	for (uint64_t off = LEN; off <= LAST; off += LAST - LEN) {
		ck_assert_int_eq(pv_swap_trailer_read(s.fd, off, &t), 0);
		ck_assert_mem_eq(t.token, token, PV_SWAP_TOKEN_LEN);
	}
	for (uint64_t off = 0; off < LEN; off += 4 * PAGE_SIZE)
		put_page(&s, off + 3 * PAGE_SIZE, 'd');
	refused(device, LEN, -EBUSY, "uses it");
	ck_assert_int_eq(pv_swap_open(device, LEN, token, false, &other), -EWOULDBLOCK);
	pv_swap_close(&s);

	// Its VM may be waiting for a pager, whatever the size of the next one.
	refused(device, LEN, -EEXIST, "another VM");
	refused(device, LEN / 2, -EEXIST, "another VM");
	ck_assert_int_eq(pv_swap_open(device, LEN, "00000000000000000000000000000000", false, &s), -EMEDIUMTYPE);
	ck_assert_int_eq(pv_swap_open(device, LEN, token, false, &s), 0);
	expect_page(&s, LEN - PAGE_SIZE, 'd');

	pv_swap_destroy(&s);
	ck_assert_int_eq(access(device, F_OK), 0);
	ck_assert_int_eq(pv_swap_find(device, LEN, token, &s), -EBADMSG);
	ck_assert_int_eq(pv_swap_find_stale(device, &s), -EBADMSG);
	ck_assert_uint_le(backing_blocks() * 512, 4 * PAGE_SIZE); // discarded
	ck_assert_int_eq(pv_swap_create(device, LEN / 2, false, &s), 0);
	pv_swap_destroy(&s);
}
END_TEST

START_TEST(exact_fit)
{
	struct pv_swap s, other;

	refused(device, LAST + PAGE_SIZE, -ENOSPC, "needed");
	refused(device, 1024 * MiB, -ENOSPC, "needed");
	ck_assert_int_eq(pv_swap_create(device, LAST, false, &s), 0);
	ck_assert_int_eq(pv_swap_find(device, LAST, s.token, &other), 0);
	pv_swap_close(&other);
	pv_swap_destroy(&s);
	ck_assert_int_eq(pv_swap_find_stale(device, &s), -EBADMSG);
}
END_TEST

START_TEST(holds_something)
{
	static const uint8_t partition[66] = { [4] = 0x83, [8] = 1, [12] = 100, [64] = 0x55, [65] = 0xaa };
	int fd;

	run("mkfs.ext4 -q %s", device);
	refused(device, LEN, -EEXIST, "ext4");
	empty_device();
	run("mkswap %s >/dev/null", device);
	refused(device, LEN, -EEXIST, "swap");
	empty_device();
	fd = open(device, O_WRONLY | O_CLOEXEC);
	ck_assert_int_eq(io_pwrite_full(fd, partition, sizeof partition, 446), 0);
	close(fd);
	refused(device, LEN, -EEXIST, "dos");
}
END_TEST

START_TEST(in_use)
{
	char where[64];

	snprintf(where, sizeof where, "%s/mnt", dir);
	mkdir(where, 0700);
	run("mkfs.ext4 -q %s", device);
	ck_assert_int_eq(unshare(CLONE_NEWNS), 0); // the mount ends with this process
	ck_assert_int_eq(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), 0);
	ck_assert_int_eq(mount(device, where, "ext4", 0, NULL), 0);
	refused(device, LEN, -EBUSY, "mounted");
}
END_TEST

// An image that was left by another boot is in nobody's way, and neither is what it held.
START_TEST(stale)
{
	char token[PV_SWAP_TOKEN_LEN + 1];
	struct pv_swap s;

	ck_assert_int_eq(pv_swap_create(device, LEN, false, &s), 0);
	strcpy(token, s.token);
	pv_swap_close(&s);
	run("mkswap -f %s >/dev/null", device);
	forge(device, LAST, of_another_boot);
	ck_assert_int_eq(pv_swap_create(device, LEN, false, &s), 0);
	ck_assert_str_ne(s.token, token);
	pv_swap_destroy(&s);
}
END_TEST

// From a file to a device, through a link: found, and the device counts as used from then on.
START_TEST(moved_here)
{
	char token[PV_SWAP_TOKEN_LEN + 1], link[64], command[128];
	struct pv_swap s;

	ck_assert_int_eq(pv_swap_create(image, LEN, true, &s), 0);
	strcpy(token, s.token);
	put_page(&s, MiB, 'f');
	pv_swap_close(&s);
	snprintf(command, sizeof command, "dd if=%s of=%s bs=1M conv=fsync status=none", image, device);
	ck_assert_int_eq(system(command), 0);
	snprintf(link, sizeof link, "%s/link", dir);
	ck_assert_int_eq(symlink(device, link), 0);
	ck_assert_int_eq(pv_swap_open(link, LEN, token, false, &s), 0);
	ck_assert(s.device && !strcmp(s.path, device));
	expect_page(&s, MiB, 'f');
	pv_swap_close(&s);
	refused(link, LEN / 2, -EEXIST, "another VM");
	unlink(link);
}
END_TEST

// A reboot of the host: its device is free again; one whose VM may live, or that is used, is not.
START_TEST(leftover)
{
	char link[128], clean[64];
	struct pv_swap s, found;

	snprintf(clean, sizeof clean, "%s/swap/.clean", dir);
	setenv("CRIU_VM_STATE_DIR", dir, 1);
	ck_assert_int_eq(swap_registry_make(), 0);
	ck_assert_int_eq(pv_swap_create(device, LEN, false, &s), 0);
	swap_registry_add("vm", s.path, s.token);
	snprintf(link, sizeof link, "%s/swap/vm-%.16s.swap", dir, s.token);
	ck_assert_int_eq(unlink(clean), 0);
	leftovers_remove();
	ck_assert_int_eq(access(link, F_OK), 0);

	forge(device, LEN, of_another_boot);
	forge(device, LAST, of_another_boot);
	ck_assert_int_eq(unlink(clean), 0);
	leftovers_remove();
	ck_assert_int_eq(access(link, F_OK), 0);
	ck_assert_int_eq(pv_swap_find(device, LEN, s.token, &found), 0);
	pv_swap_close(&found);

	pv_swap_close(&s);
	ck_assert_int_eq(unlink(clean), 0);
	leftovers_remove();
	ck_assert(access(link, F_OK) < 0 && !access(device, F_OK));
	ck_assert_int_eq(pv_swap_find_stale(device, &s), -EBADMSG);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("device");
	int r = 77;

	log_init(-1, LOG_ERROR, NULL, false); // to nobody
	make_device();
	if (device[0]) {
		tcase_add_checked_fixture(t, empty_device, NULL);
		tcase_add_test(t, created);
		tcase_add_test(t, exact_fit);
		tcase_add_test(t, holds_something);
		tcase_add_test(t, in_use);
		tcase_add_test(t, stale);
		tcase_add_test(t, moved_here);
		tcase_add_test(t, leftover);
		r = run_suite("swap on a device", t);
	} else {
		printf("skipped: no loop device can be made here\n");
	}
	remove_device();
	return r;
}
