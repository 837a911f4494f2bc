//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/criu"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto/initconn"
)

// Progress is told how far an operation is: its step, and of that the done part
// and the whole, in bytes; a total of 0 is unknown. It must not block.
type Progress func(step string, done, total int64)

func (p Progress) tell(step string, done, total int64) {
	if p != nil {
		p(step, done, total)
	}
}

// Launch is how one application is set going.
type Launch struct {
	// Checkpoint is what it starts from, nil: from scratch. It stays the
	// caller's to close.
	Checkpoint *Checkpoint
	// Args, Env are the command line, nil: the container's own, and the whole
	// environment, nil: the container's own. From scratch only.
	Args, Env []string
	// Tied: PID 1, and so the container, ends with the application.
	Tied bool
	// DropStdio: PID 1 lets go of the container's stdio once the application
	// runs. A terminal it keeps.
	DropStdio bool
	// Stdio is fresh stdio, nil: PID 1's own. It stays the caller's to close.
	Stdio *[3]*os.File
	// KeepTCP keeps the TCP connections that were established at the
	// checkpoint, if they are in it.
	KeepTCP bool
	// LeaveStopped leaves the processes stopped (SIGSTOP).
	LeaveStopped bool
	// WorkPath is where CRIU's log of a restore goes, "": the bundle.
	WorkPath string
	Progress Progress
}

// reapTimeout bounds the wait for PID 1 to reap what has ended.
const reapTimeout = 2 * time.Second

// Launch sets an application going and blocks until it runs; pid is its number
// in the container. There must be none: the last one has ended, and its end was
// told by Exits. No other process may be started in the container meanwhile.
//
// When it fails no process of the application is left and PID 1 can take the
// next Launch, unless PID 1 itself is the cause. Errors: FailedPrecondition if
// an application runs, if PID 1 has ended, has no stdio left to give, or if the
// container does not fit the checkpoint; NotFound if there is no such program;
// *criu.Error; ctx's.
func (e *Engine) Launch(ctx context.Context, l Launch) (pid int, err error) {
	e.launching.Lock()
	defer e.launching.Unlock()
	if err := e.mayLaunch(l); err != nil {
		return 0, err
	}
	e.mu.Lock()
	again := e.launched
	e.mu.Unlock()
	if again {
		e.awaitReaped(ctx)
	}
	stdio, err := e.stdioOf(l)
	if err != nil {
		return 0, err
	}
	args := l.Args
	if l.Checkpoint != nil {
		args = l.Checkpoint.Manifest.Application.Args
		pid, err = e.restore(ctx, l, stdio)
	} else {
		if args == nil {
			args = e.cfg.Args
		}
		pid, err = e.start(ctx, l)
	}
	if err != nil {
		return 0, err
	}
	drops := l.DropStdio && !e.cfg.Terminal
	e.mu.Lock()
	defer e.mu.Unlock()
	e.launched, e.args, e.keepTCP, e.stdio = true, args, l.KeepTCP, stdio
	// A restored application did not get its stdio by way of PID 1.
	e.dropped = drops || e.dropped && l.Checkpoint != nil
	return pid, nil
}

func (e *Engine) mayLaunch(l Launch) error {
	switch {
	case e.AppPid() != 0:
		return fmt.Errorf("an application runs in container %s already: %w", e.cfg.ID, errdefs.ErrFailedPrecondition)
	case l.Checkpoint != nil && !e.cfg.OwnPids:
		return fmt.Errorf("restore %s: %w", e.cfg.ID, errSharedPids)
	case l.Stdio == nil && e.Dropped():
		return fmt.Errorf("the container's first process has let go of the stdio: the application needs fresh descriptors: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// start runs it from scratch.
func (e *Engine) start(ctx context.Context, l Launch) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// What PID 1 starts is born into its cgroup.
	e.stepBack(ctx)
	flags := e.flags(l)
	var files []*os.File
	if l.Stdio != nil {
		flags |= initproto.NewStdio
		files = append(files, l.Stdio[:]...)
	}
	if l.Args != nil || l.Env != nil {
		args, env := l.Args, l.Env
		if args == nil {
			args = e.cfg.Args
		}
		if env == nil {
			env = e.cfg.Env
		}
		command, err := initconn.CommandFile(args, env)
		if err != nil {
			return 0, fmt.Errorf("start the application: %w", err)
		}
		defer command.Close()
		flags |= initproto.Command
		files = append(files, command)
	}
	if e.cfg.OwnPids {
		if err := e.nextPid(AppPid); err != nil {
			return 0, err
		}
	}
	pid, err := e.conn.start(ctx, flags, files...)
	if err != nil {
		return 0, fmt.Errorf("start the application: %w", err)
	}
	if e.cfg.OwnPids && pid != AppPid {
		log.G(ctx).WithField("id", e.cfg.ID).Warnf("the application got pid %d instead of %d: a restore needs that pid free", pid, AppPid)
	}
	if l.LeaveStopped {
		if err := e.signalApp(pid, unix.SIGSTOP); err != nil {
			return 0, errors.Join(fmt.Errorf("leave the application stopped: %w", err), e.Signal(unix.SIGKILL))
		}
	}
	return pid, nil
}

// nextPid makes n, or the first free one after it, the pid namespace's next pid.
func (e *Engine) nextPid(n int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", e.pid))
	if err != nil {
		return fmt.Errorf("choose the next pid: %w", err)
	}
	defer ns.Close()
	return criu.SetLastPid(ns, e.exe, n-1)
}

// LowPids lets what is put into the container from now on have the low pids, as
// before its first application: a checkpoint that is restored next must find the
// application's numbers free. That it is not possible is only logged.
func (e *Engine) LowPids(ctx context.Context) {
	if !e.cfg.OwnPids {
		return
	}
	if err := e.nextPid(firstPid); err != nil {
		log.G(ctx).WithError(err).WithField("id", e.cfg.ID).Warn("choose low pids")
	}
}

// firstPid is the lowest pid that is not PID 1's.
const firstPid = 2

func (e *Engine) flags(l Launch) (f initproto.Flags) {
	if l.Tied {
		f |= initproto.Tied
	}
	if l.DropStdio {
		f |= initproto.DropStdio
	}
	if e.cfg.Terminal {
		f |= initproto.Terminal
	}
	return f
}

// signalApp signals the application itself, PID 1's child.
func (e *Engine) signalApp(pid int, sig unix.Signal) error {
	fd, _, err := e.childOfInit(pid)
	if err != nil {
		return err
	}
	defer fd.Close()
	if err := unix.PidfdSendSignal(int(fd.Fd()), sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// HostPid is the application's pid as the host sees it; 0: there is none.
func (e *Engine) HostPid() int {
	pid := e.AppPid()
	if pid == 0 {
		return 0
	}
	e.mu.Lock()
	known := e.hostPid
	e.mu.Unlock()
	if known.app == pid && known.fd != nil && unix.PidfdSendSignal(int(known.fd.Fd()), 0, nil, 0) == nil {
		return known.host
	}
	fd, host, err := e.childOfInit(pid)
	if err != nil {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hostPid.fd != nil {
		e.hostPid.fd.Close()
	}
	e.hostPid = appOnHost{app: pid, host: host, fd: fd}
	if e.closed {
		fd.Close()
	}
	return host
}

// childOfInit opens PID 1's child that has the number pid in the container. The
// pidfd is of that very process: it was still there, with that number, after it
// was opened.
func (e *Engine) childOfInit(pid int) (*os.File, int, error) {
	for _, host := range criu.Children(e.pid) {
		if numberInside(host) != pid {
			continue
		}
		fd, err := unix.PidfdOpen(host, 0)
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), "pidfd")
		for _, again := range criu.Children(e.pid) {
			if again == host && numberInside(host) == pid {
				return f, host, nil
			}
		}
		f.Close()
	}
	return nil, 0, fmt.Errorf("process %d of the container is not there: %w", pid, errdefs.ErrNotFound)
}

// numberInside is a process's number in its own pid namespace, 0 if it is gone.
func numberInside(pid int) (n int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	words := strings.Fields(statusLine(status, "NSpid:"))
	if len(words) > 0 {
		_, _ = fmt.Sscan(words[len(words)-1], &n)
	}
	return n
}

// awaitReaped waits until PID 1 has no ended child that it did not reap: their
// numbers are taken until then. What stays so is for the launch to fail at.
func (e *Engine) awaitReaped(ctx context.Context) {
	deadline := time.Now().Add(reapTimeout)
	for wait := time.Millisecond / 4; e.hasZombies() && time.Now().Before(deadline); wait = min(2*wait, 20*time.Millisecond) {
		select {
		case <-ctx.Done():
			return
		case <-e.conn.gone:
			return
		case <-time.After(wait):
		}
	}
}

func (e *Engine) hasZombies() bool {
	for _, pid := range criu.Children(e.pid) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err == nil && strings.HasPrefix(statusLine(status, "State:"), "Z") {
			return true
		}
	}
	return false
}
