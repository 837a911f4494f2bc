// SPDX-License-Identifier: Apache-2.0
//
// A tmpfs that the container mounts for itself is empty each time the container is made. CRIU
// takes a file that has a name for one that is there at the restore too, so what is in those
// file systems (pid files, folders of sockets, POSIX shared memory) is put into the checkpoint
// here: by a process with the container's mounts and user ids and, at the restore, in its
// cgroups, which the memory is charged to.
//
// Each of them becomes an archive, tmpfs-N.img: the head, then the tree as entries. Folders,
// regular files with their holes and hard links, symbolic links and fifos are in it, with
// their modes, owners and times of change. Sockets are not, since CRIU binds them again, nor
// are devices, extended attributes and whatever is mounted below. Contents alone are written,
// so that a hole costs nothing on the way either.
//
// An archive is not trusted: it names nothing but single components, which are resolved on the
// one file system, without links; and what it says of sizes gives no more than a hole, unless
// the contents are there.

#ifndef FASTMIG_TMPFS_H
#define FASTMIG_TMPFS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define TMPFS 0x01021994
#define MAX_DEPTH 256 // each folder on the way down takes a descriptor

struct archive_head {
	char magic[8];
	char mount[PATH_MAX];
};

static const char archive_magic[8] = { 'f', 'm', '-', 't', 'm', 'p', '-', '1' };

enum { FOLDER = 1, FOLDER_END, REGULAR, HARD_LINK, SYMLINK, FIFO };

// After an entry comes its name; then, of a link, what it points to (a hard link: a path below
// the mount point), and of a regular file its extents. After a folder come the files in it, up
// to a FOLDER_END, which has no name and says what the folder itself is like.
struct entry {
	uint32_t kind, mode, uid, gid;
	int64_t sec;
	uint32_t nsec;
	uint32_t name; // its length
	uint64_t size; // of a regular file, or the length of what a link points to
};

// The extent of size 0 is the last one.
struct extent {
	uint64_t at;
	uint32_t size, unused;
};

// Of preload.c.
static volatile sig_atomic_t cancelled;
static void fail(const char *what);

// The archive that is being worked on.
static FILE *archive;
static int mount_root;           // the file system's root
static const char *mount_path;
static char below[PATH_MAX];     // the file's path in it, with a slash in front
static size_t below_len;
static char block[1 << 16];      // also the most that an extent has
static char archive_buffer[1 << 16];

// fail_at names the file. Its name is the container's choice, and the log is read by lines.
static void fail_at(const char *what)
{
	char text[2 * PATH_MAX + 64];
	int cause = errno;

	snprintf(text, sizeof(text), "%s the container's %s%s", what, mount_path, below);
	for (char *c = text; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	errno = cause;
	fail(text);
}

static void damaged(void)
{
	errno = EBADMSG;
	fail_at("read the archive of");
}

// step goes down to a file; the result is for step_back.
static size_t step(const char *name)
{
	size_t before = below_len, len = strlen(name);

	if (below_len + 1 + len >= sizeof(below)) {
		errno = ENAMETOOLONG;
		fail_at("go below");
	}
	below[below_len] = '/';
	memcpy(below + below_len + 1, name, len + 1);
	below_len += 1 + len;
	return before;
}

static void step_back(size_t before)
{
	below_len = before;
	below[below_len] = 0;
}

// open_below opens what is on the same file system, in the same mount of it: EXDEV otherwise.
static int open_below(int dir, const char *path, int flags)
{
	struct open_how how = {
		.flags = flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
		.mode = flags & O_CREAT ? 0600 : 0,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV,
	};

	if (flags & O_PATH)
		how.flags &= ~(uint64_t)O_NONBLOCK;
	return syscall(SYS_openat2, dir, path, &how, sizeof(how));
}

// open_mount fails if there is no tmpfs mounted: the container took it away. The launcher has
// resolved the path.
static int open_mount(void)
{
	struct open_how how = { .flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS };
	struct statfs fs;
	struct statx st;
	int dir = syscall(SYS_openat2, AT_FDCWD, mount_path, &how, sizeof(how));

	if (dir < 0)
		return -1;
	if (!fstatfs(dir, &fs) && fs.f_type == TMPFS && !statx(dir, "", AT_EMPTY_PATH, 0, &st) &&
	    (st.stx_attributes & STATX_ATTR_MOUNT_ROOT))
		return dir;
	close(dir);
	errno = ENODEV;
	return -1;
}

static int open_archive(const char *images, const char *number, int flags)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/tmpfs-%s.img", images, number);
	return open(path, flags | O_NOFOLLOW | O_CLOEXEC, 0600);
}

#include "tmpfs-save.h"
#include "tmpfs-load.h"

// each_tmpfs goes through what the launcher names: "NUMBER:MOUNT POINT".
static void each_tmpfs(const char *images, void (*act)(const char *images, const char *number))
{
	char name[32], number[16];

	for (int i = 0;; i++) {
		const char *value, *colon;

		snprintf(name, sizeof(name), "FASTMIG_TMPFS_%d", i);
		value = getenv(name);
		if (!value)
			return;
		colon = strchr(value, ':');
		if (!colon || colon - value >= (int)sizeof(number)) {
			errno = EINVAL;
			fail("read the launcher's list of file systems");
		}
		memcpy(number, value, colon - value);
		number[colon - value] = 0;
		mount_path = colon + 1;
		step_back(0);
		act(images, number);
		unsetenv(name);
	}
}

#endif
