//go:build linux

package preserve

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tempPrefix begins the names of files that are being written.
const tempPrefix = ".fastmig-preserved-"

// Unpack puts the archive r, of size bytes, into a container: files are replaced
// one by one, by rename, and folders merged; missing folders above a path are made. The
// archive and the container may be hostile; what runs in the container must be frozen. It
// blocks while all is read and written, until ctx ends.
//
// The times of a folder that was there and is another user's stay as they are; set-id
// bits that the container's user may not set are not set.
//
// Errors: DataLoss if the archive is damaged or holds what Pack does not write,
// ResourceExhausted if the disk is full, PermissionDenied, FailedPrecondition. Then files
// may have been changed already.
func Unpack(ctx context.Context, root *os.File, paths []string, r io.Reader, size int64, o Options) error {
	err := o.Rights.do(func(a *actor) error {
		t, err := newTree(root, a)
		if err != nil {
			return err
		}
		u := &unpacker{tree: t, ctx: ctx, archive: openArchive(r, size, paths), tell: teller{o: o}}
		defer func() {
			for _, f := range u.stack {
				f.dir.close()
			}
		}()
		if err := u.all(); err != nil {
			return err
		}
		u.tell.end()
		return nil
	})
	if err != nil {
		return fmt.Errorf("restore the preserved files (those before it are restored already): %w", err)
	}
	return nil
}

type unpacker struct {
	*tree
	ctx     context.Context
	archive *archive
	// stack is the open folder that the last entry was in, below those that it is in.
	stack []frame
	tell  teller
}

// frame is an open folder. What the archive says of it is done when its files are.
type frame struct {
	path  string
	dir   *dir
	entry *entry // nil: it only leads on
	made  bool
}

func (u *unpacker) all() error {
	seen := make(map[string]bool)
	for {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		e, err := u.archive.next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if err := u.entry(e); err != nil {
			return fmt.Errorf("%s: %w", e.path, withKind(err))
		}
		if e.path == e.base {
			seen[e.base] = true
		}
		u.tell.progress(0)
	}
	for _, p := range u.archive.paths {
		if !seen[p] {
			return fmt.Errorf("read the archive: %s is not in it: %w", p, errdefs.ErrDataLoss)
		}
	}
	return u.leave(0)
}

// leave closes the open folders but for so many.
func (u *unpacker) leave(keep int) error {
	for len(u.stack) > keep {
		f := u.stack[len(u.stack)-1]
		u.stack = u.stack[:len(u.stack)-1]
		var err error
		if f.entry != nil {
			err = u.finishFolder(f)
		}
		f.dir.close()
		if err != nil {
			return fmt.Errorf("%s: %w", f.path, withKind(err))
		}
	}
	return nil
}

func (u *unpacker) entry(e *entry) error {
	parent, name, done, err := u.parent(e)
	if err != nil {
		return err
	}
	defer done()
	if e.Typeflag == tar.TypeDir {
		return u.folderEntry(parent, name, e)
	}
	temp := tempPrefix + rand.Text()
	if err := u.over(&parent.st); err != nil {
		return err
	}
	switch e.Typeflag {
	case tar.TypeReg:
		err = u.regular(parent, temp, e)
	case tar.TypeSymlink:
		if err = unix.Symlinkat(e.Linkname, parent.fd, temp); err == nil {
			err = u.finishSpecial(parent, temp, e)
		}
	case tar.TypeFifo:
		if err = unix.Mknodat(parent.fd, temp, unix.S_IFIFO|0o600, 0); err == nil {
			err = u.finishSpecial(parent, temp, e)
		}
	case tar.TypeLink:
		err = u.link(parent, temp, e)
	}
	if err == nil {
		err = u.replace(parent, temp, name)
	}
	// Also after a rename: two names of one file are left as they are (rename(2)).
	if u.over(&parent.st) == nil {
		_ = unix.Unlinkat(parent.fd, temp, 0)
	}
	return err
}

// replace puts a new file in the place of what may be there.
func (u *unpacker) replace(parent *dir, temp, name string) error {
	st, err := u.stat(parent, name)
	if err == nil {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return fmt.Errorf("there is a folder in its place: %w", errdefs.ErrFailedPrecondition)
		}
		err = u.over(&parent.st, &st)
	} else if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	if err != nil {
		return err
	}
	if err := unix.Renameat(parent.fd, temp, parent.fd, name); err != nil {
		return fmt.Errorf("put it in its place: %w", err)
	}
	return nil
}

// parent opens the folder that an entry is in, until done is called.
func (u *unpacker) parent(e *entry) (_ *dir, name string, done func(), err error) {
	if e.path == e.base {
		if err := u.leave(0); err != nil {
			return nil, "", nil, err
		}
		parent, name, err := u.locate(e.path)
		if err != nil {
			return nil, "", nil, err
		}
		return parent, name, parent.close, nil
	}
	at, name := path.Split(e.path)
	at = path.Clean(at)
	keep := len(u.stack)
	for keep > 0 && !within(at, u.stack[keep-1].path) {
		keep--
	}
	if err := u.leave(keep); err != nil {
		return nil, "", nil, err
	}
	if keep == 0 {
		d, err := u.open(e.base)
		if err != nil {
			return nil, "", nil, err
		}
		u.stack = append(u.stack, frame{path: e.base, dir: d})
	}
	for top := u.stack[len(u.stack)-1]; top.path != at; top = u.stack[len(u.stack)-1] {
		next := top.path + "/" + first(at[len(top.path)+1:])
		d, err := u.child(top.dir, path.Base(next))
		if err != nil {
			return nil, "", nil, fmt.Errorf("open the folder that it is in: %w", err)
		}
		u.stack = append(u.stack, frame{path: next, dir: d})
	}
	return u.stack[len(u.stack)-1].dir, name, func() {}, nil
}

// first is a relative path's first name.
func first(p string) string {
	for i := range len(p) {
		if p[i] == '/' {
			return p[:i]
		}
	}
	return p
}

// locate is resolve for a path above which folders may be missing: they are made.
func (u *unpacker) locate(p string) (*dir, string, error) {
	parent, name, err := u.resolve(p)
	if !errors.Is(err, unix.ENOENT) {
		return parent, name, err
	}
	above := path.Dir(p)
	if above == "/" {
		return nil, "", err
	}
	parent, name, err = u.locate(above)
	if err != nil {
		return nil, "", err
	}
	err = u.over(&parent.st)
	if err == nil {
		err = unix.Mkdirat(parent.fd, name, 0o755)
	}
	parent.close()
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, "", fmt.Errorf("make the folder %s: %w", above, err)
	}
	return u.resolve(p)
}

// open opens the folder that a preserved path is.
func (u *unpacker) open(base string) (*dir, error) {
	parent, name, err := u.resolve(base)
	if err != nil {
		return nil, fmt.Errorf("open the folder that it is in: %w", err)
	}
	defer parent.close()
	return u.child(parent, name)
}

func (u *unpacker) folderEntry(parent *dir, name string, e *entry) error {
	f := frame{path: e.path, entry: e}
	err := u.over(&parent.st)
	if err == nil {
		err = unix.Mkdirat(parent.fd, name, 0o700)
	}
	switch {
	case err == nil:
		f.made = true
	case !errors.Is(err, unix.EEXIST):
		if _, serr := u.stat(parent, name); serr != nil {
			return fmt.Errorf("make the folder: %w", err)
		}
		// It is there: one may be merged into where none can be made.
	}
	if f.dir, err = u.child(parent, name); err != nil {
		return fmt.Errorf("open the folder: %w", err)
	}
	u.stack = append(u.stack, f)
	if st := &f.dir.st; !f.made && st.Uid == u.uid && st.Mode&0o700 != 0o700 {
		// Its owner can let himself in; in the end it is as the archive says.
		return u.withFolder(f.dir, func(fd int) error { return unix.Fchmod(fd, st.Mode&0o7777|0o700) })
	}
	return nil
}

// withFolder opens a folder for what O_PATH does not allow. A folder that cannot be
// read has to be made readable by its name.
func (u *unpacker) withFolder(d *dir, f func(fd int) error) error {
	if err := u.over(&d.st); err != nil {
		return err
	}
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		self := fmt.Sprintf("/proc/self/fd/%d", d.fd)
		if err = unix.Chmod(self, d.st.Mode&0o7777|0o700); err == nil {
			fd, err = unix.Open(self, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}

func (u *unpacker) finishFolder(f frame) error {
	err := u.withFolder(f.dir, func(fd int) error { return u.finish(fd, f.entry, f.made) })
	if err == nil || f.made || !errors.Is(err, os.ErrPermission) {
		return err
	}
	// Another user's folder that is as it should be, but for its times, is left alone.
	uid, gid, ierr := u.owner(f.entry)
	st := &f.dir.st
	if ierr == nil && len(f.entry.xattrs) == 0 && st.Uid == uid && st.Gid == gid && st.Mode&0o7777 == uint32(f.entry.Mode) {
		return nil
	}
	return err
}

// regular writes a file.
func (u *unpacker) regular(parent *dir, name string, e *entry) (err error) {
	fd, err := unix.Openat(parent.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make the file: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer func() {
		if cerr := file.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("write it: %w", cerr)
		}
	}()
	for left := e.Size; left > 0; {
		if err := u.ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(u.archive.tar, u.buf[:min(left, bufferSize)])
		if err != nil {
			return u.archive.failed(err)
		}
		if _, err := file.Write(u.buf[:n]); err != nil {
			return fmt.Errorf("write it: %w", err)
		}
		left -= int64(n)
		u.tell.progress(int64(n))
	}
	return u.finish(fd, e, true)
}

// find opens the folder that a file of the preserved path base is in, each time anew.
func (u *unpacker) find(full, base string) (*dir, string, error) {
	from, name, err := u.resolve(base)
	for at := base; err == nil && at != full; at += "/" + name {
		var next *dir
		next, err = u.child(from, name)
		from.close()
		if err == nil {
			from, name = next, first(full[len(at)+1:])
		}
	}
	return from, name, err
}

// link gives a file of the preserved paths another name.
func (u *unpacker) link(parent *dir, temp string, e *entry) error {
	full, base, _ := u.archive.place(e.Linkname)
	from, name, err := u.find(full, base)
	if err != nil {
		return fmt.Errorf("find %s, which it is a link to: %w", full, err)
	}
	defer from.close()
	st, err := u.stat(from, name)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("it is no file: %w", errdefs.ErrDataLoss)
	}
	if err == nil {
		err = u.over(&parent.st, &from.st, &st)
	}
	if err == nil {
		err = unix.Linkat(from.fd, name, parent.fd, temp, 0)
	}
	if err != nil {
		return fmt.Errorf("link it to %s: %w", full, err)
	}
	return nil
}
