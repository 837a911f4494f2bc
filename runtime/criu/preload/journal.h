// SPDX-License-Identifier: Apache-2.0
//
// What CRIU changes in a process, registers, signal mask and code, is noted before it is
// changed, in a file in memory that the launcher has too. When CRIU is killed the launcher
// changes it back (repair.go, which knows the layout of struct undo).
#ifndef FASTMIG_JOURNAL_H
#define FASTMIG_JOURNAL_H

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <unistd.h>

#include "calm.h"

enum { UNDO_REGS = 1, UNDO_MASK, UNDO_WORD, UNDO_DETACHED, UNDO_FPREGS };

struct undo {
	uint32_t kind; // written last
	int32_t pid;   // the thread, in CRIU's pid namespace
	uint64_t addr; // of a word
	union {
		uint64_t word; // or the signal mask
#ifdef __x86_64__
		struct user_regs_struct regs;
		struct user_fpregs_struct fpregs; // CRIU's code uses no wider registers
#endif
		uint8_t any[512];
	};
};

static struct undo *journal; // or NULL
static size_t journal_size, journal_used; // in entries

static void open_journal(int fd)
{
	const struct sigaction unheard = { .sa_handler = SIG_DFL };
	struct stat st;
	size_t bytes;
	void *p;

	if (fd < 0 || fstat(fd, &st) < 0)
		return;
	bytes = st.st_size;
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return;
	journal = p;
	journal_size = bytes / sizeof(struct undo);
	sigaction(SIGCHLD, &unheard, NULL);
}

// A dump with a journal is traced (watch.go), and every signal stops it then, even one that it
// takes no notice of: some ten a process that it dumps. So the kernel is told that nobody hears
// of its tracees' stops, but where CRIU has a handler for them. wait4 tells of them all the same.
int sigaction(int signal, const struct sigaction *act, struct sigaction *old)
{
	static int (*next)(int, const struct sigaction *, struct sigaction *);
	struct sigaction quiet;

	if (!next)
		next = (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(RTLD_NEXT, "sigaction");
	if (journal && signal == SIGCHLD && act && act->sa_handler == SIG_DFL) {
		quiet = *act;
		quiet.sa_flags |= SA_NOCLDSTOP;
		act = &quiet;
	}
	return next(signal, act, old);
}

// How far noted looks back. What it misses is noted twice; the older entry counts.
#define JOURNAL_WINDOW 64

// A thread's entries begin anew once it was let go.
static struct undo *noted(uint32_t kind, pid_t pid, uint64_t addr)
{
	size_t first = journal_used > JOURNAL_WINDOW ? journal_used - JOURNAL_WINDOW : 0;

	for (size_t i = journal_used; i-- > first;) {
		struct undo *u = &journal[i];

		if (u->pid != pid)
			continue;
		if (u->kind == UNDO_DETACHED)
			return NULL;
		if (u->kind == kind && u->addr == addr)
			return u;
	}
	return NULL;
}

static struct undo *new_entry(pid_t pid, uint64_t addr)
{
	struct undo *u;

	if (journal_used == journal_size)
		return NULL;
	u = &journal[journal_used];
	u->pid = pid;
	u->addr = addr;
	return u;
}

static void keep_entry(struct undo *u, uint32_t kind)
{
	__atomic_store_n(&u->kind, kind, __ATOMIC_RELEASE);
	journal_used++;
}

static void note_regs(pid_t pid)
{
#ifdef __x86_64__
	struct undo *u;
	struct iovec iov;

	if (noted(UNDO_REGS, pid, 0) || !(u = new_entry(pid, 0)))
		return;
	iov.iov_base = &u->regs;
	iov.iov_len = sizeof(u->regs);
	if (!raw_ptrace(PTRACE_GETREGSET, pid, (void *)NT_PRSTATUS, &iov) && iov.iov_len == sizeof(u->regs))
		keep_entry(u, UNDO_REGS);
	if ((u = new_entry(pid, 0)) && !raw_ptrace(PTRACE_GETFPREGS, pid, NULL, &u->fpregs))
		keep_entry(u, UNDO_FPREGS);
#else
	(void)pid;
#endif
}

static void note_mask(pid_t pid)
{
	struct undo *u;

	if (noted(UNDO_MASK, pid, 0) || !(u = new_entry(pid, 0)))
		return;
	if (!raw_ptrace(PTRACE_GETSIGMASK, pid, (void *)sizeof(u->word), &u->word))
		keep_entry(u, UNDO_MASK);
}

static void note_word(pid_t pid, void *addr)
{
	struct undo *u;

	if (noted(UNDO_WORD, pid, (uint64_t)addr) || !(u = new_entry(pid, (uint64_t)addr)))
		return;
	if (!raw_ptrace(PTRACE_PEEKDATA, pid, addr, &u->word))
		keep_entry(u, UNDO_WORD);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list args;
	void *addr, *data;
	pid_t pid;
	long ret, word;
	int saved = errno;
	struct undo *u;

	va_start(args, request);
	pid = va_arg(args, pid_t);
	addr = va_arg(args, void *);
	data = va_arg(args, void *);
	va_end(args);
	if (journal) {
		switch ((long)request) {
		case PTRACE_SETREGSET:
			if ((long)addr == NT_PRSTATUS)
				note_regs(pid);
			break;
		case PTRACE_SETREGS:
			note_regs(pid);
			break;
		case PTRACE_SETSIGMASK:
			note_mask(pid);
			break;
		case PTRACE_POKETEXT:
		case PTRACE_POKEDATA:
			note_word(pid, addr);
			break;
		case PTRACE_CONT:
			if (!data && go_calmly(pid))
				request = PTRACE_SYSCALL;
			break;
		}
	}
	errno = saved;
	// As the C library does it: the words that the kernel stores are returned.
	if ((long)request >= PTRACE_PEEKTEXT && (long)request <= PTRACE_PEEKUSER)
		data = &word;
	ret = raw_ptrace(request, pid, addr, data);
	if (ret >= 0 && (long)request >= PTRACE_PEEKTEXT && (long)request <= PTRACE_PEEKUSER) {
		errno = 0;
		return word;
	}
	if (ret >= 0 && request == PTRACE_GETSIGINFO)
		tell_trap(pid, data);
	if (journal && ret >= 0 && request == PTRACE_DETACH && (u = new_entry(pid, 0)))
		keep_entry(u, UNDO_DETACHED);
	return ret;
}

#endif
