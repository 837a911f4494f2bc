//go:build linux

// Package stdio joins the standard descriptors of a container's processes to
// what containerd's client asked for: fifos, files, logging programs or a
// terminal (containerd's runtime v2 documentation, section Logging).
package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/fifo"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Addresses are what the client gave for a process: fifo paths, or in Stdout
// a file:// or binary:// URI.
type Addresses struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// Owner of the pipes that a process gets.
type Owner struct{ UID, GID int }

// drainTimeout bounds how long the deletion of a process waits for its last
// output to be taken.
const drainTimeout = 10 * time.Second

// Streams are the pipes of one process without a terminal, or of one process
// after the other (Renew).
type Streams struct {
	// Child's ends, to be handed to the process; nil where the client asked
	// for nothing.
	Stdin, Stdout, Stderr *os.File

	addr   Addresses
	ns, id string

	stdin          *os.File // our ends, until Copy
	stdout, stderr *os.File
	copies         crew

	mu       sync.Mutex
	keep     bool
	closed   bool
	pipes    map[*os.File]struct{} // that are being copied from
	out, err *sink                 // one for both if they go to the same file; nil before Copy
	input    *input                // nil before Copy, or without stdin
	logURL   *url.URL              // of a logging program
	loggers  []*logger             // the last one is in use
}

// Open makes the pipes for a process and starts its logging program, if it
// has one. ns and id go to that program's environment.
func Open(ctx context.Context, ns, id string, addr Addresses, owner Owner) (_ *Streams, err error) {
	s := &Streams{addr: addr, ns: ns, id: id, pipes: map[*os.File]struct{}{}}
	defer func() {
		if err != nil {
			s.CloseChild()
			s.Close()
		}
	}()
	if addr.Stdin != "" {
		if s.Stdin, s.stdin, err = pipe(owner, false); err != nil {
			return nil, err
		}
	}
	if addr.Stdout == "" && addr.Stderr == "" {
		return s, nil
	}
	u, err := url.Parse(addr.Stdout)
	if err != nil {
		return nil, fmt.Errorf("unable to parse stdout uri: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch u.Scheme {
	case "", "fifo":
	case "file":
		if err := touch(u.Path); err != nil {
			return nil, err
		}
		s.addr.Stdout, s.addr.Stderr = u.Path, u.Path
	case "binary", "binary-v2":
		l, err := startLogger(ctx, u, ns, id)
		if err != nil {
			return nil, err
		}
		s.logURL, s.loggers = u, []*logger{l}
		s.Stdout, s.Stderr = l.stdout, l.stderr
		return s, nil
	default:
		return nil, fmt.Errorf("unknown STDIO scheme %s: %w", u.Scheme, errdefs.ErrInvalidArgument)
	}
	if s.addr.Stdout != "" {
		if s.Stdout, s.stdout, err = pipe(owner, true); err != nil {
			return nil, err
		}
	}
	if s.addr.Stderr != "" {
		if s.Stderr, s.stderr, err = pipe(owner, true); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// pipe returns the child's end and ours.
func pipe(owner Owner, childWrites bool) (child, ours *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make a stdio pipe: %w", err)
	}
	child, ours = r, w
	if childWrites {
		child, ours = w, r
	}
	// Both ends are one inode. Fd also makes the end block, as a process
	// expects it; ours must not, so that Close can end a read.
	fd := int(child.Fd())
	if owner != (Owner{}) {
		if err := unix.Fchown(fd, owner.UID, owner.GID); err != nil {
			r.Close()
			w.Close()
			return nil, nil, fmt.Errorf("give the stdio pipe to %d:%d: %w", owner.UID, owner.GID, err)
		}
	}
	return child, ours, nil
}

func touch(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// CloseChild gives up our hold of the child's ends: to be called once the
// process has them, so that the end of file is seen when it closes them.
func (s *Streams) CloseChild() {
	for _, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil {
			f.Close()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.loggers {
		l.closeReaders()
	}
	s.Stdin, s.Stdout, s.Stderr = nil, nil, nil
}

// Copy starts to move bytes between the pipes and the client's fifos or files.
// It blocks until the client's fifos are open on both sides, or ctx ends.
func (s *Streams) Copy(ctx context.Context) error {
	var out, errs *sink
	var err error
	if s.stdout != nil {
		if out, err = open(ctx, s.addr.Stdout); err != nil {
			return err
		}
		s.pump(ctx, &s.out, out, s.stdout)
	}
	if s.stderr != nil {
		if errs = out; out == nil || out.fifo || s.addr.Stdout != s.addr.Stderr {
			if errs, err = open(ctx, s.addr.Stderr); err != nil {
				return err
			}
		}
		s.pump(ctx, &s.err, errs, s.stderr)
	}
	if s.stdin == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.feed(s.stdin)
}

// feed starts to copy from the client's stdin fifo. The caller has the lock.
func (s *Streams) feed(to *os.File) error {
	in, err := openInput(s.addr.Stdin, pipeEnd{to}, s.keep)
	if err != nil {
		return err
	}
	s.input = in
	go in.run()
	return nil
}

// open opens what the client named for output.
func open(ctx context.Context, path string) (*sink, error) {
	isFifo, err := fifo.IsFifo(path)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if isFifo {
		return openFifo(ctx, path)
	}
	f, err := os.OpenFile(path, unix.O_WRONLY|unix.O_APPEND, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &sink{to: f, path: path}, nil
}

// pump copies from a pipe to a sink, which is then at *place, until the pipe's
// end.
func (s *Streams) pump(ctx context.Context, place **sink, to *sink, from *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*place = to
	s.pumpLocked(ctx, to, from)
}

func (s *Streams) pumpLocked(ctx context.Context, to *sink, from *os.File) {
	to.users++
	s.pipes[from] = struct{}{}
	w := to.to
	s.copies.start(func() {
		err := copyBuffered(w, from)
		if err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, syscall.EPIPE) {
			log.G(ctx).WithError(err).Warn("copy a process's output")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			// A process whose output cannot be written is not to die of it: its
			// pipe stays.
			from.Close()
			delete(s.pipes, from)
		}
		to.done(s.keep)
	})
}

// CloseStdin lets the process see the end of its input once the client's
// writers are gone.
func (s *Streams) CloseStdin() error {
	s.mu.Lock()
	in := s.input
	s.mu.Unlock()
	if in == nil {
		return nil
	}
	return in.closeHold()
}

// Drain waits until the output of the process, or of all of them, has been
// taken, for a bounded time.
func (s *Streams) Drain(ctx context.Context) error {
	return s.copies.wait(ctx)
}

// Close ends the copying and the logging program. Idempotent.
func (s *Streams) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	in, loggers := s.input, s.loggers
	files := []*os.File{s.stdin, s.stdout, s.stderr}
	for f := range s.pipes {
		files = append(files, f)
	}
	s.mu.Unlock()
	if in != nil {
		in.close()
	}
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
	s.End()
	for _, l := range loggers {
		l.stop()
	}
}

var buffers = sync.Pool{New: func() any {
	b := make([]byte, 4096) // PIPE_BUF
	return &b
}}

func copyBuffered(to io.Writer, from io.Reader) error {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	// Hide ReadFrom and WriteTo, which would bring their own buffers.
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, *b)
	return err
}
