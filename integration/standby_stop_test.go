package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// TestStop is about the end of a service, asked for and not.
func TestStop(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	for _, test := range []labTest{
		{"by a signal", testStopSignal},
		{"a signal that is ignored", testStopIgnored},
		{"children", testStopChildren},
		{"tied", testTied},
		{"output again, fifo", testAgainFifo},
		{"output again, terminal", testAgainTerminal},
		{"output again, logger", testAgainLogger},
		{"output again, ctr", testAgainCtr},
		{"output again, nerdctl", testAgainNerdctl},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
	}
}

func testStopSignal(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(script(`trap 'echo bye; exit 0' USR1; echo up; while :; do sleep 0.02; done`))
	waitText(t, lab, c.Output, "up\n")
	r, err := c.Interface().Stop(lab.Context(), api.StopRequest{Signal: "SIGUSR1", Timeout: "50s"})
	check(t, err)
	equal(t, "the state", r.State, api.Standby)
	if len(r.Notes) > 0 || r.Seconds > 40 {
		t.Errorf("the result is %+v", r)
	}
	waitText(t, lab, c.Output, "bye\n")
	s := wantState(t, lab, c, api.Standby)
	went(t, s, api.Starting, api.Running, api.Stopping, api.Standby)
	_, err = c.Interface().Stop(lab.Context(), api.StopRequest{})
	var e *api.Error
	if !errors.As(err, &e) || e.Kind != "failed_precondition" || e.State != api.Standby {
		t.Errorf("a stop in standby: %v", err)
	}
	_, err = c.Interface().Standby(lab.Context(), api.StopRequest{})
	check(t, err)
}

func testStopIgnored(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(script(`trap '' TERM; echo up; while :; do sleep 0.02; done`))
	waitText(t, lab, c.Output, "up\n")
	r, err := c.Interface().Stop(lab.Context(), api.StopRequest{Timeout: "300ms"})
	check(t, err)
	if r.Seconds < 0.3 || r.State != api.Standby {
		t.Errorf("the result is %+v", r)
	}
	wantText(t, strings.Join(r.Notes, "\n"), "SIGTERM", "300ms", "killed")
	wantState(t, lab, c, api.Standby)
}

// Nothing of a service is left when it was stopped, also what had left its session; an
// exec is no part of it.
func testStopChildren(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(script(`(trap '' TERM HUP; setsid sleep 100001 & setsid sh -c 'trap "" TERM; sleep 100002' &); sleep 100003 & echo up; wait`))
	waitText(t, lab, c.Output, "up\n")
	beside := startExec(t, lab, c, execOptions{args: []string{"sleep", "100004"}})
	lab.WaitFor("the children", func(ctx context.Context) (bool, error) {
		pids, err := c.Task.Pids(ctx)
		return len(pids) >= 6, err
	})
	_, err := c.Interface().Stop(lab.Context(), api.StopRequest{})
	check(t, err)
	pids, err := c.Task.Pids(lab.Context())
	check(t, err)
	if len(pids) != 2 {
		t.Errorf("there are %d processes left, not the first and the exec", len(pids))
	}
	check(t, beside.Kill(lab.Context(), 9))
	equal(t, "the exec's exit code", beside.exit(t, lab), 137)
	wantState(t, lab, c, api.Standby)
}

// A container that is tied to its service ends with it, in each life that ends by itself.
func testTied(t *testing.T, lab *harness.Lab) {
	waiter := script(`echo up; while [ ! -e /go ]; do sleep 0.02; done; exit 5`)
	t.Run("first life", func(t *testing.T) {
		lab := lab.For(t)
		c := lab.MustRun(waiter)
		waitText(t, lab, c.Output, "up\n")
		lab.MustExec(c, "touch", "/go")
		equal(t, "the exit code", exitOf(t, lab, c), 5)
		s, err := c.Interface().Status(lab.Context())
		check(t, err)
		equal(t, "the state", s.State, api.Ended)
		if s.ExitStatus == nil || *s.ExitStatus != 5 {
			t.Errorf("the status has the exit status %v", s.ExitStatus)
		}
	})
	t.Run("a later life", func(t *testing.T) {
		lab := lab.For(t)
		c := lab.MustRun(waiter)
		waitText(t, lab, c.Output, "up\n")
		_, err := c.Interface().Stop(lab.Context(), api.StopRequest{Signal: "KILL"})
		check(t, err)
		wantState(t, lab, c, api.Standby)
		_, err = c.Interface().Start(lab.Context(), api.StartRequest{})
		check(t, err)
		lab.MustExec(c, "touch", "/go")
		equal(t, "the exit code", exitOf(t, lab, c), 5)
	})
	t.Run("a restored life", func(t *testing.T) {
		lab := lab.For(t)
		source := lab.MustRun(waiter)
		waitText(t, lab, source.Output, "up\n")
		url := nodeURL()
		saveTo(t, lab, source, url, false)
		c := lab.MustRun(standby(waiter))
		restoreFrom(t, lab, c, url)
		lab.MustExec(c, "touch", "/go")
		equal(t, "the exit code", exitOf(t, lab, c), 5)
		wantState(t, lab, source, api.Standby)
	})
}

// livesScript prints a line for each life, and one for each line of its input.
const livesScript = `echo "life"; while read -r line; do echo "got $line"; done; sleep 100000`

// again stops and starts the service twice; what it prints is to be where the first
// life's was, and its input comes to it.
func again(t *testing.T, lab *harness.Lab, c *harness.Container, say func(string), output func() string) {
	t.Helper()
	waitLives := func(n int) {
		t.Helper()
		lab.WaitFor(fmt.Sprintf("the output of life %d", n), func(context.Context) (bool, error) {
			text := output()
			return strings.Count(text, "life") == n, fmt.Errorf("so far: %q", text)
		})
	}
	waitLives(1)
	for n := 2; n <= 3; n++ {
		waitState(t, lab, c, api.Running) // the output may come first
		_, err := c.Interface().Stop(lab.Context(), api.StopRequest{Signal: "KILL"})
		check(t, err)
		wantState(t, lab, c, api.Standby)
		_, err = c.Interface().Start(lab.Context(), api.StartRequest{})
		check(t, err)
		waitLives(n)
		if say == nil {
			continue
		}
		word := fmt.Sprintf("word %d", n)
		say(word + "\n")
		lab.WaitFor("the answer to the input", func(context.Context) (bool, error) {
			text := output()
			return strings.Contains(text, "got "+word), fmt.Errorf("so far: %q", text)
		})
	}
}

func sayTo(t *testing.T, c *harness.Container) func(string) {
	return func(s string) {
		_, err := c.Stdin.Write([]byte(s))
		check(t, err)
	}
}

func testAgainFifo(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(script(livesScript))
	again(t, lab, c, sayTo(t, c), c.Output.String)
}

func testAgainTerminal(t *testing.T, lab *harness.Lab) {
	opts := script(livesScript)
	opts.Terminal = true
	c := lab.MustRun(opts)
	again(t, lab, c, sayTo(t, c), c.Output.String)
	check(t, c.Task.Resize(lab.Context(), 91, 17))
	sayTo(t, c)("sized\n")
	waitText(t, lab, c.Output, "got sized")
}

func testAgainLogger(t *testing.T, lab *harness.Lab) {
	path := filepath.Join(t.TempDir(), "log")
	opts := script(livesScript)
	opts.IO = loggerIO(t, "binary", path, false)
	c := lab.MustRun(opts)
	again(t, lab, c, nil, func() string {
		data, err := os.ReadFile(path)
		check(t, err)
		return string(data)
	})
	check(t, c.Task.Kill(lab.Context(), 9))
	exitOf(t, lab, c)
	_, err := c.Task.Delete(lab.Context())
	check(t, err)
	data, err := os.ReadFile(path)
	check(t, err)
	if strings.Count(string(data), "life") != 3 || !strings.HasSuffix(string(data), loggerEnd) {
		t.Errorf("the log is %q", data)
	}
}

// The real ctr, attached, sees all lives and ends with the container.
func testAgainCtr(t *testing.T, lab *harness.Lab) {
	id := harness.NewID("attached")
	cmd, err := lab.Command(lab.Context(), "ctr", "run", "--rm", images.Busybox.Ref(), id, "sh", "-c", livesScript)
	check(t, err)
	var out harness.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	stdin, err := cmd.StdinPipe()
	check(t, err)
	check(t, lab.StartCommand(cmd))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	waitText(t, lab, &out, "life\n")
	c, err := lab.Load(lab.Context(), id)
	check(t, err)
	say := func(s string) {
		_, err := stdin.Write([]byte(s))
		check(t, err)
	}
	again(t, lab, c, say, out.String)
	check(t, c.Task.Kill(lab.Context(), 9))
	if err := <-ended; err == nil || cmd.ProcessState.ExitCode() != 137 {
		t.Errorf("ctr ended with %v; its output:\n%s", err, &out)
	}
	_, err = lab.Client().LoadContainer(lab.Context(), id)
	refused(t, "the container after ctr", err, nil)
}

// nerdctl logs has the output of all lives.
func testAgainNerdctl(t *testing.T, lab *harness.Lab) {
	name := harness.NewID("logged")
	id := strings.TrimSpace(lab.MustNerdctl("run", "-d", "--name", name, images.Busybox.Ref(), "sh", "-c", livesScript))
	removeByNerdctl(lab, t, name)
	again(t, lab, load(lab, t, id), nil, func() string { return lab.MustNerdctl("logs", name) })
}
