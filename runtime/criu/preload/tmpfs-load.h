// SPDX-License-Identifier: Apache-2.0
//
// The restore's side of tmpfs.h, which includes this. What is in the file system already, from
// the runtime or from an attempt that failed, gives way to files of the same names and stays
// otherwise. What is mounted there is left as it is, and so is all below it.

static int keep_suid;

static void get(void *data, size_t size)
{
	errno = 0;
	if (fread(data, 1, size, archive) == size)
		return;
	if (errno)
		fail_at("read the archive of");
	damaged();
}

// get_text reads a string that has no zero byte in it; size is without the one at the end.
static void get_text(char *text, uint64_t len, size_t size)
{
	if (!len || len > size)
		damaged();
	get(text, len);
	text[len] = 0;
	if (strlen(text) != len)
		damaged();
}

static void set_attributes(int fd, const struct entry *entry, mode_t mode)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { entry->sec, entry->nsec } };

	if (fchown(fd, entry->uid, entry->gid) < 0 || fchmod(fd, mode) < 0 || futimens(fd, times) < 0)
		fail_at("set mode, owner and time of");
}

static void set_attributes_at(int dir, const char *name, const struct entry *entry)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, { entry->sec, entry->nsec } };

	if (fchownat(dir, name, entry->uid, entry->gid, AT_SYMLINK_NOFOLLOW) < 0 ||
	    utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) < 0)
		fail_at("set owner and time of");
}

// A file's contents are skipped with the file: fd is -1 then.
static void get_contents(int out, uint64_t size)
{
	struct extent extent;

	for (;;) {
		get(&extent, sizeof(extent));
		if (!extent.size)
			return;
		if (extent.size > sizeof(block) || extent.at > size || extent.size > size - extent.at)
			damaged();
		get(block, extent.size);
		errno = ENOSPC;
		if (out >= 0 && pwrite(out, block, extent.size, extent.at) != (ssize_t)extent.size)
			fail_at("put back");
	}
}

// make_room takes away what has the name. It says 0 if something is mounted there.
static int make_room(int dir, const char *name, int for_folder)
{
	struct stat st;
	int fd = open_below(dir, name, O_PATH);

	if (fd < 0 && errno == ENOENT)
		return 1;
	if (fd < 0 && errno == EXDEV)
		return 0;
	if (fd < 0 || fstat(fd, &st) < 0)
		fail_at("look at");
	close(fd);
	if (S_ISDIR(st.st_mode) && for_folder)
		return 1;
	if (unlinkat(dir, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) < 0)
		fail_at("replace");
	return 1;
}

static void load_regular(int dir, const char *name, const struct entry *entry)
{
	mode_t mode = entry->mode & (keep_suid ? 07777 : 01777);
	int out = -1;

	if (dir >= 0) {
		out = open_below(dir, name, O_RDWR | O_CREAT | O_EXCL);
		if (out < 0)
			fail_at("make");
		errno = EFBIG;
		if (entry->size > INT64_MAX || ftruncate(out, entry->size) < 0)
			fail_at("put back");
	}
	get_contents(out, entry->size);
	if (out < 0)
		return;
	set_attributes(out, entry, mode);
	close(out);
}

static void load_hard_link(int dir, const char *name, const char *target)
{
	char path[32];
	struct stat st;
	int fd = open_below(mount_root, target, O_PATH);

	if (fd < 0 || fstat(fd, &st) < 0)
		fail_at("find the other name of");
	if (!S_ISREG(st.st_mode))
		damaged();
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (linkat(AT_FDCWD, path, dir, name, AT_SYMLINK_FOLLOW) < 0)
		fail_at("make");
	close(fd);
}

// load_folder reads up to the folder's end, and closes dir. With -1 it only reads.
static void load_folder(int dir, int depth)
{
	static char target[PATH_MAX];
	char name[NAME_MAX + 1];
	struct entry entry;

	if (depth > MAX_DEPTH)
		damaged();
	for (;;) {
		size_t before;
		int to, sub = -1;

		get(&entry, sizeof(entry));
		if (entry.nsec >= 1000000000)
			damaged();
		if (entry.kind == FOLDER_END)
			break;
		get_text(name, entry.name, NAME_MAX);
		if (strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
			damaged();
		before = step(name);
		to = dir >= 0 && make_room(dir, name, entry.kind == FOLDER) ? dir : -1;
		switch (entry.kind) {
		case FOLDER:
			if (to >= 0) {
				if (mkdirat(to, name, 0700) < 0 && errno != EEXIST)
					fail_at("make");
				sub = open_below(to, name, O_RDONLY | O_DIRECTORY);
				if (sub < 0)
					fail_at("open");
			}
			load_folder(sub, depth + 1);
			break;
		case REGULAR:
			load_regular(to, name, &entry);
			break;
		case HARD_LINK:
			get_text(target, entry.size, sizeof(target) - 1);
			if (to >= 0)
				load_hard_link(to, name, target);
			break;
		case SYMLINK:
			get_text(target, entry.size, sizeof(target) - 1);
			if (to < 0)
				break;
			if (symlinkat(target, to, name) < 0)
				fail_at("make");
			set_attributes_at(to, name, &entry);
			break;
		case FIFO:
			if (to < 0)
				break;
			if (mkfifoat(to, name, entry.mode & 0777) < 0)
				fail_at("make");
			set_attributes_at(to, name, &entry);
			break;
		default:
			damaged();
		}
		step_back(before);
	}
	if (entry.name || entry.size)
		damaged();
	if (dir < 0)
		return;
	set_attributes(dir, &entry, entry.mode & 07777);
	if (dir != mount_root)
		close(dir);
}

// come_first makes this process the one that the kernel ends when the container's memory is
// used up, in place of the container's PID 1; "" takes it back, which needs no right, as the
// former value is not lower than the least that this process ever had (proc_pid_oom_score_adj(5)).
static void come_first(const char *score, char *former, size_t size)
{
	int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
	ssize_t n;

	if (*score) {
		n = fd < 0 ? 0 : read(fd, former, size - 1);
		former[n > 0 ? n : 0] = 0;
	} else {
		score = former;
	}
	if (*former && pwrite(fd, score, strlen(score), 0) < 0)
		fail("set the order in which processes are ended for memory");
	close(fd);
}

static void load_tmpfs(const char *images, const char *number)
{
	char score[16];
	struct archive_head head;
	struct statvfs fs;
	mode_t mask;
	int fd = open_archive(images, number, O_RDONLY);

	archive = fd < 0 ? NULL : fdopen(fd, "r");
	if (!archive)
		fail_at("open the archive of");
	setvbuf(archive, archive_buffer, _IOFBF, sizeof(archive_buffer));
	get(&head, sizeof(head));
	if (memcmp(head.magic, archive_magic, sizeof(head.magic)) || strncmp(head.mount, mount_path, sizeof(head.mount)))
		damaged();
	mount_root = open_mount();
	if (mount_root < 0 || fstatvfs(mount_root, &fs) < 0)
		fail_at("find a tmpfs at");
	// Where such a bit counts, an archive could give the rights of any user of the container.
	keep_suid = (fs.f_flag & ST_NOSUID) != 0;
	mask = umask(0);
	come_first("1000", score, sizeof(score));
	load_folder(mount_root, 0);
	come_first("", score, sizeof(score));
	umask(mask);
	if (fgetc(archive) != EOF)
		damaged();
	close(mount_root);
	fclose(archive);
}
