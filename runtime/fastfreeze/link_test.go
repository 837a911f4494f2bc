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
	if err := l.ready(t.Context()); err != nil {
		t.Fatal(err)
	}

	l, init = fakeInit(t)
	const text = `exec: "foo": executable file not found in $PATH`
	say(t, init, initproto.Message{Type: initproto.Ready, Text: text})
	if err := l.ready(t.Context()); !errdefs.IsNotFound(err) || err.Error()[:len(text)] != text {
		t.Fatal(err)
	}
}

func TestStartFailureHasItsErrno(t *testing.T) {
	l, init := fakeInit(t)
	say(t, init, initproto.Message{Type: initproto.StartFailed, Errno: uint32(unix.ENOEXEC), Text: "exec /app"})
	if _, err := l.start(t.Context(), 0); !errors.Is(err, unix.ENOEXEC) {
		t.Fatal(err)
	}
}

// What was said before PID 1 ended counts; afterwards nobody waits.
func TestEndOfInit(t *testing.T) {
	l, init := fakeInit(t)
	say(t, init, initproto.Message{Type: initproto.Started, Pid: 1000})
	init.Close()
	<-l.gone
	if pid, err := l.started(t.Context()); err != nil || pid != 1000 {
		t.Fatal(pid, err)
	}
	if _, err := l.started(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Fatal(err)
	}
	if err := l.signal(unix.SIGTERM); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
}

func TestSilenceEndsWithTheContext(t *testing.T) {
	l, _ := fakeInit(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
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
	} {
		t.Run(name, func(t *testing.T) {
			l, init := fakeInit(t)
			attack(t, init)
			<-l.gone
			if l.err == nil {
				t.Fatal("no reason was kept")
			}
		})
	}
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
