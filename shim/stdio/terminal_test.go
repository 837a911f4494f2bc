//go:build linux

package stdio_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/shim/stdio"
)

func consoles(t *testing.T) *stdio.Consoles {
	t.Helper()
	c, err := stdio.NewConsoles()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// newTerminal makes a terminal without echo: the shim's end, and the process's
// with a reader of its lines.
func newTerminal(t *testing.T) (master *os.File, slave *os.File, lines *bufio.Reader) {
	t.Helper()
	m, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	fd, err := unix.FcntlInt(m.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	if err := slave.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	termios, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	termios.Lflag &^= unix.ECHO
	termios.Oflag &^= unix.OPOST
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, termios); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "master"), slave, bufio.NewReader(slave)
}

func attach(t *testing.T, c *stdio.Consoles, master *os.File, addr stdio.Addresses) *stdio.Terminal {
	t.Helper()
	term, err := c.Attach(t.Context(), master, "ns", "id", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(term.Close)
	return term
}

func TestTerminalLives(t *testing.T) {
	all := consoles(t)
	c := newClient(t)
	c.addr.Stderr = ""
	master, slave, lines := newTerminal(t)
	term := attach(t, all, master, c.addr)
	if err := term.Resize(101, 33); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		if size, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ); err != nil || size.Col != 101 || size.Row != 33 {
			t.Errorf("life %d has the size %+v, %v", i, size, err)
		}
		c.write(fmt.Sprintf("in %d\n", i))
		gets(t, lines, fmt.Sprintf("in %d", i))
		fmt.Fprintf(slave, "out %d\n", i)
		gets(t, c.out, fmt.Sprintf("out %d", i))
		// The last words are taken before those of the next life.
		fmt.Fprintf(slave, "last %d\n", i)
		if i%2 == 0 {
			slave.Close()
		}
		master, slave, lines = newTerminal(t)
		if err := term.Renew(master); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(slave, "next %d\n", i)
		gets(t, c.out, fmt.Sprintf("last %d", i))
		gets(t, c.out, fmt.Sprintf("next %d", i))
	}
	slave.Close()
	term.Shutdown()
	ends(t, c.out)
	drain(t, term.Drain)
	term.Close()
	master, _, _ = newTerminal(t)
	if err := term.Renew(master); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("after Close: %v", err)
	}
}

// TestTerminalRenewedLate: the output has been closed with the first life.
func TestTerminalRenewedLate(t *testing.T) {
	all := consoles(t)
	file := filepath.Join(t.TempDir(), "log")
	c := newClient(t)
	for _, addr := range []stdio.Addresses{{Stdout: c.addr.Stdout}, {Stdout: "file://" + file}, {Stdout: "binary://" + self(t) + "?log-to=" + file + "2"}, {}} {
		master, slave, _ := newTerminal(t)
		term := attach(t, all, master, addr)
		fmt.Fprintln(slave, "first")
		term.Shutdown()
		drain(t, term.Drain)
		slave.Close()
		if addr.Stdout == c.addr.Stdout {
			gets(t, c.out, "first")
			ends(t, c.out)
		}
		master, slave, _ = newTerminal(t)
		if err := term.Renew(master); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(slave, "second")
		slave.Close()
		term.Shutdown()
		drain(t, term.Drain)
		if addr.Stdout == c.addr.Stdout {
			gets(t, c.out, "second")
			ends(t, c.out)
		}
		term.Close()
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "first\nsecond\n" {
		t.Errorf("%q, %v", b, err)
	}
	// Two logging programs, the first of which may end after the second.
	eventually(t, "both programs having logged", func() bool {
		b, _ := os.ReadFile(file + "2")
		return strings.Count(string(b), "started\n") == 2 && strings.Contains(string(b), "second\n")
	})
}

// TestTerminalInputBetweenLives: what comes when no process has the terminal
// open is for the next one.
func TestTerminalInputBetweenLives(t *testing.T) {
	all := consoles(t)
	c := newClient(t)
	c.addr.Stdout, c.addr.Stderr = "", ""
	master, slave, lines := newTerminal(t)
	term := attach(t, all, master, c.addr)
	term.Keep()
	c.write("first\n")
	gets(t, lines, "first")
	slave.Close()
	// A terminal without a process takes nothing.
	c.write("between\n")
	var left int
	eventually(t, "the shim having read it", func() bool {
		var err error
		left, err = unix.IoctlGetInt(int(c.in.Fd()), unix.TIOCINQ)
		return err == nil && left == 0
	})
	master, _, lines = newTerminal(t)
	if err := term.Renew(master); err != nil {
		t.Fatal(err)
	}
	gets(t, lines, "between")
}

// TestTerminalClosesWithItsInput: as without Keep.
func TestTerminalClosesWithItsInput(t *testing.T) {
	all := consoles(t)
	for _, keep := range []bool{false, true} {
		c := newClient(t)
		c.addr.Stderr = ""
		master, slave, lines := newTerminal(t)
		term := attach(t, all, master, c.addr)
		if keep {
			term.Keep()
		}
		c.write("word\n")
		gets(t, lines, "word")
		if err := term.CloseStdin(); err != nil {
			t.Fatal(err)
		}
		c.in.Close()
		hungUp(t, slave)
		if keep {
			master, slave, _ := newTerminal(t)
			if err := term.Renew(master); err != nil {
				t.Fatal(err)
			}
			hungUp(t, slave)
		}
		term.Shutdown()
		ends(t, c.out)
		drain(t, term.Drain)
	}
}

// hungUp waits until a terminal has lost its master.
func hungUp(t *testing.T, slave *os.File) {
	t.Helper()
	poll := []unix.PollFd{{Fd: int32(slave.Fd())}}
	if n, err := unix.Poll(poll, int(patience.Milliseconds())); n != 1 || poll[0].Revents&unix.POLLHUP == 0 {
		t.Fatalf("the terminal is not closed: %v, %+v", err, poll)
	}
}
