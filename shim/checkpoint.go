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

	"github.com/fastmig/fastmig/runtime/fastfreeze"
	"github.com/fastmig/fastmig/runtime/image"
	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/service"
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

// checkpoint writes the container's application, or a plain container as a whole,
// into a folder of the client's.
func (t *task) checkpoint(ctx context.Context, req *checkpointRequest) error {
	if t.svc != nil {
		if err := t.allow("checkpoint"); err != nil {
			return err
		}
		return t.svc.CheckpointTask(ctx, service.Dump{
			Stage: func() (fastfreeze.Staging, error) {
				s, err := image.Stage(req.path)
				if err != nil {
					return nil, err
				}
				return s, nil
			},
			WorkDir:      req.options.WorkPath,
			KeepTCP:      req.options.OpenTcp,
			ExternalUnix: req.options.ExternalUnixSockets,
		}, req.exit)
	}
	release, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := t.allow("checkpoint"); err != nil {
		return err
	}
	return t.checkpointPlain(req)
}

// planRestore looks at the checkpoint that a task is to start from, before
// anything is built.
func (t *task) planRestore(ctx context.Context, dir, parent string) error {
	if dir == "" {
		if t.settings.Mode == ModeFastFreeze {
			return fastfreeze.CheckToolkit()
		}
		return nil
	}
	cp, err := fastfreeze.OpenCheckpoint(ctx, dir)
	switch {
	case errors.Is(err, fastfreeze.ErrWholeContainer):
		// The stock shim made it: it comes back as it was, as a whole.
		t.settings.Mode = ModePlain
		t.plain = &plainRestore{dir: dir, parent: parent}
		return fastfreeze.CheckToolkit()
	case err != nil:
		return fmt.Errorf("restore %s: %w", t.id, err)
	case t.settings.Mode == ModePlain:
		cp.Close()
		return fmt.Errorf("restore %s: %s holds the checkpoint of a service under FastFreeze, and the container's io.fastmig.mode is plain: leave the annotation out: %w", t.id, dir, errdefs.ErrFailedPrecondition)
	}
	t.image = imageOf(cp)
	return nil
}

// imageOf is a checkpoint as a service takes it; it stays open.
func imageOf(cp *fastfreeze.Checkpoint) *service.Image {
	m := cp.Manifest
	info := api.Checkpoint{CreatedAt: m.CreatedAt, Digest: m.Digest}
	for _, f := range m.Files {
		info.Bytes += f.Size
	}
	return &service.Image{Checkpoint: cp, Info: info, Close: func() {}}
}
