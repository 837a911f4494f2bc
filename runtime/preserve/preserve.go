//go:build linux

// Package preserve takes files of a container along in its checkpoint: Pack
// archives them, Unpack puts them into another container. Both run with the
// rights of the container's own user, because what is read and written is the
// container's to choose: whatever they do, its user could have done.
package preserve

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxPaths bounds how many paths a checkpoint preserves.
	maxPaths = 256
	// maxPath is the length of the longest path, as the kernel has it, in bytes.
	maxPath = unix.PathMax - 1
	// maxDepth bounds how deep folders are nested: each takes a descriptor.
	maxDepth = 256
	// maxXattrs bounds the attributes of one file, in bytes: they are in memory.
	maxXattrs = 512 << 10
	// bufferSize is read and written at once.
	bufferSize = 1 << 20
	// progressInterval is how often the progress is told.
	progressInterval = 200 * time.Millisecond
	// maxNotes is how many notes name their file.
	maxNotes = 10
)

// Options of Pack and Unpack.
type Options struct {
	// Rights are those of the container's user.
	Rights *Rights
	// Progress is told how many bytes are done, from time to time; nil: nobody is.
	Progress func(done int64)
	// Note is told what is passed over; nil: nobody is.
	Note func(text string)
}

// Paths are the asked ones in order, each once, without slashes too many.
//
// Errors: InvalidArgument, naming the first that cannot be preserved.
func Paths(asked []string) ([]string, error) {
	var paths []string
	for _, p := range asked {
		bad := func(why string) error {
			return fmt.Errorf("preserved_paths: %q %s: %w", p, why, errdefs.ErrInvalidArgument)
		}
		clean := path.Clean(p)
		switch {
		case !path.IsAbs(p):
			return nil, bad("is not an absolute path in the container")
		case strings.ContainsRune(p, 0), len(p) > maxPath:
			return nil, bad("is no path")
		case slices.Contains(strings.Split(p, "/"), ".."):
			return nil, bad("has .. in it: name the path itself")
		case clean == "/":
			return nil, bad("is the whole container: name what is to be preserved")
		}
		for _, kernel := range []string{"/proc", "/sys", "/dev"} {
			if within(clean, kernel) {
				return nil, bad("is the kernel's, not the container's")
			}
		}
		paths = append(paths, clean)
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	if len(paths) > maxPaths {
		return nil, fmt.Errorf("preserved_paths: %d are more than %d: name the folders that they are in: %w", len(paths), maxPaths, errdefs.ErrInvalidArgument)
	}
	return paths, nil
}

func within(p, folder string) bool {
	return p == folder || strings.HasPrefix(p, folder+"/")
}

// Check says whether the paths are there. It costs little.
//
// Errors: FailedPrecondition, naming the first that is not there or cannot be
// preserved; PermissionDenied if the container's user cannot reach it.
func Check(root *os.File, paths []string, rights *Rights) error {
	err := rights.do(func(a *actor) error {
		t, err := newTree(root, a)
		if err != nil {
			return err
		}
		for _, p := range paths {
			if err := t.check(p); err != nil {
				return fmt.Errorf("%s: %w", p, withKind(err))
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("preserve paths: %w", err)
	}
	return nil
}

func (t *tree) check(p string) error {
	parent, base, err := t.resolve(p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return errMissing
	} else if err != nil {
		return err
	}
	defer parent.close()
	st, err := t.stat(parent, base)
	if errors.Is(err, unix.ENOENT) {
		return errMissing
	} else if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO:
	case unix.S_IFDIR:
		d, err := t.child(parent, base)
		if err != nil {
			return err
		}
		d.close()
	default:
		return fmt.Errorf("it is a %s, which cannot be preserved: %w", kindOf(st.Mode), errdefs.ErrFailedPrecondition)
	}
	return nil
}

var errMissing = fmt.Errorf("it is not there in the container: %w", errdefs.ErrFailedPrecondition)

func kindOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFDIR:
		return "folder"
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFLNK:
		return "file"
	default:
		return "device"
	}
}

// withKind adds the errdefs kind to an error of the operating system.
func withKind(err error) error {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err
	}
	switch {
	case errno == unix.ENOSPC, errno == unix.EDQUOT:
		return fmt.Errorf("the disk is full, free some space: %w: %w", err, errdefs.ErrResourceExhausted)
	case errno == unix.EMFILE, errno == unix.ENFILE, errno == unix.ENOMEM:
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, fs.ErrPermission), errno == unix.EROFS:
		return fmt.Errorf("the container's user may not: %w: %w", err, errdefs.ErrPermissionDenied)
	default:
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
}

// teller tells progress and notes, neither too often.
type teller struct {
	o     Options
	done  int64
	last  time.Time
	notes int
}

func (t *teller) progress(n int64) {
	t.done += n
	if t.o.Progress == nil || time.Since(t.last) < progressInterval {
		return
	}
	t.last = time.Now()
	t.o.Progress(t.done)
}

func (t *teller) note(format string, args ...any) {
	t.notes++
	if t.o.Note != nil && t.notes <= maxNotes {
		t.o.Note(fmt.Sprintf(format, args...))
	}
}

func (t *teller) end() {
	if t.o.Progress != nil {
		t.o.Progress(t.done)
	}
	if t.o.Note != nil && t.notes > maxNotes {
		t.o.Note(fmt.Sprintf("%d more files were not preserved", t.notes-maxNotes))
	}
}
