package main

import (
	"sync/atomic"
	"unsafe"
)

// takeSignals turns all signals into readable descriptors. For that every thread must block them, those of
// the Go runtime too.
func (p *pid1) takeSignals() {
	maskThreads(p.self)
	child := sigset(sigCHLD)
	others := ^child
	var e errno
	none := ^uintptr(0)
	if p.childFd, e = sys4(sysSignalfd4, none, uintptr(unsafe.Pointer(&child)), 8, oCloexec|oNonblock); e == 0 {
		p.signalFd, e = sys4(sysSignalfd4, none, uintptr(unsafe.Pointer(&others)), 8, oCloexec|oNonblock)
	}
	if e != 0 {
		die("making a signalfd", e, "the container's seccomp profile must allow signalfd4")
	}
}

// signalInfo is struct signalfd_siginfo (signalfd(2)).
type signalInfo struct {
	signo uint32
	errno int32
	code  int32
	pid   uint32
	uid   uint32
	_     [28]byte
	value uint64 // what came with sigqueue(3)
	_     [72]byte
}

// queuedInfo is siginfo_t as rt_sigqueueinfo(2) takes it.
type queuedInfo struct {
	signo, errno, code int32
	_                  int32
	pid, uid           uint32
	value              uint64
	_                  [96]byte
}

var (
	infos  [8]signalInfo
	queued queuedInfo
)

func drain(fd int) {
	for {
		if n, _ := sys3(sysRead, uintptr(fd), uintptr(unsafe.Pointer(&infos)), unsafe.Sizeof(infos)); n <= 0 {
			return
		}
	}
}

// forward hands signals that were sent to PID 1 to the application.
func (p *pid1) forward() {
	for {
		n, _ := sys3(sysRead, uintptr(p.signalFd), uintptr(unsafe.Pointer(&infos)), unsafe.Sizeof(infos))
		if n <= 0 {
			return
		}
		for i := range infos[:n/int(unsafe.Sizeof(infos[0]))] {
			s := &infos[i]
			switch s.signo {
			case sigSEGV, sigBUS, sigILL, sigFPE:
				if s.pid == 0 && s.code <= 0 {
					crash()
				}
			case sigTTIN, sigTTOU:
				continue // the terminal's word about PID 1 itself
			case sigPIPE, sigURG:
				if s.code > 0 || int(s.pid) == p.self {
					continue // PID 1's own write, the Go runtime's own pre-emption
				}
			}
			if s.code == siQueue && p.hasApp() && p.requeue(s) {
				continue
			}
			p.signal(int(s.signo))
		}
	}
}

// fault is never set.
var fault *byte

// crash ends PID 1 as a fault of its own would: somebody outside the pid namespace (whose number is 0 here) has
// sent it, and not the application, the signal of one. As these signals are blocked, the kernel's answer to a real
// fault is the end, which no signal from within could bring about (pid_namespaces(7)).
func crash() { *fault = 1 }

// requeue passes a signal on with the value that came with it.
func (p *pid1) requeue(s *signalInfo) bool {
	queued = queuedInfo{signo: int32(s.signo), errno: s.errno, code: s.code, pid: s.pid, uid: s.uid, value: s.value}
	_, e := sys3(sysRtSigqueueinfo, uintptr(p.app), uintptr(s.signo), uintptr(unsafe.Pointer(&queued)))
	return e == 0
}

func (p *pid1) hasApp() bool { return p.state == starting || p.state == running }

// signal gives the application a signal. Without an application those that end a program end PID 1.
func (p *pid1) signal(sig int) {
	switch p.state {
	case starting, running:
		kill(p.app, sig)
	case restoring:
		p.held |= sigset(sig)
	case idle:
		switch sig {
		// Not SIGKILL, which only the shim can ask for: it meant an application that has ended meanwhile. PID 1 it
		// kills without asking.
		case sigHUP, sigINT, sigQUIT, sigTERM:
			p.end(128 + sig)
		}
	}
}

// maskerPC gives the addresses of the handler that blocks all signals of its thread and of the code behind it.
func maskerPC() (handler, restorer uintptr)

// masked counts the threads that the handler has run on.
var masked uint32

// maskThreads makes every thread block all signals, for good. The runtime leaves a fixed set of signals
// unblocked in each of its threads and offers no way to say otherwise; a signal handler can change the mask of
// the thread that it interrupts. settle.go sees to it that there are no other threads later.
func maskThreads(self int) {
	const how = saSiginfo | saOnstack | saRestart | saRestorer
	all := ^uint64(0)
	sys4(sysRtSigprocmask, sigSetmask, uintptr(unsafe.Pointer(&all)), 0, 8)
	handler, restorer := maskerPC()
	action := ksigaction{handler: handler, flags: how, restorer: restorer, mask: all}
	sys4(sysRtSigaction, sigURG, uintptr(unsafe.Pointer(&action)), 0, 8)

	dir := newCstring("/proc/self/task")
	cwd := atFdcwd
	fd, e := sys4(sysOpenat, uintptr(cwd), uintptr(unsafe.Pointer(dir)), oCloexec, 0)
	if e != 0 {
		die("looking for its threads in /proc/self/task", e, "the container needs /proc mounted")
	}
	sent, list := uint32(0), new([4096]byte)
	for {
		n, _ := sys3(sysGetdents64, uintptr(fd), uintptr(unsafe.Pointer(list)), unsafe.Sizeof(*list))
		if n <= 0 {
			break
		}
		// struct linux_dirent64: inode and offset of 8 bytes each, its length in 2, a type, the name.
		for at := 0; at < n; at += int(*(*uint16)(unsafe.Pointer(&list[at+16]))) {
			tid := 0
			for i := at + 19; list[i] >= '0' && list[i] <= '9'; i++ {
				tid = tid*10 + int(list[i]-'0')
			}
			if tid == 0 || tid == self {
				continue
			}
			if _, e := sys3(sysTgkill, uintptr(self), uintptr(tid), sigURG); e == 0 {
				sent++
			}
		}
	}
	closeFd(fd)
	for atomic.LoadUint32(&masked) < sent {
		sys3(sysSchedYield, 0, 0, 0)
	}
}
