//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
	"github.com/fastmig/fastmig/runtime/preserve"
)

// CheckPreserved says whether the container's paths, which are as preserve.Paths
// returns them, can be preserved in a checkpoint. Errors: FailedPrecondition,
// naming the first that cannot; PermissionDenied.
func (e *Engine) CheckPreserved(paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	root, rights, err := e.preserving()
	if err != nil {
		return err
	}
	defer root.Close()
	return preserve.Check(root, paths, rights)
}

// preserving opens the container's root, and finds what its user may do in it.
func (e *Engine) preserving() (*os.File, *preserve.Rights, error) {
	rights, err := preserve.RightsOf(e.pid)
	if err != nil {
		return nil, nil, err
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", e.pid))
	if err != nil {
		return nil, nil, fmt.Errorf("open the container's root: %w", err)
	}
	return root, rights, nil
}

// pack puts the preserved paths into a checkpoint in the making.
func (e *Engine) pack(ctx context.Context, req CheckpointRequest, folder *os.File) (err error) {
	if len(req.Preserve) == 0 {
		return nil
	}
	root, rights, err := e.preserving()
	if err != nil {
		return err
	}
	defer root.Close()
	fd, err := unix.Openat(int(folder.Fd()), image.PreservedName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("preserve paths: make %s: %w", image.PreservedName, err)
	}
	archive := os.NewFile(uintptr(fd), image.PreservedName)
	defer func() {
		if cerr := archive.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("preserve paths: write %s: %w", image.PreservedName, cerr)
		}
	}()
	return preserve.Pack(ctx, root, req.Preserve, archive, preserve.Options{
		Rights:   rights,
		Note:     req.Note,
		Progress: func(done int64) { req.Progress.tell("preserve", done, 0) },
	})
}

// unpack gives the container the files that a checkpoint preserves. All else in it is
// frozen.
func (e *Engine) unpack(ctx context.Context, l Launch) (err error) {
	c := l.Checkpoint
	paths := c.Manifest.PreservedPaths
	if len(paths) == 0 {
		return nil
	}
	// What a manifest names may have been made elsewhere.
	if paths, err = preserve.Paths(paths); err != nil {
		return fmt.Errorf("restore the preserved files: the checkpoint names what cannot be preserved: %w: %w", errors.New(err.Error()), errdefs.ErrDataLoss)
	}
	archive, size, err := c.Preserved()
	if err != nil {
		return err
	}
	defer archive.Close()
	root, rights, err := e.preserving()
	if err != nil {
		return err
	}
	defer root.Close()
	return preserve.Unpack(ctx, root, paths, archive, size, preserve.Options{
		Rights:   rights,
		Progress: func(done int64) { l.Progress.tell("preserve", done, size) },
	})
}
