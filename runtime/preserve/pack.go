//go:build linux

package preserve

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxLinks bounds the hard links that are known while packing; further ones are
// packed as files of their own.
const maxLinks = 100_000

// Pack archives the paths, which are as Paths returns them, in the container's root
// to w. What runs in the container must be frozen. A link at a path's end is
// followed; below, links are archived as such. Sockets, devices and what other file
// systems are mounted below a path are passed over with a note. It blocks while all
// is read and written, until ctx ends.
//
// Errors: as Check's, and ResourceExhausted if there is no room for the archive.
func Pack(ctx context.Context, root *os.File, paths []string, w io.Writer, o Options) error {
	err := o.Rights.do(func(a *actor) error {
		t, err := newTree(root, a)
		if err != nil {
			return err
		}
		out := bufio.NewWriterSize(w, bufferSize)
		p := &packer{tree: t, ctx: ctx, paths: paths, tar: tar.NewWriter(out), links: make(map[inode]*link), tell: teller{o: o}}
		p.file, _ = w.(*os.File)
		for _, path := range paths {
			if err := p.path(path); err != nil {
				return err
			}
		}
		if err := errors.Join(p.tar.Close(), out.Flush()); err != nil {
			return fmt.Errorf("write the archive: %w", withKind(err))
		}
		p.tell.end()
		return nil
	})
	if err != nil {
		return fmt.Errorf("preserve paths: %w", err)
	}
	return nil
}

type inode struct{ dev, ino uint64 }

// link is a file with several names, some of which are still to come.
type link struct {
	name string
	left uint64
}

type packer struct {
	*tree
	ctx   context.Context
	paths []string
	tar   *tar.Writer
	file  *os.File // what the archive is written to, if it is a file
	links map[inode]*link
	tell  teller
}

func (p *packer) path(path string) error {
	if err := p.check(path); err != nil {
		return fmt.Errorf("%s: %w", path, withKind(err))
	}
	parent, base, err := p.resolve(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, withKind(err))
	}
	defer parent.close()
	return p.add(parent, base, path, 0)
}

// add archives what is in a folder under a name, and path is the archive's.
func (p *packer) add(parent *dir, name, path string, depth int) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	failed := func(err error) error { return fmt.Errorf("%s: %w", path, withKind(err)) }
	if err := p.over(&parent.st); err != nil {
		return failed(err)
	}
	resolve := uint64(beneath)
	if depth > 0 {
		resolve |= unix.RESOLVE_NO_XDEV
	}
	fd, err := openat2(parent.fd, name, unix.O_PATH|unix.O_NOFOLLOW, resolve)
	switch {
	case errors.Is(err, unix.EXDEV):
		p.tell.note("%s was not preserved: another file system is mounted there", path)
		return nil
	case errors.Is(err, unix.ENOENT) && depth > 0:
		return nil // in a folder that it shares with others
	case err != nil:
		return failed(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed(err)
	}
	h, err := p.header(path, &st)
	if err != nil {
		return failed(err)
	}
	if err := p.over(&st); err != nil {
		return failed(err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return p.folder(fd, h, path, depth)
	case unix.S_IFREG:
		return p.regular(fd, h, &st, path)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = readlink(fd, ""); err != nil {
			return failed(err)
		}
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		p.tell.note("%s was not preserved: it is a %s", path, kindOf(st.Mode))
		return nil
	}
	return p.write(h, path)
}

func (p *packer) header(path string, st *unix.Stat_t) (*tar.Header, error) {
	uid, user := p.uids.toInside(st.Uid)
	gid, group := p.gids.toInside(st.Gid)
	if !user || !group {
		return nil, fmt.Errorf("its owner %d:%d on the host has no number in the container's user namespace: %w", st.Uid, st.Gid, errdefs.ErrFailedPrecondition)
	}
	return &tar.Header{
		Format: tar.FormatPAX, Name: path[1:], Mode: int64(st.Mode & 0o7777), Uid: int(uid), Gid: int(gid),
		ModTime: time.Unix(st.Mtim.Unix()),
	}, nil
}

func (p *packer) write(h *tar.Header, path string) error {
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write the archive: %s: %w", path, withKind(err))
	}
	p.tell.progress(0)
	return nil
}

func (p *packer) folder(fd int, h *tar.Header, path string, depth int) error {
	failed := func(err error) error { return fmt.Errorf("%s: %w", path, withKind(err)) }
	if depth > maxDepth {
		return failed(fmt.Errorf("folders are nested more than %d deep: %w", maxDepth, errdefs.ErrFailedPrecondition))
	}
	open, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(err)
	}
	names := os.NewFile(uintptr(open), path)
	defer names.Close()
	h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
	if h.PAXRecords, err = p.readXattrs(open); err != nil {
		return failed(err)
	}
	if err := p.write(h, path); err != nil {
		return err
	}
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return failed(err)
	}
	d, err := p.enter(again)
	if err != nil {
		return failed(err)
	}
	defer d.close()
	for {
		batch, err := names.Readdirnames(1024)
		for _, name := range batch {
			below := path + "/" + name
			if slices.Contains(p.paths, below) {
				continue // it comes by itself
			}
			if len(below) > maxPath {
				return failed(unix.ENAMETOOLONG)
			}
			if err := p.add(d, name, below, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return failed(err)
		}
	}
}

func (p *packer) regular(fd int, h *tar.Header, st *unix.Stat_t, path string) error {
	failed := func(err error) error { return fmt.Errorf("%s: %w", path, withKind(err)) }
	h.Typeflag = tar.TypeReg
	if first := p.known(st, h.Name); first != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return p.write(h, path)
	}
	// The handle is of a regular file, and stays of that file: nothing else is opened.
	open, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(open)
	if h.PAXRecords, err = p.readXattrs(open); err != nil {
		return failed(err)
	}
	if err := p.room(st.Size); err != nil {
		return failed(err)
	}
	h.Size = st.Size
	if err := p.write(h, path); err != nil {
		return err
	}
	for left := st.Size; left > 0; {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Read(open, p.buf[:min(left, bufferSize)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return failed(err)
		case n == 0:
			return failed(fmt.Errorf("somebody outside of the container truncates it: try again: %w", errdefs.ErrUnavailable))
		}
		if _, err := p.tar.Write(p.buf[:n]); err != nil {
			return fmt.Errorf("write the archive: %s: %w", path, withKind(err))
		}
		left -= int64(n)
		p.tell.progress(int64(n))
	}
	return nil
}

// known gives the name under which a file with several names is in the archive.
func (p *packer) known(st *unix.Stat_t, name string) string {
	if st.Nlink < 2 {
		return ""
	}
	key := inode{st.Dev, st.Ino}
	l := p.links[key]
	if l == nil {
		if len(p.links) < maxLinks {
			p.links[key] = &link{name, uint64(st.Nlink) - 1}
		}
		return ""
	}
	if l.left--; l.left == 0 {
		delete(p.links, key)
	}
	return l.name
}

// room tells early that there is none: a file with holes may be larger than any
// disk.
func (p *packer) room(size int64) error {
	var st unix.Statfs_t
	if p.file == nil || size < bufferSize || unix.Fstatfs(int(p.file.Fd()), &st) != nil {
		return nil
	}
	if uint64(size)/uint64(st.Bsize) >= st.Bavail {
		return fmt.Errorf("its %d bytes (holes count) do not fit where the checkpoint goes: %w", size, unix.ENOSPC)
	}
	return nil
}
