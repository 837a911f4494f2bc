//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/criu"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
	"github.com/fastmig/fastmig/runtime/image"
	"github.com/fastmig/fastmig/runtime/toolkit"
)

// ErrWholeContainer says that a checkpoint is of a whole container, as the
// stock shim makes it.
var ErrWholeContainer = image.ErrForeign

// Checkpoint is a checkpoint that was found whole and fit for this node.
type Checkpoint struct {
	*image.Checkpoint
}

var host = sync.OnceValues(image.ProbeHost)

// OpenCheckpoint opens the checkpoint in a folder and verifies it: every byte of
// it, and that this node can restore it. ErrWholeContainer if it is the stock
// shim's.
func OpenCheckpoint(ctx context.Context, dir string) (*Checkpoint, error) {
	c, err := image.Open(dir)
	if err != nil {
		return nil, err
	}
	verified, err := VerifyCheckpoint(ctx, c)
	if err != nil {
		c.Close()
		return nil, err
	}
	return verified, nil
}

// VerifyCheckpoint verifies an open checkpoint as OpenCheckpoint does; it blocks
// while all of it is read. The result takes c over; after an error c is still the
// caller's.
func VerifyCheckpoint(ctx context.Context, c *image.Checkpoint) (*Checkpoint, error) {
	fit, err := FitCheckpoint(c)
	if err != nil {
		return nil, err
	}
	if err := c.Verify(ctx); err != nil {
		return nil, err
	}
	return fit, nil
}

// FitCheckpoint is VerifyCheckpoint for one whose bytes have been verified: it looks
// only whether this node can restore it.
func FitCheckpoint(c *image.Checkpoint) (*Checkpoint, error) {
	h, err := host()
	if err != nil {
		return nil, err
	}
	tk, err := toolkit.Locate()
	if err != nil {
		return nil, err
	}
	tm, err := tk.ReadManifest()
	if err != nil {
		return nil, err
	}
	h.CriuVersion = tm.Criu.Version
	if err := c.CheckHost(h); err != nil {
		return nil, err
	}
	return &Checkpoint{c}, nil
}

// checkDestination refuses a container that gives fewer rights than the application
// had, or whose files, once it has the preserved ones, are not those that the
// application had open. The result is what image.Confine's is.
func (e *Engine) checkDestination(ctx context.Context, l Launch) (_ *os.File, err error) {
	e.mu.Lock()
	bounds := e.bounds
	e.mu.Unlock()
	filters, err := l.Checkpoint.Confine(bounds)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			filters.Close() // nil is refused without harm
		}
	}()
	if err := e.unpack(ctx, l); err != nil {
		return nil, err
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", e.pid))
	if err != nil {
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	defer root.Close()
	return filters, image.CheckFiles(root, l.Checkpoint.Manifest.MappedFiles)
}

// restore brings the application back below PID 1.
func (e *Engine) restore(ctx context.Context, l Launch, stdio [3]stream) (int, error) {
	pid, err := e.restoreInto(ctx, l, stdio)
	if err != nil {
		// Its numbers are to be free for the next attempt.
		e.awaitReaped(ctx)
		e.LowPids(ctx)
		return 0, fmt.Errorf("restore %s: %w", e.cfg.ID, err)
	}
	return pid, nil
}

// restoreInto is the protocol of a restore:
//  0. PID 1's seccomp filters, which the processes will have, are read;
//  1. PID 1 learns which process will be its application;
//  2. PID 1 and whatever else runs in the container are frozen, out of the
//     cgroup that the processes will be in;
//  3. nothing of the container can change any more: it gets the files that the
//     checkpoint preserves, and the checkpoint has to fit it;
//  4. CRIU, in the container's cgroups and namespaces, makes the processes,
//     with this container's stdio in place of the old;
//  5. CRIU ends, which makes the root PID 1's child; all go on, and PID 1 is
//     told so.
//
// When a step fails the earlier ones are taken back; CRIU leaves nothing, and
// PID 1 forgets what it was told.
func (e *Engine) restoreInto(ctx context.Context, l Launch, stdio [3]stream) (_ int, err error) {
	m := l.Checkpoint.Manifest
	source := streamSource(e.stdioFile)
	if l.Stdio != nil {
		source = fresh(l.Stdio)
	}
	files, err := e.inherited(m.Stdio, stdio, source)
	if err != nil {
		return 0, err
	}
	defer closeAll(files)

	if err := e.learnFilters(); err != nil {
		return 0, err
	}
	question, err := e.adopt(ctx, m.Application.Pid, e.flags(l))
	if err != nil {
		return 0, err
	}
	guard, err := e.shield(ctx)
	var filters *os.File
	if err == nil {
		defer guard.lower(ctx)
		// CRIU's own processes must not get numbers that the application's had: after a
		// restore, and after many execs, the next ones would be those.
		low := make(chan error, 1)
		go func() { low <- e.nextPid(firstPid) }()
		filters, err = e.checkDestination(ctx, l)
		if lerr := <-low; err == nil && lerr != nil {
			filters.Close() // nil is refused without harm
			err = lerr
		}
	}
	if err == nil {
		defer filters.Close() // nil is refused without harm
		err = e.runCRIU(ctx, l, files, filters, guard)
	}
	if err != nil {
		guard.thaw(ctx)
		if aerr := e.conn.abandon(question); aerr != nil {
			log.G(ctx).WithError(aerr).Warn("tell PID 1 that the restore failed")
		}
		return 0, err
	}
	l.Progress.tell("resume", 0, 0)
	guard.thaw(ctx)
	answer, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	pid, err := e.conn.restored(answer, question)
	if err != nil {
		e.killRestored(m.Application.Pid)
		return 0, err
	}
	return pid, nil
}

func (e *Engine) adopt(ctx context.Context, pid int, flags initproto.Flags) (*question, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	q, err := e.conn.adopt(ctx, pid, flags)
	if err != nil {
		return nil, fmt.Errorf("prepare PID 1: %w", err)
	}
	return q, nil
}

// runCRIU makes the processes and lets them run.
func (e *Engine) runCRIU(ctx context.Context, l Launch, files map[string]*os.File, filters *os.File, guard *guard) error {
	m := l.Checkpoint.Manifest
	tmpfs, err := e.tmpfs()
	if err != nil {
		return err
	}
	tool, err := e.criu()
	if err != nil {
		return err
	}
	place, release, err := e.place(true)
	if err != nil {
		return err
	}
	defer release()
	logFile, err := e.openLog(l.WorkPath, "restore")
	if err != nil {
		return err
	}
	defer logFile.Close()
	var total int64
	for _, f := range m.Files {
		total += f.Size
	}
	l.Progress.tell("restore", 0, total)
	bounded, cancel := context.WithTimeout(ctx, criuTimeout)
	defer cancel()
	restored, err := tool.Restore(bounded, criu.RestoreOptions{
		Place:     place,
		Images:    l.Checkpoint.File(),
		Pages:     l.Checkpoint.Pages(),
		Seccomp:   filters,
		Log:       logFile.File,
		InheritFD: files,
		OwnIPC:    e.cfg.OwnIPC,
		Tmpfs:     tmpfs,
		TCP:       connections(l.KeepTCP && m.TCP == image.TCPKeep),
		FileLocks: true,
		Shield:    guard.shield,
		Pid:       m.Application.Pid,
		Notify: func(step string, _ int) error {
			if step != "pre-resume" {
				return nil
			}
			// The service's cgroup has been frozen by now.
			if l.LeaveStopped {
				if err := stopAll(guard.shield.Service); err != nil {
					return err
				}
			}
			// What the application forks from now on must not get the low
			// pids that the next container's own processes have.
			return e.nextPid(AppPid + 1)
		},
	})
	if err != nil {
		return logFile.keep(err)
	}
	l.Progress.tell("restore", total, total)
	return restored.Process.Close()
}

// stopAll sends SIGSTOP to all processes of a frozen cgroup.
func stopAll(folder *os.File) error {
	procs, err := os.ReadFile(filepath.Join(folder.Name(), "cgroup.procs"))
	if err != nil {
		return fmt.Errorf("stop the restored processes: %w", err)
	}
	for _, word := range strings.Fields(string(procs)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			continue
		}
		// Frozen as they are, none ends, and no number changes hands.
		fd, err := unix.PidfdOpen(pid, 0)
		if err == nil {
			err = unix.PidfdSendSignal(fd, unix.SIGSTOP, nil, 0)
			unix.Close(fd)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("stop the restored process %d: %w", pid, err)
		}
	}
	return nil
}

// killRestored ends an application that PID 1 did not take.
func (e *Engine) killRestored(pid int) {
	if err := e.signalApp(pid, unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		log.L.WithError(err).WithField("id", e.cfg.ID).Warn("end an application that PID 1 did not take")
	}
}

// ExplainLog makes the error of a whole-container operation, which libcontainer
// ran, out of CRIU's log at path; the log is kept at kept.
func ExplainLog(step, path, kept string, err error) error {
	explained := criu.Explain(step, path, err)
	if kerr := KeepLog(path, kept); kerr == nil {
		var failed *criu.Error
		if errors.As(explained, &failed) {
			failed.Log = kept
		}
	}
	return explained
}
