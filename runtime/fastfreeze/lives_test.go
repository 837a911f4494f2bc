//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// readyInit is PID 1's end of a link whose PID 1 has said that it is ready.
func readyInit(t *testing.T) (*link, *os.File) {
	t.Helper()
	l, init := fakeInit(t)
	say(t, init, initproto.Message{Type: initproto.Ready})
	return l, init
}

// hear is what the scripted PID 1 receives next.
func hear(t *testing.T, init *os.File) initproto.Message {
	t.Helper()
	b := make([]byte, initproto.MaxSize)
	n, err := init.Read(b)
	if err != nil {
		t.Error(err)
		return initproto.Message{}
	}
	m, err := initproto.DecodeFromShim(b[:n])
	if err != nil {
		t.Error(err)
	}
	return m
}

// scripted answers what it hears until the link is closed.
func scripted(t *testing.T, answers func(m initproto.Message) []initproto.Message) (*link, *os.File) {
	t.Helper()
	l, init := readyInit(t)
	done := make(chan struct{})
	t.Cleanup(func() {
		l.close()
		<-done
	})
	go func() {
		defer close(done)
		b := make([]byte, initproto.MaxSize)
		for {
			n, err := init.Read(b)
			if n == 0 || err != nil {
				return
			}
			m, err := initproto.DecodeFromShim(b[:n])
			if err != nil {
				t.Error(err)
				return
			}
			for _, answer := range answers(m) {
				say(t, init, answer)
			}
		}
	}()
	return l, init
}

func pong(m initproto.Message) initproto.Message {
	return initproto.Message{Type: initproto.Pong, Seq: m.Seq}
}

// expired is a context that ends while PID 1 is silent.
func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// One application after the other, each with its end.
func TestLives(t *testing.T) {
	const pid = 1000
	l, init := scripted(t, func(m initproto.Message) []initproto.Message {
		switch m.Type {
		case initproto.Start:
			return []initproto.Message{{Type: initproto.Started, Pid: pid}}
		case initproto.Ping:
			return []initproto.Message{pong(m)}
		case initproto.Restored:
			return []initproto.Message{
				{Type: initproto.Started, Pid: pid}, {Type: initproto.Exited, Pid: pid, Status: 7 << 8},
			}
		}
		return nil
	})
	for range 3 * exitsKept {
		if got, err := l.start(t.Context(), 0); err != nil || got != pid {
			t.Fatal(got, err)
		}
		if _, err := l.start(t.Context(), 0); !errdefs.IsFailedPrecondition(err) {
			t.Fatalf("a second application: %v", err)
		}
		say(t, init, initproto.Message{Type: initproto.Exited, Pid: pid, Status: 9})
		if e := <-l.exits; !e.Status.Signaled() || e.Status.Signal() != unix.SIGKILL || e.At.IsZero() {
			t.Fatalf("%+v", e)
		}
		if l.appPid() != 0 {
			t.Fatal("the application is still there")
		}
		q, err := l.adopt(t.Context(), pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := l.restored(t.Context(), q); err != nil || got != pid {
			t.Fatal(got, err)
		}
		if e := <-l.exits; e.Status.ExitStatus() != 7 {
			t.Fatalf("%+v", e)
		}
		if q, err = l.adopt(t.Context(), pid, 0); err != nil {
			t.Fatal(err)
		}
		if err := l.abandon(q); err != nil {
			t.Fatal(err)
		}
	}
}

// Ends that nobody takes stop the next start, not the conversation.
func TestExitsAreKept(t *testing.T) {
	l, _ := scripted(t, func(m initproto.Message) []initproto.Message {
		if m.Type == initproto.Ping {
			return []initproto.Message{pong(m)}
		}
		return []initproto.Message{{Type: initproto.Started, Pid: 5}, {Type: initproto.Exited, Pid: 5}}
	})
	for range exitsKept {
		if _, err := l.start(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if err := l.ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.start(t.Context(), 0); !errdefs.IsFailedPrecondition(err) {
		t.Fatal(err)
	}
	<-l.exits
	if _, err := l.start(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// A Pong that comes when nobody waits for it is not taken for the next one's.
func TestLatePong(t *testing.T) {
	l, init := readyInit(t)
	var late [2]initproto.Message
	for i := range late {
		if err := l.ping(expired(t)); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		late[i] = hear(t, init)
	}
	if late[0].Seq == late[1].Seq {
		t.Fatal("two pings with the same number")
	}
	say(t, init, pong(late[0]))
	done := make(chan error, 1)
	go func() { done <- l.ping(t.Context()) }()
	third := hear(t, init)
	say(t, init, pong(late[1]))
	say(t, init, pong(third))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// An application that comes when nobody waits for it any more is ended, and its
// end is not told; until then there is no other.
func TestLateStart(t *testing.T) {
	l, init := readyInit(t)
	if _, err := l.start(expired(t), 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	hear(t, init)
	if _, err := l.start(t.Context(), 0); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	say(t, init, initproto.Message{Type: initproto.Started, Pid: 1000})
	if m := hear(t, init); m.Type != initproto.Signal || unix.Signal(m.Signo) != unix.SIGKILL {
		t.Fatalf("%+v", m)
	}
	say(t, init, initproto.Message{Type: initproto.Exited, Pid: 1000, Status: 9})
	go func() {
		say(t, init, pong(hear(t, init)))
		hear(t, init)
		say(t, init, initproto.Message{Type: initproto.Started, Pid: 1000})
	}()
	if err := l.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.start(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-l.exits:
		t.Fatalf("%+v", e)
	default:
	}
}

// An adoption that PID 1 was too slow for is over before the next launch begins.
func TestLateRefusal(t *testing.T) {
	l, init := readyInit(t)
	if _, err := l.adopt(expired(t), 1000, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	adopt, ping, abandon, confirm := hear(t, init), hear(t, init), hear(t, init), hear(t, init)
	if adopt.Type != initproto.Adopt || ping.Type != initproto.Ping || abandon.Type != initproto.Abandon || confirm.Type != initproto.Ping {
		t.Fatal(adopt, ping, abandon, confirm)
	}
	if _, err := l.start(t.Context(), 0); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	say(t, init, initproto.Message{Type: initproto.StartFailed, Errno: uint32(unix.EBUSY), Text: "busy"})
	say(t, init, pong(ping))
	say(t, init, pong(confirm))
	go func() {
		say(t, init, pong(hear(t, init)))
		hear(t, init)
		say(t, init, initproto.Message{Type: initproto.Started, Pid: 1000})
	}()
	if err := l.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pid, err := l.start(t.Context(), 0); err != nil || pid != 1000 {
		t.Fatal(pid, err)
	}
}

// A tie holds when PID 1 has answered what was sent behind it.
func TestTie(t *testing.T) {
	l, init := readyInit(t)
	for _, flags := range []initproto.Flags{initproto.Tied, 0} {
		done := make(chan error, 1)
		go func() { done <- l.tie(t.Context(), flags) }()
		if m := hear(t, init); m.Type != initproto.Tie || m.Flags != flags {
			t.Fatalf("%+v", m)
		}
		say(t, init, pong(hear(t, init)))
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}
