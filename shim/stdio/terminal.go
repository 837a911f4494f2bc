//go:build linux

package stdio

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync"

	"github.com/containerd/console"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Terminal is the terminal of one process, or of one process after the other
// (Renew).
type Terminal struct {
	consoles *Consoles
	addr     Addresses
	ns, id   string
	copies   crew

	mu      sync.Mutex
	keep    bool
	closed  bool
	size    *console.WinSize // the last one that was asked for
	current *screen
	out     *sink  // nil if the client asked for none
	input   *input // nil without stdin
	logger  *logger
}

// screen is one terminal's master.
type screen struct {
	console  *console.EpollConsole
	consoles *Consoles
	down     sync.Once
	copied   chan struct{} // closed once all its output has been taken
}

func (c *Consoles) screen(master *os.File) (*screen, error) {
	cons, err := console.ConsoleFromFile(master)
	if err != nil {
		master.Close()
		return nil, fmt.Errorf("terminal: %w", err)
	}
	ep, err := c.epoller.Add(cons)
	if err != nil {
		cons.Close()
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return &screen{console: ep, consoles: c, copied: make(chan struct{})}, nil
}

// shutdown ends the copying after what is there has been taken.
func (s *screen) shutdown() {
	s.down.Do(func() {
		s.console.Shutdown(s.consoles.epoller.CloseConsole)
	})
}

// gone: no process has the terminal open. What is written would stay in it.
func (s *screen) gone() bool {
	poll := []unix.PollFd{{Fd: int32(s.console.Fd())}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0 && poll[0].Revents&unix.POLLHUP != 0
}

func (s *screen) Write(b []byte) (int, error) { return s.console.Write(b) }

// Close is what the end of the client's input does: the terminal closes.
func (s *screen) Close() error {
	s.shutdown()
	return s.console.Close()
}

// retire ends a terminal that another one has taken the place of.
func (s *screen) retire() {
	s.shutdown()
	<-s.copied
	s.console.Close()
	// A writer that waits for a reader finds the terminal closed.
	s.console.Shutdown(func(int) error { return nil })
}

// Attach joins a terminal's master to the client's fifos or logging program;
// it takes master over.
func (c *Consoles) Attach(ctx context.Context, master *os.File, ns, id string, addr Addresses) (_ *Terminal, err error) {
	s, err := c.screen(master)
	if err != nil {
		return nil, err
	}
	t := &Terminal{consoles: c, addr: addr, ns: ns, id: id, current: s}
	defer func() {
		if err != nil {
			t.Shutdown()
			t.Close()
		}
	}()
	if t.out, err = t.openOutput(ctx); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.show(s, nil)
	if addr.Stdin == "" {
		return t, nil
	}
	if err := t.feed(s); err != nil {
		return nil, err
	}
	return t, nil
}

// show copies a terminal's output, after that of the former one. The caller has
// the lock.
func (t *Terminal) show(s *screen, after *screen) {
	if t.out == nil {
		close(s.copied)
		return
	}
	t.out.users++
	w := t.out.to
	t.copies.start(func() {
		if after != nil {
			<-after.copied
		}
		copyBuffered(w, s.console)
		close(s.copied)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.out.done(t.keep)
	})
}

// feed copies the client's stdin to the terminal; its end closes the terminal.
// The caller has the lock.
func (t *Terminal) feed(s *screen) error {
	in, err := openInput(t.addr.Stdin, s, t.keep)
	if err != nil {
		return err
	}
	t.input = in
	go in.run()
	return nil
}

func (t *Terminal) openOutput(ctx context.Context) (*sink, error) {
	stdout := t.addr.Stdout
	if stdout == "" {
		return nil, nil
	}
	u, err := url.Parse(stdout)
	if err != nil {
		return nil, fmt.Errorf("unable to parse stdout uri: %w", err)
	}
	switch u.Scheme {
	case "binary", "binary-v2":
		l, err := startLogger(ctx, u, t.ns, t.id)
		if err != nil {
			return nil, err
		}
		l.closeReaders()
		t.logger = l
		return &sink{to: l.stdout}, nil
	case "file":
		if err := touch(u.Path); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(u.Path, unix.O_WRONLY|unix.O_APPEND, 0)
		if err != nil {
			return nil, err
		}
		return &sink{to: f, path: u.Path}, nil
	}
	return openFifo(ctx, stdout)
}

// Keep leaves the output open from now on when the terminal ends, for the
// process's next life, and stdin as well.
func (t *Terminal) Keep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.keep = true
	if t.input != nil {
		t.input.setKeep()
	}
}

// Renew goes on with another terminal, which it takes over; the former one is
// closed once its output has been taken. The output is kept from now on. It
// does not wait for the client; a logging program that was not kept is started
// again, which takes 30 s at most. After Close it is an
// errdefs.ErrFailedPrecondition.
func (t *Terminal) Renew(master *os.File) error {
	s, err := t.consoles.screen(master)
	if err != nil {
		return fmt.Errorf("renew a process's stdio: %w", err)
	}
	t.Keep()
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.take(s); err != nil {
		s.Close()
		return fmt.Errorf("renew a process's stdio: %w", err)
	}
	return nil
}

func (t *Terminal) take(s *screen) error {
	if t.closed {
		return fmt.Errorf("it was given up already: %w", errdefs.ErrFailedPrecondition)
	}
	if err := t.reopen(); err != nil {
		return err
	}
	if t.size != nil {
		if err := s.console.Resize(*t.size); err != nil {
			return fmt.Errorf("set the terminal's size: %w", err)
		}
	}
	ok, eof := false, false
	if t.input != nil {
		// The former terminal closes once its output has been taken.
		_, ok, eof = t.input.renew(s)
	}
	if t.addr.Stdin != "" && !ok && !eof {
		if err := t.feed(s); err != nil {
			return err
		}
	}
	old := t.current
	t.current = s
	t.show(s, old)
	go old.retire()
	if eof {
		// The client has closed its end: so does the terminal.
		s.shutdown()
		go func() {
			<-s.copied
			s.console.Close()
		}()
	}
	return nil
}

// reopen opens the output if it was closed.
func (t *Terminal) reopen() error {
	switch {
	case t.out == nil || t.out.to != nil:
		return nil
	case t.logger == nil:
		return t.out.reopen()
	}
	old := t.logger
	ctx, cancel := context.WithTimeout(context.Background(), loggerStartTimeout)
	defer cancel()
	out, err := t.openOutput(ctx)
	if err != nil {
		return err
	}
	t.out.to = out.to
	go old.stop()
	return nil
}

// Resize the terminal, and those after it.
func (t *Terminal) Resize(width, height uint16) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.size = &console.WinSize{Width: width, Height: height}
	return t.current.console.Resize(*t.size)
}

// CloseStdin lets the terminal close once the client's writers are gone.
func (t *Terminal) CloseStdin() error {
	t.mu.Lock()
	in := t.input
	t.mu.Unlock()
	if in == nil {
		return nil
	}
	return in.closeHold()
}

// Shutdown ends the copying after what is there has been taken, and with it
// the output, also one that was kept: the container, not only this life of its
// process, has ended. Idempotent.
func (t *Terminal) Shutdown() {
	t.mu.Lock()
	s := t.current
	t.keep = false
	t.out.settle(false)
	t.mu.Unlock()
	s.shutdown()
}

// Drain waits until the terminal's output has been taken, for a bounded time.
func (t *Terminal) Drain(ctx context.Context) error { return t.copies.wait(ctx) }

// Close ends everything. Idempotent.
func (t *Terminal) Close() {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	t.closed = true
	s, in, logger := t.current, t.input, t.logger
	t.mu.Unlock()
	t.Shutdown()
	if in != nil {
		in.close()
	}
	s.console.Close()
	if logger != nil {
		logger.stop()
	}
}
