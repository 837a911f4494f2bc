//go:build linux

package preserve

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tree is a container's root, in which a thread with its user's rights works. No
// path is ever resolved but inside it.
type tree struct {
	*actor
	root *os.File
	dev  *uint64 // /dev's device, if that is a file system of its own
	buf  []byte
}

// dir is an open folder (O_PATH).
type dir struct {
	fd int
	st unix.Stat_t
}

func (d *dir) close() {
	if d != nil {
		unix.Close(d.fd)
	}
}

func newTree(root *os.File, a *actor) (*tree, error) {
	t := &tree{actor: a, root: root, buf: make([]byte, bufferSize)}
	var top, dev unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &top); err != nil {
		return nil, fmt.Errorf("look at the container's root: %w", withKind(err))
	}
	if unix.Fstatat(int(root.Fd()), "dev", &dev, unix.AT_SYMLINK_NOFOLLOW) == nil && dev.Dev != top.Dev {
		t.dev = &dev.Dev
	}
	return t, nil
}

// openat2 repeats openat2(2) when a rename elsewhere disturbed the look-up.
func openat2(fd int, name string, flags, resolve uint64) (int, error) {
	for tries := 0; ; tries++ {
		got, err := unix.Openat2(fd, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
		if (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)) && tries < 100 {
			continue
		}
		return got, err
	}
}

// Where the kernel shows itself as files: nothing there is the container's.
var kernelFiles = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.DEVPTS_SUPER_MAGIC: true,
	unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.DEBUGFS_MAGIC: true,
	unix.TRACEFS_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.BPF_FS_MAGIC: true,
	unix.BINFMTFS_MAGIC: true, unix.PSTOREFS_MAGIC: true, unix.EFIVARFS_MAGIC: true,
	unix.SELINUX_MAGIC: true, unix.SMACK_MAGIC: true, unix.NSFS_MAGIC: true,
	0x19800202 /* mqueue */ : true, 0x62656570 /* configfs */ : true,
}

// enter takes an open folder over, if it is none of the kernel's.
func (t *tree) enter(fd int) (*dir, error) {
	d := &dir{fd: fd}
	var file unix.Statfs_t
	err := unix.Fstat(fd, &d.st)
	if err == nil {
		err = unix.Fstatfs(fd, &file)
	}
	if err == nil && (kernelFiles[int64(file.Type)] || t.dev != nil && *t.dev == d.st.Dev) {
		err = fmt.Errorf("it is in a file system of the kernel's: %w", errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// folder opens a folder by its path, whose links stay in the root.
func (t *tree) folder(path string) (*dir, error) {
	// On the way there may be folders outside of the user namespace.
	if t.mapped && t.now != 0 {
		if err := t.capset(0); err != nil {
			return nil, err
		}
	}
	fd, err := openat2(int(t.root.Fd()), path, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, err
	}
	return t.enter(fd)
}

// child opens a folder in an open one.
func (t *tree) child(parent *dir, name string) (*dir, error) {
	if err := t.over(&parent.st); err != nil {
		return nil, err
	}
	fd, err := openat2(parent.fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, beneath)
	if err != nil {
		return nil, err
	}
	return t.enter(fd)
}

const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// stat looks at what is in a folder.
func (t *tree) stat(parent *dir, name string) (st unix.Stat_t, err error) {
	if err := t.over(&parent.st); err != nil {
		return st, err
	}
	return st, unix.Fstatat(parent.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
}

// resolve finds the folder that a path's last name is in, and that name: it is not
// there, or no link. The folder is the caller's to close.
func (t *tree) resolve(path string) (*dir, string, error) {
	for range 40 { // as many links as the kernel follows
		head, base := split(path)
		if base == "" || base == "." || base == ".." {
			return nil, "", fmt.Errorf("its links lead to %q, which has no name: name the folder itself: %w", path, errdefs.ErrFailedPrecondition)
		}
		parent, err := t.folder(head)
		if err != nil {
			return nil, "", err
		}
		st, err := t.stat(parent, base)
		if errors.Is(err, unix.ENOENT) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return parent, base, nil
		}
		var target string
		if err == nil {
			target, err = readlink(parent.fd, base)
		}
		parent.close()
		if err != nil {
			return nil, "", err
		}
		// Not cleaned: what .. means after a link is the kernel's to say.
		if path = target; !strings.HasPrefix(target, "/") {
			path = head + "/" + target
		}
		if len(path) > maxPath {
			return nil, "", unix.ENAMETOOLONG
		}
	}
	return nil, "", unix.ELOOP
}

// split cuts a path before its last name.
func split(path string) (head, base string) {
	path = strings.TrimRight(path, "/")
	i := strings.LastIndexByte(path, '/')
	head, base = path[:i+1], path[i+1:]
	if head == "" {
		head = "/"
	}
	return head, base
}

func readlink(fd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
