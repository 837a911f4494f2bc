//go:build linux

package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/containerd/console"
	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"
)

// Consoles serves the terminals of all of a shim's processes with one epoll
// descriptor.
type Consoles struct {
	epoller *console.Epoller
}

// NewConsoles starts serving.
func NewConsoles() (*Consoles, error) {
	e, err := console.NewEpoller()
	if err != nil {
		return nil, fmt.Errorf("make an epoll descriptor for terminals: %w", err)
	}
	go e.Wait()
	return &Consoles{epoller: e}, nil
}

// Close ends the serving.
func (c *Consoles) Close() error { return c.epoller.Close() }

// ConsoleSocket is where a starting process's terminal arrives.
type ConsoleSocket struct {
	ours *os.File
	// Child is the end for the process that makes the terminal.
	Child *os.File
}

// NewConsoleSocket makes the socket.
func NewConsoleSocket() (*ConsoleSocket, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a console socket: %w", err)
	}
	return &ConsoleSocket{ours: os.NewFile(uintptr(fds[0]), "console-ours"), Child: os.NewFile(uintptr(fds[1]), "console-child")}, nil
}

// CloseChild is called once the process has its end.
func (s *ConsoleSocket) CloseChild() { s.Child.Close() }

// Close gives the socket up. Idempotent.
func (s *ConsoleSocket) Close() {
	s.Child.Close()
	s.ours.Close()
}

// Receive blocks until the terminal's master has arrived, timeout at most.
func (s *ConsoleSocket) Receive(timeout time.Duration) (*os.File, error) {
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	fd := int(s.ours.Fd())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(fd, name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("failed to retrieve console master: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("failed to retrieve console master: no descriptor came")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("failed to retrieve console master: not one descriptor came")
	}
	return os.NewFile(uintptr(fds[0]), "pty-master"), nil
}

// Terminal is the terminal of one process.
type Terminal struct {
	console  *console.EpollConsole
	consoles *Consoles
	closeIn  func() error
	logger   *logger
	copies   sync.WaitGroup
	ours     []io.Closer
	once     sync.Once
	down     sync.Once
}

// Attach joins a terminal's master to the client's fifos or logging program;
// it takes master over.
func (c *Consoles) Attach(ctx context.Context, master *os.File, ns, id string, addr Addresses) (_ *Terminal, err error) {
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
	t := &Terminal{console: ep, consoles: c}
	defer func() {
		if err != nil {
			t.Shutdown()
			t.Close()
		}
	}()
	out, hold, err := t.openOutput(ctx, ns, id, addr.Stdout)
	if err != nil {
		return nil, err
	}
	if out != nil {
		t.copies.Go(func() {
			copyBuffered(out, ep)
			out.Close()
			if hold != nil {
				hold.Close()
			}
		})
	}
	if addr.Stdin == "" {
		return t, nil
	}
	in, closeIn, err := openStdin(addr.Stdin)
	if err != nil {
		return nil, err
	}
	t.closeIn = closeIn
	t.ours = append(t.ours, in)
	go func() {
		copyBuffered(ep, in)
		// The client closed its end: so does the terminal.
		t.Shutdown()
		ep.Close()
		in.Close()
	}()
	return t, nil
}

func (t *Terminal) openOutput(ctx context.Context, ns, id, stdout string) (io.WriteCloser, io.Closer, error) {
	if stdout == "" {
		return nil, nil, nil
	}
	u, err := url.Parse(stdout)
	if err != nil {
		return nil, nil, fmt.Errorf("unable to parse stdout uri: %w", err)
	}
	switch u.Scheme {
	case "binary", "binary-v2":
		if t.logger, err = startLogger(ctx, u, ns, id); err != nil {
			return nil, nil, err
		}
		t.logger.closeReaders()
		return t.logger.stdout, nil, nil
	case "file":
		if err := touch(u.Path); err != nil {
			return nil, nil, err
		}
		f, err := os.OpenFile(u.Path, unix.O_WRONLY|unix.O_APPEND, 0)
		return f, nil, err
	}
	w, err := fifo.OpenFifo(ctx, stdout, unix.O_WRONLY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open fifo %s for writing: %w", stdout, err)
	}
	r, err := fifo.OpenFifo(ctx, stdout, unix.O_RDONLY, 0)
	if err != nil {
		w.Close()
		return nil, nil, fmt.Errorf("open fifo %s for reading: %w", stdout, err)
	}
	return w, r, nil
}

// Resize the terminal.
func (t *Terminal) Resize(width, height uint16) error {
	return t.console.Resize(console.WinSize{Width: width, Height: height})
}

// CloseStdin lets the terminal close once the client's writers are gone.
func (t *Terminal) CloseStdin() error {
	if t.closeIn == nil {
		return nil
	}
	return t.closeIn()
}

// Shutdown ends the copying after what is there has been taken: the process
// has ended. Idempotent.
func (t *Terminal) Shutdown() {
	t.down.Do(func() {
		t.console.Shutdown(t.consoles.epoller.CloseConsole)
	})
}

// Drain waits until the terminal's output has been taken, for a bounded time.
func (t *Terminal) Drain(ctx context.Context) error { return wait(ctx, &t.copies) }

// Close ends everything. Idempotent.
func (t *Terminal) Close() {
	t.once.Do(func() {
		t.Shutdown()
		if t.closeIn != nil {
			t.closeIn()
		}
		t.console.Close()
		for _, c := range t.ours {
			c.Close()
		}
		if t.logger != nil {
			t.logger.stop()
		}
	})
}
