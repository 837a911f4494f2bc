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

// Streams are the pipes of one process without a terminal.
type Streams struct {
	// Child's ends, to be handed to the process; nil where the client asked
	// for nothing.
	Stdin, Stdout, Stderr *os.File

	addr    Addresses
	ours    []io.Closer
	stdin   *os.File
	stdout  *os.File
	stderr  *os.File
	logger  *logger
	closeIn func() error

	copies   sync.WaitGroup
	closeOne sync.Once
}

// Open makes the pipes for a process and starts its logging program, if it
// has one. ns and id go to that program's environment.
func Open(ctx context.Context, ns, id string, addr Addresses, owner Owner) (_ *Streams, err error) {
	s := &Streams{addr: addr}
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
		s.logger, err = startLogger(ctx, u, ns, id)
		if err != nil {
			return nil, err
		}
		s.Stdout, s.Stderr = s.logger.stdout, s.logger.stderr
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
	if owner != (Owner{}) {
		if err := unix.Fchown(int(r.Fd()), owner.UID, owner.GID); err != nil {
			r.Close()
			w.Close()
			return nil, nil, fmt.Errorf("give the stdio pipe to %d:%d: %w", owner.UID, owner.GID, err)
		}
	}
	if childWrites {
		return w, r, nil
	}
	return r, w, nil
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
	if s.logger != nil {
		s.logger.closeReaders()
	}
	s.Stdin, s.Stdout, s.Stderr = nil, nil, nil
}

// Copy starts to move bytes between the pipes and the client's fifos or files.
// It blocks until the client's fifos are open on both sides, or ctx ends.
func (s *Streams) Copy(ctx context.Context) error {
	var same io.WriteCloser
	for _, o := range []struct {
		path string
		from *os.File
	}{{s.addr.Stdout, s.stdout}, {s.addr.Stderr, s.stderr}} {
		if o.from == nil {
			continue
		}
		isFifo, err := fifo.IsFifo(o.path)
		if err != nil {
			return fmt.Errorf("look at %s: %w", o.path, err)
		}
		if !isFifo {
			if same == nil || s.addr.Stdout != s.addr.Stderr {
				f, err := os.OpenFile(o.path, unix.O_WRONLY|unix.O_APPEND, 0)
				if err != nil {
					return fmt.Errorf("open %s: %w", o.path, err)
				}
				same = &shared{WriteCloser: f}
			}
			same.(*shared).hold()
			s.pump(ctx, same, o.from, nil)
			continue
		}
		// A reader of our own keeps the fifo alive while clients come and
		// go.
		w, err := fifo.OpenFifo(ctx, o.path, unix.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("open fifo %s for writing: %w", o.path, err)
		}
		r, err := fifo.OpenFifo(ctx, o.path, unix.O_RDONLY, 0)
		if err != nil {
			w.Close()
			return fmt.Errorf("open fifo %s for reading: %w", o.path, err)
		}
		s.pump(ctx, w, o.from, r)
	}
	if s.stdin == nil {
		return nil
	}
	in, closeIn, err := openStdin(s.addr.Stdin)
	if err != nil {
		return err
	}
	s.closeIn = closeIn
	s.ours = append(s.ours, in)
	go func() {
		copyBuffered(s.stdin, in)
		s.stdin.Close()
		in.Close()
	}()
	return nil
}

// openStdin opens the client's stdin fifo, held open by a writer of our own
// until CloseIO, so that a client which comes and goes does not end it.
func openStdin(path string) (io.ReadCloser, func() error, error) {
	in, err := fifo.OpenFifo(context.Background(), path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open stdin %s: %w", path, err)
	}
	hold, err := fifo.OpenFifo(context.Background(), path, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		in.Close()
		return nil, nil, fmt.Errorf("failed to open stdin fifo %s: %w", path, err)
	}
	return in, sync.OnceValue(hold.Close), nil
}

func (s *Streams) pump(ctx context.Context, to io.WriteCloser, from *os.File, hold io.Closer) {
	s.ours = append(s.ours, from)
	s.copies.Go(func() {
		if err := copyBuffered(to, from); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, syscall.EPIPE) {
			log.G(ctx).WithError(err).Warn("copy a process's output")
		}
		to.Close()
		if hold != nil {
			hold.Close()
		}
	})
}

// CloseStdin lets the process see the end of its input once the client's
// writers are gone.
func (s *Streams) CloseStdin() error {
	if s.closeIn == nil {
		return nil
	}
	return s.closeIn()
}

// Drain waits until the process's output has been taken, for a bounded time.
func (s *Streams) Drain(ctx context.Context) error {
	return wait(ctx, &s.copies)
}

// Close ends the copying and the logging program. Idempotent.
func (s *Streams) Close() {
	s.closeOne.Do(func() {
		if s.closeIn != nil {
			s.closeIn()
		}
		for _, f := range []*os.File{s.stdin, s.stdout, s.stderr} {
			if f != nil {
				f.Close()
			}
		}
		for _, c := range s.ours {
			c.Close()
		}
		if s.logger != nil {
			s.logger.stop()
		}
	})
}

func wait(ctx context.Context, wg *sync.WaitGroup) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a process's output was not taken: %w", ctx.Err())
	}
}

// shared is one file that both stdout and stderr go to.
type shared struct {
	io.WriteCloser
	mu    sync.Mutex
	users int
}

func (s *shared) hold() {
	s.mu.Lock()
	s.users++
	s.mu.Unlock()
}

func (s *shared) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return nil
	}
	return s.WriteCloser.Close()
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
