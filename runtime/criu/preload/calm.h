// SPDX-License-Identifier: Apache-2.0
//
// CRIU gets a process back from the code that it ran in it by a breakpoint. When CRIU is killed
// before it has waited for that, the kernel gives the SIGTRAP to the process, which it ends. So
// such code is run from one system call to the next instead, and CRIU told of a breakpoint: the
// stop at a system call leaves no signal behind.
#ifndef FASTMIG_CALM_H
#define FASTMIG_CALM_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static long raw_ptrace(long request, pid_t pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, request, pid, addr, data);
}

#ifdef __x86_64__

static struct {
	pid_t pid;         // the thread that runs CRIU's code, or 0
	bool inside;       // a system call
	uint64_t last;     // the address behind the last one
	uint64_t trap;     // where it has taken the place of a breakpoint, or 0
	uint64_t *here;    // that place in CRIU's own memory
	uint64_t was;      // what was there
	pid_t told;        // the thread that CRIU was told of
	sigset_t signals;  // those that CRIU had blocked
} calm;

static bool peek(pid_t pid, uint64_t addr, uint64_t *word)
{
	return raw_ptrace(PTRACE_PEEKDATA, pid, (void *)addr, word) == 0;
}

// What takes the place of the breakpoint, and of what is behind it to align: xchg %rax,%rdi;
// push $39; pop %rax; syscall; int3. That is getpid(2), which does nothing if nobody stops it.
#define CALM_TRAP 0xcc050f58276a9748ULL
#define CALM_TRAP_CALL 7

// A thread that is not its process's first runs code that ends with a breakpoint; the first one
// goes on to serve CRIU.
static bool find_trap(pid_t pid, uint64_t at)
{
	// syscall (rt_sigreturn, not of this thread), int3, nopw
	static const uint8_t end[] = { 0x0f, 0x05, 0xcc, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0 };
	uint64_t words[8];

	if (!syscall(SYS_tgkill, pid, pid, 0) || errno != ESRCH)
		return false;
	for (size_t i = 0; i < 8; i++)
		if (!peek(pid, at + 8 * i, &words[i]))
			return false;
	for (size_t i = 0; i + sizeof(end) <= sizeof(words); i++) {
		if (!memcmp((uint8_t *)words + i, end, sizeof(end))) {
			calm.trap = at + i + 2;
			return true;
		}
	}
	return false;
}

// The mapping that has CRIU's code, of a process ("self" is CRIU): what is at addr or, if that
// is 0, of the file *inode.
static uint64_t find_blob(const char *process, uint64_t addr, unsigned long *inode)
{
	char path[32], line[256];
	unsigned long from, to, found;
	uint64_t start = 0;
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%s/maps", process);
	maps = fopen(path, "re");
	while (maps && !start && fgets(line, sizeof(line), maps)) {
		if (strstr(line, "/memfd:CRIUMFD") && sscanf(line, "%lx-%lx %*s %*s %*s %lu", &from, &to, &found) == 3 &&
		    (addr ? addr >= from && addr < to : found == *inode)) {
			*inode = found;
			start = from;
		}
	}
	if (maps)
		fclose(maps);
	return start;
}

// CRIU's code is not to be written to in the process, but where CRIU has it.
static uint64_t *trap_here(pid_t pid)
{
	char number[16];
	unsigned long inode = 0;
	uint64_t theirs, ours;

	snprintf(number, sizeof(number), "%d", pid);
	theirs = find_blob(number, calm.trap, &inode);
	ours = theirs ? find_blob("self", 0, &inode) : 0;
	return ours ? (uint64_t *)(ours + calm.trap - theirs) : NULL;
}

// Whether the thread, which CRIU lets go on, is to run from system call to system call.
static bool go_calmly(pid_t pid)
{
	struct user_regs_struct regs;
	uint64_t word;
	sigset_t child;
	int saved = errno;

	calm.told = 0;
	calm.pid = 0;
	calm.inside = false;
	calm.trap = 0;
	if (!raw_ptrace(PTRACE_GETREGS, pid, NULL, &regs) && peek(pid, regs.rip, &word)) {
		word &= 0xffffff;
		if (word == 0xcc050f || word == 0xcc80cd) { // syscall or int $0x80, and int3
			calm.pid = pid;
			calm.last = regs.rip + 2;
		} else if (find_trap(pid, regs.rip) && (calm.here = trap_here(pid))) {
			memcpy(&calm.was, calm.here, sizeof(calm.was));
			memcpy(calm.here, &(uint64_t){ CALM_TRAP }, sizeof(calm.was));
			calm.pid = pid;
			calm.last = calm.trap + CALM_TRAP_CALL;
		}
	}
	if (calm.pid) {
		// CRIU's handler would wait for the stops that are waited for here.
		sigemptyset(&child);
		sigaddset(&child, SIGCHLD);
		sigprocmask(SIG_BLOCK, &child, &calm.signals);
	}
	errno = saved;
	return calm.pid != 0;
}

// Takes the thread on from a stop; true when CRIU is to be told of it.
static bool calmed(int *status)
{
	struct user_regs_struct regs;

	if (WIFSTOPPED(*status) && *status >> 8 == (SIGTRAP | 0x80) && !raw_ptrace(PTRACE_GETREGS, calm.pid, NULL, &regs)) {
		if (!calm.inside || regs.rip != calm.last) {
			calm.inside = !calm.inside;
			raw_ptrace(PTRACE_SYSCALL, calm.pid, NULL, NULL);
			return false;
		}
		if (calm.trap) {
			regs.rax = regs.rdi;
			raw_ptrace(PTRACE_SETREGS, calm.pid, NULL, &regs);
		}
		*status = SIGTRAP << 8 | 0x7f;
		calm.told = calm.pid;
	}
	if (calm.trap)
		memcpy(calm.here, &calm.was, sizeof(calm.was));
	calm.pid = 0;
	sigprocmask(SIG_SETMASK, &calm.signals, NULL);
	return true;
}

pid_t wait4(pid_t pid, int *status, int options, struct rusage *usage)
{
	pid_t got;
	int mine;

	do {
		got = syscall(SYS_wait4, pid, &mine, options, usage);
	} while (got > 0 && got == calm.pid && !calmed(&mine));
	if (got > 0 && status)
		*status = mine;
	return got;
}

// What CRIU reads of the breakpoint that it was told of.
static void tell_trap(pid_t pid, siginfo_t *info)
{
	if (pid != calm.told)
		return;
	info->si_signo = SIGTRAP;
	info->si_code = SI_KERNEL;
}

#else
static bool go_calmly(pid_t pid) { (void)pid; return false; }
static void tell_trap(pid_t pid, siginfo_t *info) { (void)pid; (void)info; }
#endif
#endif
