//go:build linux

// Package romount opens files of the host so that whoever holds the descriptor cannot
// write through it, not even by way of /proc/PID/exe or a parent folder.
package romount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// OpenReadOnly opens a file or folder of the host in a detached, read-only clone of its
// mount: nosuid and nodev too, without the mounts below it. The clone lives as long as a
// descriptor in it. It needs CAP_SYS_ADMIN and a kernel of 5.12 or newer; see open_tree(2)
// and mount_setattr(2).
//
// With flags 0 or unix.O_PATH the descriptor is an O_PATH one, which can be executed and
// used as a folder for other paths, but not read. Otherwise flags are those of open(2),
// reading only; the descriptor is always close-on-exec. Symbolic links are followed, so
// path must be one that only the host can change.
//
// Errors: errdefs.ErrNotFound for a missing path, ErrPermissionDenied,
// ErrNotImplemented for a kernel without the calls, ErrInvalidArgument for flags that ask
// for writing.
func OpenReadOnly(path string, flags int) (*os.File, error) {
	if flags&(unix.O_ACCMODE|unix.O_CREAT|unix.O_TRUNC) != unix.O_RDONLY {
		return nil, fmt.Errorf("open %s read-only: flags %#x ask for writing: %w", path, flags, errdefs.ErrInvalidArgument)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, wrap("clone the mount of "+path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		_ = unix.Close(tree)
		return nil, wrap("make the mount clone of "+path+" read-only", err)
	}
	if flags&^unix.O_PATH == 0 {
		return os.NewFile(uintptr(tree), path), nil
	}
	defer func() { _ = unix.Close(tree) }()
	// An empty path opens nothing but O_PATH, so the way goes through procfs.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", tree), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, wrap("open "+path+" in its read-only mount clone", err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func wrap(step string, err error) error {
	var kind error = errdefs.ErrUnknown
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = errdefs.ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		kind = errdefs.ErrPermissionDenied
	case errors.Is(err, unix.ENOSYS):
		kind = errdefs.ErrNotImplemented
	}
	return fmt.Errorf("%s: %w: %w", step, err, kind)
}
