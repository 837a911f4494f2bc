// Package store keeps a container's checkpoints where image URLs say: on the
// node (node:NAME) or in the container's own file system (file:/path).
//
// A place is a folder NAME with the newest checkpoint, a flat one as package
// image makes it; the one before is beside it in .NAME.previous, older ones in
// .NAME.previous-1 and so on. A checkpoint that was reported whole is found
// until a newer one is, at whatever moment a writer dies.
//
// The container is hostile. What a file: URL names is reached by descriptors
// only, inside the container's root, and what was verified of it is not read
// from there again: see Open.
package store

import (
	"errors"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Defaults of a Store's fields.
const (
	defaultKeep    = 2
	defaultTimeout = time.Minute
	defaultPrivate = "/run/fastmig/private"
)

// Store finds the places that URLs name, for one container. Its methods may run
// at the same time.
type Store struct {
	// Node is the node's folder of checkpoints; it is made when needed. Only
	// root may write there.
	Node string
	// Root opens the container's root directory, anew each time.
	Root func() (*os.File, error)
	// Keep is how many whole checkpoints a place keeps; 0: 2.
	Keep int
	// Timeout is how long a place may be silent, no byte read or written,
	// before it is given up; 0: one minute.
	Timeout time.Duration
	// Private is a folder in memory for copies of a container's files that
	// nobody else may write; "": /run/fastmig/private.
	Private string
}

func (s *Store) keep() int {
	if s.Keep <= 0 {
		return defaultKeep
	}
	return s.Keep
}

// place is a URL's folder name in its open parent.
type place struct {
	parent *os.File
	name   string
	// foreign: others may write there at any time.
	foreign bool
}

func (p *place) close() { p.parent.Close() }

// at is how messages call the folder name of the place.
func (p *place) at(name string) string { return path.Join(p.parent.Name(), name) }

// place opens the parent of what the URL names. write: it will be written to.
func (s *Store) place(u URL, write bool) (*place, error) {
	if _, err := Parse(u.String()); err != nil {
		return nil, err
	}
	if u.Scheme == SchemeNode {
		return s.nodePlace(u.Path, write)
	}
	return s.filePlace(u.Path)
}

func (s *Store) nodePlace(name string, write bool) (*place, error) {
	if s.Node == "" {
		return nil, fmt.Errorf("the node has no folder for checkpoints: set checkpoints in its configuration: %w", errdefs.ErrFailedPrecondition)
	}
	if write {
		if err := os.MkdirAll(s.Node, 0o700); err != nil {
			return nil, fmt.Errorf("make the node's folder of checkpoints: %w", withKind(err))
		}
	}
	fd, err := unix.Open(s.Node, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the node's folder of checkpoints %s: %w", s.Node, withKind(err))
	}
	return &place{parent: os.NewFile(uintptr(fd), s.Node), name: name}, nil
}

// filePlace resolves the parent once, with the container's links inside its
// root; everything after that goes by its descriptor. Only the last part of the
// path is looked up in it, and never followed.
func (s *Store) filePlace(p string) (*place, error) {
	if s.Root == nil {
		return nil, fmt.Errorf("there is no container whose files could be looked at: %w", errdefs.ErrFailedPrecondition)
	}
	root, err := s.Root()
	if err != nil {
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	defer root.Close()
	above := path.Dir(p)
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := openat2(root, above, &how)
	if err != nil {
		return nil, fmt.Errorf("open the folder %s in the container: %w: it must exist: make it, or mount a volume there", above, withKind(err))
	}
	return &place{parent: os.NewFile(uintptr(fd), SchemeFile+":"+above), name: path.Base(p), foreign: true}, nil
}

// openat2 repeats openat2(2) when a rename elsewhere disturbed the look-up.
func openat2(dir *os.File, name string, how *unix.OpenHow) (int, error) {
	for tries := 0; ; tries++ {
		fd, err := unix.Openat2(int(dir.Fd()), name, how)
		if (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)) && tries < 100 {
			continue
		}
		return fd, err
	}
}

// withKind adds the errdefs kind to an error of the operating system.
func withKind(err error) error {
	var kind error
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("the disk is full, free some space: %w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, os.ErrNotExist):
		kind = errdefs.ErrNotFound
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.EROFS):
		kind = errdefs.ErrPermissionDenied
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		kind = errdefs.ErrInvalidArgument
	default:
		return err
	}
	return fmt.Errorf("%w: %w", err, kind)
}
