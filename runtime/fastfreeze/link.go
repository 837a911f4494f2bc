//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto/initconn"
)

const (
	// sendTimeout bounds how long a PID 1 that does not read can hold a sender up.
	sendTimeout = time.Second
	// exitsKept is how many ends of applications wait for somebody to take them;
	// no further one is started then.
	exitsKept = 16
)

// Exit is the end of an application.
type Exit struct {
	Status unix.WaitStatus
	At     time.Time
}

// link is the shim's side of the conversation with PID 1. PID 1 has the rights
// of the container's user, so what comes from it is taken for hostile: answers
// that nobody asked for, or nonsense, end the conversation.
type link struct {
	conn  *initconn.Conn
	gone  chan struct{} // closed at the end of the conversation
	ready chan struct{} // closed when READY has come
	exits chan Exit

	mu       sync.Mutex
	err      error     // why nothing more will come; set before gone is closed
	missing  string    // READY's text
	launch   *question // the answer to START, ADOPT or RESTORED that is to come
	lastPing uint64
	pings    map[uint64]func()
	app      int  // the application, since STARTED; 0 after EXITED
	disowned bool // nobody waited for that STARTED any more: its end concerns nobody
}

// question is a launch's, answered by STARTED or STARTFAILED.
type question struct {
	answer chan initproto.Message // of capacity one
	// givenUp: the asker has gone; an application that comes of it is ended.
	givenUp bool
}

var errGone = fmt.Errorf("the container's first process has ended: %w", errdefs.ErrFailedPrecondition)

// newLink makes the socket; the file is PID 1's end.
func newLink() (*link, *os.File, error) {
	conn, init, err := initconn.Pair()
	if err != nil {
		return nil, nil, err
	}
	l := &link{
		conn:  conn,
		gone:  make(chan struct{}),
		ready: make(chan struct{}),
		exits: make(chan Exit, exitsKept),
		pings: make(map[uint64]func()),
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
		}
		if !l.take(m) {
			l.end(fmt.Errorf("the container's first process sent %v out of turn: %w", m.Type, errdefs.ErrFailedPrecondition))
			return
		}
	}
}

// take deals with one message; false if it makes no sense now. It never blocks.
func (l *link) take(m initproto.Message) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.ready:
		if m.Type == initproto.Ready {
			return false
		}
	default:
		if m.Type != initproto.Ready {
			return false
		}
		l.missing = m.Text
		close(l.ready)
		return true
	}
	switch m.Type {
	case initproto.Pong:
		if m.Seq == 0 || m.Seq > l.lastPing {
			return false
		}
		// One that is not there any more was answered too late.
		if done := l.pings[m.Seq]; done != nil {
			delete(l.pings, m.Seq)
			done()
		}
		return true
	case initproto.Started, initproto.StartFailed:
		q := l.launch
		if q == nil || m.Type == initproto.Started && l.app != 0 {
			return false
		}
		l.launch = nil
		if m.Type == initproto.Started {
			l.app, l.disowned = int(m.Pid), q.givenUp
			if q.givenUp {
				go l.signal(unix.SIGKILL)
			}
		}
		q.answer <- m
		return true
	case initproto.Exited:
		if l.app == 0 || int(m.Pid) != l.app {
			return false
		}
		l.app = 0
		if !l.disowned {
			select {
			case l.exits <- Exit{Status: unix.WaitStatus(m.Status), At: time.Now()}:
			default:
				return false // ask sees to it that there is room
			}
		}
		return true
	}
	return false
}

func (l *link) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		close(l.gone)
	}
}

func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *link) close() {
	l.end(errGone)
	l.conn.Close()
}

func (l *link) appPid() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.app
}

func (l *link) send(m initproto.Message, files ...*os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	err := l.conn.Send(ctx, m, files...)
	switch {
	case errdefs.IsUnavailable(err):
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the container's first process does not take messages: is it stopped? %w", errdefs.ErrUnavailable)
	}
	return err
}

// await waits for what PID 1 answers by closing or filling the channel.
func await[T any](ctx context.Context, l *link, answer <-chan T) (v T, err error) {
	select {
	case v = <-answer:
		return v, nil
	case <-l.gone:
		// What came before the end still counts.
		select {
		case v = <-answer:
			return v, nil
		default:
			return v, l.reason()
		}
	case <-ctx.Done():
		return v, fmt.Errorf("the container's first process does not answer: %w", ctx.Err())
	}
}

// awaitReady waits for PID 1's first message; a NotFound is what it says of the
// application's program.
func (l *link) awaitReady(ctx context.Context) error {
	if _, err := await(ctx, l, (<-chan struct{})(l.ready)); err != nil {
		return err
	}
	if l.missing != "" {
		return fmt.Errorf("%s: %w", l.missing, errdefs.ErrNotFound)
	}
	return nil
}

// ping waits until PID 1 has dealt with all that was sent before.
func (l *link) ping(ctx context.Context) error {
	return l.pingThen(ctx, func() {})
}

// pingThen has then, called with mu held, follow the answer even if it comes
// when nobody waits for it any more.
func (l *link) pingThen(ctx context.Context, then func()) error {
	done := make(chan struct{})
	l.mu.Lock()
	l.lastPing++
	seq := l.lastPing
	l.pings[seq] = func() { then(); close(done) }
	l.mu.Unlock()
	if err := l.send(initproto.Message{Type: initproto.Ping, Seq: seq}); err != nil {
		return err
	}
	_, err := await(ctx, l, (<-chan struct{})(done))
	return err
}

// ask notes that a launch's answer is to come.
func (l *link) ask() (*question, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return nil, l.err
	case l.launch != nil:
		return nil, fmt.Errorf("the container's first process has not answered an earlier start yet: is it stopped? %w", errdefs.ErrUnavailable)
	case l.app != 0:
		return nil, fmt.Errorf("an application runs in the container already: %w", errdefs.ErrFailedPrecondition)
	case len(l.exits) == cap(l.exits):
		return nil, fmt.Errorf("the ends of %d applications were not taken note of: %w", cap(l.exits), errdefs.ErrFailedPrecondition)
	}
	l.launch = &question{answer: make(chan initproto.Message, 1)}
	return l.launch, nil
}

// giveUp: nobody waits for the answer any more. An application that ran by then
// is ended, and so is one that comes later.
func (l *link) giveUp(q *question) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q.givenUp = true
	select {
	case m := <-q.answer:
		if m.Type == initproto.Started && l.app != 0 {
			l.disowned = true
			go l.signal(unix.SIGKILL)
		}
	default:
	}
}

// forget: no answer will come.
func (l *link) forget(q *question) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.launch == q {
		l.launch = nil
	}
}

func startError(m initproto.Message) error {
	err := fmt.Errorf("%s: %w", m.Text, unix.Errno(m.Errno))
	if unix.Errno(m.Errno) == unix.ENOENT {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

func (l *link) start(ctx context.Context, flags initproto.Flags, files ...*os.File) (int, error) {
	q, err := l.ask()
	if err != nil {
		return 0, err
	}
	return l.askFor(ctx, q, initproto.Message{Type: initproto.Start, Flags: flags}, files...)
}

func (l *link) askFor(ctx context.Context, q *question, m initproto.Message, files ...*os.File) (int, error) {
	if err := l.send(m, files...); err != nil {
		l.forget(q)
		return 0, err
	}
	answer, err := await(ctx, l, (<-chan initproto.Message)(q.answer))
	if err != nil {
		l.giveUp(q)
		return 0, err
	}
	if answer.Type == initproto.StartFailed {
		return 0, startError(answer)
	}
	return int(answer.Pid), nil
}

// adopt announces a process that a restore will put below PID 1, and waits until
// PID 1 is ready for it: it gives up its terminal, which CRIU gives to the other.
// The question is to be passed on to restored, or to abandon.
func (l *link) adopt(ctx context.Context, pid int, flags initproto.Flags) (*question, error) {
	q, err := l.ask()
	if err != nil {
		return nil, err
	}
	if err := l.send(initproto.Message{Type: initproto.Adopt, Pid: int32(pid), Flags: flags}); err != nil {
		l.forget(q)
		return nil, err
	}
	if err := l.ping(ctx); err != nil {
		return nil, errors.Join(err, l.abandon(q))
	}
	// A refusal comes before the Pong.
	select {
	case m := <-q.answer:
		return nil, startError(m)
	default:
		return q, nil
	}
}

// restored says that it is there.
func (l *link) restored(ctx context.Context, q *question) (int, error) {
	return l.askFor(ctx, q, initproto.Message{Type: initproto.Restored})
}

// abandon takes adopt back. If PID 1 does not confirm it now, nothing else is
// started until it does. That PID 1 is gone is none of its errors.
func (l *link) abandon(q *question) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendTimeout)
	defer cancel()
	err := l.send(initproto.Message{Type: initproto.Abandon})
	if err == nil {
		err = l.pingThen(ctx, func() {
			if l.launch == q {
				l.launch = nil
			}
		})
	}
	select {
	case <-l.gone:
		return nil
	default:
	}
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// tie changes whether PID 1 ends with the application.
func (l *link) tie(ctx context.Context, flags initproto.Flags) error {
	if err := l.send(initproto.Message{Type: initproto.Tie, Flags: flags}); err != nil {
		return err
	}
	return l.ping(ctx)
}

func (l *link) signal(sig unix.Signal) error {
	if sig < 1 {
		return fmt.Errorf("signal %d: %w", int(sig), errdefs.ErrInvalidArgument)
	}
	return l.send(initproto.Message{Type: initproto.Signal, Signo: uint32(sig)})
}
