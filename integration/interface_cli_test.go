package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// TestCommandLine uses the real command on real containers, with and without a terminal.
func TestCommandLine(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	for _, test := range []labTest{
		{"from one end to the other", testCommandTour},
		{"JSON", testCommandJSON},
		{"wrong usage", testCommandUsage},
		{"terminal", testCommandTerminal},
		{"interrupted", testCommandInterrupted},
		{"events", testCommandEvents},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
	}
}

// fastmig runs the command; what it printed to both, and its exit code.
func fastmig(t *testing.T, lab *harness.Lab, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	stdout, err := lab.Tool(lab.Context(), "fastmig", args...)
	var tool *harness.ToolError
	var exit *exec.ExitError
	switch {
	case err == nil:
		return stdout, "", 0
	case errors.As(err, &tool) && errors.As(tool.Err, &exit):
		return stdout, tool.Stderr, exit.ExitCode()
	}
	t.Fatal(err)
	return "", "", 0
}

func mustFastmig(t *testing.T, lab *harness.Lab, args ...string) string {
	t.Helper()
	stdout, stderr, code := fastmig(t, lab, args...)
	if code != 0 {
		t.Fatalf("fastmig %v: exit code %d: %s", args, code, stderr)
	}
	return stdout
}

func testCommandTour(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	c := lab.MustRun(annotated(tickOptions(), "image-url", url))
	continues := ticking(lab, t, c)
	wantText(t, mustFastmig(t, lab, "ps"), c.ID(), lab.Namespace, "running")
	wantText(t, mustFastmig(t, lab, "status", c.ID()), c.ID(), "running", url)
	wantText(t, mustFastmig(t, lab, "checkpoint", c.ID()), "checkpointed to "+url, "the service is running")
	continues(c)
	wantText(t, mustFastmig(t, lab, "checkpoint", "--stop", "--hook-after", "touch /after", c.ID()), "standby")
	lab.MustExec(c, "test", "-e", "/after")
	wantState(t, lab, c, api.Standby)
	wantText(t, mustFastmig(t, lab, "restore", c.ID()), "restored from "+url)
	continues(c)
	_, stderr, code := fastmig(t, lab, "restore", c.ID())
	equal(t, "the exit code", code, 1)
	wantText(t, stderr, "running", "standby")
	wantText(t, mustFastmig(t, lab, "stop", "--signal", "KILL", c.ID()), "standby")
	wantText(t, mustFastmig(t, lab, "start", c.ID(), "--env", "A=b", "--", "sh", "-c", `echo "<$A> <$1>"; sleep 100000`, "x", "one two"), "started")
	waitText(t, lab, c.Output, "<b> <one two>")
	wantText(t, mustFastmig(t, lab, "standby", c.ID()), "standby")
	wantText(t, mustFastmig(t, lab, "standby", c.ID()), "standby")
	wantState(t, lab, c, api.Standby)
}

func testCommandJSON(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(annotated(tickOptions(), "image-url", nodeURL()))
	tickSeen(lab, t, c, 0)
	var s api.Status
	check(t, json.Unmarshal([]byte(mustFastmig(t, lab, "status", "--json", c.ID())), &s))
	equal(t, "the state", s.State, api.Running)
	equal(t, "the application", s.AppPid, serviceOf(t, lab, c).AppPid)
	var all []map[string]any
	check(t, json.Unmarshal([]byte(mustFastmig(t, lab, "ps", "--json")), &all))
	found := false
	for _, one := range all {
		found = found || one["id"] == c.ID() && one["state"] == "running"
	}
	if !found {
		t.Errorf("it is not in %v", all)
	}
	var r api.Result
	check(t, json.Unmarshal([]byte(mustFastmig(t, lab, "checkpoint", "--json", c.ID())), &r))
	if r.Checkpoint == nil || r.Checkpoint.URL != s.ImageURL {
		t.Errorf("the result is %+v", r)
	}
	_, stderr, code := fastmig(t, lab, "start", "--json", c.ID())
	equal(t, "the exit code", code, 1)
	// The error is the last line of what is JSON there.
	var e struct {
		Kind  string     `json:"kind"`
		Error *api.Error `json:"error"`
	}
	check(t, json.Unmarshal([]byte(stderr), &e))
	if e.Error != nil {
		e.Kind = e.Error.Kind
	}
	equal(t, "the error's kind", e.Kind, "failed_precondition")
}

func testCommandUsage(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(standby(tickOptions()))
	for _, args := range [][]string{
		{"nothing"}, {"checkpoint"}, {"restore", "--no-such-flag", c.ID()}, {"checkpoint", c.ID(), "second"},
		{"checkpoint", "--stop", "--leave-running", c.ID()}, {"checkpoint", "--tcp", "maybe", c.ID()},
		{"restore", "--hook-before", "'open", c.ID()}, {"restore", "--hook-timeout", "-1s", c.ID()}, {"start", "--env", "=x", c.ID()},
		{"ps", "argument"}, {"events", "--since", "-1"},
	} {
		if _, stderr, code := fastmig(t, lab, args...); code != 2 || stderr == "" {
			t.Errorf("fastmig %v: exit code %d: %s", args, code, stderr)
		}
	}
	for _, verb := range []string{"status", "checkpoint", "restore", "start", "stop", "standby", "events"} {
		_, stderr, code := fastmig(t, lab, verb, "nobody")
		if code != 1 || !strings.Contains(stderr, "nobody") || !strings.Contains(stderr, "fastmig ps") {
			t.Errorf("fastmig %s nobody: exit code %d: %s", verb, code, stderr)
		}
	}
	_, stderr, code := fastmig(t, lab, "restore", c.ID())
	equal(t, "the exit code of a restore without a source", code, 1)
	wantText(t, stderr, "image")
	wantState(t, lab, c, api.Standby)
}

// terminal is a command on a terminal of its own.
type terminal struct {
	*exec.Cmd
	keys   *os.File
	screen harness.Buffer
	ended  chan error
}

func onTerminal(t *testing.T, lab *harness.Lab, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	check(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	check(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	defer slave.Close()
	check(t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}))
	cmd, err := lab.Command(lab.Context(), "fastmig", args...)
	check(t, err)
	cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	check(t, lab.StartCommand(cmd))
	term := &terminal{Cmd: cmd, keys: master, ended: make(chan error, 1)}
	go func() {
		// It ends with an error when the last of the terminal's users has gone.
		_, _ = io.Copy(&term.screen, master)
		term.ended <- cmd.Wait()
	}()
	t.Cleanup(func() { master.Close() })
	return term
}

// end waits for the command's and returns its exit code.
func (term *terminal) end(t *testing.T) int {
	t.Helper()
	select {
	case <-term.ended:
		return term.ProcessState.ExitCode()
	case <-time.After(time.Minute):
		t.Fatalf("the command does not end; the screen: %q", term.screen.String())
		return 0
	}
}

// On a terminal there is a bar, and nothing of it is left.
func testCommandTerminal(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	c := lab.MustRun(crowd())
	continues := ticking(lab, t, c)
	term := onTerminal(t, lab, "checkpoint", c.ID(), "--image-url", url)
	equal(t, "the exit code", term.end(t), 0)
	screen := term.screen.String()
	wantText(t, screen, "checkpoint of", "dump", "\x1b[K", "checkpointed to "+url)
	if last := screen[strings.LastIndex(screen, "\x1b[K")+3:]; strings.Count(strings.TrimSpace(last), "\n") != 0 {
		t.Errorf("what is left is %q", last)
	}
	continues(c)
	// Without one there are lines.
	cmd, err := lab.Command(lab.Context(), "fastmig", "checkpoint", c.ID(), "--image-url", url)
	check(t, err)
	var out, progress harness.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	check(t, lab.StartCommand(cmd))
	check(t, cmd.Wait())
	wantText(t, progress.String(), "dump")
	if strings.ContainsAny(out.String()+progress.String(), "\x1b\r") {
		t.Errorf("there are escapes in %q %q", out.String(), progress.String())
	}
}

// Ctrl-C in the middle of a checkpoint takes it back: the service goes on, and nothing
// half-written is left.
func testCommandInterrupted(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	c := lab.MustRun(crowd())
	continues := ticking(lab, t, c)
	folder := func() string {
		var names []string
		for _, n := range folderNames(t, nodeCheckpoints(lab)) {
			if strings.Contains(n, strings.TrimPrefix(url, "node:")) {
				names = append(names, n)
			}
		}
		return fmt.Sprint(names)
	}
	for _, stop := range []string{"--leave-running", "--stop"} {
		term := onTerminal(t, lab, "checkpoint", c.ID(), "--image-url", url, stop)
		lab.WaitFor("the dump to have written some processes", func(context.Context) (bool, error) {
			found, _ := filepath.Glob(filepath.Join(nodeCheckpoints(lab), ".*.new-*", "core-*.img"))
			return len(found) > 10, nil
		})
		_, err := term.keys.Write([]byte{3})
		check(t, err)
		equal(t, "the exit code", term.end(t), 130)
		wantText(t, term.screen.String(), "cancelled", "running")
		continues(c)
		s := wantState(t, lab, c, api.Running)
		if s.Checkpoint != nil {
			t.Errorf("the status has the checkpoint %+v", s.Checkpoint)
		}
		equal(t, "what is left", folder(), "[]")
	}
	saveTo(t, lab, c, url, false)
	restoreFrom(t, lab, c, url)
	continues(c)
}

func testCommandEvents(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(standby(tickOptions()))
	cmd, err := lab.Command(lab.Context(), "fastmig", "events", "--json", "--since", "0", c.ID())
	check(t, err)
	var out harness.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	check(t, lab.StartCommand(cmd))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	mustFastmig(t, lab, "start", c.ID())
	waitText(t, lab, &out, `"to":"running"`)
	check(t, c.Task.Kill(lab.Context(), 9))
	exitOf(t, lab, c)
	mustRemove(lab, t, c)
	select {
	case err := <-ended:
		check(t, err)
	case <-time.After(time.Minute):
		_ = cmd.Cancel()
		t.Fatalf("it goes on without the container: %s", &out)
	}
	for _, line := range strings.Split(strings.TrimSpace(out.String()), "\n") {
		var e struct {
			ID string `json:"id"`
			api.Event
		}
		check(t, json.Unmarshal([]byte(line), &e))
		if e.ID != c.ID() || e.Seq == 0 {
			t.Errorf("an event is %+v", e)
		}
	}
	wantText(t, out.String(), `"to":"starting"`, `"to":"ended"`)
}
