//go:build linux

package shim

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze"
)

// checkpointRequest is what a client asked for.
type checkpointRequest struct {
	path    string
	exit    bool
	options options.CheckpointOptions
}

// checkpointRequest reads a request. Clients which look at the runtime's name
// send no options to one that they do not know: the annotations speak then.
func (t *task) checkpointRequest(r *taskapi.CheckpointTaskRequest) (*checkpointRequest, error) {
	req := &checkpointRequest{path: r.Path, exit: t.settings.CheckpointExit}
	if r.Options != nil {
		if err := typeurl.UnmarshalTo(r.Options, &req.options); err != nil {
			return nil, fmt.Errorf("read the checkpoint options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		req.exit = req.options.Exit
		if req.options.ImagePath != "" {
			req.path = req.options.ImagePath
		}
	}
	if req.path == "" || !filepath.IsAbs(req.path) {
		return nil, fmt.Errorf("checkpoint folder %q: an absolute path is needed: %w", req.path, errdefs.ErrInvalidArgument)
	}
	return req, nil
}

// checkpoint is the protocol of a checkpoint:
//  1. nothing of the container runs (the client has paused it, or we do);
//  2. the application is dumped, always leaving it as it is;
//  3. the folder becomes a checkpoint, whole and synced;
//  4. only then is a service that is to end ended.
//
// When 2 or 3 fail, the folder is as it was and the task goes on, paused if
// it was.
func (t *task) checkpoint(ctx context.Context, req *checkpointRequest) (err error) {
	release, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := t.allow("checkpoint"); err != nil {
		return err
	}
	if t.engine == nil {
		return t.checkpointPlain(req)
	}

	before := t.now()
	if before == StateRunning {
		if err := t.freeze(StateCheckpointing); err != nil {
			t.to(before)
			return fmt.Errorf("freeze the container: %w", err)
		}
	} else {
		t.to(StateCheckpointing)
	}
	defer func() {
		t.to(before)
		if before != StateRunning || t.now() == StateStopped {
			return
		}
		if rerr := t.c.Resume(); rerr != nil && (err != nil || !req.exit) {
			err = errors.Join(err, fmt.Errorf("thaw the container: %w", rerr))
		}
	}()

	if err := t.engine.Checkpoint(ctx, fastfreeze.CheckpointRequest{
		Dir:          req.path,
		WorkDir:      req.options.WorkPath,
		KeepTCP:      req.options.OpenTcp,
		ExternalUnix: req.options.ExternalUnixSockets,
	}); err != nil {
		return err
	}
	if !req.exit {
		return nil
	}
	// The checkpoint is saved; SIGKILL thaws the container and its pid
	// namespace dies with PID 1.
	if err := t.c.Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("the checkpoint is saved in %s, but its service could not be ended: %w", req.path, err)
	}
	if err := t.init.wait(ctx); err != nil {
		return fmt.Errorf("the checkpoint is saved in %s, but its service does not end: %w", req.path, err)
	}
	return nil
}

// planRestore looks at the checkpoint that a task is to start from, before
// anything is built.
func (t *task) planRestore(ctx context.Context, dir, parent string) (*fastfreeze.Checkpoint, error) {
	if dir == "" {
		if t.settings.Mode == ModeFastFreeze {
			return nil, fastfreeze.CheckToolkit()
		}
		return nil, nil
	}
	cp, err := fastfreeze.OpenCheckpoint(ctx, dir)
	switch {
	case errors.Is(err, fastfreeze.ErrWholeContainer):
		// The stock shim made it: it comes back as it was, as a whole.
		t.settings.Mode = ModePlain
		t.plain = &plainRestore{dir: dir, parent: parent}
		return nil, fastfreeze.CheckToolkit()
	case err != nil:
		return nil, fmt.Errorf("restore %s: %w", t.id, err)
	case t.settings.Mode == ModePlain:
		cp.Close()
		return nil, fmt.Errorf("restore %s: %s holds the checkpoint of a service under FastFreeze, and the container's io.fastmig.mode is plain: leave the annotation out: %w", t.id, dir, errdefs.ErrFailedPrecondition)
	}
	return cp, nil
}
