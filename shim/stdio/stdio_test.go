//go:build linux

package stdio_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/shim/stdio"
)

const patience = 20 * time.Second

// TestMain makes the test binary its own logging program, which writes what it
// gets to a file, behind a line that says that it was started.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "log-to" {
		if err := logTo(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func logTo(path string) error {
	// It is for a logging program to take all that is there before it ends.
	signal.Ignore(unix.SIGTERM)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, "started"); err != nil {
		return err
	}
	if err := unix.Close(5); err != nil {
		return err
	}
	done := make(chan error)
	for _, fd := range []uintptr{3, 4} {
		go func() {
			_, err := io.Copy(f, os.NewFile(fd, "input"))
			done <- err
		}()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, "ended")
	return err
}

// client is containerd's end of a process's stdio.
type client struct {
	t    *testing.T
	addr stdio.Addresses
	in   *os.File
	out  *bufio.Reader
	errs *bufio.Reader
	outF *os.File
}

// newClient makes three fifos and opens them as a client does.
func newClient(t *testing.T) *client {
	t.Helper()
	dir := t.TempDir()
	c := &client{t: t}
	open := func(name string, flags int) (string, *os.File) {
		path := filepath.Join(dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		// A writer has to wait for its reader: it reads as well.
		f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		return path, f
	}
	var errs *os.File
	c.addr.Stdout, c.outF = open("stdout", os.O_RDONLY)
	c.addr.Stderr, errs = open("stderr", os.O_RDONLY)
	c.out, c.errs = bufio.NewReader(c.outF), bufio.NewReader(errs)
	c.addr.Stdin = filepath.Join(dir, "stdin")
	if err := unix.Mkfifo(c.addr.Stdin, 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// write opens stdin, as soon as the shim reads it, and writes.
func (c *client) write(text string) {
	c.t.Helper()
	if c.in == nil {
		eventually(c.t, "the shim reading stdin", func() bool {
			f, err := os.OpenFile(c.addr.Stdin, os.O_WRONLY|unix.O_NONBLOCK, 0)
			c.in = f
			return err == nil
		})
		c.t.Cleanup(func() { _ = c.in.Close() })
		if err := c.in.SetDeadline(time.Now().Add(patience)); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := io.WriteString(c.in, text); err != nil {
		c.t.Fatalf("writing to stdin: %v", err)
	}
}

// gets fails unless the line comes next.
func gets(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	if line, err := r.ReadString('\n'); line != want+"\n" {
		t.Fatalf("got %q, %v; want %q", line, err, want)
	}
}

// ends fails unless the end of file comes next.
func ends(t *testing.T, r io.Reader) {
	t.Helper()
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Fatalf("%q, %v; want the end of file", b, err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// open makes the streams of a process and copies.
func open(t *testing.T, addr stdio.Addresses) *stdio.Streams {
	t.Helper()
	s, err := stdio.Open(t.Context(), "ns", "id", addr, stdio.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Copy(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// life is a process that has a copy of the child's ends.
type life struct {
	t             *testing.T
	in, out, errs *os.File
	lines         *bufio.Reader
}

func begin(t *testing.T, s *stdio.Streams) *life {
	t.Helper()
	l := &life{t: t}
	for _, f := range []struct{ from, to **os.File }{{&s.Stdin, &l.in}, {&s.Stdout, &l.out}, {&s.Stderr, &l.errs}} {
		if *f.from == nil {
			continue
		}
		fd, err := unix.FcntlInt((*f.from).Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("a process's descriptor does not block, %v", err)
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
		*f.to = os.NewFile(uintptr(fd), "child's end")
		if err := (*f.to).SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*f.to).Close() })
	}
	if l.in != nil {
		l.lines = bufio.NewReader(l.in)
	}
	s.CloseChild()
	return l
}

func (l *life) say(out, errs string) {
	l.t.Helper()
	if _, err := io.WriteString(l.out, out+"\n"); err != nil {
		l.t.Fatal(err)
	}
	if _, err := io.WriteString(l.errs, errs+"\n"); err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) end() {
	for _, f := range []*os.File{l.in, l.out, l.errs} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func drain(t *testing.T, f func(context.Context) error) {
	t.Helper()
	if err := f(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOneLife is how it is without Keep: the client sees the end of file as soon
// as the process has closed its ends.
func TestOneLife(t *testing.T) {
	c := newClient(t)
	s := open(t, c.addr)
	l := begin(t, s)
	c.write("hello\n")
	gets(t, l.lines, "hello")
	l.say("out", "errors")
	gets(t, c.out, "out")
	gets(t, c.errs, "errors")
	l.end()
	ends(t, c.out)
	ends(t, c.errs)
	drain(t, s.Drain)
}

func TestLives(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("kept late: %v", late), func(t *testing.T) {
			c := newClient(t)
			s := open(t, c.addr)
			if !late {
				s.Keep()
			}
			l := begin(t, s)
			for i := range 4 {
				in, out, errs := fmt.Sprint("in", i), fmt.Sprint("out", i), fmt.Sprint("err", i)
				c.write(in + "\n")
				gets(t, l.lines, in)
				l.say(out, errs)
				gets(t, c.out, out)
				gets(t, c.errs, errs)
				l.end()
				if late && i == 0 {
					ends(t, c.out)
					ends(t, c.errs)
				}
				if err := s.Renew(stdio.Owner{}); err != nil {
					t.Fatal(err)
				}
				l = begin(t, s)
			}
			l.end()
			drain(t, s.Drain)
			s.End()
			ends(t, c.out)
			ends(t, c.errs)
			s.Close()
			if err := s.Renew(stdio.Owner{}); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

// TestCloseEndsKeptOutputs: also without End.
func TestCloseEndsKeptOutputs(t *testing.T) {
	c := newClient(t)
	s := open(t, c.addr)
	s.Keep()
	l := begin(t, s)
	l.say("out", "err")
	l.end()
	drain(t, s.Drain)
	s.Close()
	gets(t, c.out, "out")
	ends(t, c.out)
	gets(t, c.errs, "err")
	ends(t, c.errs)
}

// TestRenewWithoutClient: nobody has the fifos open.
func TestRenewWithoutClient(t *testing.T) {
	c := newClient(t)
	s := open(t, c.addr)
	begin(t, s).end()
	ends(t, c.out)
	c.outF.Close()
	drain(t, s.Drain)
	if err := s.Renew(stdio.Owner{UID: 1, GID: 2}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.Stdout.Fd()), &st); err != nil || st.Uid != 1 || st.Gid != 2 {
		t.Errorf("the new pipe belongs to %d:%d, %v", st.Uid, st.Gid, err)
	}
	l := begin(t, s)
	l.say("for a later client", "err")
	f, err := os.OpenFile(c.addr.Stdout, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	gets(t, bufio.NewReader(f), "for a later client")
}

// TestInputWaitsForTheNextLife: what comes between two lives is not lost.
func TestInputWaitsForTheNextLife(t *testing.T) {
	c := newClient(t)
	s := open(t, c.addr)
	s.Keep()
	l := begin(t, s)
	c.write("first\n")
	gets(t, l.lines, "first")
	for i := range 3 {
		l.end()
		text := strings.Repeat(fmt.Sprint("between", i, " "), 2000)
		c.write(text + "\n")
		if err := s.Renew(stdio.Owner{}); err != nil {
			t.Fatal(err)
		}
		l = begin(t, s)
		gets(t, l.lines, text)
	}
	// The last words, and the end of the input, reach the next life as well; so
	// does the end those that come later.
	l.end()
	c.write("last words\n")
	if err := errors.Join(s.CloseStdin(), c.in.Close()); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := s.Renew(stdio.Owner{}); err != nil {
			t.Fatal(err)
		}
		l = begin(t, s)
		if i == 0 {
			gets(t, l.lines, "last words")
		}
		ends(t, l.lines)
		l.end()
	}
}

// TestFullPipeOfADeadLife: a former process that does not read, but still holds
// its pipe, does not hold the next one up.
func TestFullPipeOfADeadLife(t *testing.T) {
	c := newClient(t)
	s := open(t, c.addr)
	s.Keep()
	l := begin(t, s)
	c.write(strings.Repeat("x", 100_000)) // more than the pipe and less than pipe and fifo hold
	held := func() int {
		n, err := unix.IoctlGetInt(int(l.in.Fd()), unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	eventually(t, "the pipe being full", func() bool { return held() > 60_000 })
	if err := s.Renew(stdio.Owner{}); err != nil {
		t.Fatal(err)
	}
	next := begin(t, s)
	c.write("\nsecond\n")
	if rest, err := next.lines.ReadString('\n'); err != nil || held()+len(rest) != 100_000+1 {
		t.Errorf("%d bytes went to the first life and %d to the second, %v", held(), len(rest), err)
	}
	gets(t, next.lines, "second")
}
