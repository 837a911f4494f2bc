package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

const (
	// inMemory is the largest private copy that is made in memory, in bytes.
	// Without the page files, and without tmpfs contents, it is a few 100 KiB.
	inMemory = 64 << 20
	// maxCopy bounds a private copy, in bytes: the container says how large its
	// checkpoint is, and could fill the node with it.
	maxCopy = 4 << 30
	// onDisk holds, in the node's folder of checkpoints, the copies that are too
	// large for the memory. It is no name of a checkpoint's.
	onDisk = ".private"
)

// isolate makes a private copy of what the container could change.
func (s *Store) isolate(ctx context.Context, c *image.Checkpoint) (*image.Checkpoint, error) {
	base := s.Private
	if base == "" {
		base = defaultPrivate
	}
	switch n := c.Manifest.CopiedBytes(); {
	case n < 0 || n > maxCopy:
		return nil, fmt.Errorf("%d bytes of the checkpoint would have to be copied to the node, more than the %d that it takes: keep it on the node (node:NAME): %w",
			n, int64(maxCopy), errdefs.ErrFailedPrecondition)
	case n > inMemory && s.Node != "":
		base = filepath.Join(s.Node, onDisk)
	}
	folder, release, err := makePrivate(base)
	if err != nil {
		return nil, fmt.Errorf("copy the checkpoint to the node: %w", err)
	}
	isolated, err := c.Isolate(ctx, folder, release)
	if err != nil {
		folder.Close()
		return nil, errors.Join(err, release())
	}
	return isolated, nil
}

// makePrivate makes a folder that only root can reach, and whose maker holds
// flock(2) on it; those of makers that died are removed. release removes it.
func makePrivate(base string) (folder *os.File, release func() error, err error) {
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, nil, withKind(err)
	}
	parent, err := os.Open(base)
	if err != nil {
		return nil, nil, withKind(err)
	}
	defer parent.Close()
	// Between making and locking it, nobody takes it for a dead one's.
	for {
		err = unix.Flock(int(parent.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("lock %s: %w", base, err)
	}
	names, err := parent.Readdirnames(-1)
	if err != nil {
		return nil, nil, withKind(err)
	}
	for _, name := range names {
		dead := filepath.Join(base, name)
		f, err := os.Open(dead)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(dead)
		}
		f.Close()
	}
	dir := filepath.Join(base, rand.Text())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, nil, withKind(err)
	}
	release = func() error { return os.RemoveAll(dir) }
	if folder, err = os.Open(dir); err == nil {
		err = unix.Flock(int(folder.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return nil, nil, errors.Join(withKind(err), release())
	}
	return folder, release, nil
}
