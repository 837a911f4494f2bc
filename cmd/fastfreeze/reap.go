package main

import (
	"unsafe"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// endingNs is how long PID 1 of a shared pid namespace waits for the children that it has killed; one that
// hangs in the kernel must not keep the container from ending. The shim kills the cgroup as well.
const endingNs = 2e9

var waitStatus int32

// reap takes the status of every child that has ended.
func (p *pid1) reap() {
	drain(p.childFd)
	for {
		pid, e := sys4(sysWait4, ^uintptr(0), uintptr(unsafe.Pointer(&waitStatus)), wNohang|wAll, 0)
		if e == eCHILD && p.state == ending {
			exit(p.exitCode)
		}
		if e == eINTR {
			continue
		}
		if pid <= 0 {
			break
		}
		status := waitStatus
		p.reapedPid[p.reapedAt], p.reapedSt[p.reapedAt] = int32(pid), status
		p.reapedAt = (p.reapedAt + 1) % len(p.reapedPid)
		if pid != p.app {
			continue
		}
		switch p.state {
		case starting:
			// The pipe tells whether this was the application or a failed exec.
			if p.execDone(); p.state == running {
				p.ended(status)
			} else {
				p.forget(pid)
			}
		case running:
			p.ended(status)
		case restoring:
			p.early, p.hasEarly = status, true
		}
	}
	if p.state == ending {
		p.killChildren()
	}
}

// reaped looks a pid up among those that ended last.
func (p *pid1) reaped(pid int) (status int32, ok bool) {
	for i := range p.reapedPid {
		at := (p.reapedAt + len(p.reapedPid) - 1 - i) % len(p.reapedPid)
		if int(p.reapedPid[at]) == pid {
			return p.reapedSt[at], true
		}
	}
	return 0, false
}

// forget takes a pid off those that ended last: the next process that has it is another one.
func (p *pid1) forget(pid int) {
	for i := range p.reapedPid {
		if int(p.reapedPid[i]) == pid {
			p.reapedPid[i] = 0
		}
	}
}

// ended: the application's root process is gone.
func (p *pid1) ended(status int32) {
	p.send(&initproto.Message{Type: initproto.Exited, Pid: int32(p.app), Status: uint32(status)})
	p.state = idle
	p.forget(p.app)
	if p.flags&initproto.Tied == 0 {
		return
	}
	code := int(status>>8) & 0xff
	if sig := int(status & 0x7f); sig != 0 {
		code = 128 + sig
	}
	p.end(code)
}

// end ends PID 1. The end of a pid namespace's PID 1 ends all in it; elsewhere the children that PID 1 has
// inherited from the application are killed first.
func (p *pid1) end(code int) {
	if p.self == 1 {
		exit(code)
	}
	p.state, p.exitCode, p.deadline = ending, code, now()+endingNs
	p.killChildren()
}

var childList [4096]byte

// killChildren kills the children that there are. Their children come to PID 1 as they end and are killed then.
func (p *pid1) killChildren() {
	file := newCstring("/proc/self/task/" + itoa(p.self) + "/children")
	cwd := atFdcwd
	fd, e := sys4(sysOpenat, uintptr(cwd), uintptr(unsafe.Pointer(file)), oCloexec, 0)
	if e != 0 {
		exit(p.exitCode)
	}
	killed, pid := 0, 0
	for {
		n, _ := sys3(sysRead, uintptr(fd), uintptr(unsafe.Pointer(&childList)), uintptr(len(childList)))
		if n <= 0 {
			break
		}
		for _, c := range childList[:n] {
			if c >= '0' && c <= '9' {
				pid = pid*10 + int(c-'0')
			} else if pid > 0 {
				kill(pid, sigKILL)
				killed, pid = killed+1, 0
			}
		}
	}
	closeFd(fd)
	if killed == 0 {
		exit(p.exitCode)
	}
}

var clock [2]int64

// now is the monotonic clock in nanoseconds.
func now() int64 {
	sys3(sysClockGettime, clockMonotonic, uintptr(unsafe.Pointer(&clock)), 0)
	return clock[0]*1e9 + clock[1]
}
