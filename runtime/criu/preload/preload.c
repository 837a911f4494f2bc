// SPDX-License-Identifier: Apache-2.0
//
// fastmig-preload.so is loaded into CRIU by its own loader. It does what must happen inside
// CRIU's process and cannot be asked of CRIU itself:
//
// 1. It joins the container's mount namespace after CRIU's libraries are loaded. A loader
//    that starts inside the container would read the container's /etc/ld.so.preload and its
//    library folders, and so run the container's code with the host's rights.
// 2. It gives CRIU its kernel-probe cache, /run/criu.kdat, out of a memfd. CRIU would
//    otherwise read and write that file in the container: slow where /run is no tmpfs, a
//    trace left behind where it is one, and a way in for a forged cache.
// 3. It lets a dump be given up without harm to the processes: SIGTERM makes the next step
//    fail, and CRIU cleans up as after any failure.
// 4. It joins the container's user namespace, if that is another one, and makes up there for
//    what root of a user namespace cannot do.
// 5. It answers for socket options that Linux 6.16 and newer refuse and CRIU before 4.2 asks
//    for.
// 6. It lets a root without CAP_SYS_RESOURCE, as that of many containers and virtual machines
//    is, read the resource limits of processes with another user id: procfs has them too.
// 7. It keeps the restored processes in the container's IPC namespace when the checkpoint has
//    System V objects. CRIU would make them again in a new one.
// 8. It carries along what is in the container's own file systems in memory (tmpfs.h).
// 9. It finds the page files of a checkpoint that keeps them in another folder, and the seccomp
//    filters that a restore puts in place of the checkpoint's (pages.h).
// 10. It notes what CRIU changes in the processes of a dump, for whom a killed CRIU leaves it
//    to (journal.h), and sees to it that no breakpoint of CRIU outlives it (calm.h).
//
// On the host, where the toolkit's wrapper starts CRIU, only 5 and 6 act.
//
// The descriptors are named in the environment by the launcher (tool.go), which is the only
// one to set it.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "journal.h"
#include "tmpfs.h"

#define KDAT "/run/criu.kdat"
#define KDAT_NEW "/run/criu.kdat.tmp"
#define PROC_MAGIC 0x9fa0
#define PROC_ROOT_INODE 1
// The exit status that tells the launcher that CRIU never began.
#define EXIT_SETUP 125

static int launched;      // by launch.go, and not by a user's shell on the host
static int kdat_in = -1;  // memfd with the cache to read, or -1
static int kdat_out = -1; // memfd that takes a new cache, or -1
static int freezer = -1;  // the state file of the container's freezer cgroup, or -1
static char freezer_path[64];
static int same_ipc;      // the restored processes stay in CRIU's IPC namespace
static volatile sig_atomic_t cancelled;

static int env_fd(const char *name)
{
	const char *value = getenv(name);

	return value ? atoi(value) : -1;
}

static void fail(const char *what)
{
	dprintf(2, "fastmig: %s: %s\n", what, strerror(errno));
	_exit(EXIT_SETUP);
}

// CRIU names everything through /proc/self. A /proc that is missing, of another pid
// namespace or not the root of a procfs would make it talk about the wrong processes.
static void check_proc(void)
{
	char self[16], mine[16];
	struct statfs fs;
	struct stat st;
	ssize_t n;

	if (statfs("/proc", &fs) < 0 || stat("/proc", &st) < 0)
		fail("look at the container's /proc");
	errno = EINVAL;
	if (fs.f_type != PROC_MAGIC || st.st_ino != PROC_ROOT_INODE)
		fail("the container's /proc is not a procfs");
	n = readlink("/proc/self", self, sizeof(self) - 1);
	if (n < 0)
		fail("the container's /proc belongs to another pid namespace");
	self[n] = 0;
	snprintf(mine, sizeof(mine), "%d", getpid());
	errno = EINVAL;
	if (strcmp(self, mine))
		fail("the container's /proc belongs to another pid namespace");
}

#include "pages.h"

// Root of a user namespace may read the container's cgroup, but not write there.
static void open_freezer(int folder)
{
	static const char *const names[] = { "freezer.state", "cgroup.freeze" };

	for (int i = 0; i < 2 && freezer < 0; i++) {
		snprintf(freezer_path, sizeof(freezer_path), "/proc/self/fd/%d/%s", folder, names[i]);
		freezer = syscall(SYS_openat, folder, names[i], O_RDWR | O_CLOEXEC, 0);
	}
	if (freezer < 0)
		fail("open the container's freezer cgroup");
}

static void on_cancel(int signo)
{
	(void)signo;
	cancelled = 1;
}

static void enter(void)
{
	int mnt = env_fd("FASTMIG_MNT_FD");
	int user = env_fd("FASTMIG_USER_FD");
	int folder = env_fd("FASTMIG_FREEZER_FD");
	int first = env_fd("FASTMIG_CLOSE_FROM");
	int pages = env_fd("FASTMIG_PAGES_FD");
	int filters = env_fd("FASTMIG_SECCOMP_FD");
	int undo = env_fd("FASTMIG_JOURNAL_FD");
	struct sigaction sa = { .sa_handler = on_cancel };

	launched = first >= 0;
	prctl(PR_SET_NAME, "criu"); // by itself the loader's name
	kdat_in = env_fd("FASTMIG_KDAT_FD");
	kdat_out = env_fd("FASTMIG_KDAT_NEW_FD");
	if (first >= 0 && syscall(SYS_close_range, first, ~0U, 0) < 0)
		fail("close descriptors that are not CRIU's");
	if (mnt >= 0) {
		if (setns(mnt, CLONE_NEWNS) < 0)
			fail("join the container's mount namespace");
		close(mnt);
		if (chdir("/") < 0)
			fail("enter the container's root");
		check_proc();
	}
	if (folder >= 0)
		open_freezer(folder);
	if (pages >= 0)
		map_page_files(pages);
	if (filters >= 0)
		map_seccomp_file(filters);
	open_journal(undo);
	// Last, since it takes away the rights to do the rest.
	if (user >= 0) {
		if (setns(user, CLONE_NEWUSER) < 0)
			fail("join the container's user namespace");
		close(user);
		if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
			fail("become root of the container's user namespace");
		// The change of ids took it; CRIU traces children of its own.
		if (prctl(PR_SET_DUMPABLE, 1) < 0)
			fail("stay traceable");
	}
	same_ipc = getenv("FASTMIG_SAME_IPC") != NULL;
	// Without SA_RESTART, so that a wait of CRIU ends as well.
	if (getenv("FASTMIG_SOFT_CANCEL") && sigaction(SIGTERM, &sa, NULL) < 0)
		fail("set the signal that cancels");
	if (getenv("FASTMIG_TMPFS_SAVE"))
		each_tmpfs(getenv("FASTMIG_TMPFS_SAVE"), save_tmpfs);
	if (getenv("FASTMIG_TMPFS_LOAD"))
		each_tmpfs(getenv("FASTMIG_TMPFS_LOAD"), load_tmpfs);
	unsetenv("FASTMIG_MNT_FD");
	unsetenv("FASTMIG_USER_FD");
	unsetenv("FASTMIG_FREEZER_FD");
	unsetenv("FASTMIG_CLOSE_FROM");
	unsetenv("FASTMIG_PAGES_FD");
	unsetenv("FASTMIG_SECCOMP_FD");
	unsetenv("FASTMIG_JOURNAL_FD");
	unsetenv("FASTMIG_KDAT_FD");
	unsetenv("FASTMIG_KDAT_NEW_FD");
	unsetenv("FASTMIG_SAME_IPC");
	unsetenv("FASTMIG_TMPFS_SAVE");
	unsetenv("FASTMIG_TMPFS_LOAD");
	unsetenv("FASTMIG_SOFT_CANCEL");
}

typedef int main_fn(int, char **, char **);
typedef int start_fn(main_fn *, int, char **, void (*)(void), void (*)(void), void (*)(void), void *);

// CRIU's entry point calls this when all libraries are loaded and initialised (libgnutls
// reads /etc/gnutls/config then), with main still to come.
int __libc_start_main(main_fn *main, int argc, char **argv, void (*init)(void), void (*fini)(void),
		      void (*rtld_fini)(void), void *stack_end)
{
	start_fn *next = (start_fn *)dlsym(RTLD_NEXT, "__libc_start_main");

	if (!next)
		fail("find the C library's start");
	enter();
	return next(main, argc, argv, init, fini, rtld_fini, stack_end);
}

// Copies of a memfd's descriptor share one offset, so the file is opened anew.
static int reopen(int fd, int flags)
{
	char path[32];

	if (fd < 0) {
		errno = ENOENT;
		return -1;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0);
}

int open64(const char *path, int flags, ...)
{
	mode_t mode = 0;
	va_list args;

	if (launched && !strcmp(path, KDAT))
		return reopen(kdat_in, O_RDONLY);
	if (launched && !strcmp(path, KDAT_NEW))
		return reopen(kdat_out, O_WRONLY | O_TRUNC);
	if (freezer >= 0 && !strcmp(path, freezer_path))
		return fcntl(freezer, F_DUPFD_CLOEXEC, 0);
	if (flags & (O_CREAT | __O_TMPFILE)) {
		va_start(args, flags);
		mode = va_arg(args, mode_t);
		va_end(args);
	}
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

// When the caller gives up a dump, the steps that write images fail. CRIU then goes the way
// it goes on a full disk: it takes its code out of the processes and lets them run.

int openat64(int dir, const char *path, int flags, ...)
{
	mode_t mode = 0;
	int image;
	va_list args;

	if (cancelled && (flags & O_CREAT)) {
		errno = ECANCELED;
		return -1;
	}
	// A restore leaves its statistics in its working folder, which is the checkpoint's.
	if (launched && dir == AT_FDCWD && !strcmp(path, "stats-restore"))
		return memfd_create(path, MFD_CLOEXEC);
	if (!(flags & O_CREAT) && ((image = open_page_file(path, flags)) != -2 || (image = open_seccomp_file(path)) != -2))
		return image;
	if (flags & (O_CREAT | __O_TMPFILE)) {
		va_start(args, flags);
		mode = va_arg(args, mode_t);
		va_end(args);
	}
	return syscall(SYS_openat, dir, path, flags, mode);
}

ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t len, unsigned int flags)
{
	if (cancelled) {
		errno = ECANCELED;
		return -1;
	}
	return syscall(SYS_splice, in, in_at, out, out_at, len, flags);
}

// CRIU sleeps where it waits for a cgroup to freeze, a limited number of times.
int nanosleep(const struct timespec *time, struct timespec *left)
{
	return cancelled ? 0 : syscall(SYS_nanosleep, time, left);
}

// Since Linux 6.16 these two exist for unix sockets only; elsewhere they never had a meaning.
int getsockopt(int sock, int level, int name, void *value, socklen_t *len)
{
	int ret = syscall(SYS_getsockopt, sock, level, name, value, len);

	if (ret < 0 && errno == EOPNOTSUPP && level == SOL_SOCKET && (name == SO_PASSCRED || name == SO_PASSSEC) &&
	    *len >= sizeof(int)) {
		*len = sizeof(int);
		memset(value, 0, sizeof(int));
		return 0;
	}
	return ret;
}

// Root of a user namespace may not pass the system's limit of a socket's buffer. CRIU wants it
// for its own sockets, and for the application's as they were: up to the limit is what can be had.
int setsockopt(int sock, int level, int name, const void *value, socklen_t len)
{
	int ret = syscall(SYS_setsockopt, sock, level, name, value, len);

	if (ret < 0 && errno == EPERM && level == SOL_SOCKET && (name == SO_SNDBUFFORCE || name == SO_RCVBUFFORCE))
		ret = syscall(SYS_setsockopt, sock, level, name == SO_SNDBUFFORCE ? SO_SNDBUF : SO_RCVBUF, value, len);
	return ret;
}

int rename(const char *from, const char *to)
{
	if (launched && !strcmp(from, KDAT_NEW))
		return 0;
	return syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int unlink(const char *path)
{
	if (launched && (!strcmp(path, KDAT) || !strcmp(path, KDAT_NEW)))
		return 0;
	return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}

// Where a resource stands in /proc/PID/limits (proc_pid_limits(5)).
static const char *const limit_names[RLIM_NLIMITS] = {
	[RLIMIT_CPU] = "Max cpu time",
	[RLIMIT_FSIZE] = "Max file size",
	[RLIMIT_DATA] = "Max data size",
	[RLIMIT_STACK] = "Max stack size",
	[RLIMIT_CORE] = "Max core file size",
	[RLIMIT_RSS] = "Max resident set",
	[RLIMIT_NPROC] = "Max processes",
	[RLIMIT_NOFILE] = "Max open files",
	[RLIMIT_MEMLOCK] = "Max locked memory",
	[RLIMIT_AS] = "Max address space",
	[RLIMIT_LOCKS] = "Max file locks",
	[RLIMIT_SIGPENDING] = "Max pending signals",
	[RLIMIT_MSGQUEUE] = "Max msgqueue size",
	[RLIMIT_NICE] = "Max nice priority",
	[RLIMIT_RTPRIO] = "Max realtime priority",
	[RLIMIT_RTTIME] = "Max realtime timeout",
};

static char *read_limit(char *at, rlim64_t *limit)
{
	while (*at == ' ')
		at++;
	if (!strncmp(at, "unlimited", strlen("unlimited"))) {
		*limit = RLIM64_INFINITY;
		return at + strlen("unlimited");
	}
	*limit = strtoull(at, &at, 10);
	return at;
}

static int limit_from_proc(int pid, unsigned int resource, struct rlimit64 *limit)
{
	char path[32], text[4096], *line;
	ssize_t n;
	int fd;

	if (resource >= RLIM_NLIMITS || !limit_names[resource])
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/limits", pid);
	fd = open64(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n < 0)
		return -1;
	text[n] = 0;
	line = strstr(text, limit_names[resource]);
	if (!line)
		return -1;
	line = read_limit(line + strlen(limit_names[resource]), &limit->rlim_cur);
	read_limit(line, &limit->rlim_max);
	return 0;
}

// CRIU makes the root of the tree, and asks for limits, with the pid that its own /proc knows,
// through syscall(2).
long syscall(long number, ...)
{
	static long (*next)(long, ...);
	long a[6], ret;
	va_list args;

	if (!next)
		next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
	va_start(args, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(args, long);
	va_end(args);
	// The root then fills the namespace that it is in instead of a new one.
	if (same_ipc && number == SYS_clone3)
		((struct clone_args *)a[0])->flags &= ~(__u64)CLONE_NEWIPC;
	ret = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (ret < 0 && errno == EPERM && number == SYS_prlimit64 && !a[2] && a[3]) {
		if (!limit_from_proc((int)a[0], (unsigned int)a[1], (struct rlimit64 *)a[3]))
			return 0;
		errno = EPERM;
	}
	return ret;
}
