package main_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// show prints what a process gets from the one that started it.
const show = `cat /proc/self/status /proc/self/limits; echo; tr '\0' '\n' </proc/self/environ; umask; pwd; ls /proc/self/fd;
cat /proc/self/oom_score_adj /proc/self/timerslack_ns /proc/self/personality /proc/self/cgroup`

// own are the lines that belong to one process alone.
var own = []string{
	"Pid:", "Tgid:", "PPid:", "NSpid:", "NStgid:", "NSpgid:", "NSsid:", "Vm", "Rss", "voluntary", "nonvoluntary",
	"Threads:", "SigQ:", "HugetlbPages:", "Mems_", "untag_mask", "x86_Thread",
}

// TestSameAsStartedDirectly compares an application below PID 1 with the same one as PID 1.
func TestSameAsStartedDirectly(t *testing.T) {
	t.Setenv("PATH", "/usr/bin:/bin")
	for _, script := range []string{
		"",
		"nofile=256 umask=23 chdir=/usr",
		"nofile=1024 nonewprivs",
		"uid=1234 chdir=/tmp",
		"block=10",
		"block=12 uid=1234 umask=63",
	} {
		t.Run(script, func(t *testing.T) {
			argv := []string{"sh", "-c", show}
			c := run(t, options{argv: argv, script: script})
			c.start(initproto.Tied)
			got := untilEnd(t, c)
			path := append([]string{"/bin/sh"}, argv[1:]...)
			want := untilEnd(t, run(t, options{argv: path, script: script, direct: true}))
			if got != want {
				t.Errorf("below PID 1:\n%s\nstarted directly:\n%s", got, want)
			}
			if !strings.Contains(want, "DOUBLE=1\nDOUBLE=2\nNOEQUALS\n\nGODEBUG=gctrace=1\nGOMAXPROCS=7\n") {
				t.Errorf("the test's environment is not there:\n%s", want)
			}
		})
	}
}

// untilEnd gives the output of a program that ends well, without what is its own.
func untilEnd(t *testing.T, c *container) string {
	t.Helper()
	if code := c.wait(); code != 0 {
		t.Fatalf("exit code %d: %s", code, c.stderr)
	}
	var kept []string
lines:
	for _, line := range strings.Split(c.stdout.String()+c.stderr.String(), "\n") {
		for _, prefix := range own {
			if strings.HasPrefix(line, prefix) {
				continue lines
			}
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "\n")
}

func TestApplicationSeesNoTraceOfTheStart(t *testing.T) {
	c := run(t, options{argv: []string{"sleep", "1000"}})
	pid := c.start(0)
	for file, want := range map[string]string{
		"cmdline": "sleep\x001000\x00",
		"comm":    "sleep\n",
	} {
		if b, err := os.ReadFile(c.proc(pid, file)); err != nil || string(b) != want {
			t.Errorf("%s is %q, %v", file, b, err)
		}
	}
	// What the test itself was started with goes on to every process: make(1)
	// ignores the C library's own signals.
	inherited, err := exec.Command("sed", "-n", "s/^SigIgn:\\s*//p", "/proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{"SigBlk": strings.Repeat("0", 16), "SigIgn": strings.TrimSpace(string(inherited)), "THP_enabled": "1"} {
		if got := c.status(pid, field); got != want {
			t.Errorf("%s is %s, want %s", field, got, want)
		}
	}
}

// TestPid1 looks at PID 1 itself.
func TestPid1(t *testing.T) {
	c := run(t, options{argv: []string{"sleep", "1000"}, script: "leak"})
	c.start(0)
	cmdline, err := os.ReadFile(c.proc(1, "cmdline"))
	if err != nil || string(cmdline) != "fastfreeze\x00init\x00--\x00sleep\x001000\x00" {
		t.Errorf("cmdline %q, %v", cmdline, err)
	}
	if name := c.status(1, "Name"); name != "fastfreeze" {
		t.Errorf("name %q", name)
	}
	if thp := c.status(1, "THP_enabled"); thp != "0" {
		t.Errorf("THP_enabled %q: a huge page would break the bound on memory", thp)
	}
	environ, err := os.ReadFile(c.proc(1, "environ"))
	if err != nil || !bytes.HasSuffix(environ, []byte("\x00DOUBLE=1\x00DOUBLE=2\x00NOEQUALS\x00\x00GODEBUG=gctrace=1\x00GOMAXPROCS=7\x00")) {
		t.Errorf("environ %q, %v", environ, err)
	}
	fds, err := os.ReadDir(c.proc(1, "fd"))
	if err != nil || len(fds) != 6 {
		t.Errorf("descriptors %v, %v: want stdio, the socket and two signalfds", fds, err)
	}
	// Every thread blocks every signal: all that comes is read from the signalfds.
	tasks, err := filepath.Glob(c.proc(1, "task/*/status"))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads %v, %v", tasks, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil || !bytes.Contains(b, []byte("SigBlk:\tfffffffffffbfeff\n")) {
			t.Errorf("%s does not block all signals: %s, %v", task, b, err)
		}
	}
}

func TestPid1IsNotDumpable(t *testing.T) {
	c := run(t, options{argv: []string{"sleep", "1000"}, script: "uid=1234"})
	app := c.start(0)
	for pid, want := range map[int]uint32{1: 0, app: 1234} {
		var st unix.Stat_t
		if err := unix.Stat(c.proc(pid, "mem"), &st); err != nil || st.Uid != want {
			t.Errorf("the memory of process %d belongs to user %d, want %d (%v)", pid, st.Uid, want, err)
		}
	}
	if c.status(1, "Uid") != c.status(app, "Uid") {
		t.Errorf("PID 1 has the users %s, the application %s", c.status(1, "Uid"), c.status(app, "Uid"))
	}
}

func TestTerminal(t *testing.T) {
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := master.DisableEcho(); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	// An interactive shell with job control: a stopped job, brought back, interrupted.
	c := run(t, options{argv: []string{"bash", "--norc", "--noprofile", "-i"}, stdin: slave, stdout: slave, script: "ctty"})
	slave.Close()
	// A terminal cannot be waited for with a deadline, but it ends with its last user.
	defer time.AfterFunc(patience, func() { _ = c.cmd.Process.Kill() }).Stop()
	said := &screen{t: t, r: master}
	pid := c.start(initproto.Terminal | initproto.Tied | initproto.DropStdio)
	say := func(line string) {
		t.Helper()
		if _, err := io.WriteString(master, line); err != nil {
			t.Fatal(err)
		}
	}
	say("PS1='ready> '; set -b\n")
	said.until("ready> ")
	say("ps -o tty= -p $$ | tr -d ' '; cut -d' ' -f6,8 /proc/$$/stat; echo \"pid $$\"\n")
	out := said.until("ready> ")
	if !strings.Contains(out, strings.TrimPrefix(path, "/dev/")) || strings.Contains(out, "no job control") {
		t.Errorf("the shell says %q, want the terminal %s", out, path)
	}
	if c.status(pid, "NSsid") != c.status(pid, "NSpid") {
		t.Errorf("session %s of process %s", c.status(pid, "NSsid"), c.status(pid, "NSpid"))
	}
	say("sh -c 'echo running; exec cat'\n")
	said.until("running")
	say("\x1a")
	said.until("Stopped")
	said.until("ready> ")
	say("fg\n")
	said.until("exec cat")
	say("echoed by cat\n")
	said.until("echoed by cat")
	say("\x03")
	said.until("ready> ")
	say("exit 9\n")
	if m := c.receive(initproto.Exited); m.Status != 9<<8 {
		t.Errorf("EXITED %+v", m)
	}
	if code := c.wait(); code != 9 {
		t.Errorf("exit code %d", code)
	}
}

func TestHangupReachesTheApplication(t *testing.T) {
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := run(t, options{argv: []string{"sleep", "1000"}, stdin: slave, stdout: slave, script: "ctty"})
	slave.Close()
	c.start(initproto.Terminal | initproto.Tied)
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	if m := c.receive(initproto.Exited); m.Status != uint32(unix.SIGHUP) {
		t.Errorf("EXITED %+v", m)
	}
}

func TestTerminalThatIsNone(t *testing.T) {
	c := run(t, options{argv: []string{"true"}})
	c.receive(initproto.Ready)
	c.send(initproto.Message{Type: initproto.Start, Flags: initproto.Terminal})
	if m := c.receive(initproto.StartFailed); m.Errno != uint32(unix.ENOTTY) || !strings.Contains(m.Text, "terminal") {
		t.Errorf("STARTFAILED %+v", m)
	}
}

// screen reads a terminal.
type screen struct {
	t    *testing.T
	r    io.Reader
	text string
}

// until reads up to and with the words and returns all of it.
func (s *screen) until(words string) string {
	s.t.Helper()
	for {
		if i := strings.Index(s.text, words); i >= 0 {
			out := s.text[:i+len(words)]
			s.text = s.text[i+len(words):]
			return out
		}
		b := make([]byte, 4096)
		n, err := s.r.Read(b)
		if err != nil {
			s.t.Fatalf("waiting for %q: %v; the terminal shows %q", words, err, s.text)
		}
		s.text += string(b[:n])
	}
}
