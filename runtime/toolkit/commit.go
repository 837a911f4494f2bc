//go:build linux

package toolkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stagePrefix begins the names of folders below the root in which an install
// works: before the exchange they hold the new toolkit, after it the old one.
const stagePrefix = ".stage-"

// lockPoll is how often a lock that another install holds is tried again.
const lockPoll = 100 * time.Millisecond

// parts are exchanged in this order. The manifest is last: it describes what is
// there only once everything is.
var parts = []string{fastfreezePath, criuDir, wrapperPath, manifestName}

// commit exchanges the staged parts with those in root, so that each name leads
// at every instant to the old part or to the new one, both whole. The old parts
// are in stage afterwards. When one cannot be exchanged, those before it are put
// back.
func commit(stage, root string) error {
	bin := filepath.Join(root, "bin")
	if err := os.Mkdir(bin, 0o755); err == nil {
		if err := os.Chmod(bin, 0o755); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrExist) {
		return err
	}
	for i, part := range parts {
		if err := exchange(filepath.Join(stage, part), filepath.Join(root, part)); err != nil {
			for _, done := range parts[:i] {
				err = errors.Join(err, exchange(filepath.Join(stage, done), filepath.Join(root, done)))
			}
			os.Remove(bin) // if it is new, it is empty
			return fmt.Errorf("exchange %s: %w", part, err)
		}
	}
	return errors.Join(syncPath(bin), syncPath(root))
}

// exchange swaps two paths of one file system; one of them may be missing.
func exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		if _, err := os.Lstat(a); err == nil {
			return os.Rename(a, b)
		}
		return os.Rename(b, a)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		// A file system without exchange, such as NFS: b is missing for a moment.
		return exchangeByRename(a, b)
	}
	return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
}

func exchangeByRename(a, b string) error {
	aside := a + ".old"
	if err := os.Rename(b, aside); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return errors.Join(err, os.Rename(aside, b))
	}
	return os.Rename(aside, a)
}

// sweep removes the working folders of finished and killed installs. One whose
// CRIU is held by a running shim stays, because that shim starts CRIU by this
// descriptor; a later install removes it. The caller holds the lock.
func sweep(root string, progress func(string, ...any)) error {
	stages, err := filepath.Glob(filepath.Join(root, stagePrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, stage := range stages {
		if pids := holders(filepath.Join(stage, criuDir)); len(pids) > 0 {
			progress("the previous CRIU stays in %s until a later install: held by the processes %v", stage, pids)
			continue
		}
		if err := os.RemoveAll(stage); err != nil {
			errs = append(errs, fmt.Errorf("toolkit: remove what is left of an install: %w", err))
		}
	}
	return errors.Join(errs...)
}

// holders lists the processes that have path or something below it open, as a
// descriptor of any kind, as far as /proc shows them. The clone of a mount has
// the same device and inode as the mount, so these count as well.
func holders(paths ...string) []int {
	held := map[[2]uint64]bool{}
	for _, path := range paths {
		err := filepath.WalkDir(path, func(p string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && unix.Lstat(p, &st) == nil {
				held[[2]uint64{st.Dev, st.Ino}] = true
			}
			return nil
		})
		if err != nil {
			continue
		}
	}
	if len(held) == 0 {
		return nil
	}
	var pids []int
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, proc := range procs {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(proc), "%d", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		fds, err := os.ReadDir(proc + "/fd")
		if err != nil {
			continue // ended
		}
		links := []string{proc + "/exe", proc + "/cwd"}
		for _, fd := range fds {
			links = append(links, proc+"/fd/"+fd.Name())
		}
		for _, link := range links {
			var st unix.Stat_t
			if unix.Stat(link, &st) == nil && held[[2]uint64{st.Dev, st.Ino}] {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// lockedRoot is the root folder, opened and locked against other installs.
type lockedRoot struct {
	path    string
	file    *os.File
	created []string // folders that were made for it, outermost first
}

// openRoot makes the root folder when it is missing and takes its lock.
func openRoot(ctx context.Context, root string) (*lockedRoot, error) {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		r := &lockedRoot{path: root}
		if err := r.open(); err != nil {
			return nil, explain("prepare "+root, root, err)
		}
		err := unix.Flock(int(r.file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		// The holder before may have removed the folder while it was waited for.
		if err == nil && r.current() {
			return r, nil
		}
		r.file.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			r.removeCreated()
			return nil, explain("lock "+root, root, err)
		}
		select {
		case <-ctx.Done():
			r.removeCreated()
			return nil, fmt.Errorf("toolkit: wait for another install of %s: %w", root, ctx.Err())
		case <-tick.C:
		}
	}
}

func (r *lockedRoot) open() error {
	var missing []string
	for p := r.path; ; p = filepath.Dir(p) {
		if _, err := os.Stat(p); err == nil || p == "/" {
			break
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		missing = append([]string{p}, missing...)
	}
	for _, p := range missing {
		if err := makeDir(p); err == nil {
			r.created = append(r.created, p)
		} else if !errors.Is(err, os.ErrExist) {
			r.removeCreated()
			return err
		}
	}
	f, err := os.OpenFile(r.path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		r.removeCreated()
		return err
	}
	r.file = f
	return nil
}

func (r *lockedRoot) current() bool {
	open, err := r.file.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(r.path)
	return err == nil && os.SameFile(open, now)
}

// removeCreated takes back the folders that open made, if nothing is in them.
func (r *lockedRoot) removeCreated() {
	for i := len(r.created) - 1; i >= 0; i-- {
		if !strings.HasPrefix(r.path+"/", r.created[i]+"/") || os.Remove(r.created[i]) != nil {
			return
		}
	}
}

func (r *lockedRoot) close() { r.file.Close() }
