package main_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

func TestAdopt(t *testing.T) {
	c := run(t, options{argv: []string{"true"}})
	c.receive(initproto.Ready)
	c.inside(binary, "last-pid", "2000")
	c.send(initproto.Message{Type: initproto.Adopt, Pid: 2002, Flags: initproto.Tied | initproto.DropStdio})
	c.sync()
	if pid := c.orphan(); pid != 2002 {
		t.Fatalf("the test's process has pid %d", pid)
	}
	eventually(t, "PID 1 being the parent", func() bool { return c.status(2002, "PPid") == "1" })
	// What comes now is for the application as soon as it is one.
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGTERM)})
	c.sync()
	c.send(initproto.Message{Type: initproto.Restored})
	if m := c.receive(initproto.Started); m.Pid != 2002 {
		t.Errorf("STARTED %+v", m)
	}
	if m := c.receive(initproto.Exited); m.Pid != 2002 || m.Status != 5<<8 {
		t.Errorf("EXITED %+v", m)
	}
	if code := c.wait(); code != 5 {
		t.Errorf("exit code %d", code)
	}
}

func TestAdoptedEndsBeforeTheWord(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("announced late: %v", late), func(t *testing.T) {
			c := run(t, options{argv: []string{"true"}})
			c.receive(initproto.Ready)
			pid := c.orphan()
			adopt := initproto.Message{Type: initproto.Adopt, Pid: int32(pid), Flags: initproto.Tied}
			if !late {
				c.send(adopt)
				c.sync()
			}
			eventually(t, "PID 1 being the parent", func() bool { return c.status(pid, "PPid") == "1" })
			c.inside("kill", "-USR1", strconv.Itoa(pid))
			eventually(t, "the process being reaped", func() bool { return c.status(pid, "State") == "" })
			if late {
				c.send(adopt)
			}
			c.send(initproto.Message{Type: initproto.Restored})
			c.receive(initproto.Started)
			if m := c.receive(initproto.Exited); int(m.Pid) != pid || m.Status != 6<<8 {
				t.Errorf("EXITED %+v", m)
			}
			if code := c.wait(); code != 6 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestAbandon(t *testing.T) {
	c := run(t, options{argv: []string{"sh", "-c", "exit 4"}})
	c.receive(initproto.Ready)
	pid := c.orphan()
	c.send(initproto.Message{Type: initproto.Adopt, Pid: int32(pid), Flags: initproto.Tied})
	c.sync()
	c.inside("kill", "-KILL", strconv.Itoa(pid))
	eventually(t, "the process being reaped", func() bool { return c.status(pid, "State") == "" })
	c.send(initproto.Message{Type: initproto.Abandon})
	c.sync()
	// A restored word without an adoption is no word; an application that never came is told.
	c.send(initproto.Message{Type: initproto.Restored})
	c.send(initproto.Message{Type: initproto.Adopt, Pid: 31000})
	c.send(initproto.Message{Type: initproto.Restored})
	if m := c.receive(initproto.StartFailed); m.Errno != uint32(unix.ESRCH) || !strings.Contains(m.Text, "31000") {
		t.Errorf("STARTFAILED %+v", m)
	}
	// The container is as before: it can start its application afresh.
	c.send(initproto.Message{Type: initproto.Start, Flags: initproto.Tied})
	c.receive(initproto.Started)
	c.receive(initproto.Exited)
	if code := c.wait(); code != 4 {
		t.Errorf("exit code %d", code)
	}
}

func TestSignalsWhileRestoringWaitForAbandon(t *testing.T) {
	for _, byShim := range []bool{true, false} {
		c := run(t, options{argv: []string{"true"}})
		c.receive(initproto.Ready)
		c.send(initproto.Message{Type: initproto.Adopt, Pid: 31000, Flags: initproto.Tied})
		c.sync()
		if byShim {
			c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGTERM)})
		} else if err := unix.Kill(c.cmd.Process.Pid, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		c.sync()
		c.send(initproto.Message{Type: initproto.Abandon})
		if code := c.wait(); code != 143 {
			t.Errorf("exit code %d", code)
		}
	}
}

func TestShimAway(t *testing.T) {
	c := startTrap(t, "TERM", 8, initproto.Tied)
	c.hangUp()
	eventually(t, "PID 1 letting go of the socket", func() bool {
		fds, err := os.ReadDir(c.proc(1, "fd"))
		return err == nil && len(fds) == 5
	})
	c.idle()
	if err := unix.Kill(c.cmd.Process.Pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := c.wait(); code != 8 {
		t.Errorf("exit code %d", code)
	}
}

func TestShimAwayWithoutApplication(t *testing.T) {
	c := run(t, options{argv: []string{"true"}})
	c.receive(initproto.Ready)
	c.hangUp()
	if code := c.wait(); code != 125 {
		t.Errorf("exit code %d", code)
	}
}

// TestShimThatDoesNotRead: what PID 1 has to say waits or is lost, PID 1 works on.
func TestShimThatDoesNotRead(t *testing.T) {
	c := startTrap(t, "USR1", 6, initproto.Tied)
	for i := range 5000 {
		c.send(initproto.Message{Type: initproto.Ping, Seq: uint64(i)})
	}
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGUSR1)})
	if code := c.wait(); code != 6 {
		t.Errorf("exit code %d", code)
	}
}

func TestGarbageOnTheSocket(t *testing.T) {
	c := run(t, options{argv: []string{"sh", "-c", "exit 2"}})
	c.receive(initproto.Ready)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		b := make([]byte, random.IntN(64))
		switch i % 50 {
		case 0:
			b = make([]byte, 9000)
		case 1:
			b = nil
		}
		for j := range b {
			b[j] = byte(random.UintN(256))
		}
		if i%3 == 0 && len(b) > 1 {
			// Known types, but never a whole message.
			b[0], b[1] = initproto.Version, byte(random.UintN(8))
			b = b[:2+min(len(b)-2, 40)]
			if len(b) <= 13 {
				b = append(b, make([]byte, 20)...)
			}
		}
		c.raw(b)
	}
	// A descriptor that comes along is not taken.
	c.raw([]byte("x"), 0)
	c.sync()
	if fds, err := os.ReadDir(c.proc(1, "fd")); err != nil || len(fds) != 6 {
		t.Errorf("descriptors %v, %v", fds, err)
	}
	c.send(initproto.Message{Type: initproto.Start, Flags: initproto.Tied})
	c.receive(initproto.Started)
	if code := c.wait(); code != 2 {
		t.Errorf("exit code %d", code)
	}
}

func TestMemoryAndWakeUps(t *testing.T) {
	const bound = 3 << 10 // KiB
	c := run(t, options{argv: []string{"sleep", "1000"}})
	c.receive(initproto.Ready)
	threads := c.status(1, "Threads")
	c.send(initproto.Message{Type: initproto.Start, Flags: initproto.DropStdio})
	c.receive(initproto.Started)
	before := c.private()
	t.Logf("private memory of PID 1: %d KiB", before)
	if before > bound {
		t.Errorf("PID 1 has %d KiB of private memory, want at most %d", before, bound)
	}
	c.idle()
	// Work leaves no garbage: there is no collector at work that would take time and threads.
	for range 20000 {
		c.sync()
	}
	for range 2000 {
		c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGWINCH)})
		if err := unix.Kill(c.cmd.Process.Pid, unix.SIGWINCH); err != nil {
			t.Fatal(err)
		}
	}
	c.sync()
	if after := c.private(); after > before+64 {
		t.Errorf("PID 1 has grown from %d to %d KiB", before, after)
	}
	// A thread takes a pid: one that comes after READY could take the application's.
	if now := c.status(1, "Threads"); now != threads {
		t.Errorf("%s threads at READY, %s later", threads, now)
	}
	c.idle()
}

// private is PID 1's private memory in KiB.
func (c *container) private() int {
	c.t.Helper()
	b, err := os.ReadFile(c.proc(1, "smaps_rollup"))
	if err != nil {
		c.t.Fatal(err)
	}
	sum := 0
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[0], "Private_") {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				c.t.Fatal(err)
			}
			sum += n
		}
	}
	return sum
}

// idle fails if a thread of PID 1 wakes up although nothing happens. The time that it watches is the time that
// some processes need to run.
func (c *container) idle() {
	c.t.Helper()
	switches := func() string {
		files, err := filepath.Glob(c.proc(1, "task/*/status"))
		if err != nil || len(files) == 0 {
			c.t.Fatalf("%v, %v", files, err)
		}
		var all []string
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				c.t.Fatal(err)
			}
			_, s, _ := bytes.Cut(b, []byte("voluntary_ctxt_switches:"))
			all = append(all, strings.Join(strings.Fields(string(s)), " "))
		}
		return strings.Join(all, ", ")
	}
	runSome := func() string {
		before := switches()
		for range 50 {
			if err := exec.Command("true").Run(); err != nil {
				c.t.Fatal(err)
			}
		}
		return before
	}
	// The runtime needs some milliseconds to come to rest after work.
	eventually(c.t, "PID 1 coming to rest", func() bool { return runSome() == switches() })
	if before := runSome(); before != switches() {
		c.t.Errorf("PID 1 wakes up: context switches were %s, are %s", before, switches())
	}
}

// TestNotPid1 is a container in the pid namespace of others: with the application ends all that came from it.
func TestNotPid1(t *testing.T) {
	r, w := pipe(t)
	script := "(trap '' TERM HUP; exec sleep 1000) & setsid sh -c 'sleep 1000 & sleep 1000' & read x <" + fifo(t)
	c := run(t, options{argv: []string{"sh", "-c", script}, hostNS: true, stdout: w})
	w.Close()
	app := c.start(initproto.Tied | initproto.DropStdio)
	eventually(t, "the application having made its processes", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", app, app))
		return err == nil && len(strings.Fields(string(b))) >= 2
	})
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGTERM)})
	if m := c.receive(initproto.Exited); int(m.Pid) != app || m.Status != uint32(unix.SIGTERM) {
		t.Errorf("EXITED %+v", m)
	}
	if code := c.wait(); code != 143 {
		t.Errorf("exit code %d", code)
	}
	// The pipe ends when nobody holds it any more.
	if _, err := io.ReadAll(r); err != nil {
		t.Error(err)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"--version"}, {"nonsense"}, {"init"}, {"init", "--"}, {"last-pid"}, {"last-pid", "x"}, {"last-pid", "-1"}, {"warm"}, {"run0"}, {"run"}} {
		cmd := exec.Command(binary, args...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 2 {
			t.Errorf("%q: %v", args, err)
		}
		if stdout.Len() != 0 || !strings.Contains(stderr.String(), "fastfreeze") {
			t.Errorf("%q: stdout %q, stderr %q", args, stdout.String(), stderr.String())
		}
	}
}

func TestInitWithoutTheShim(t *testing.T) {
	cmd := exec.Command(binary, "init", "--", "true")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 125 || !strings.Contains(string(out), "descriptor 3") {
		t.Errorf("%v: %s", err, out)
	}
}
