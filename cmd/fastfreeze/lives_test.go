package main_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto/initconn"
)

// command makes the file that comes with initproto.Command.
func command(t *testing.T, env []string, args ...string) *os.File {
	t.Helper()
	f, err := initconn.CommandFile(args, env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// begin starts an application once more and returns its pid in the namespace.
func (c *container) begin(flags initproto.Flags, files ...*os.File) int {
	c.t.Helper()
	c.sendWith(initproto.Message{Type: initproto.Start, Flags: flags}, files...)
	return int(c.receive(initproto.Started).Pid)
}

// refused fails unless START is refused with the error and the words.
func (c *container) refused(want syscall.Errno, words string) {
	c.t.Helper()
	if m := c.receive(initproto.StartFailed); syscall.Errno(m.Errno) != want || !strings.Contains(m.Text, words) {
		c.t.Errorf("STARTFAILED %+v, want %v and %q", m, want, words)
	}
}

// descriptors counts the open files of a process of the namespace.
func (c *container) descriptors(pid int) int {
	fds, err := os.ReadDir(c.proc(pid, "fd"))
	if err != nil {
		c.t.Fatal(err)
	}
	return len(fds)
}

// rest is all that is read until the end of file.
func rest(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	return string(b)
}

// TestLives: the container's own command, another one, a restored one, and the own one again.
func TestLives(t *testing.T) {
	r, w := pipe(t)
	c := run(t, options{argv: []string{"sh", "-c", "echo own $LIFE; exit 3"}, stdout: w})
	w.Close()
	exited := func(pid, code int) {
		t.Helper()
		if m := c.receive(initproto.Exited); int(m.Pid) != pid || m.Status != uint32(code)<<8 {
			t.Fatalf("EXITED %+v, want code %d of %d", m, code, pid)
		}
	}
	exited(c.start(0), 3)
	other := command(t, []string{"LIFE=second", "PATH=/usr/bin:/bin"}, "sh", "-c", `echo "$0" "$LIFE" "$#"; exit 4`, "zero", "", "two")
	exited(c.begin(initproto.Command, other), 4)
	exited(c.begin(0), 3)

	pid := c.orphan()
	eventually(t, "PID 1 being the parent", func() bool { return c.status(pid, "PPid") == "1" })
	c.send(initproto.Message{Type: initproto.Adopt, Pid: int32(pid), Flags: initproto.NewStdio})
	c.send(initproto.Message{Type: initproto.Restored})
	c.receive(initproto.Started)
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGTERM)})
	exited(pid, 5)

	c.inside(binary, "last-pid", "4999")
	if pid := c.begin(initproto.Command|initproto.Tied, other); pid != 5000 {
		t.Errorf("another command has pid %d, want 5000", pid)
	}
	exited(5000, 4)
	if code := c.wait(); code != 4 {
		t.Errorf("exit code %d", code)
	}
	if out := rest(t, r); out != "own\nzero second 2\nown\nzero second 2\n" {
		t.Errorf("the lives say %q", out)
	}
}

// TestEndedLifeIsForgotten: an adopted process that is not there is not taken for a former one with its pid.
func TestEndedLifeIsForgotten(t *testing.T) {
	c := run(t, options{argv: []string{"true"}})
	pid := c.start(0)
	c.receive(initproto.Exited)
	for range 2 {
		c.send(initproto.Message{Type: initproto.Adopt, Pid: int32(pid)})
		c.send(initproto.Message{Type: initproto.Restored})
		c.refused(unix.ESRCH, strconv.Itoa(pid))
	}
	c.begin(initproto.Tied)
	c.receive(initproto.Exited)
	if code := c.wait(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestTie(t *testing.T) {
	kill := initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGKILL)}
	tie := initproto.Message{Type: initproto.Tie, Flags: initproto.Tied}
	untie := initproto.Message{Type: initproto.Tie}
	c := run(t, options{argv: []string{"sleep", "1000"}})
	c.start(initproto.Tied)
	c.send(untie)
	c.send(kill)
	c.receive(initproto.Exited)
	// Without an application there is nothing to tie.
	c.send(tie)
	c.begin(0)
	c.send(kill)
	c.receive(initproto.Exited)
	// While it is being restored.
	pid := c.orphan()
	c.send(initproto.Message{Type: initproto.Adopt, Pid: int32(pid), Flags: initproto.Tied})
	c.send(untie)
	c.send(initproto.Message{Type: initproto.Restored})
	c.receive(initproto.Started)
	c.send(kill)
	c.receive(initproto.Exited)
	c.sync()

	c.begin(0)
	c.send(tie)
	c.sync()
	c.send(kill)
	c.receive(initproto.Exited)
	if code := c.wait(); code != 137 {
		t.Errorf("exit code %d", code)
	}
}

func TestNewStdio(t *testing.T) {
	r, w := pipe(t)
	c := run(t, options{argv: []string{"sh", "-c", "read line; echo $line; echo error >&2"}, stdout: w})
	w.Close()
	c.start(initproto.DropStdio)
	c.receive(initproto.Exited)
	if out := rest(t, r); out != "\nerror\n" {
		t.Fatalf("the first life says %q", out)
	}
	for i := range 3 {
		c.send(initproto.Message{Type: initproto.Start})
		c.refused(unix.EINVAL, "stdio")
		in, input := pipe(t)
		stdout, out := pipe(t)
		stderr, errs := pipe(t)
		if _, err := fmt.Fprintf(input, "life %d\n", i); err != nil {
			t.Fatal(err)
		}
		flags := initproto.NewStdio
		if i < 2 {
			flags |= initproto.DropStdio
		}
		c.begin(flags, in, out, errs)
		for _, f := range []*os.File{input, in, out, errs} {
			f.Close()
		}
		c.receive(initproto.Exited)
		if i == 2 {
			// What was not to be let go of is PID 1's own now.
			if link, err := os.Readlink(c.proc(1, "fd/1")); err != nil || !sameFile(t, link, stdout) {
				t.Errorf("PID 1's stdout is %q, %v", link, err)
			}
			c.begin(initproto.DropStdio)
			c.receive(initproto.Exited)
		}
		want := fmt.Sprintf("life %d\n", i)
		if i == 2 {
			want += "\n"
		}
		if got, problems := rest(t, stdout), rest(t, stderr); got != want || !strings.HasPrefix(problems, "error\n") {
			t.Errorf("life %d says %q and %q", i, got, problems)
		}
		if n := c.descriptors(1); n != 6 {
			t.Errorf("PID 1 has %d descriptors", n)
		}
	}
}

// TestNewStdioOfAFailedStart: a start that fails holds nothing of what came with it.
func TestNewStdioOfAFailedStart(t *testing.T) {
	c := run(t, options{argv: []string{"true"}})
	c.start(initproto.DropStdio)
	c.receive(initproto.Exited)
	bad := t.TempDir() + "/no-format"
	if err := os.WriteFile(bad, []byte("no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bad, "no-such-program"} {
		r, w := pipe(t)
		files := []*os.File{w, w, w, command(t, nil, name)}
		c.sendWith(initproto.Message{Type: initproto.Start, Flags: initproto.NewStdio | initproto.Command}, files...)
		w.Close()
		if m := c.receive(initproto.StartFailed); !strings.Contains(m.Text, name) {
			t.Errorf("STARTFAILED %+v", m)
		}
		if out := rest(t, r); out != "" {
			t.Errorf("%q", out)
		}
		c.send(initproto.Message{Type: initproto.Start})
		c.refused(unix.EINVAL, "stdio")
	}
	if n := c.descriptors(1); n != 6 {
		t.Errorf("PID 1 has %d descriptors", n)
	}
}

// TestDescriptorsAreNotLeaked: what comes with a message that does not want it reaches nobody.
func TestDescriptorsAreNotLeaked(t *testing.T) {
	c := run(t, options{argv: []string{"sleep", "1000"}})
	c.receive(initproto.Ready)
	r, w := pipe(t)
	fd := int(w.Fd())
	many := slices.Repeat([]int{fd}, 200)
	for _, n := range []int{1, 3, 4, 5, 200} {
		for _, b := range []string{"x", "\x02\x04", "\x02\x07\x02", "\x02\x7f", string(make([]byte, 5000))} {
			c.raw([]byte(b), many[:n]...)
		}
	}
	for flags, counts := range map[initproto.Flags][]int{
		0:                                      {1, 4, 200},
		initproto.NewStdio:                     {0, 2, 4, 5},
		initproto.Command:                      {0, 2, 3},
		initproto.NewStdio | initproto.Command: {1, 3, 5, 200},
	} {
		for _, n := range counts {
			c.raw([]byte{initproto.Version, byte(initproto.Start), byte(flags)}, many[:n]...)
			c.refused(unix.EMFILE, "descriptors came")
		}
	}
	w.Close()
	if out := rest(t, r); out != "" {
		t.Errorf("%q", out)
	}
	sleep := command(t, []string{"PATH=/usr/bin:/bin"}, "sleep", "1000")
	app := c.begin(initproto.Command, sleep)
	if n, m := c.descriptors(app), c.descriptors(1); n != 3 || m != 6 {
		t.Errorf("the application has %d descriptors, PID 1 %d", n, m)
	}
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGKILL)})
	c.receive(initproto.Exited)
	in, _ := pipe(t)
	_, out := pipe(t)
	app = c.begin(initproto.NewStdio|initproto.Command, in, out, out, sleep)
	if n, m := c.descriptors(app), c.descriptors(1); n != 3 || m != 6 {
		t.Errorf("the application has %d descriptors, PID 1 %d", n, m)
	}
}

func TestBadCommands(t *testing.T) {
	t.Setenv("PATH", "/usr/bin:/bin")
	c := run(t, options{argv: []string{"sh", "-c", "exit 6"}})
	c.receive(initproto.Ready)
	start := initproto.Message{Type: initproto.Start, Flags: initproto.Command}
	memfd := func(b []byte, holes int64) *os.File {
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "test")
		t.Cleanup(func() { _ = f.Close() })
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(int64(len(b)) + holes); err != nil {
			t.Fatal(err)
		}
		return f
	}
	whole := initproto.EncodeCommand([]string{"true"}, nil)
	r, _ := pipe(t)
	for name, tc := range map[string]struct {
		f     *os.File
		code  syscall.Errno
		words string
	}{
		"empty":       {memfd(nil, 0), unix.E2BIG, "it has 0 bytes"},
		"too long":    {memfd(nil, initproto.MaxCommand+1), unix.E2BIG, "2097153"},
		"cut":         {memfd(whole[:len(whole)-1], 0), unix.EINVAL, "malformed"},
		"trailing":    {memfd(whole, 1), unix.EINVAL, "malformed"},
		"no file":     {r, unix.Errno(29), "command"}, // ESPIPE
		"no PATH":     {command(t, nil, "true"), unix.ENOENT, `exec: "true": executable file not found in $PATH`},
		"own PATH":    {command(t, []string{"PATH=/", "PATH=/bin", "PATH"}, "sh"), unix.ENOENT, `exec: "sh": executable`},
		"long name":   {command(t, nil, "/"+strings.Repeat("x/", 2100)), unix.ENAMETOOLONG, `exec: "/x/`},
		"long string": {command(t, nil, "/bin/true", strings.Repeat("x", 1<<20)), unix.E2BIG, "exec /bin/true: argument list too long"},
	} {
		t.Run(name, func(t *testing.T) {
			c.t = t
			c.sendWith(start, tc.f)
			c.refused(tc.code, tc.words)
		})
	}
	c.t = t
	// The container's own command is as before.
	c.begin(initproto.Tied)
	if code := c.wait(); code != 6 {
		t.Errorf("exit code %d", code)
	}
}

// TestLivesLeaveNothing: many lives with large commands cost PID 1 neither memory nor threads nor descriptors.
func TestLivesLeaveNothing(t *testing.T) {
	c := run(t, options{argv: []string{"true"}})
	env := append(slices.Repeat([]string{"X=" + strings.Repeat("x", 100_000)}, 10), slices.Repeat([]string{""}, 1000)...)
	large := command(t, append(env, "PATH=/no/such/folder:/nor/this:/usr/bin:/bin"), "true")
	bad := command(t, append(env, "PATH=/bin"), "no-such-program")
	c.start(0)
	c.receive(initproto.Exited)
	life := func() {
		c.begin(initproto.Command, large)
		c.receive(initproto.Exited)
	}
	for range 20 {
		life()
	}
	c.sync()
	before, threads := c.private(), c.status(1, "Threads")
	for range 300 {
		life()
	}
	for range 50 {
		c.sendWith(initproto.Message{Type: initproto.Start, Flags: initproto.Command}, bad)
		c.refused(unix.ENOENT, "not found")
	}
	c.sync()
	if after := c.private(); after > before+64 {
		t.Errorf("PID 1 has grown from %d to %d KiB", before, after)
	}
	if now := c.status(1, "Threads"); now != threads {
		t.Errorf("%s threads before, %s after", threads, now)
	}
	if n := c.descriptors(1); n != 6 {
		t.Errorf("PID 1 has %d descriptors", n)
	}
	c.idle()
}

// TestLivesOnATerminal: each gets the container's terminal as its controlling terminal.
func TestLivesOnATerminal(t *testing.T) {
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	script := "echo life $1 >/dev/tty; (trap '' HUP; exec sleep 1000 </dev/null >/dev/null 2>&1) & exit 0"
	c := run(t, options{argv: []string{"sh", "-c", script, "sh", "own"}, stdin: slave, stdout: slave, script: "ctty"})
	slave.Close()
	defer time.AfterFunc(patience, func() { _ = c.cmd.Process.Kill() }).Stop()
	said := &screen{t: t, r: master}
	const flags = initproto.Terminal | initproto.DropStdio
	c.start(flags)
	said.until("life own")
	c.receive(initproto.Exited)
	for i := range 3 {
		word := strconv.Itoa(i)
		c.begin(flags|initproto.Command, command(t, []string{"PATH=/usr/bin:/bin"}, "sh", "-c", script, "sh", word))
		said.until("life " + word)
		c.receive(initproto.Exited)
	}
}

// TestStoppedPid1 goes on where it was, and tells all that happened meanwhile.
func TestStoppedPid1(t *testing.T) {
	c := startTrap(t, "TERM", 3, 0)
	for range 3 {
		if err := unix.Kill(c.cmd.Process.Pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "PID 1 stopping", func() bool { return strings.HasPrefix(c.status(1, "State"), "T") })
		c.send(initproto.Message{Type: initproto.Ping, Seq: 9})
		if err := unix.Kill(c.cmd.Process.Pid, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if m := c.receive(initproto.Pong); m.Seq != 9 {
			t.Errorf("PONG %+v", m)
		}
	}
	if err := unix.Kill(c.cmd.Process.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "PID 1 stopping", func() bool { return strings.HasPrefix(c.status(1, "State"), "T") })
	children := strings.Fields(c.inside("sh", "-c", "cat /proc/$1/task/$1/children", "sh", strconv.Itoa(c.cmd.Process.Pid)))
	if len(children) != 1 {
		t.Fatalf("PID 1's children: %v", children)
	}
	app, err := strconv.Atoi(children[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Kill(app, unix.SIGKILL), unix.Kill(c.cmd.Process.Pid, unix.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	if m := c.receive(initproto.Exited); m.Status != 9 {
		t.Errorf("EXITED %+v", m)
	}
	c.sync()
}
