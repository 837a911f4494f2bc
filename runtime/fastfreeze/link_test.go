//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// fakeInit is PID 1's end of a link in the hands of a test.
func fakeInit(t *testing.T) (*link, *os.File) {
	t.Helper()
	l, init, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		l.close()
		init.Close()
	})
	return l, init
}

func say(t *testing.T, init *os.File, m initproto.Message) {
	t.Helper()
	b, err := initproto.Append(nil, &m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := init.Write(b); err != nil {
		t.Fatal(err)
	}
}

func TestReady(t *testing.T) {
	l, init := fakeInit(t)
	say(t, init, initproto.Message{Type: initproto.Ready})
	for range 2 {
		if err := l.awaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}

	l, init = fakeInit(t)
	const text = `exec: "foo": executable file not found in $PATH`
	say(t, init, initproto.Message{Type: initproto.Ready, Text: text})
	if err := l.awaitReady(t.Context()); !errdefs.IsNotFound(err) || err.Error()[:len(text)] != text {
		t.Fatal(err)
	}
	// It is not the end.
	go func() { say(t, init, pong(hear(t, init))) }()
	if err := l.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestStartFailureHasItsErrno(t *testing.T) {
	l, _ := scripted(t, func(initproto.Message) []initproto.Message {
		return []initproto.Message{{Type: initproto.StartFailed, Errno: uint32(unix.ENOEXEC), Text: "exec /app"}}
	})
	for range 2 {
		if _, err := l.start(t.Context(), 0); !errors.Is(err, unix.ENOEXEC) {
			t.Fatal(err)
		}
	}
}

// What was said before PID 1 ended counts; afterwards nobody waits.
func TestEndOfInit(t *testing.T) {
	l, init := readyInit(t)
	done := make(chan error, 1)
	go func() {
		_, err := l.start(t.Context(), 0)
		done <- err
	}()
	hear(t, init)
	say(t, init, initproto.Message{Type: initproto.Started, Pid: 1000})
	say(t, init, initproto.Message{Type: initproto.Exited, Pid: 1000, Status: 3 << 8})
	init.Close()
	<-l.gone
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if e := <-l.exits; e.Status.ExitStatus() != 3 {
		t.Fatalf("%+v", e)
	}
	if _, err := l.start(t.Context(), 0); !errdefs.IsFailedPrecondition(err) {
		t.Fatal(err)
	}
	if err := l.signal(unix.SIGTERM); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	if err := l.ping(t.Context()); err == nil {
		t.Fatal("a ping was answered")
	}
}

func TestSilenceEndsWithTheContext(t *testing.T) {
	l, _ := fakeInit(t)
	if err := l.awaitReady(expired(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

// A hostile PID 1 gets no memory, no wait and no panic out of the shim.
func TestHostileInit(t *testing.T) {
	for name, attack := range map[string]func(t *testing.T, init *os.File){
		"nonsense": func(t *testing.T, init *os.File) {
			if _, err := init.Write([]byte("\xff\xff\xff\xff")); err != nil {
				t.Fatal(err)
			}
		},
		"a flood": func(t *testing.T, init *os.File) {
			b, err := initproto.Append(nil, &initproto.Message{Type: initproto.Started, Pid: 1})
			if err != nil {
				t.Fatal(err)
			}
			for range 100 {
				if _, err := init.Write(b); err != nil {
					return // refused: as it should be
				}
			}
		},
		"started": unasked(initproto.Message{Type: initproto.Started, Pid: 1000}),
		"failed":  unasked(initproto.Message{Type: initproto.StartFailed}),
		"exited":  unasked(initproto.Message{Type: initproto.Exited, Pid: 1000}),
		"again":   unasked(initproto.Message{Type: initproto.Ready}),
		"pong":    unasked(initproto.Message{Type: initproto.Pong, Seq: 1}),
		"pong 0":  unasked(initproto.Message{Type: initproto.Pong}),
	} {
		t.Run(name, func(t *testing.T) {
			l, init := readyInit(t)
			attack(t, init)
			<-l.gone
			if l.err == nil {
				t.Fatal("no reason was kept")
			}
		})
	}
}

func unasked(m initproto.Message) func(*testing.T, *os.File) {
	return func(t *testing.T, init *os.File) { say(t, init, m) }
}

// An init that does not read blocks nobody.
func TestStoppedInit(t *testing.T) {
	l, _ := fakeInit(t)
	for range 100000 { // far more than a socket's buffer holds
		if err := l.signal(unix.SIGUSR1); err != nil {
			if !errdefs.IsUnavailable(err) {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the socket takes messages without end")
}

func TestBadSignal(t *testing.T) {
	l, _ := fakeInit(t)
	for _, sig := range []unix.Signal{-1, 0, 65} {
		if err := l.signal(sig); !errdefs.IsInvalidArgument(err) {
			t.Errorf("signal %d: %v", sig, err)
		}
	}
}
