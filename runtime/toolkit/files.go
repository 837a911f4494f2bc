//go:build linux

package toolkit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// writeFile writes a new file with exactly these permissions, whatever the umask.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// copyFile copies a file's content into a new file.
func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Close())
}

// makeDir makes a folder with exactly mode 0755.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	return os.Chmod(path, 0o755)
}

// syncTree makes everything below root, and root itself, durable.
func syncTree(root string) error {
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncPath(path)
	})
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// explain gives an error of the file system its kind and remedy.
func explain(step, root string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("toolkit: %s: disk full: %w: free about %d MiB there or choose another --root: %w",
			step, err, spaceNeeded>>20, errdefs.ErrResourceExhausted)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("toolkit: %s: %w: choose another --root on a file system that can be written: %w", step, err, errdefs.ErrPermissionDenied)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("toolkit: %s: %w: run as root, or give rights to write %s: %w", step, err, root, errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("toolkit: %s: %w", step, err)
}

// spaceNeeded is what a toolkit takes at most, in bytes, the old one beside it
// not counted.
const spaceNeeded = 32 << 20
