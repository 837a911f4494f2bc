package main

import "unsafe"

// spawner holds all that a fork and exec of the application needs, so that nothing is allocated between the
// shim's word and the fork.
type spawner struct {
	name     string // argv[0]
	path     cstring
	argv     []*byte
	envp     []*byte
	mask     uint64
	thpFixed bool
	terminal bool
	failPipe int // the child's end of the pipe that reports a failure
}

// failure is what the child writes if it cannot become the application.
type failure struct {
	step uint32
	code errno
}

// Steps of a failure.
const (
	stepExec = iota
	stepSession
	stepTerminal
)

// ksigaction is the kernel's struct sigaction on x86-64 and arm64.
type ksigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// These are used by the child only: its copy of the memory is its own.
var (
	childAction  ksigaction
	childFailure failure
)

// fork makes the application's process. The child has a copy of the memory and one thread: it may only enter
// the kernel, nothing of the Go runtime works there. Signals stay blocked until it has no handlers left.
//
//go:norace
func (s *spawner) fork() (int, errno) {
	pid, e := result(rawSyscall6(sysClone, sigCHLD, 0, 0, 0, 0, 0))
	if pid != 0 {
		return pid, e
	}
	for sig := uintptr(1); sig <= numSig; sig++ {
		rawSyscall6(sysRtSigaction, sig, 0, uintptr(unsafe.Pointer(&childAction)), 8, 0, 0)
		if childAction.handler != sigDfl && childAction.handler != sigIgn {
			childAction = ksigaction{}
			rawSyscall6(sysRtSigaction, sig, uintptr(unsafe.Pointer(&childAction)), 0, 8, 0, 0)
		}
	}
	if _, e := result(rawSyscall6(sysSetsid, 0, 0, 0, 0, 0, 0)); e != 0 {
		s.fail(stepSession, e)
	}
	if s.terminal {
		if _, e := result(rawSyscall6(sysIoctl, 0, tiocSctty, 0, 0, 0, 0)); e != 0 {
			s.fail(stepTerminal, e)
		}
	}
	// Daemons that the application makes stay in its tree, as they would below PID 1.
	rawSyscall6(sysPrctl, prSetChildSubreaper, 1, 0, 0, 0, 0)
	if s.thpFixed {
		rawSyscall6(sysPrctl, prSetThpDisable, 0, 0, 0, 0, 0)
	}
	rawSyscall6(sysRtSigprocmask, sigSetmask, uintptr(unsafe.Pointer(&s.mask)), 0, 8, 0, 0)
	_, e = result(rawSyscall6(sysExecve, uintptr(unsafe.Pointer(s.path)),
		uintptr(unsafe.Pointer(&s.argv[0])), uintptr(unsafe.Pointer(&s.envp[0])), 0, 0, 0))
	s.fail(stepExec, e)
	return 0, 0
}

// fail reports the failure of a step to the parent and ends the child.
//
//go:norace
//go:nosplit
func (s *spawner) fail(step uint32, e errno) {
	childFailure = failure{step, e}
	rawSyscall6(sysWrite, uintptr(s.failPipe), uintptr(unsafe.Pointer(&childFailure)), unsafe.Sizeof(childFailure), 0, 0, 0)
	for {
		rawSyscall6(sysExitGroup, 127, 0, 0, 0, 0, 0)
	}
}

// describe says in words what failed.
func (f failure) describe(app string) string {
	switch f.step {
	case stepSession:
		return "making a session for the application: " + f.code.Error()
	case stepTerminal:
		return "giving the terminal to the application: " + f.code.Error()
	}
	return "exec " + app + ": " + f.code.Error()
}

// dropTerminal gives up the controlling terminal, so that the application's session can have it. The kernel
// sends SIGHUP and SIGCONT to the terminal's foreground group, which is PID 1's own: they are taken off again.
func dropTerminal() {
	if _, e := sys3(sysIoctl, 0, tiocNotty, 0); e != 0 {
		return
	}
	signals, zero := sigset(sigHUP, sigCONT), [2]int64{}
	for {
		_, e := sys4(sysRtSigtimedwait, uintptr(unsafe.Pointer(&signals)), 0, uintptr(unsafe.Pointer(&zero)), 8)
		if e != 0 && e != eINTR {
			return
		}
	}
}

// dropStdio replaces descriptors 0 to 2 by pipes without another end: the end of file for a reader, EPIPE for
// a writer. Where no pipe can be had they stay as they are.
func dropStdio() {
	var in, out [2]int32
	if _, e := sys3(sysPipe2, uintptr(unsafe.Pointer(&in)), oCloexec, 0); e != 0 {
		return
	}
	if _, e := sys3(sysPipe2, uintptr(unsafe.Pointer(&out)), oCloexec, 0); e == 0 {
		sys3(sysDup3, uintptr(in[0]), 0, 0)
		sys3(sysDup3, uintptr(out[1]), 1, 0)
		sys3(sysDup3, uintptr(out[1]), 2, 0)
		closeFd(int(out[0]))
		closeFd(int(out[1]))
	}
	closeFd(int(in[0]))
	closeFd(int(in[1]))
}

func sigset(signals ...int) uint64 {
	var s uint64
	for _, sig := range signals {
		s |= 1 << (sig - 1)
	}
	return s
}
