package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// checkTarget refuses a place whose name is taken by something else than a
// checkpoint, which would be moved aside and removed one day.
func (p *place) checkTarget() error {
	taken := func(what string) error {
		return fmt.Errorf("%s is %s, not a checkpoint: move it away or choose another name: %w", p.at(p.name), what, errdefs.ErrAlreadyExists)
	}
	var st unix.Stat_t
	err := unix.Fstatat(int(p.parent.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("look at %s: %w", p.at(p.name), withKind(err))
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return taken("a symbolic link")
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return taken("no folder")
	}
	c, err := image.OpenAt(p.parent, p.name)
	switch {
	case err == nil:
		return c.Close()
	case errors.Is(err, image.ErrEmpty), p.hasManifest(p.name):
		return nil // a damaged one may be replaced
	case errdefs.IsUnavailable(err):
		return err
	}
	return taken("a folder with something else")
}

func (p *place) hasManifest(name string) bool {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := openat2(p.parent, name+"/"+image.ManifestName, &how)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// clear removes what writers that died left. Things that only look like it,
// and what cannot be removed, stay. The caller holds the lock.
func (p *place) clear(ctx context.Context) error {
	_, leftovers, err := p.names()
	if err != nil {
		return fmt.Errorf("read folder %s: %w", p.parent.Name(), err)
	}
	for _, name := range leftovers {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := image.RemoveAt(p.parent, name)
		if errdefs.IsUnavailable(err) && p.isNew(name) {
			return fmt.Errorf("another checkpoint is being written to %s: wait for it: %w", p.at(p.name), errdefs.ErrUnavailable)
		}
		passed("clear one")
	}
	return nil
}

// shift moves the newest checkpoint to the first of the older names, and those
// before it further, as far as names are taken. The caller holds the lock.
func (p *place) shift() error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(p.parent.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW); errors.Is(err, unix.ENOENT) {
		return nil
	}
	// An empty folder is no checkpoint: it needs not be kept.
	if unix.Unlinkat(int(p.parent.Fd()), p.name, unix.AT_REMOVEDIR) == nil {
		return nil
	}
	older, _, err := p.names()
	if err != nil {
		return fmt.Errorf("read folder %s: %w", p.parent.Name(), err)
	}
	free := 0
	for free < len(older) && older[free] == free {
		free++
	}
	for i := free; i > 0; i-- {
		if err := p.rename(p.previous(i-1), p.previous(i)); err != nil {
			return err
		}
		passed("shift")
	}
	if err := p.rename(p.name, p.previous(0)); err != nil {
		return err
	}
	passed("aside")
	return nil
}

// trim removes all checkpoints but the newest so many. What a reader still
// uses, or what cannot be removed, is left under a name of its own. The caller
// holds the lock.
func (p *place) trim(keep int) {
	older, _, err := p.names()
	if err != nil {
		return
	}
	kept := 0
	if p.hasManifest(p.name) {
		kept = 1
	}
	for _, i := range older {
		name := p.previous(i)
		if kept < keep && p.hasManifest(name) {
			kept++
			continue
		}
		old := p.oldName()
		if p.rename(name, old) != nil {
			continue
		}
		passed("trim")
		_ = image.RemoveAt(p.parent, old)
		passed("remove")
	}
}

func (p *place) rename(from, to string) error {
	fd := int(p.parent.Fd())
	err := unix.Renameat(fd, from, fd, to)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EXDEV):
		// overlayfs: a folder of a lower layer cannot be renamed.
		return fmt.Errorf("move %s to %s: it is part of the container's image or a mount of its own: choose another place: %w: %w",
			p.at(from), to, err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("move %s to %s: %w", p.at(from), to, withKind(err))
}

// is tells whether the name is that of the open folder.
func (p *place) is(name string, folder *os.File) (bool, error) {
	var named, open unix.Stat_t
	if err := unix.Fstatat(int(p.parent.Fd()), name, &named, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, err
	}
	if err := unix.Fstat(int(folder.Fd()), &open); err != nil {
		return false, err
	}
	return named.Dev == open.Dev && named.Ino == open.Ino, nil
}

// syncFolder brings a folder's names to the disk. File systems without such a
// thing say EINVAL.
func syncFolder(dir *os.File) error {
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync %s: %w", dir.Name(), withKind(err))
	}
	return nil
}
