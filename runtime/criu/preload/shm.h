// SPDX-License-Identifier: Apache-2.0
//
// POSIX shared memory (shm_overview(7)) is files in /dev/shm, on a file system that the
// container gets anew each time it is made. CRIU takes a file that has a name for one that is
// there at the restore too, so those files are put into the checkpoint here: by a process with
// the container's mounts and user ids and, at the restore, in its cgroups, which the memory
// is charged to.

#ifndef FASTMIG_SHM_H
#define FASTMIG_SHM_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#define SHM_DIR "/dev/shm"
#define TMPFS 0x01021994
#define MAGIC "fm-shm-1"
#define DATA_AT 4096 // where the contents begin in an image, after the head

// A file's image is this head and its contents, with the same holes.
struct head {
	char magic[8];
	uint64_t size;
	uint32_t mode, uid, gid;
	char name[NAME_MAX + 1];
};

// Of preload.c.
static volatile sig_atomic_t cancelled;
static void fail(const char *what);

static char block[1 << 16];

// open_shm fails if the folder is no file system in memory: the container took it away.
static int open_shm(void)
{
	struct statfs fs;
	int dir = open(SHM_DIR, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	if (dir >= 0 && (fstatfs(dir, &fs) < 0 || fs.f_type != TMPFS)) {
		close(dir);
		errno = ENODEV;
		return -1;
	}
	return dir;
}

static int open_image(const char *images, int n, int flags)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/shm-%d.img", images, n);
	return open(path, flags | O_NOFOLLOW | O_CLOEXEC, 0600);
}

static int is_zero(const char *at, size_t n)
{
	return !n || (!at[0] && !memcmp(at, at + 1, n - 1));
}

// copy copies size bytes. What is a hole, or nothing but zeros, becomes a hole.
static int copy(int in, off_t in_at, int out, off_t out_at, off_t size)
{
	off_t from = in_at, end = in_at, last = in_at + size;
	ssize_t n;

	while (from < last) {
		if (from >= end) {
			from = lseek(in, from, SEEK_DATA);
			if (from < 0)
				return errno == ENXIO ? 0 : -1;
			end = lseek(in, from, SEEK_HOLE);
			if (end < 0)
				return -1;
			if (end > last)
				end = last;
			continue;
		}
		n = end - from < (off_t)sizeof(block) ? end - from : (off_t)sizeof(block);
		n = pread(in, block, n, from);
		if (n <= 0)
			return n;
		if (!is_zero(block, n) && pwrite(out, block, n, out_at + from - in_at) != n) {
			errno = errno ? errno : ENOSPC;
			return -1;
		}
		from += n;
		if (cancelled) {
			errno = ECANCELED;
			return -1;
		}
	}
	return 0;
}

static void save_shm(const char *images)
{
	struct dirent *entry;
	int dir = open_shm();
	DIR *list;

	if (dir < 0)
		return; // what a process maps of it nevertheless is CRIU's to complain about
	list = fdopendir(dir);
	if (!list)
		fail("read the container's " SHM_DIR);
	for (int n = 0; (entry = readdir(list));) {
		struct head head = { .magic = MAGIC };
		struct stat st;
		int in, out;

		if (fstatat(dir, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			fail("look at a file in the container's " SHM_DIR);
		if (!S_ISREG(st.st_mode))
			continue; // no shared memory
		in = openat(dir, entry->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
		if (in < 0)
			fail("open a file in the container's " SHM_DIR);
		head.size = st.st_size;
		head.mode = st.st_mode & 07777;
		head.uid = st.st_uid;
		head.gid = st.st_gid;
		snprintf(head.name, sizeof(head.name), "%s", entry->d_name);
		out = open_image(images, n++, O_WRONLY | O_CREAT | O_EXCL);
		errno = 0;
		if (out < 0 || pwrite(out, &head, sizeof(head), 0) != sizeof(head) ||
		    copy(in, 0, out, DATA_AT, st.st_size) < 0 || ftruncate(out, DATA_AT + st.st_size) < 0)
			fail("save a file of the container's " SHM_DIR);
		close(in);
		close(out);
	}
	closedir(list);
}

static void load_shm(const char *images)
{
	int dir = open_shm();

	if (dir < 0)
		fail("open the container's " SHM_DIR);
	for (int n = 0;; n++) {
		struct head head;
		int out, in = open_image(images, n, O_RDONLY);

		if (in < 0 && errno == ENOENT)
			break;
		errno = EINVAL;
		if (in < 0 || pread(in, &head, sizeof(head), 0) != sizeof(head) || memcmp(head.magic, MAGIC, sizeof(head.magic)) ||
		    !memchr(head.name, 0, sizeof(head.name)) || strchr(head.name, '/'))
			fail("read the image of a file in " SHM_DIR);
		// One of an earlier attempt may be there.
		if (unlinkat(dir, head.name, 0) < 0 && errno != ENOENT)
			fail("replace a file in the container's " SHM_DIR);
		out = openat(dir, head.name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (out < 0)
			fail("make a file in the container's " SHM_DIR);
		errno = 0;
		if (ftruncate(out, head.size) < 0 || copy(in, DATA_AT, out, 0, head.size) < 0 ||
		    fchown(out, head.uid, head.gid) < 0 || fchmod(out, head.mode) < 0)
			fail("restore a file of the container's " SHM_DIR);
		close(in);
		close(out);
	}
	close(dir);
}

#endif
