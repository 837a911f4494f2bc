package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// partialPrefix starts the name of the folder, inside the target, in which a
// checkpoint is made. Its maker holds flock(2) on it; one that nobody holds was
// left by a maker that died.
const partialPrefix = ".fastmig-partial-"

// openParent opens the folder that holds dir, for what names dir by the
// descriptor afterwards.
func openParent(dir string) (parent *os.File, name string, err error) {
	clean := filepath.Clean(dir) // a trailing slash would follow a link
	above := filepath.Dir(clean)
	fd, err := unix.Open(above, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("open folder %s: %w", above, withKind(err))
	}
	return os.NewFile(uintptr(fd), above), filepath.Base(clean), nil
}

// openFolderAt opens a folder by descriptor, which must not be a symbolic link:
// whoever can place one could otherwise choose the folder.
func openFolderAt(parent *os.File, name string) (*os.File, error) {
	dir := filepath.Join(parent.Name(), name)
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		// O_DIRECTORY|O_NOFOLLOW reports a link as ENOTDIR.
		var st unix.Stat_t
		if unix.Fstatat(int(parent.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			return nil, fmt.Errorf("%s is a %s, not a folder: name the folder itself: %w", dir, describe(fileType(st.Mode)), errdefs.ErrInvalidArgument)
		}
	}
	return nil, fmt.Errorf("open folder %s: %w", dir, withKind(err))
}

// duplicate gives a descriptor of its own for the same folder.
func duplicate(dir *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the descriptor of %s: %w", dir.Name(), withKind(err))
	}
	return os.NewFile(uintptr(fd), dir.Name()), nil
}

// openBeneath opens the regular file name of the folder for reading. Nothing
// else is ever opened: opening a fifo can hang, opening a device can act.
func openBeneath(dir *os.File, name string) (*os.File, os.FileInfo, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := openat2(dir, name, &how)
	if err != nil {
		return nil, nil, err
	}
	handle := os.NewFile(uintptr(fd), name)
	defer handle.Close()
	st, err := handle.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, nil, &notRegularError{mode: st.Mode()}
	}
	// The handle is of a regular file, and stays of that file.
	rfd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", handle.Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(rfd), name), st, nil
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

// notRegularError says that a name is something else than a file with bytes.
type notRegularError struct{ mode fs.FileMode }

func (e *notRegularError) Error() string {
	return fmt.Sprintf("it is a %s, not a regular file", describe(e.mode))
}

func describe(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "regular file"
	case fs.ModeDir:
		return "folder"
	case fs.ModeSymlink:
		return "symbolic link"
	case fs.ModeNamedPipe:
		return "fifo"
	case fs.ModeSocket:
		return "socket"
	default:
		return "device"
	}
}

// entry is one name in a folder.
type entry struct {
	name string
	mode fs.FileMode // type only
}

// list reads the folder's names, through a descriptor of its own so that
// concurrent callers do not share a position.
func list(dir *os.File) ([]entry, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("read folder %s: %w", dir.Name(), withKind(err))
	}
	d := os.NewFile(uintptr(fd), dir.Name())
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("read folder %s: %w", dir.Name(), withKind(err))
	}
	entries := make([]entry, 0, len(names))
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read folder %s: %s: %w", dir.Name(), name, withKind(err))
		}
		entries = append(entries, entry{name, fileType(st.Mode)})
	}
	return entries, nil
}

func fileType(mode uint32) fs.FileMode {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	default:
		return fs.ModeDevice
	}
}

// isPartial tells whether the entry is a folder in which a checkpoint is made.
func (e entry) isPartial() bool {
	return e.mode.IsDir() && strings.HasPrefix(e.name, partialPrefix)
}

// openPartial opens a partial folder. It is live when its maker still holds it;
// if it is not, the lock is now the caller's until the descriptor is closed.
func openPartial(dir *os.File, name string) (f *os.File, live bool, err error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, fmt.Errorf("open %s: %w", filepath.Join(dir.Name(), name), withKind(err))
	}
	f = os.NewFile(uintptr(fd), filepath.Join(dir.Name(), name))
	switch err := lock(f); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return f, true, nil
	case err != nil:
		f.Close()
		return nil, false, fmt.Errorf("lock %s: %w", f.Name(), withKind(err))
	}
	return f, false, nil
}

// lock takes flock(2) without waiting. It ends with the open file description,
// so a CRIU that outlives the shim keeps its folder.
func lock(f *os.File) error {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
}

// self is a path that leads to the folder by its descriptor, whatever happens
// to its name.
func self(dir *os.File) string {
	return fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
}

// unlinkAll removes names from the folder; those that are gone already are
// fine. It goes on after an error.
func unlinkAll(dir *os.File, names []string) error {
	var errs []error
	for _, name := range names {
		if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove %s: %w", filepath.Join(dir.Name(), name), withKind(err)))
		}
	}
	return errors.Join(errs...)
}

// withKind adds the errdefs kind to an error of the operating system.
func withKind(err error) error {
	var kind error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("the disk is full, free some space: %w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM):
		kind = errdefs.ErrResourceExhausted
	case errors.Is(err, fs.ErrNotExist):
		kind = errdefs.ErrNotFound
	case errors.Is(err, fs.ErrExist), errors.Is(err, unix.ENOTEMPTY):
		kind = errdefs.ErrAlreadyExists
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		kind = errdefs.ErrPermissionDenied
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG):
		kind = errdefs.ErrInvalidArgument
	default:
		return err
	}
	return fmt.Errorf("%w: %w", err, kind)
}
