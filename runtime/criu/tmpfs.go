//go:build linux

package criu

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What is in the container's own file systems in memory is archived and put back within CRIU's
// process (preload/tmpfs.h); which of them, and from which file, is said here.

const (
	tmpfsMagic = "fm-tmp-1"
	// tmpfsHead is what an archive begins with: the magic and the mount point.
	tmpfsHead = len(tmpfsMagic) + unix.PathMax
)

func (s *session) saveTmpfs(mounts []string, images string) {
	if len(mounts) == 0 {
		return
	}
	s.env = append(s.env, "FASTMIG_TMPFS_SAVE="+images)
	for i, mount := range mounts {
		s.env = append(s.env, fmt.Sprintf("FASTMIG_TMPFS_%d=%d:%s", i, i, mount))
	}
}

// loadTmpfs has the checkpoint's archives put back, each into the file system with the mount
// point that it comes from.
func (s *session) loadTmpfs(o RestoreOptions, images string) error {
	names, err := namesIn(o.Images)
	if err != nil {
		return err
	}
	n := 0
	for _, name := range names {
		number, found := archiveNumber(name)
		if !found {
			continue
		}
		mount, err := archivedMount(o.Images, name)
		if err != nil {
			return fmt.Errorf("read the archive %s of a file system in memory: %w", name, err)
		}
		if !slices.Contains(o.Tmpfs, mount) {
			return fmt.Errorf("the checkpoint holds the files of a file system in memory at %[1]q, and the container has none of its own there: "+
				"restore into a container that mounts a tmpfs at %[1]q (no mount of the host's or a pod's): %[2]w", mount, errdefs.ErrFailedPrecondition)
		}
		s.env = append(s.env, fmt.Sprintf("FASTMIG_TMPFS_%d=%d:%s", n, number, mount))
		n++
	}
	if n > 0 {
		s.env = append(s.env, "FASTMIG_TMPFS_LOAD="+images)
	}
	return nil
}

// archiveNumber says whether the file is an archive of ours, tmpfs-N.img.
func archiveNumber(name string) (int, bool) {
	digits, found := strings.CutPrefix(name, "tmpfs-")
	if !found {
		return 0, false
	}
	if digits, found = strings.CutSuffix(digits, ".img"); !found {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 0 && strconv.Itoa(n) == digits
}

// archivedMount reads the mount point that an archive is of.
func archivedMount(images *os.File, name string) (string, error) {
	dir, err := rawFd(images)
	if err != nil {
		return "", err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	head := make([]byte, tmpfsHead)
	if _, err := io.ReadFull(f, head); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("it is too short: %w", errdefs.ErrDataLoss)
	} else if err != nil {
		return "", err
	}
	text, found := bytes.CutPrefix(head, []byte(tmpfsMagic))
	text, _, ended := bytes.Cut(text, []byte{0})
	if mount := string(text); found && ended && path.IsAbs(mount) && path.Clean(mount) == mount {
		return mount, nil
	}
	return "", fmt.Errorf("it does not begin as one: %w", errdefs.ErrDataLoss)
}

// namesIn lists a checkpoint's files.
func namesIn(images *os.File) ([]string, error) {
	dir, err := rawFd(images)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the checkpoint's folder: %w", err)
	}
	f := os.NewFile(uintptr(fd), images.Name())
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read the checkpoint's folder: %w", err)
	}
	return names, nil
}
