//go:build linux && amd64

package criu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clean takes CRIU's mappings and descriptors out of the process: by system calls of the
// thread itself, which must have its own registers again and gets them back. before are the
// descriptors that the process had by itself, or nil.
func (t *thread) clean(before map[string]bool) error {
	areas, vdso, err := t.mappings()
	if err != nil {
		return gone(err)
	}
	fds, err := t.descriptors(before)
	if err != nil {
		return gone(err)
	}
	if len(areas) == 0 && len(fds) == 0 {
		return nil
	}
	at, err := t.findSyscall(vdso)
	if err != nil {
		return err
	}
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(t.tid, &regs); err != nil {
		return gone(err)
	}
	var mask uint64
	if err := ptrace(unix.PTRACE_GETSIGMASK, t.tid, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask))); err != nil {
		return gone(err)
	}
	if err := t.setMask(^uint64(0)); err != nil {
		return err
	}
	var errs []error
	for _, a := range areas {
		errs = append(errs, t.call(at, regs, unix.SYS_MUNMAP, a.from, a.to-a.from))
	}
	for _, fd := range fds {
		errs = append(errs, t.call(at, regs, unix.SYS_CLOSE, uint64(fd), 0))
	}
	// The thread is behind a system call now: what it was in before is begun again by hand.
	regs = restarted(regs)
	errs = append(errs, gone(unix.PtraceSetRegs(t.tid, &regs)), t.setMask(mask))
	return errors.Join(errs...)
}

func (t *thread) setMask(mask uint64) error {
	return gone(ptrace(unix.PTRACE_SETSIGMASK, t.tid, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask))))
}

type area struct{ from, to uint64 }

// mappings are CRIU's, and the kernel's one that has a system call in it.
func (t *thread) mappings() (left []area, vdso area, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", t.tid))
	if err != nil {
		return nil, area{}, err
	}
	for line := range strings.Lines(string(maps)) {
		var a area
		if _, err := fmt.Sscanf(line, "%x-%x ", &a.from, &a.to); err != nil {
			continue
		}
		switch {
		case strings.Contains(line, " "+parasiteName):
			left = append(left, a)
		case strings.Contains(line, "[vdso]"):
			vdso = a
		}
	}
	return left, vdso, nil
}

// descriptors are CRIU's: its file in memory, its log, its socket. The process made none
// itself meanwhile.
func (t *thread) descriptors(before map[string]bool) (left []int, err error) {
	folder := fmt.Sprintf("/proc/%d/fd/", t.tid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if link, err := os.Readlink(folder + e.Name()); err == nil &&
			(strings.HasPrefix(link, parasiteName) || before != nil && !before[e.Name()]) {
			if fd, err := strconv.Atoi(e.Name()); err == nil {
				left = append(left, fd)
			}
		}
	}
	return left, nil
}

func (t *thread) findSyscall(in area) (uint64, error) {
	if in.to == 0 {
		return 0, fmt.Errorf("thread %d has no vDSO", t.tid)
	}
	code := make([]byte, in.to-in.from)
	if _, err := unix.PtracePeekText(t.tid, uintptr(in.from), code); err != nil {
		return 0, fmt.Errorf("read the vDSO of thread %d: %w", t.tid, err)
	}
	i := bytes.Index(code, []byte{0x0f, 0x05}) // the instruction syscall
	if i < 0 {
		return 0, fmt.Errorf("thread %d: no system call in the vDSO", t.tid)
	}
	return in.from + uint64(i), nil
}

// call has the thread make one system call, and stop right behind it. Its signals must be
// blocked: the handler of one would return into the middle of the vDSO.
func (t *thread) call(at uint64, regs unix.PtraceRegs, number, a, b uint64) error {
	regs.Rip, regs.Rax, regs.Orig_rax, regs.Rdi, regs.Rsi = at, number, ^uint64(0), a, b
	if err := unix.PtraceSetRegs(t.tid, &regs); err != nil {
		return gone(err)
	}
	for range 2 { // on the way in and on the way out
		if err := t.toSystemCall(); err != nil || !t.stopped {
			return err
		}
	}
	var after unix.PtraceRegs
	if err := unix.PtraceGetRegs(t.tid, &after); err != nil {
		return gone(err)
	}
	if int64(after.Rax) < 0 {
		return fmt.Errorf("thread %d: system call %d of the repair: %w", t.tid, number, unix.Errno(-int64(after.Rax)))
	}
	return nil
}

// toSystemCall lets the thread go on to the next beginning or end of a system call.
func (t *thread) toSystemCall() error {
	deadline := time.Now().Add(repairTimeout)
	signal := 0
	for {
		t.stopped = false
		if err := ptrace(unix.PTRACE_SYSCALL, t.tid, 0, uintptr(signal)); err != nil {
			return gone(err)
		}
		ws, err := t.wait(deadline)
		if err != nil || !ws.Stopped() {
			return err
		}
		t.stopped = true
		switch {
		case ws.StopSignal() == unix.SIGTRAP|0x80:
			return nil
		case int(ws)>>16 == 0:
			signal = int(ws.StopSignal()) // SIGSTOP, which cannot be blocked: it stays with the thread
		default:
			signal = 0 // stopped by that, which holds again when the repair is over
		}
	}
}
