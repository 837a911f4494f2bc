package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Staging is a checkpoint in the making: a private folder inside the target
// folder. It is for one goroutine.
type Staging struct {
	parent  *os.File // the folder that holds the target
	base    string   // the target's name in it
	target  *os.File
	partial *os.File // flock(2) on it says that it is live
	name    string   // the partial folder's
	created bool     // the target folder is ours
	moved   []string // what has been renamed into the target, in order
	done    bool     // committed or aborted
}

// Stage prepares a checkpoint in the folder dir, which must be empty or not
// exist; then it is made, with mode 0700, in its existing parent. What a writer
// that died left there is removed. Nothing else is touched.
//
// Errors: AlreadyExists if something is in dir, Unavailable if another
// checkpoint is being written there, NotFound if dir's parent is missing,
// InvalidArgument if dir is not a folder or a symbolic link.
func Stage(dir string) (*Staging, error) {
	parent, name, err := openParent(dir)
	if err != nil {
		return nil, fmt.Errorf("prepare the checkpoint folder: %w", err)
	}
	defer parent.Close()
	return StageAt(parent, name)
}

// StageAt is Stage for the folder name of an open folder: nothing is found by a
// path, so it may be used where others rename at will. The parent stays the
// caller's.
func StageAt(parent *os.File, name string) (_ *Staging, retErr error) {
	s := &Staging{base: name}
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("prepare the checkpoint folder: %w", retErr)
			retErr = errors.Join(retErr, s.Abort())
		}
	}()
	var err error
	if s.parent, err = duplicate(parent); err != nil {
		return nil, err
	}
	dir := filepath.Join(parent.Name(), name)
	switch err := unix.Mkdirat(int(parent.Fd()), name, 0o700); {
	case err == nil:
		s.created = true
	case !errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("make folder %s: %w", dir, withKind(err))
	}
	if s.target, err = openFolderAt(parent, name); err != nil {
		return nil, err
	}
	// Between looking and making our folder, nobody else does the same.
	if err := lock(s.target); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s is in use by another checkpoint: wait for it or choose another folder: %w", dir, errdefs.ErrUnavailable)
	} else if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, withKind(err))
	}
	defer unix.Flock(int(s.target.Fd()), unix.LOCK_UN)

	if err := clearLeftovers(s.target); err != nil {
		return nil, err
	}
	if err := s.makePartial(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Staging) makePartial() error {
	name := partialPrefix + rand.Text()
	if err := unix.Mkdirat(int(s.target.Fd()), name, 0o700); err != nil {
		return fmt.Errorf("make %s in %s: %w", name, s.target.Name(), withKind(err))
	}
	s.name = name
	fd, err := unix.Openat(int(s.target.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s in %s: %w", name, s.target.Name(), withKind(err))
	}
	s.partial = os.NewFile(uintptr(fd), filepath.Join(s.target.Name(), name))
	// It waits at most for an Open that is just asking whether we are alive.
	for {
		err = unix.Flock(fd, unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", s.Dir(), withKind(err))
	}
	return nil
}

// Dir is the path of the folder to dump into.
func (s *Staging) Dir() string { return s.partial.Name() }

// File is the folder to dump into. It belongs to the Staging; a child process
// may get a duplicate of it.
func (s *Staging) File() *os.File { return s.partial }

// Folder is the target folder, as a descriptor of the caller's own that shares
// flock(2) with nobody else.
func (s *Staging) Folder() (*os.File, error) { return duplicate(s.target) }

// Commit makes the checkpoint exist: it computes the digests of all files of
// the staging folder, brings them to the disk, moves them into the target, and
// the manifest last. It fills m's Files, Digest and whatever of FormatVersion,
// Architecture and CreatedAt is not set, and makes the files readable for their
// owner only, as they hold the application's memory.
//
// After an error no checkpoint exists, and Abort removes all traces. Commit
// blocks for as long as the disk takes; ctx is looked at between the files.
func (s *Staging) Commit(ctx context.Context, m *Manifest) (retErr error) {
	defer func() {
		if retErr != nil {
			retErr = fmt.Errorf("write the checkpoint: %w", retErr)
		}
	}()
	if s.done {
		return fmt.Errorf("the staging folder is closed: %w", errdefs.ErrFailedPrecondition)
	}
	names, err := s.seal(ctx, m)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.publish(name); err != nil {
			return err
		}
		pulse(ctx)
	}
	// This is the commit point; up to here the target is called unfinished by
	// everybody who looks, because the partial folder is there.
	if err := s.publish(ManifestName); err != nil {
		return err
	}
	pulse(ctx)
	return s.finish()
}

// seal brings the files and their manifest to the disk, all still in the
// partial folder, and returns the files' names.
func (s *Staging) seal(ctx context.Context, m *Manifest) ([]string, error) {
	entries, err := list(s.partial)
	if err != nil {
		return nil, err
	}
	files := make([]File, 0, len(entries))
	for _, e := range entries {
		if err := checkName(e.name); err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		if !e.mode.IsRegular() {
			return nil, fmt.Errorf("%s: %w: %w", e.name, &notRegularError{mode: e.mode}, errdefs.ErrInvalidArgument)
		}
		files = append(files, File{Name: e.name})
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("CRIU left no files in %s: %w", s.Dir(), errdefs.ErrFailedPrecondition)
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	if err := startWriteback(s.partial, files); err != nil {
		return nil, err
	}
	err = eachFile(ctx, files, syncWorkers, func(i int) error { return s.sealFile(ctx, &files[i]) })
	if err != nil {
		return nil, err
	}
	m.Files = files
	m.complete()
	if err := s.writeManifest(m); err != nil {
		return nil, err
	}
	// From here on a crash is recoverable: a partial folder with a manifest
	// tells the next Stage which files in the target are ours.
	if err := errors.Join(syncFolder(s.partial), syncFolder(s.target)); err != nil {
		return nil, err
	}
	names := make([]string, len(files))
	for i, f := range files {
		names[i] = f.Name
	}
	return names, nil
}

// startWriteback notes the files' sizes and lets the disk begin while the
// digests are computed; fsync(2) then finds little left. (One syncfs(2) would
// be faster still on an idle file system, but waits for everybody's data on a
// busy one.)
func startWriteback(dir *os.File, files []File) error {
	for i := range files {
		f, st, err := openBeneath(dir, files[i].Name)
		if err != nil {
			return fmt.Errorf("open %s: %w", files[i].Name, withKind(err))
		}
		files[i].Size = st.Size()
		// Only a hint: file systems that cannot do it are synced all the same.
		_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		f.Close()
	}
	return nil
}

func (s *Staging) sealFile(ctx context.Context, file *File) error {
	f, _, err := openBeneath(s.partial, file.Name)
	if err != nil {
		return fmt.Errorf("open %s: %w", file.Name, withKind(err))
	}
	defer f.Close()
	if file.SHA256, err = digestFile(ctx, f, file.Size); err != nil {
		return fmt.Errorf("read %s: %w", file.Name, err)
	}
	// CRIU makes its files readable for everybody.
	if err := f.Chmod(0o600); err != nil {
		return fmt.Errorf("protect %s: %w", file.Name, withKind(err))
	}
	flush(ctx, f, file.Size)
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", file.Name, withKind(err))
	}
	pulse(ctx)
	return nil
}

// flush brings a large file to the disk piece by piece: a slow disk is told by
// its pulse from one that does not answer. The sync that follows is what counts.
func flush(ctx context.Context, f *os.File, size int64) {
	const how = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for off := int64(0); off+chunkSize < size; off += chunkSize {
		if ctx.Err() != nil || unix.SyncFileRange(int(f.Fd()), off, chunkSize, how) != nil {
			return
		}
		pulse(ctx)
	}
}

func (s *Staging) writeManifest(m *Manifest) error {
	text, err := m.encode()
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(s.partial.Fd()), ManifestName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make %s: %w", ManifestName, withKind(err))
	}
	f := os.NewFile(uintptr(fd), ManifestName)
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", ManifestName, withKind(err))
	}
	return nil
}

// publish moves one file from the partial folder to the target, where it must
// not be yet.
func (s *Staging) publish(name string) error {
	from, to := int(s.partial.Fd()), int(s.target.Fd())
	// Not every file system has RENAME_NOREPLACE. The folder was empty and is
	// ours, so this guards against accidents only.
	var st unix.Stat_t
	err := unix.Fstatat(to, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil:
		err = unix.EEXIST
	case errors.Is(err, unix.ENOENT):
		err = unix.Renameat(from, name, to, name)
	}
	if err != nil {
		return fmt.Errorf("move %s into %s: %w", name, s.target.Name(), withKind(err))
	}
	s.moved = append(s.moved, name)
	return nil
}

// finish makes the published checkpoint survive a power failure.
func (s *Staging) finish() error {
	if err := unix.Unlinkat(int(s.target.Fd()), s.name, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove %s: %w", s.Dir(), withKind(err))
	}
	if err := syncFolder(s.target); err != nil {
		return err
	}
	if s.created {
		if err := syncFolder(s.parent); err != nil {
			return err
		}
	}
	s.done = true
	s.close()
	return nil
}

// syncFolder brings a folder's names to the disk. File systems without such a
// thing say EINVAL.
func syncFolder(dir *os.File) error {
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync %s: %w", dir.Name(), withKind(err))
	}
	return nil
}

// Abort removes everything that the Staging put on the disk, the target folder
// too if Stage made it. After Commit succeeded, or a second time, it does
// nothing, so that it can be deferred.
func (s *Staging) Abort() error {
	if s.done {
		return nil
	}
	s.done = true
	defer s.close()
	var errs []error
	if s.target != nil {
		// The manifest went last and goes first: what is left is no checkpoint.
		slices.Reverse(s.moved)
		errs = append(errs, unlinkAll(s.target, s.moved))
	}
	if s.partial != nil {
		errs = append(errs, removeFolders(s.partial))
	}
	if s.name != "" {
		errs = append(errs, removePartial(s.target, s.name))
	}
	if s.created {
		errs = append(errs, removeEmpty(s.parent, s.base))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the unfinished checkpoint: %w", err)
	}
	return nil
}

func (s *Staging) close() {
	for _, f := range []*os.File{s.partial, s.target, s.parent} {
		if f != nil {
			f.Close()
		}
	}
}
