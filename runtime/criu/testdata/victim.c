// SPDX-License-Identifier: Apache-2.0
//
// An application that is not written in Go, for the tests: like a shell it has children of few
// milliseconds, one after the other. With a number N as its argument it has N more threads, which
// calculate and sleep. It counts its rounds in the file /run/rounds, and ends by SIGABRT when a
// register or a system call is not as it should be.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t ended;
static uint64_t rounds;

static void on_child(int signo)
{
	(void)signo;
	ended++;
}

static void doze(long ns)
{
	struct timespec t = { .tv_nsec = ns };

	if (nanosleep(&t, NULL) < 0 && errno != EINTR)
		abort();
}

static void calculate(void)
{
	volatile double want = 0;
	double sum = 0;

	for (int i = 1; i < 20000; i++) {
		sum += i * 0.5;
		want = want + i * 0.5;
	}
	if (sum != want)
		abort();
}

static void *work(void *unused)
{
	for (;;) {
		calculate();
		doze(500000);
		__atomic_fetch_add(&rounds, 1, __ATOMIC_RELAXED);
	}
	return unused;
}

int main(int argc, char **argv)
{
	struct sigaction heard = { .sa_handler = on_child, .sa_flags = SA_RESTART };
	int file = open("/run/rounds", O_RDWR | O_CREAT | O_TRUNC, 0644);
	pthread_t thread;

	if (file < 0)
		abort();
	if (argc > 1)
		sigaction(SIGCHLD, &heard, NULL);
	for (int i = argc > 1 ? atoi(argv[1]) : 0; i > 0; i--)
		if (pthread_create(&thread, NULL, work, NULL))
			abort();
	for (;;) {
		pid_t child = fork();
		int status;

		if (!child) {
			doze(3000000);
			_exit(7);
		}
		if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7)
			abort();
		calculate();
		__atomic_fetch_add(&rounds, 1, __ATOMIC_RELAXED);
		if (pwrite(file, &rounds, sizeof(rounds), 0) != sizeof(rounds))
			abort();
	}
}
