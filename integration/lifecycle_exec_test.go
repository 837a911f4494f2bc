package integration_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestExec drives processes that are exec'ed into a container.
func TestExec(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox}, []labTest{
		{"attributes", testExecAttributes},
		{"terminal", testExecTerminal},
		{"input", testExecInput},
		{"exit codes", testExecExitCodes},
		{"missing program", testExecMissing},
		{"never started", testExecNeverStarted},
		{"ids", testExecIDs},
		{"pids", testPids},
		{"many", testManyExecs},
		{"ends with the container", testExecEndsWithContainer},
		{"before the start", testExecBeforeStart},
	})
}

func testExecAttributes(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	e := startExec(t, lab, c, execOptions{
		args: []string{"sh", "-c", "id -u; id -g; id -G; pwd; echo $WORD; test -t 0 || echo no terminal"},
		change: func(p *specs.Process) {
			p.User = specs.User{UID: 1234, GID: 2345, AdditionalGids: []uint32{3456}}
			p.Cwd = "/usr"
			p.Env = append(p.Env, "WORD=a word")
		},
	})
	equal(t, "the exit code", e.exit(t, lab), 0)
	e.IO().Wait()
	equal(t, "the output", e.output.String(), "1234\n2345\n2345 3456\n/usr\na word\nno terminal\n")
	_, err := e.Delete(lab.Context())
	check(t, err)
}

func testExecTerminal(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	in := newPipe(t)
	e := startExec(t, lab, c, execOptions{args: []string{"sh"}, terminal: true, stdin: in})
	check(t, e.Resize(lab.Context(), 101, 43))
	typed := func(line, answer string) {
		t.Helper()
		_, err := io.WriteString(in, line+"\n")
		check(t, err)
		waitText(t, lab, e.output, answer)
	}
	typed("stty size", "43 101\r\n")
	check(t, e.Resize(lab.Context(), 80, 24))
	typed("stty size", "24 80\r\n")
	typed("tty; test -t 1 && echo is=$((40+2))", "is=42")
	if !strings.Contains(e.output.String(), "/dev/pts/0\r\n") {
		t.Errorf("the first terminal of the container is not /dev/pts/0: %q", e.output)
	}
	typed("trap 'echo interrupted=$((6*7))' INT; echo set=$((1+1))", "set=2")
	_, err := io.WriteString(in, "\x03")
	check(t, err)
	waitText(t, lab, e.output, "interrupted=42")
	_, err = io.WriteString(in, "exit 5\n")
	check(t, err)
	equal(t, "the exit code", e.exit(t, lab), 5)
	_, err = e.Delete(lab.Context())
	check(t, err)
}

func testExecInput(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	in := newPipe(t)
	e := startExec(t, lab, c, execOptions{args: []string{"cat"}, stdin: in})
	_, err := io.WriteString(in, "some words\n")
	check(t, err)
	waitText(t, lab, e.output, "some words")
	equal(t, "the status", status(t, lab, e).Status, containerd.Running)
	in.Close()
	check(t, e.CloseIO(lab.Context(), containerd.WithStdinCloser))
	equal(t, "the exit code of cat", e.exit(t, lab), 0)
	_, err = e.Delete(lab.Context())
	check(t, err)
}

func testExecExitCodes(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	for text, want := range map[string]uint32{"exit 0": 0, "exit 3": 3, "kill -KILL $$": 137, "kill -TERM $$": 143} {
		e := startExec(t, lab, c, execOptions{args: []string{"sh", "-c", text}})
		equal(t, text+": the exit code", e.exit(t, lab), want)
		s := status(t, lab, e)
		equal(t, text+": the status", s.Status, containerd.Stopped)
		equal(t, text+": the exit code of State", s.ExitStatus, want)
		refused(t, "a second start", e.Start(lab.Context()), nil)
		_, err := e.Delete(lab.Context())
		check(t, err)
	}
}

// A program that is not there fails the exec as under the stock shim.
func testExecMissing(t *testing.T, lab *harness.Lab) {
	ours := lab.MustRun(sleeper())
	stock := lab.MustRun(asStock(t, lab, sleeper()))
	for _, program := range []string{"nosuchprogram", "/no/such/program", "/etc/passwd"} {
		text := func(c *harness.Container) string {
			e := addExec(t, lab, c, execOptions{args: []string{program}})
			err := e.Start(lab.Context())
			refused(t, "exec of "+program, err, nil)
			_, derr := e.Delete(lab.Context())
			check(t, derr)
			return tail(err, "exec:")
		}
		equal(t, "the message", text(ours), text(stock))
	}
	equal(t, "the status", status(t, lab, ours.Task).Status, containerd.Running)
}

// tail is the error's text from the first word on, without the name of the
// error's kind, which the stock shim cannot tell.
func tail(err error, word string) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if i := strings.LastIndex(text, word); i >= 0 {
		text = text[i:]
	}
	for _, kind := range []string{": unknown", ": not found", ": invalid argument", ": failed precondition"} {
		text = strings.TrimSuffix(text, kind)
	}
	return text
}

func testExecNeverStarted(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	e := addExec(t, lab, c, execOptions{args: []string{"true"}})
	equal(t, "the status", status(t, lab, e).Status, containerd.Created)
	if _, err := c.Exec(lab.Context(), "true"); err != nil {
		t.Error(err)
	}
	_, err := lab.Client().TaskService().DeleteProcess(lab.Context(), deleteProcess(c.ID(), e.ID()))
	check(t, err)
}

func testExecIDs(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	spec, err := c.Spec(lab.Context())
	check(t, err)
	spec.Process.Args = []string{"sleep", "100000"}
	p, err := c.Task.Exec(lab.Context(), "one", spec.Process, cio.NullIO)
	check(t, err)
	check(t, p.Start(lab.Context()))
	_, err = c.Task.Exec(lab.Context(), "one", spec.Process, cio.NullIO)
	refused(t, "a second exec of the same id", err, errdefs.IsAlreadyExists)
	_, err = lab.Client().TaskService().DeleteProcess(lab.Context(), deleteProcess(c.ID(), "one"))
	refused(t, "delete of a running exec", err, nil)
	_, err = c.Task.LoadProcess(lab.Context(), "another", nil)
	refused(t, "an exec that is not there", err, errdefs.IsNotFound)
	check(t, p.Kill(lab.Context(), unix.SIGKILL))
	lab.WaitFor("the exec to end", func(ctx context.Context) (bool, error) {
		s, err := p.Status(ctx)
		return err == nil && s.Status == containerd.Stopped, err
	})
	_, err = p.Delete(lab.Context())
	check(t, err)
	// A deleted exec's id is free again.
	_, err = c.Task.Exec(lab.Context(), "one", spec.Process, cio.NullIO)
	check(t, err)
}

func testPids(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(script("sleep 100000 & sleep 100000 & echo ready; wait"))
	waitText(t, lab, c.Output, "ready")
	e := startExec(t, lab, c, execOptions{args: []string{"sleep", "100000"}})
	lab.WaitFor("all processes to be listed", func(ctx context.Context) (bool, error) {
		pids, err := c.Task.Pids(ctx)
		if err != nil {
			return false, err
		}
		sleeps, execs := 0, 0
		for _, p := range pids {
			cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
			if err != nil {
				return false, err
			}
			if strings.HasPrefix(string(cmdline), "sleep\x00") {
				sleeps++
			}
			if p.Info == nil {
				continue
			}
			v, err := typeurl.UnmarshalAny(p.Info)
			if err != nil {
				return false, err
			}
			details, ok := v.(*options.ProcessDetails)
			if !ok || details.ExecID != e.ID() || p.Pid != e.Pid() {
				return false, fmt.Errorf("process %d has the details %v", p.Pid, v)
			}
			execs++
		}
		return sleeps == 3 && execs == 1, fmt.Errorf("%d sleeps, %d with details, of %d", sleeps, execs, len(pids))
	})
	check(t, e.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code", e.exit(t, lab), 137)
}

// Execs at the same time do not get in each other's way.
func testManyExecs(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	const count = 10
	errs := make(chan error, count)
	for i := range count {
		go func() {
			out, err := c.Exec(lab.Context(), "sh", "-c", fmt.Sprintf("echo %d; echo oops >&2", i))
			if err == nil && out != fmt.Sprintf("%d\n", i) {
				err = fmt.Errorf("exec %d printed %q", i, out)
			}
			errs <- err
		}()
	}
	for range count {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// The end of the first process ends the others, and their waits.
func testExecEndsWithContainer(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	e := startExec(t, lab, c, execOptions{args: []string{"sleep", "100000"}})
	check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exec's exit code", e.exit(t, lab), 137)
	equal(t, "the container's exit code", exitOf(t, lab, c), 137)
	_, err := e.Delete(lab.Context())
	check(t, err)
}

func testExecBeforeStart(t *testing.T, lab *harness.Lab) {
	c := lab.MustCreate(sleeper())
	out, err := c.Exec(lab.Context(), "echo", "early")
	check(t, err)
	equal(t, "the output", out, "early\n")
	check(t, c.Start(lab.Context()))
	lab.MustExec(c, "true")
}

// TestStdio checks what becomes of a container's input and output.
func TestStdio(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox}, []labTest{
		{"input", testInput},
		{"terminal", testTerminal},
		{"large output", testLargeOutput},
		{"output of a child that stays", testOutputOfChild},
		{"file", testLogFile},
		{"binary", testLogBinary("binary", false)},
		{"binary-v2", testLogBinary("binary-v2", false)},
		{"binary with terminal", testLogBinary("binary", true)},
		{"binary that fails", testLogBinaryFails},
		{"none", testNoStdio},
	})
}

func testInput(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"cat"}})
	_, err := io.WriteString(c.Stdin, "first\n")
	check(t, err)
	waitText(t, lab, c.Output, "first\n")
	c.Stdin.Close()
	check(t, c.Task.CloseIO(lab.Context(), containerd.WithStdinCloser))
	equal(t, "the exit code of cat", exitOf(t, lab, c), 0)
}

func testTerminal(t *testing.T, lab *harness.Lab) {
	opts := script("test -t 0 && test -t 1 && test -t 2 && tty; read x; stty size; read y; exit 4")
	opts.Terminal = true
	c := lab.MustRun(opts)
	waitText(t, lab, c.Output, "/dev/pts/0\r\n")
	check(t, c.Task.Resize(lab.Context(), 123, 45))
	_, err := io.WriteString(c.Stdin, "\n")
	check(t, err)
	waitText(t, lab, c.Output, "45 123")
	_, err = io.WriteString(c.Stdin, "\n")
	check(t, err)
	equal(t, "the exit code", exitOf(t, lab, c), 4)
}

const megabyte = 1 << 20

func testLargeOutput(t *testing.T, lab *harness.Lab) {
	text := fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x", megabyte)
	c := lab.MustRun(script(text))
	equal(t, "the exit code", exitOf(t, lab, c), 0)
	_, err := c.Task.Delete(lab.Context())
	check(t, err)
	equal(t, "the size of the container's output", len(c.Output.String()), megabyte)

	c = lab.MustRun(sleeper())
	equal(t, "the size of an exec's output", len(lab.MustExec(c, "sh", "-c", text)), megabyte)

	// The kernel throws away what a terminal holds when its session ends, under
	// any shim: this one ends when all has arrived.
	opts := script(text + "; echo; read x")
	opts.Terminal = true
	c = lab.MustRun(opts)
	lab.WaitFor("the terminal's output", func(context.Context) (bool, error) {
		n := len(c.Output.String())
		return n == megabyte+2, fmt.Errorf("%d bytes", n)
	})
}

// The output of what an exec leaves running does not hold its end up.
func testOutputOfChild(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	e := startExec(t, lab, c, execOptions{args: []string{"sh", "-c", "sleep 100000 & echo done"}})
	equal(t, "the exit code", e.exit(t, lab), 0)
	waitText(t, lab, e.output, "done")
	begin := time.Now()
	_, err := lab.Client().TaskService().DeleteProcess(lab.Context(), deleteProcess(c.ID(), e.ID()))
	check(t, err)
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the delete took %v", took)
	}
}

func testLogFile(t *testing.T, lab *harness.Lab) {
	path := filepath.Join(t.TempDir(), "sub", "log")
	opts := script("echo out; echo err >&2")
	opts.IO = cio.LogFile(path)
	c := lab.MustRun(opts)
	equal(t, "the exit code", exitOf(t, lab, c), 0)
	_, err := c.Task.Delete(lab.Context())
	check(t, err)
	data, err := os.ReadFile(path)
	check(t, err)
	lines := strings.Fields(string(data))
	slices.Sort(lines) // two pipes lead to the file
	equal(t, "the log", strings.Join(lines, " "), "err out")
}

func testLogBinary(scheme string, terminal bool) func(t *testing.T, lab *harness.Lab) {
	return func(t *testing.T, lab *harness.Lab) {
		path := filepath.Join(t.TempDir(), "log")
		opts := script("echo out; echo err >&2; head -c 200000 /dev/zero | tr '\\0' x")
		opts.IO = loggerIO(t, scheme, path, terminal)
		opts.Terminal = terminal
		c := lab.MustRun(opts)
		equal(t, "the exit code", exitOf(t, lab, c), 0)
		_, err := c.Task.Delete(lab.Context())
		check(t, err)
		var data []byte
		lab.WaitFor("the logger to end", func(context.Context) (bool, error) {
			data, err = os.ReadFile(path)
			return strings.HasSuffix(string(data), loggerEnd), err
		})
		text := strings.ReplaceAll(string(data), "\r\n", "\n")
		for _, want := range []string{"id=" + c.ID() + " namespace=" + lab.Namespace + "\n", "out\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in the log %.300q", want, text)
			}
		}
		equal(t, "the count of x in the log", strings.Count(text, "x"), 200000)
	}
}

// A logger that ends before it is ready fails the start, and leaves nothing.
func testLogBinaryFails(t *testing.T, lab *harness.Lab) {
	opts := sleeper()
	opts.IO = loggerIO(t, "binary-v2", loggerFails, false)
	c, err := lab.Create(lab.Context(), opts)
	if err == nil {
		lab.RemoveAtEnd(c)
	}
	refused(t, "a logger that is not ready", err, nil)
}

func testNoStdio(t *testing.T, lab *harness.Lab) {
	opts := script("cat; echo lost; exit 6")
	opts.IO = cio.NullIO
	c := lab.MustRun(opts)
	equal(t, "the exit code", exitOf(t, lab, c), 6)
}
