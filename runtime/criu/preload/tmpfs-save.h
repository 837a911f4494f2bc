// SPDX-License-Identifier: Apache-2.0
//
// The dump's side of tmpfs.h, which includes this. The container is frozen meanwhile.

static const char *archive_images, *archive_number;

// The files with more than one name so far: where their contents are in the archive.
static struct linked {
	struct linked *next;
	ino_t inode;
	char path[];
} *links[1024];

static void put(const void *data, size_t size)
{
	if (cancelled) {
		errno = ECANCELED;
		fail_at("save");
	}
	errno = 0;
	if (fwrite(data, 1, size, archive) != size) {
		errno = errno ? errno : ENOSPC;
		fail_at("save");
	}
}

// The archive is made when there is something to put into it.
static void begin_archive(void)
{
	struct archive_head head = { { 0 }, { 0 } };
	int fd = open_archive(archive_images, archive_number, O_WRONLY | O_CREAT | O_EXCL);

	archive = fd < 0 ? NULL : fdopen(fd, "w");
	if (!archive)
		fail_at("make the archive of");
	setvbuf(archive, archive_buffer, _IOFBF, sizeof(archive_buffer));
	memcpy(head.magic, archive_magic, sizeof(head.magic));
	snprintf(head.mount, sizeof(head.mount), "%s", mount_path);
	put(&head, sizeof(head));
}

static void put_entry(uint32_t kind, const struct stat *st, const char *name, uint64_t size)
{
	struct entry entry = {
		.kind = kind, .mode = st->st_mode & 07777, .uid = st->st_uid, .gid = st->st_gid,
		.sec = st->st_mtim.tv_sec, .nsec = st->st_mtim.tv_nsec, .name = strlen(name), .size = size,
	};

	if (!archive)
		begin_archive();
	put(&entry, sizeof(entry));
	put(name, entry.name);
}

static int is_zero(const char *at, size_t n)
{
	return !n || (!at[0] && !memcmp(at, at + 1, n - 1));
}

// put_contents leaves out what is a hole, or nothing but zeros.
static void put_contents(int in, off_t size)
{
	struct extent extent = { 0, 0, 0 };
	off_t from = 0, end = 0;

	while (from < size) {
		ssize_t n;

		if (from >= end) {
			from = lseek(in, from, SEEK_DATA);
			if (from < 0 && errno == ENXIO)
				break;
			end = from < 0 ? -1 : lseek(in, from, SEEK_HOLE);
			if (end < 0)
				fail_at("read");
			if (end > size)
				end = size;
			continue;
		}
		n = end - from < (off_t)sizeof(block) ? end - from : (off_t)sizeof(block);
		n = pread(in, block, n, from);
		if (n < 0)
			fail_at("read");
		if (!n)
			break;
		if (!is_zero(block, n)) {
			extent.at = from;
			extent.size = n;
			put(&extent, sizeof(extent));
			put(block, n);
		}
		from += n;
	}
	extent.at = extent.size = 0;
	put(&extent, sizeof(extent));
}

// known_link says where another name of the file is, and remembers this one if there is none.
static const char *known_link(ino_t inode)
{
	struct linked *link, **list = &links[inode % (sizeof(links) / sizeof(*links))];

	for (link = *list; link; link = link->next)
		if (link->inode == inode)
			return link->path;
	link = malloc(sizeof(*link) + below_len);
	if (!link)
		fail_at("save");
	link->inode = inode;
	memcpy(link->path, below + 1, below_len);
	link->next = *list;
	*list = link;
	return NULL;
}

static void forget_links(void)
{
	for (size_t i = 0; i < sizeof(links) / sizeof(*links); i++)
		while (links[i]) {
			struct linked *next = links[i]->next;

			free(links[i]);
			links[i] = next;
		}
}

static void save_regular(int dir, const char *name, const struct stat *st)
{
	const char *first = st->st_nlink > 1 ? known_link(st->st_ino) : NULL;
	int in;

	if (first) {
		put_entry(HARD_LINK, st, name, strlen(first));
		put(first, strlen(first));
		return;
	}
	in = open_below(dir, name, O_RDONLY);
	if (in < 0)
		fail_at("read");
	put_entry(REGULAR, st, name, st->st_size);
	put_contents(in, st->st_size);
	close(in);
}

static void save_symlink(int fd, const char *name, const struct stat *st)
{
	char target[PATH_MAX];
	ssize_t n = readlinkat(fd, "", target, sizeof(target));

	if (n < 0)
		fail_at("read");
	put_entry(SYMLINK, st, name, n);
	put(target, n);
}

// What became of a file. A folder in which there are mount points alone was made for them, and
// is no reason for an archive.
enum outcome { PASSED_OVER, MOUNT_POINT, SAVED };

static enum outcome save_folder(int dir, int depth);

static enum outcome save_file(int dir, const char *name, int depth)
{
	enum outcome outcome = SAVED;
	struct stat st;
	int sub, fd = open_below(dir, name, O_PATH);

	if (fd < 0 && errno == EXDEV)
		return MOUNT_POINT;
	if (fd < 0 || fstat(fd, &st) < 0)
		fail_at("look at");
	switch (st.st_mode & S_IFMT) {
	case S_IFDIR:
		sub = open_below(dir, name, O_RDONLY | O_DIRECTORY);
		if (sub < 0)
			fail_at("open");
		put_entry(FOLDER, &st, name, 0);
		outcome = save_folder(sub, depth + 1);
		put_entry(FOLDER_END, &st, "", 0);
		break;
	case S_IFREG:
		save_regular(dir, name, &st);
		break;
	case S_IFLNK:
		save_symlink(fd, name, &st);
		break;
	case S_IFIFO:
		put_entry(FIFO, &st, name, 0);
		break;
	default:
		outcome = PASSED_OVER;
	}
	close(fd);
	return outcome;
}

// save_folder closes dir.
static enum outcome save_folder(int dir, int depth)
{
	int saved = 0, mounts = 0;
	struct dirent *found;
	DIR *list;

	errno = ENAMETOOLONG;
	if (depth > MAX_DEPTH)
		fail_at("go deeper into");
	list = fdopendir(dir);
	if (!list)
		fail_at("read");
	while (errno = 0, (found = readdir(list))) {
		size_t before;

		if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, ".."))
			continue;
		before = step(found->d_name);
		switch (save_file(dir, found->d_name, depth)) {
		case SAVED:
			saved = 1;
			break;
		case MOUNT_POINT:
			mounts = 1;
			break;
		case PASSED_OVER:
			break;
		}
		step_back(before);
	}
	if (errno)
		fail_at("read");
	closedir(list);
	return saved || !mounts ? SAVED : MOUNT_POINT;
}

static void save_tmpfs(const char *images, const char *number)
{
	struct stat st;
	int worth;

	archive_images = images;
	archive_number = number;
	archive = NULL;
	mount_root = open_mount();
	if (mount_root < 0)
		return; // what a process has open of it nevertheless is CRIU's to complain about
	if (fstat(mount_root, &st) < 0)
		fail_at("look at");
	worth = save_folder(mount_root, 0) == SAVED;
	forget_links();
	if (!archive)
		return;
	put_entry(FOLDER_END, &st, "", 0);
	if (fclose(archive))
		fail_at("save");
	if (!worth) {
		char path[PATH_MAX];

		snprintf(path, sizeof(path), "%s/tmpfs-%s.img", images, number);
		if (unlinkat(AT_FDCWD, path, 0) < 0)
			fail_at("drop the archive of");
	}
}
