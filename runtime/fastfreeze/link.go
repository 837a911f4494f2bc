//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto/initconn"
)

// sendTimeout bounds how long a PID 1 that does not read can hold a sender up.
const sendTimeout = time.Second

// link is the shim's side of the conversation with PID 1. PID 1 has the rights
// of the container's user, so what comes from it is taken for hostile: answers
// that nobody asked for, or nonsense, end the conversation.
type link struct {
	conn *initconn.Conn

	mu      sync.Mutex
	err     error // why nothing more will come; set before gone is closed
	gone    chan struct{}
	answers chan initproto.Message // Ready, Started, StartFailed, Pong
}

var errGone = fmt.Errorf("the container's first process has ended: %w", errdefs.ErrFailedPrecondition)

// newLink makes the socket; the file is PID 1's end.
func newLink() (*link, *os.File, error) {
	conn, init, err := initconn.Pair()
	if err != nil {
		return nil, nil, err
	}
	l := &link{
		conn:    conn,
		gone:    make(chan struct{}),
		answers: make(chan initproto.Message, 8),
	}
	go l.read()
	return l, init, nil
}

func (l *link) read() {
	for {
		m, err := l.conn.Receive(context.Background())
		switch {
		case errdefs.IsUnavailable(err):
			l.end(errGone)
			return
		case err != nil:
			l.end(fmt.Errorf("the container's first process sent nonsense: %w: %w", err, errdefs.ErrFailedPrecondition))
			return
		case m.Type == initproto.Exited:
			// The application's end shows in that of PID 1, which is tied
			// to it.
			continue
		}
		select {
		case l.answers <- m:
		default:
			l.end(fmt.Errorf("the container's first process says more than it was asked: %w", errdefs.ErrFailedPrecondition))
			return
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
	l.conn.Close()
}

func (l *link) send(m initproto.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	err := l.conn.Send(ctx, m)
	switch {
	case errdefs.IsUnavailable(err):
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the container's first process does not take messages: is it stopped? %w", errdefs.ErrUnavailable)
	}
	return err
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

// adopt announces a process that a restore will put below PID 1, and waits until
// PID 1 is ready for it: it gives up its terminal, which CRIU gives to the other.
func (l *link) adopt(ctx context.Context, pid int, flags initproto.Flags) error {
	if err := l.send(initproto.Message{Type: initproto.Adopt, Pid: int32(pid), Flags: flags}); err != nil {
		return err
	}
	if err := l.send(initproto.Message{Type: initproto.Ping}); err != nil {
		return err
	}
	m, err := l.receive(ctx, initproto.Pong, initproto.StartFailed)
	if err == nil && m.Type == initproto.StartFailed {
		err = fmt.Errorf("%s: %w", m.Text, unix.Errno(m.Errno))
	}
	return err
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
	if sig < 1 {
		return fmt.Errorf("signal %d: %w", int(sig), errdefs.ErrInvalidArgument)
	}
	return l.send(initproto.Message{Type: initproto.Signal, Signo: uint32(sig)})
}
