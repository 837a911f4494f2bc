package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// clearLeftovers removes from a target folder what writers that died left in
// it. If anything else is there, or a writer is alive, it changes nothing and
// returns an error. The caller holds the folder's lock.
func clearLeftovers(target *os.File) error {
	entries, err := list(target)
	if err != nil {
		return err
	}
	var (
		partials []string // all dead
		ours     []string // files that a dead writer had published already
		foreign  []string
	)
	for _, e := range entries {
		if !e.isPartial() {
			foreign = append(foreign, e.name)
			continue
		}
		f, live, err := openPartial(target, e.name)
		if err != nil {
			return err
		}
		defer f.Close()
		if live {
			return fmt.Errorf("another checkpoint is being written to %s: wait for it or choose another folder: %w",
				target.Name(), errdefs.ErrUnavailable)
		}
		partials = append(partials, e.name)
		published, err := publishedBy(f, target)
		if err != nil {
			return err
		}
		ours = append(ours, published...)
	}
	foreign = slices.DeleteFunc(foreign, func(name string) bool { return slices.Contains(ours, name) })
	if len(foreign) > 0 {
		slices.Sort(foreign)
		what := fmt.Sprintf("%q is in it", foreign[0])
		if slices.Contains(foreign, ManifestName) {
			what = "it holds a checkpoint"
		}
		return fmt.Errorf("%s is not empty (%s): choose an empty or a new folder: %w", target.Name(), what, errdefs.ErrAlreadyExists)
	}
	// The files first: their list is in the partial folder.
	if err := unlinkAll(target, ours); err != nil {
		return err
	}
	for _, name := range partials {
		if err := removePartial(target, name); err != nil {
			return fmt.Errorf("remove the unfinished checkpoint: %w", err)
		}
	}
	return nil
}

// removePartial deletes a partial folder and the files in it, and nothing
// deeper: a folder in it is none of ours, and may be anybody's.
func removePartial(target *os.File, name string) error {
	d, err := openFolderAt(target, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	entries, err := list(d)
	if err != nil {
		return err
	}
	var files []string
	for _, e := range entries {
		if !e.mode.IsDir() {
			files = append(files, e.name)
		}
	}
	return errors.Join(unlinkAll(d, files), removeEmpty(target, name))
}

// removeFolders deletes what is no file in a partial folder of our own making,
// in which only our writer can have made it.
func removeFolders(partial *os.File) error {
	entries, err := list(partial)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if e.mode.IsDir() {
			errs = append(errs, withKind(os.RemoveAll(filepath.Join(self(partial), e.name))))
		}
	}
	return errors.Join(errs...)
}

// removeEmpty deletes an empty folder; one that is gone already is fine.
func removeEmpty(parent *os.File, name string) error {
	if err := unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove folder %s: %w", filepath.Join(parent.Name(), name), withKind(err))
	}
	return nil
}

// publishedBy returns the files in target that a dead writer moved there out of
// its partial folder: its manifest lists them, they are not in the partial
// folder any more, and they have the listed size. A partial folder without a
// manifest has published nothing.
func publishedBy(partial, target *os.File) ([]string, error) {
	m, err := readManifest(partial)
	if errors.Is(err, fs.ErrNotExist) || errdefs.IsDataLoss(err) || errdefs.IsFailedPrecondition(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range m.Files {
		var st unix.Stat_t
		err := unix.Fstatat(int(target.Fd()), file.Name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && fileType(st.Mode).IsRegular() && st.Size == file.Size {
			names = append(names, file.Name)
		}
	}
	return names, nil
}

// Remove deletes the checkpoint in dir, whole, damaged or unfinished, and dir
// itself. The manifest goes first, so that a removal that is interrupted leaves
// no checkpoint that looks whole.
//
// Errors: NotFound if dir does not exist, FailedPrecondition if it is no
// FastMig checkpoint (nothing is changed then), Unavailable if one is being
// written there, AlreadyExists if dir holds a sub-folder, which then stays.
func Remove(dir string) error {
	parent, name, err := openParent(dir)
	if err != nil {
		return fmt.Errorf("remove the checkpoint: %w", err)
	}
	defer parent.Close()
	return RemoveAt(parent, name)
}

// RemoveAt is Remove for the folder name of an open folder. It looks no deeper
// than a checkpoint is, and follows no link.
func RemoveAt(parent *os.File, name string) error {
	if err := remove(parent, name); err != nil {
		return fmt.Errorf("remove the checkpoint: %w", err)
	}
	return nil
}

func remove(parent *os.File, name string) error {
	d, err := openFolderAt(parent, name)
	if err != nil {
		return err
	}
	defer d.Close()
	dir := d.Name()
	if err := lock(d); errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use by another checkpoint: wait for it: %w", dir, errdefs.ErrUnavailable)
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", dir, withKind(err))
	}
	entries, err := list(d)
	if err != nil {
		return err
	}
	files := []string{ManifestName}
	ours := len(entries) == 0
	var partials []string
	for _, e := range entries {
		switch {
		case e.isPartial():
			f, live, err := openPartial(d, e.name)
			if err != nil {
				return err
			}
			defer f.Close()
			if live {
				return fmt.Errorf("a checkpoint is being written to %s: wait for it: %w", dir, errdefs.ErrUnavailable)
			}
			partials = append(partials, e.name)
			ours = true
		case e.name == ManifestName:
			ours = true
		case !e.mode.IsDir():
			files = append(files, e.name)
		}
	}
	if !ours {
		return fmt.Errorf("%s has no %s, so it is not a checkpoint of FastMig; remove it by hand if it shall go: %w",
			dir, ManifestName, errdefs.ErrFailedPrecondition)
	}
	if err := unlinkAll(d, files); err != nil {
		return err
	}
	for _, partial := range partials {
		if err := removePartial(d, partial); err != nil {
			return err
		}
	}
	return removeEmpty(parent, name)
}
