//go:build linux

package preserve

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// owner is an entry's, as the host numbers it.
func (t *tree) owner(e *entry) (uid, gid uint32, err error) {
	uid, user := t.uids.toOutside(uint32(e.Uid))
	gid, group := t.gids.toOutside(uint32(e.Gid))
	if !user || !group {
		return 0, 0, fmt.Errorf("its owner %d:%d is not in the container's user namespace: %w", e.Uid, e.Gid, errdefs.ErrFailedPrecondition)
	}
	return uid, gid, nil
}

func times(e *entry) []unix.Timespec {
	m := e.ModTime
	return []unix.Timespec{
		{Nsec: unix.UTIME_OMIT},
		{Sec: m.Unix(), Nsec: int64(m.Nanosecond())},
	}
}

// finish gives an open file or folder what else the archive says of it, in the order
// that keeps each: a new owner takes off capabilities and set-id bits, and an access
// list changes the permissions.
func (t *tree) finish(fd int, e *entry, made bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := t.over(&st); err != nil {
		return err
	}
	if made {
		if err := clearACLs(fd); err != nil {
			return err
		}
	}
	if err := t.writeXattrs(fd, e.xattrs, func(name string) bool { return strings.HasPrefix(name, "user.") }); err != nil {
		return err
	}
	uid, gid, err := t.owner(e)
	if err != nil {
		return err
	}
	if st.Uid != uid || st.Gid != gid {
		if err := unix.Fchown(fd, int(uid), int(gid)); err != nil {
			return fmt.Errorf("make it user %d's and group %d's: %w", e.Uid, e.Gid, err)
		}
		st.Uid, st.Gid = uid, gid
		if err := t.over(&st); err != nil {
			return err
		}
	}
	if err := t.writeXattrs(fd, e.xattrs, func(name string) bool { return !strings.HasPrefix(name, "user.") }); err != nil {
		return err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&0o7777 != uint32(e.Mode) {
		if err := unix.Fchmod(fd, uint32(e.Mode)); err != nil {
			return fmt.Errorf("set its permissions: %w", err)
		}
	}
	// By descriptor: utimensat(2) without a name.
	err = utimes(fd, times(e))
	if !made && errors.Is(err, unix.EPERM) {
		return nil // another user's folder
	}
	if err != nil {
		return fmt.Errorf("set its time: %w", err)
	}
	return nil
}

// finishSpecial is finish for what cannot be opened: links and fifos.
func (t *tree) finishSpecial(parent *dir, name string, e *entry) error {
	st, err := t.stat(parent, name)
	if err != nil {
		return err
	}
	uid, gid, err := t.owner(e)
	if err != nil {
		return err
	}
	if st.Uid != uid || st.Gid != gid {
		if err := t.over(&parent.st, &st); err != nil {
			return err
		}
		if err := unix.Fchownat(parent.fd, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("make it user %d's and group %d's: %w", e.Uid, e.Gid, err)
		}
		st.Uid, st.Gid = uid, gid
	}
	if err := t.over(&parent.st, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFIFO && st.Mode&0o7777 != uint32(e.Mode) {
		// The container stands still, so that the name is what was just made; a link in its
		// place would not lead out of the container, but it may be shared with others.
		fd, err := openat2(parent.fd, name, unix.O_PATH|unix.O_NOFOLLOW, beneath)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		var now unix.Stat_t
		if err := unix.Fstat(fd, &now); err != nil {
			return err
		}
		if now.Ino != st.Ino || now.Dev != st.Dev {
			return fmt.Errorf("somebody outside of the container replaces it: %w", errdefs.ErrUnavailable)
		}
		if err := unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), uint32(e.Mode)); err != nil {
			return fmt.Errorf("set its permissions: %w", err)
		}
	}
	if err := unix.UtimesNanoAt(parent.fd, name, times(e), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set its time: %w", err)
	}
	return nil
}

// utimes is utimensat(2) for an open file, by no name.
func utimes(fd int, ts []unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts[0])), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
