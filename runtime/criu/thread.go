//go:build linux && amd64

package criu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// thread is one of a container whose dump CRIU was killed over.
type thread struct {
	tid, leader int    // as we see them
	undo        []undo // nil: it is as it was
	stopped     bool
}

// catch waits until the thread has stopped.
func (t *thread) catch() error {
	deadline := time.Now().Add(repairTimeout)
	if t.undo == nil {
		// One that waits in the kernel, as for the end of vfork(2), stops when it comes back.
		deadline = time.Now().Add(idleTimeout)
	}
	for asked := false; ; {
		ws, err := t.wait(deadline)
		switch {
		case err != nil || !ws.Stopped(): // or it has ended
			return err
		case int(ws)>>16 == unix.PTRACE_EVENT_STOP && t.trapPending() && !asked:
			// It would outlive the repair. Nothing of the thread's own code runs before it.
			asked = true
			if err := ptrace(unix.PTRACE_CONT, t.tid, 0, 0); err != nil {
				return gone(err)
			}
			continue
		case int(ws)>>16 == unix.PTRACE_EVENT_STOP, ws.StopSignal() == unix.SIGTRAP && t.trapped():
			t.stopped = true
			return nil
		}
		// A signal on its way: it stays with the thread.
		if err := ptrace(unix.PTRACE_CONT, t.tid, 0, uintptr(ws.StopSignal())); err != nil {
			return gone(err)
		}
	}
}

// wait gives the next that happens to the thread; no stop and no error says that it has ended.
func (t *thread) wait(deadline time.Time) (unix.WaitStatus, error) {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(t.tid, &ws, unix.WALL|unix.WNOHANG|wnothread, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, gone(err)
		case pid == t.tid:
			return ws, nil
		case time.Now().After(deadline):
			return 0, fmt.Errorf("thread %d does not stop", t.tid)
		default:
			time.Sleep(50 * time.Microsecond)
		}
	}
}

// trapPending says whether a thread that CRIU has changed has a SIGTRAP of its own to come.
func (t *thread) trapPending() bool {
	const bit = 1 << (unix.SIGTRAP - 1)
	pending, blocked := t.signals("SigPnd:"), t.signals("SigBlk:")
	return t.undo != nil && pending&^blocked&bit != 0
}

// trapped says whether the thread has run into the breakpoint behind CRIU's code; that it is
// let go on without the signal.
func (t *thread) trapped() bool {
	var info [128]byte // siginfo_t: signo, errno, code
	if err := ptrace(unix.PTRACE_GETSIGINFO, t.tid, 0, uintptr(unsafe.Pointer(&info))); err != nil {
		return false
	}
	const kernel = 0x80 // SI_KERNEL
	return int32(binary.LittleEndian.Uint32(info[8:])) == kernel
}

func leaderOf(tid int) int {
	if n, err := strconv.Atoi(statusOf(tid, "Tgid:")); err == nil {
		return n
	}
	return tid
}

// signals reads a set of signals.
func (t *thread) signals(name string) uint64 {
	n, _ := strconv.ParseUint(statusOf(t.tid, name), 16, 64)
	return n
}

// statusOf gives a line of /proc/TID/status, "" if there is none.
func statusOf(tid int, name string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if rest, found := strings.CutPrefix(line, name); found {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// wnothread has wait4 look at this thread's children only.
const wnothread = 0x20000000
