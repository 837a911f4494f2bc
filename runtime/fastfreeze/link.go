//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// link is the shim's end of the conversation with PID 1. PID 1 has the rights
// of the container's user, so what comes from it is taken for hostile: it is
// bounded, decoded strictly, and never makes anybody here wait without a limit.
type link struct {
	sock *os.File

	mu      sync.Mutex
	err     error // why nothing more will come; set before gone is closed
	gone    chan struct{}
	answers chan initproto.Message // Ready, Started, StartFailed
	sending sync.Mutex
}

var errGone = fmt.Errorf("the container's first process has ended: %w", errdefs.ErrFailedPrecondition)

// newLink makes the socket; the file is PID 1's end.
func newLink() (*link, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the socket to the container's first process: %w", err)
	}
	l := &link{
		sock:    os.NewFile(uintptr(fds[0]), "fastfreeze"),
		gone:    make(chan struct{}),
		answers: make(chan initproto.Message, 8),
	}
	go l.read()
	return l, os.NewFile(uintptr(fds[1]), "fastfreeze-init"), nil
}

func (l *link) read() {
	buf := make([]byte, initproto.MaxSize+1)
	for {
		n, err := l.sock.Read(buf)
		if err != nil || n == 0 {
			l.end(errGone)
			return
		}
		m, err := initproto.DecodeFromInit(buf[:n])
		if err != nil {
			l.end(fmt.Errorf("the container's first process sent nonsense: %w: %w", err, errdefs.ErrFailedPrecondition))
			return
		}
		switch m.Type {
		case initproto.Ready, initproto.Started, initproto.StartFailed:
			select {
			case l.answers <- m:
			default:
				l.end(fmt.Errorf("the container's first process says more than it was asked: %w", errdefs.ErrFailedPrecondition))
				return
			}
		case initproto.Exited, initproto.Pong:
			// The application's end shows in that of PID 1, which is tied
			// to it.
		}
	}
}

func (l *link) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		close(l.gone)
	}
}

func (l *link) close() {
	l.end(errGone)
	l.sock.Close()
}

func (l *link) send(m initproto.Message) error {
	b, err := initproto.Append(nil, &m)
	if err != nil {
		return fmt.Errorf("encode a message for the container's first process: %w", err)
	}
	l.sending.Lock()
	defer l.sending.Unlock()
	rc, err := l.sock.SyscallConn()
	if err != nil {
		return errGone
	}
	// Not waiting: a stopped PID 1 must not stop us.
	var serr error
	if err := rc.Control(func(fd uintptr) {
		serr = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	}); err != nil {
		return errGone
	}
	switch {
	case serr == nil:
		return nil
	case errors.Is(serr, unix.EPIPE), errors.Is(serr, unix.ECONNRESET), errors.Is(serr, unix.ENOTCONN):
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case errors.Is(serr, unix.EAGAIN):
		return fmt.Errorf("the container's first process does not take messages: is it stopped? %w", errdefs.ErrUnavailable)
	default:
		return fmt.Errorf("send to the container's first process: %w", serr)
	}
}

// receive waits for an answer of one of the types.
func (l *link) receive(ctx context.Context, types ...initproto.Type) (initproto.Message, error) {
	var m initproto.Message
	select {
	case m = <-l.answers:
	default:
		select {
		case m = <-l.answers:
		case <-l.gone:
			// What came before the end still counts.
			select {
			case m = <-l.answers:
			default:
				return m, l.err
			}
		case <-ctx.Done():
			return m, fmt.Errorf("the container's first process does not answer: %w", ctx.Err())
		}
	}
	if !slices.Contains(types, m.Type) {
		return m, fmt.Errorf("the container's first process sent %v out of turn: %w", m.Type, errdefs.ErrFailedPrecondition)
	}
	return m, nil
}

// ready waits for PID 1's first message; an error is what it says of the
// application's program.
func (l *link) ready(ctx context.Context) error {
	m, err := l.receive(ctx, initproto.Ready)
	if err != nil {
		return err
	}
	if m.Text != "" {
		return fmt.Errorf("%s: %w", m.Text, errdefs.ErrNotFound)
	}
	return nil
}

func (l *link) start(ctx context.Context, flags initproto.Flags) (int, error) {
	if err := l.send(initproto.Message{Type: initproto.Start, Flags: flags}); err != nil {
		return 0, err
	}
	return l.started(ctx)
}

func (l *link) started(ctx context.Context) (int, error) {
	m, err := l.receive(ctx, initproto.Started, initproto.StartFailed)
	if err != nil {
		return 0, err
	}
	if m.Type == initproto.StartFailed {
		return 0, fmt.Errorf("%s: %w", m.Text, unix.Errno(m.Errno))
	}
	return int(m.Pid), nil
}

// adopt announces a process that a restore will put below PID 1.
func (l *link) adopt(pid int, flags initproto.Flags) error {
	return l.send(initproto.Message{Type: initproto.Adopt, Pid: int32(pid), Flags: flags})
}

// restored says that it is there.
func (l *link) restored(ctx context.Context) (int, error) {
	if err := l.send(initproto.Message{Type: initproto.Restored}); err != nil {
		return 0, err
	}
	return l.started(ctx)
}

// abandon takes adopt back.
func (l *link) abandon() error {
	return l.send(initproto.Message{Type: initproto.Abandon})
}

func (l *link) signal(sig unix.Signal) error {
	if sig < 1 || sig > initproto.MaxSignal {
		return fmt.Errorf("signal %d: %w", int(sig), errdefs.ErrInvalidArgument)
	}
	return l.send(initproto.Message{Type: initproto.Signal, Signo: uint32(sig)})
}
