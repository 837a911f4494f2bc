//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/fastmig/fastmig/runtime/criu"
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
func OpenCheckpoint(ctx context.Context, dir string) (_ *Checkpoint, err error) {
	c, err := image.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
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
	if err := c.Verify(ctx); err != nil {
		return nil, err
	}
	return &Checkpoint{c}, nil
}

// checkDestination refuses a container whose files are not those that the
// application had open, or that gives fewer rights than the application had.
func (e *Engine) checkDestination() error {
	allowed, err := e.rights()
	if err != nil {
		return err
	}
	if err := e.cfg.Checkpoint.CheckRights(allowed); err != nil {
		return err
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", e.pid))
	if err != nil {
		return fmt.Errorf("open the container's root: %w", err)
	}
	defer root.Close()
	return image.CheckFiles(root, e.cfg.Checkpoint.Manifest.MappedFiles)
}

// restore brings the application back below PID 1:
//  1. PID 1 learns which process will be its application;
//  2. CRIU, in the container's cgroups and namespaces, makes the processes,
//     with this container's stdio in place of the old;
//  3. CRIU ends, which makes the root PID 1's child, and PID 1 is told so.
//
// When 2 fails CRIU leaves nothing; the container stays without an application.
func (e *Engine) restore(ctx context.Context) (_ int, err error) {
	m := e.cfg.Checkpoint.Manifest
	tmpfs, err := e.tmpfs()
	if err != nil {
		return 0, fmt.Errorf("restore %s: %w", e.cfg.ID, err)
	}
	tool, err := e.criu()
	if err != nil {
		return 0, err
	}
	files, err := e.inherited(m.Stdio)
	if err != nil {
		return 0, err
	}
	defer closeAll(files)
	place, release, err := e.place(true)
	if err != nil {
		return 0, err
	}
	defer release()
	logFile, err := e.openLog(e.cfg.CriuWorkPath, "restore")
	if err != nil {
		return 0, err
	}
	defer logFile.Close()

	shield, undo, err := e.shield(ctx)
	if err != nil {
		return 0, err
	}
	defer undo()
	if err := e.adopt(ctx, m.Application.Pid); err != nil {
		return 0, err
	}
	bounded, cancel := context.WithTimeout(ctx, criuTimeout)
	defer cancel()
	restored, err := tool.Restore(bounded, criu.RestoreOptions{
		Place:     place,
		Images:    e.cfg.Checkpoint.File(),
		Log:       logFile.File,
		InheritFD: files,
		OwnIPC:    e.cfg.OwnIPC,
		Tmpfs:     tmpfs,
		TCP:       connections(e.cfg.KeepTCP && m.TCP == image.TCPKeep),
		FileLocks: true,
		Shield:    shield,
		Pid:       m.Application.Pid,
		Notify: func(step string, _ int) error {
			if step != "pre-resume" {
				return nil
			}
			// What the application forks from now on must not get the low
			// pids that the next container's own processes have.
			return e.nextPid(AppPid + 1)
		},
	})
	if err != nil {
		if aerr := e.conn.abandon(); aerr != nil && !errors.Is(aerr, errdefs.ErrNotFound) {
			log.G(ctx).WithError(aerr).Warn("tell PID 1 that the restore failed")
		}
		return 0, fmt.Errorf("restore %s: %w", e.cfg.ID, logFile.keep(err))
	}
	restored.Process.Close()
	answer, cancelAnswer := context.WithTimeout(ctx, startTimeout)
	defer cancelAnswer()
	pid, err := e.conn.restored(answer)
	if err != nil {
		return 0, fmt.Errorf("restore %s: %w", e.cfg.ID, err)
	}
	return pid, nil
}

func (e *Engine) adopt(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := e.conn.adopt(ctx, pid, e.flags()); err != nil {
		return fmt.Errorf("restore %s: prepare PID 1: %w", e.cfg.ID, err)
	}
	return nil
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
