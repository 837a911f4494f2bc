// SPDX-License-Identifier: Apache-2.0
//
// A restore may find the page files (pages-N.img) in another folder than the other images: the
// container's own, where nobody wants to copy them from. CRIU closes descriptors that it does
// not know before it opens them, so they are kept as mappings, which its children inherit and
// the restored processes do not. The same is done with a list of seccomp filters that is to be
// read in place of the checkpoint's.

#include <dirent.h>

// More files than this cannot be of one container.
#define MAX_PAGE_FILES (1 << 20)

struct page_file {
	unsigned int number;
	size_t size;
	char *at;
};

static struct page_file *page_files;
static size_t page_file_count;
static struct page_file seccomp_file;

#define SECCOMP_IMAGE "seccomp.img"

// The number of pages-N.img, or 0.
static unsigned int page_file_number(const char *name)
{
	unsigned long number;
	char again[32];

	if (strncmp(name, "pages-", strlen("pages-")))
		return 0;
	number = strtoul(name + strlen("pages-"), NULL, 10);
	if (number > ~0U)
		return 0;
	snprintf(again, sizeof(again), "pages-%lu.img", number);
	return strcmp(name, again) ? 0 : number;
}

// What is no regular file is not opened for reading: that could hang, or act.
static void map_page_file(int folder, const char *name, unsigned int number)
{
	int fd = syscall(SYS_openat, folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0);
	struct page_file *file;
	struct stat st;
	void *at;

	if (fd < 0)
		return;
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || !st.st_size) {
		close(fd);
		return;
	}
	at = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
	close(fd);
	if (at == MAP_FAILED)
		fail("map a page file of the checkpoint");
	page_files = realloc(page_files, (page_file_count + 1) * sizeof(*page_files));
	if (!page_files)
		fail("remember the page files of the checkpoint");
	file = &page_files[page_file_count++];
	file->number = number;
	file->size = st.st_size;
	file->at = at;
}

static void map_page_files(int folder)
{
	// Opened anew, since the launcher's descriptor has the same position as ours.
	int fd = syscall(SYS_openat, folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (!dir)
		fail("read the folder of the page files");
	while ((entry = readdir(dir))) {
		unsigned int number = page_file_number(entry->d_name);

		if (number && page_file_count < MAX_PAGE_FILES)
			map_page_file(dirfd(dir), entry->d_name, number);
	}
	closedir(dir);
}

// Root of a user namespace may not open a mapping's file: it gets a copy.
static int copy_page_file(const struct page_file *file)
{
	int fd = memfd_create("pages", MFD_CLOEXEC);

	for (size_t done = 0; fd >= 0 && done < file->size;) {
		ssize_t n = write(fd, file->at + done, file->size - done);

		if (n <= 0) {
			close(fd);
			return -1;
		}
		done += n;
	}
	if (fd >= 0)
		lseek(fd, 0, SEEK_SET);
	return fd;
}

static void map_seccomp_file(int fd)
{
	struct stat st;
	void *at;

	errno = EINVAL;
	if (fstat(fd, &st) < 0 || !st.st_size)
		fail("look at the seccomp filters");
	at = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		fail("map the seccomp filters");
	close(fd);
	seccomp_file.size = st.st_size;
	seccomp_file.at = at;
}

// Opens the seccomp filters that were mapped; -2: there are none, or name is another's.
static int open_seccomp_file(const char *name)
{
	return seccomp_file.at && !strcmp(name, SECCOMP_IMAGE) ? copy_page_file(&seccomp_file) : -2;
}

// Opens a page file that was mapped; -2: there is none of this name.
static int open_page_file(const char *name, int flags)
{
	unsigned int number = page_file_count ? page_file_number(name) : 0;
	char path[80];
	int fd;

	for (size_t i = 0; number && i < page_file_count; i++) {
		const struct page_file *file = &page_files[i];
		unsigned long at = (unsigned long)file->at;
		unsigned long page = sysconf(_SC_PAGESIZE);

		if (file->number != number)
			continue;
		snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", at, (at + file->size + page - 1) & ~(page - 1));
		fd = syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0);
		return fd >= 0 ? fd : copy_page_file(file);
	}
	return -2;
}
