//go:build linux

package httpd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// socketLockTimeout is how long another shim may be at work in the sockets' folder; it
// takes it microseconds, unless it is stopped.
const socketLockTimeout = 5 * time.Second

// socket is a listening unix socket and the identity of its file.
type socket struct {
	listener *net.UnixListener
	path     string
	dev, ino uint64
}

// listenUnix listens at path, mode 0600, in a folder that only root may enter. A socket
// file without a listener is replaced; one with a listener is ErrAlreadyExists.
func listenUnix(path string) (_ *socket, err error) {
	fail := func(err error) error { return fmt.Errorf("listen on the container's socket %s: %w", path, err) }
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fail(err)
	}
	dir, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, fail(err)
	}
	defer dir.Close()
	if err := makePrivate(dir); err != nil {
		return nil, fail(err)
	}
	name := filepath.Base(path)
	if err := removeStale(dir, name); err != nil {
		return nil, fail(err)
	}

	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: through(dir, name)})
	if err != nil {
		return nil, fail(err)
	}
	l.SetUnlinkOnClose(false) // it would unlink whatever is there then
	defer func() {
		if err != nil {
			l.Close()
			unix.Unlinkat(int(dir.Fd()), name, 0)
		}
	}()
	// Between bind and here the folder keeps others out.
	if err := unix.Fchmodat(int(dir.Fd()), name, 0o600, 0); err != nil {
		return nil, fail(os.NewSyscallError("fchmodat", err))
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fail(os.NewSyscallError("fstatat", err))
	}
	return &socket{listener: l, path: path, dev: st.Dev, ino: st.Ino}, nil
}

// through is the name of a file in a folder that fits into a socket's address, however
// long the folder's own path is.
func through(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// lockDir opens a folder and keeps other shims away until it is closed: between the test
// of an old socket and the bind of the new one nobody else's may come in.
func lockDir(path string) (_ *os.File, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	for end := time.Now().Add(socketLockTimeout); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return dir, nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			dir.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		case time.Now().After(end):
			dir.Close()
			return nil, fmt.Errorf("another shim has locked %s for %v; is it stopped? %w", path, socketLockTimeout, errdefs.ErrUnavailable)
		}
	}
}

// makePrivate makes the folder root's alone.
func makePrivate(dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: remove it, or give it to root: %w", dir.Name(), st.Uid, errdefs.ErrFailedPrecondition)
	}
	if st.Mode&0o777 == 0o700 {
		return nil
	}
	return dir.Chmod(0o700)
}

// removeStale removes a socket's file that nobody listens on.
func removeStale(dir *os.File, name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return os.NewSyscallError("fstatat", err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("there is something else than a socket: remove it: %w", errdefs.ErrFailedPrecondition)
	}
	// Any answer but a refusal is a sign of life; a full backlog, for one.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", through(dir, name))
	if conn != nil {
		conn.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("another living shim serves it: %w", errdefs.ErrAlreadyExists)
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
		return os.NewSyscallError("unlinkat", err)
	}
	return nil
}

// remove removes the socket's file if it is still ours.
func (s *socket) remove() error {
	dir, err := lockDir(filepath.Dir(s.path))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove the container's socket: %w", err)
	}
	defer dir.Close()
	var st unix.Stat_t
	name := filepath.Base(s.path)
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Dev != s.dev || st.Ino != s.ino {
		return nil
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
		return fmt.Errorf("remove the container's socket %s: %w", s.path, err)
	}
	return nil
}
