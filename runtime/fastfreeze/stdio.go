//go:build linux

package fastfreeze

import (
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// stream is one of the container's standard descriptors.
type stream struct {
	kind string // of image.Stdio…
	id   string // how CRIU names it, "" if it need not be told
	stat unix.Stat_t
}

// streamSource gives the files that stand for the container's stdio. The caller
// closes what it gets.
type streamSource func(i int) (*os.File, error)

// lookAtStdio learns the container's standard descriptors from PID 1, which has
// them until an application runs.
func (e *Engine) lookAtStdio() ([3]stream, error) { return lookAt(e.stdioFile) }

// stdioOf is what the application of a launch will have.
func (e *Engine) stdioOf(l Launch) ([3]stream, error) {
	if l.Stdio != nil {
		return lookAt(fresh(l.Stdio))
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stdio, nil
}

func lookAt(source streamSource) (stdio [3]stream, err error) {
	for i := range stdio {
		f, err := source(i)
		if err != nil {
			return stdio, err
		}
		var st unix.Stat_t
		err = unix.Fstat(int(f.Fd()), &st)
		f.Close()
		if err != nil {
			return stdio, fmt.Errorf("look at the container's descriptor %d: %w", i, err)
		}
		stdio[i] = classify(st)
	}
	return stdio, nil
}

// fresh copies the descriptors of a launch.
func fresh(files *[3]*os.File) streamSource {
	return func(i int) (*os.File, error) {
		fd, err := unix.FcntlInt(files[i].Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("copy the application's descriptor %d: %w", i, err)
		}
		return os.NewFile(uintptr(fd), fmt.Sprintf("stdio-%d", i)), nil
	}
}

// stdioFile takes a copy of PID 1's descriptor (pidfd_getfd(2)).
func (e *Engine) stdioFile(i int) (*os.File, error) {
	fd, err := unix.PidfdGetfd(int(e.pidfd.Fd()), i, 0)
	if err != nil {
		return nil, fmt.Errorf("take the container's descriptor %d from its first process: %w", i, err)
	}
	return os.NewFile(uintptr(fd), fmt.Sprintf("stdio-%d", i)), nil
}

func classify(st unix.Stat_t) stream {
	s := stream{kind: image.StdioFile, stat: st}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO:
		s.kind = image.StdioPipe
		s.id = fmt.Sprintf("pipe:[%d]", st.Ino)
	case unix.S_IFCHR:
		if unix.Major(st.Rdev) == 1 && unix.Minor(st.Rdev) == 3 {
			s.kind = image.StdioNull
			break
		}
		s.kind = image.StdioTTY
		s.id = ttyID(image.TTYID{Rdev: st.Rdev, Dev: st.Dev})
	}
	return s
}

func ttyID(t image.TTYID) string { return fmt.Sprintf("tty[%x:%x]", t.Rdev, t.Dev) }

// external names what of the container's stdio is not the application's own.
func external(stdio [3]stream) []string {
	var ids []string
	for _, s := range stdio {
		if s.id != "" {
			ids = append(ids, s.id)
		}
	}
	return ids
}

func stdioRecord(stdio [3]stream) (entries [3]image.StdioEntry) {
	for i, s := range stdio {
		entries[i].Kind = s.kind
		switch s.kind {
		case image.StdioPipe:
			entries[i].Inode = s.stat.Ino
		case image.StdioTTY:
			entries[i].TTY = image.TTYID{Rdev: s.stat.Rdev, Dev: s.stat.Dev}
		}
	}
	return entries
}

// inherited pairs the checkpoint's standard descriptors with those that the
// application gets here; the caller closes the files.
func (e *Engine) inherited(from [3]image.StdioEntry, stdio [3]stream, source streamSource) (map[string]*os.File, error) {
	files := make(map[string]*os.File)
	for i, entry := range from {
		var id string
		switch entry.Kind {
		case image.StdioPipe:
			id = fmt.Sprintf("pipe:[%d]", entry.Inode)
		case image.StdioTTY:
			id = ttyID(entry.TTY)
			if stdio[i].kind != image.StdioTTY {
				closeAll(files)
				return nil, fmt.Errorf("the checkpoint's application had a terminal and this container has none: create it with one (-t): %w", errdefs.ErrFailedPrecondition)
			}
		default:
			continue
		}
		if files[id] != nil {
			continue
		}
		f, err := source(i)
		if err == nil && stdio[i].kind == image.StdioPipe {
			err = e.ownByRoot(f)
		}
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files[id] = f
	}
	return files, nil
}

// ownByRoot gives a pipe to the root of a container in a user namespace: CRIU,
// which is that root there, opens it anew.
func (e *Engine) ownByRoot(pipe *os.File) error {
	var ids [2]int
	for i, name := range []string{"uid_map", "gid_map"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", e.pid, name))
		if err != nil {
			return fmt.Errorf("read the container's user namespace: %w", err)
		}
		ids[i] = hostID(string(text))
	}
	if ids == [2]int{} {
		return nil
	}
	if err := pipe.Chown(ids[0], ids[1]); err != nil {
		return fmt.Errorf("give the container's root its stdio: %w", err)
	}
	return nil
}

// hostID is what id 0 of a user namespace is outside of it
// (user_namespaces(7), uid_map); 0 if it is not mapped.
func hostID(idMap string) int {
	for line := range strings.Lines(idMap) {
		var inside, outside, length int
		if n, _ := fmt.Sscan(line, &inside, &outside, &length); n == 3 && inside == 0 && length > 0 {
			return outside
		}
	}
	return 0
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}
