//go:build linux

package criu

import (
	"errors"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// watch is wait, as a tracer of the process (ptrace(2)). PTRACE_O_TRACEEXIT stops it on its
// way out, whatever ended it, SIGKILL too, before the kernel takes from it what it traces.
// watching is closed when that holds, or cannot be had.
func (p *process) watch(dying func(), watching chan struct{}) {
	// Tracing belongs to the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	options, goOn := uintptr(unix.PTRACE_O_TRACEEXIT), unix.PTRACE_CONT
	if p.step != nil {
		options, goOn = options|unix.PTRACE_O_TRACESYSGOOD, unix.PTRACE_SYSCALL
	}
	err := ptrace(unix.PTRACE_SEIZE, p.pid, 0, options)
	if err == nil && p.step != nil {
		err = ptrace(unix.PTRACE_INTERRUPT, p.pid, 0, 0)
	}
	close(watching)
	if err != nil {
		p.wait()
		return
	}
	for {
		_, err := syscall.Wait4(p.pid, &p.status, unix.WALL, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || !p.status.Stopped() {
			p.err = err
			close(p.ended)
			return
		}
		request, signal := goOn, int(p.status.StopSignal())
		if signal == int(unix.SIGTRAP)|0x80 {
			if p.step(p.pid) {
				continue // to let it go on now would be to let it end
			}
			signal = 0
		}
		switch int(p.status) >> 16 {
		case unix.PTRACE_EVENT_EXIT:
			var status uint
			if status, err = unix.PtraceGetEventMsg(p.pid); err == nil && syscall.WaitStatus(status).Signaled() {
				// Its helpers would become the container's. Nobody reaps them meanwhile.
				for _, child := range descendants(p.pid) {
					_ = unix.Kill(child, unix.SIGKILL)
				}
				dying()
			}
			signal = 0
		case unix.PTRACE_EVENT_STOP:
			// Stopped as by job control, or let go on from that.
			if p.status.StopSignal() != unix.SIGTRAP {
				request = unix.PTRACE_LISTEN
			}
			signal = 0
		}
		_ = ptrace(request, p.pid, 0, uintptr(signal)) // it may just have been killed
	}
}

func ptrace(request, pid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
