//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How CRIU is made to end when the caller gives up.
const (
	// stopGrace is how long CRIU has to give up a dump by itself before it is killed.
	stopGrace = 5 * time.Second
	// killGrace bounds the wait for killed processes to be gone. A process in an
	// uninterruptible wait of the kernel may take longer than any wait of ours.
	killGrace = 5 * time.Second
)

// stopDump asks CRIU to give up: the code of preload/preload.c lets its next step fail, and
// CRIU takes its code out of the processes and lets them go. What a CRIU that is killed leaves
// in them is taken out by repair.go.
func (t *Tool) stopDump(p *process) {
	_ = p.signal(unix.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(t.grace):
		_ = p.signal(unix.SIGKILL)
	}
}

// killTree kills a process and all its descendants. They are stopped from the top down first,
// so that none starts another or is reaped, and its number reused, in between. thaw is called
// when all are killed: a frozen process dies only then.
func killTree(root int, thaw func()) error {
	stopped := map[int]*os.File{}
	defer func() {
		for _, f := range stopped {
			_ = f.Close()
		}
	}()
	for {
		fresh := false
		for _, pid := range append([]int{root}, descendants(root)...) {
			if stopped[pid] != nil {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if errors.Is(err, unix.ESRCH) {
				continue
			}
			if err != nil {
				return fmt.Errorf("open process %d of CRIU: %w", pid, err)
			}
			pidfd := os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(pid))
			// The number may have changed hands before it was opened.
			if pid != root && !slices.Contains(descendants(root), pid) {
				_ = pidfd.Close()
				continue
			}
			stopped[pid], fresh = pidfd, true
			if err := unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("stop process %d of CRIU: %w", pid, err)
			}
		}
		if !fresh {
			break
		}
	}
	var errs []error
	for pid, pidfd := range stopped {
		if err := killPidfd(pidfd); err != nil {
			errs = append(errs, fmt.Errorf("kill process %d of CRIU: %w", pid, err))
		}
	}
	thaw()
	deadline := time.Now().Add(killGrace)
	for pid, pidfd := range stopped {
		if err := waitPidfd(pidfd, time.Until(deadline)); err != nil {
			errs = append(errs, fmt.Errorf("wait for the end of process %d of CRIU: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

func killPidfd(pidfd *os.File) error {
	fd, err := rawFd(pidfd)
	if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// waitPidfd waits until the process has ended, reaped or not.
func waitPidfd(pidfd *os.File, patience time.Duration) error {
	fd, err := rawFd(pidfd)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(patience)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return context.DeadlineExceeded
		default:
			return nil
		}
	}
}

// descendants lists the children of a process, their children and so on, parents first.
func descendants(root int) []int {
	var all []int
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		children := childrenOf(queue[0])
		all = append(all, children...)
		queue = append(queue, children...)
	}
	return all
}

// Children lists the children of a process, those that have ended and are not yet reaped too.
// The list is not made at one instant: who needs to be sure opens a pidfd and looks again.
func Children(pid int) []int { return childrenOf(pid) }

// childrenOf reads /proc/PID/task/TID/children of each thread, see proc(5).
func childrenOf(pid int) []int {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	var children []int
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for _, s := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(s); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}
