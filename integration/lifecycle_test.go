package integration_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	// The types of the metrics register themselves.
	_ "github.com/containerd/cgroups/v3/cgroup1/stats"
	_ "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestLifecycle drives the Task API through containerd's client.
func TestLifecycle(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox}, []labTest{
		{"states", testStates},
		{"exit codes", testExitCodes},
		{"never started", testNeverStarted},
		{"SIGTERM", testTerminate},
		{"SIGKILL", testKill},
		{"signal handled", testHandledSignal},
		{"signal to all", testSignalAll},
		{"kill an exec", testKillExec},
		{"pause", testPause},
		{"kill while paused", testKillPaused},
		{"update", testUpdate},
		{"stats", testStats},
	})
}

// A task goes through its states, and what a state does not allow is refused.
func testStates(t *testing.T, lab *harness.Lab) {
	ctx := lab.Context()
	c := lab.MustCreate(sleeper())
	equal(t, "the status", status(t, lab, c.Task).Status, containerd.Created)
	if c.Task.Pid() == 0 {
		t.Error("a created task has no pid")
	}
	refused(t, "pause of a created task", c.Task.Pause(ctx), nil)
	check(t, c.Start(ctx))
	equal(t, "the status", status(t, lab, c.Task).Status, containerd.Running)
	refused(t, "a second start", c.Start(ctx), nil)
	refused(t, "resume of a running task", c.Task.Resume(ctx), nil)
	_, err := lab.Client().TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID()})
	kind := errdefs.IsFailedPrecondition
	if !lab.Runtime.IsFastMig() {
		kind = nil // the stock shim's errors have none
	}
	refused(t, "delete of a running task", errgrpc.ToNative(err), kind)
	equal(t, "the status after it", status(t, lab, c.Task).Status, containerd.Running)
	lab.MustExec(c, "true")

	check(t, c.Task.Kill(ctx, unix.SIGKILL))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
	equal(t, "the status", status(t, lab, c.Task).Status, containerd.Stopped)
	refused(t, "kill of an ended task", c.Task.Kill(ctx, unix.SIGKILL), errdefs.IsNotFound)
	refused(t, "pause of an ended task", c.Task.Pause(ctx), nil)
	spec, err := c.Spec(ctx)
	check(t, err)
	p, err := c.Task.Exec(ctx, harness.NewID("exec"), spec.Process, cio.NullIO)
	if err == nil {
		err = p.Start(ctx)
	}
	refused(t, "exec in an ended task", err, nil)
	result, err := c.Task.Delete(ctx)
	check(t, err)
	equal(t, "the exit code of Delete", result.ExitCode(), 137)
	if since := time.Since(result.ExitTime()); since < 0 || since > time.Hour {
		t.Errorf("the exit was %v ago", since)
	}
	_, err = c.Container.Task(ctx, nil)
	refused(t, "a deleted task", err, errdefs.IsNotFound)
}

func testExitCodes(t *testing.T, lab *harness.Lab) {
	cases := map[string]uint32{"exit 0": 0, "exit 3": 3, "exit 255": 255}
	if lab.Runtime.IsFastMig() {
		// The kernel spares PID 1 the signals of its own namespace, and under
		// the stock shim this is PID 1.
		cases["kill -SEGV $$"], cases["kill -KILL $$"] = 139, 137
	}
	for text, want := range cases {
		c := lab.MustRun(script(text))
		equal(t, text+": the exit code", exitOf(t, lab, c), want)
		s := status(t, lab, c.Task)
		equal(t, text+": the status", s.Status, containerd.Stopped)
		equal(t, text+": the exit code of State", s.ExitStatus, want)
		if s.ExitTime.IsZero() {
			t.Errorf("%s: State has no exit time", text)
		}
		result, err := c.Task.Delete(lab.Context())
		check(t, err)
		equal(t, text+": the exit code of Delete", result.ExitCode(), want)
	}
}

func testNeverStarted(t *testing.T, lab *harness.Lab) {
	c := lab.MustCreate(sleeper())
	pid := c.Task.Pid()
	// The client itself refuses to delete a created task.
	_, err := lab.Client().TaskService().Delete(lab.Context(), &tasks.DeleteTaskRequest{ContainerID: c.ID()})
	check(t, err)
	lab.WaitFor("its first process to be gone", func(context.Context) (bool, error) {
		err := unix.Kill(int(pid), 0)
		return err == unix.ESRCH, err
	})
	c = lab.MustCreate(sleeper())
	check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code of one killed before its start", exitOf(t, lab, c), 137)
}

// Default actions apply to an application that is not PID 1.
func testTerminate(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	check(t, c.Task.Kill(lab.Context(), unix.SIGTERM))
	if !lab.Runtime.IsFastMig() {
		standsStill(t, "the status", 300*time.Millisecond, func() (string, error) {
			s, err := c.Task.Status(lab.Context())
			return string(s.Status), err
		})
		return
	}
	equal(t, "the exit code", exitOf(t, lab, c), 143)
}

func testKill(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(script("trap '' TERM INT HUP; echo ready; while :; do sleep 1; done"))
	waitText(t, lab, c.Output, "ready")
	check(t, c.Task.Kill(lab.Context(), unix.SIGTERM))
	lab.MustExec(c, "true")
	check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
}

func testHandledSignal(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(script("trap 'echo caught' USR1; trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"))
	waitText(t, lab, c.Output, "ready")
	check(t, c.Task.Kill(lab.Context(), unix.SIGUSR1))
	waitText(t, lab, c.Output, "caught")
	check(t, c.Task.Kill(lab.Context(), unix.SIGTERM))
	equal(t, "the exit code", exitOf(t, lab, c), 7)
}

func testSignalAll(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(script(`
sh -c 'trap "echo child caught" USR1; echo child ready; while :; do sleep 0.05; done' &
trap 'echo parent caught' USR1; echo parent ready; while :; do sleep 0.05; done`))
	waitText(t, lab, c.Output, "child ready")
	waitText(t, lab, c.Output, "parent ready")
	check(t, c.Task.Kill(lab.Context(), unix.SIGUSR1))
	waitText(t, lab, c.Output, "parent caught")
	if strings.Contains(c.Output.String(), "child caught") {
		t.Error("a signal to the application reached its child")
	}
	check(t, c.Task.Kill(lab.Context(), unix.SIGUSR1, containerd.WithKillAll))
	if lab.Runtime.IsFastMig() {
		// runc signals only the first process of a pid namespace, whatever is
		// asked for.
		waitText(t, lab, c.Output, "child caught")
	}
	lab.WaitFor("the parent to get the second signal", func(context.Context) (bool, error) {
		return strings.Count(c.Output.String(), "parent caught") == 2, fmt.Errorf("%q", c.Output)
	})
	check(t, c.Task.Kill(lab.Context(), unix.SIGKILL, containerd.WithKillAll))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
}

func testKillExec(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	for sig, want := range map[unix.Signal]uint32{unix.SIGTERM: 143, unix.SIGKILL: 137} {
		e := startExec(t, lab, c, execOptions{args: []string{"sleep", "100000"}})
		check(t, e.Kill(lab.Context(), sig))
		equal(t, "the exec's exit code", e.exit(t, lab), want)
		refused(t, "kill of an ended exec", e.Kill(lab.Context(), sig), errdefs.IsNotFound)
		result, err := e.Delete(lab.Context())
		check(t, err)
		equal(t, "the exit code of Delete", result.ExitCode(), want)
		refused(t, "kill of a deleted exec", e.Kill(lab.Context(), sig), errdefs.IsNotFound)
	}
	equal(t, "the status", status(t, lab, c.Task).Status, containerd.Running)
}

// tickOf reads the count that images.Tick shows, from outside the container.
func tickOf(c *harness.Container) func() (string, error) {
	return func() (string, error) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/tmp/tick", c.Task.Pid()))
		return string(data), err
	}
}

func ticks(t *testing.T, lab *harness.Lab, c *harness.Container) {
	t.Helper()
	read := tickOf(c)
	var first string
	lab.WaitFor("the counter to count", func(context.Context) (bool, error) {
		now, err := read()
		if first == "" {
			first = now
			return false, err
		}
		return err == nil && now != first, err
	})
}

func testPause(t *testing.T, lab *harness.Lab) {
	ctx := lab.Context()
	c := lab.MustRun(harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"sh", images.Tick, "/tmp/tick"}})
	ticks(t, lab, c)
	for range 3 {
		check(t, c.Task.Pause(ctx))
		equal(t, "the status", status(t, lab, c.Task).Status, containerd.Paused)
		standsStill(t, "the counter of a paused task", 200*time.Millisecond, tickOf(c))
		refused(t, "a second pause", c.Task.Pause(ctx), nil)
		spec, err := c.Spec(ctx)
		check(t, err)
		_, err = c.Task.Exec(ctx, harness.NewID("exec"), spec.Process, cio.NullIO)
		refused(t, "exec in a paused task", err, nil)
		check(t, c.Task.Resume(ctx))
		equal(t, "the status", status(t, lab, c.Task).Status, containerd.Running)
		ticks(t, lab, c)
	}
	lab.MustExec(c, "true")
}

func testKillPaused(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	check(t, c.Task.Pause(lab.Context()))
	check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
	_, err := c.Task.Delete(lab.Context())
	check(t, err)

	// Other signals arrive when it goes on.
	c = lab.MustRun(script("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"))
	waitText(t, lab, c.Output, "ready")
	check(t, c.Task.Pause(lab.Context()))
	check(t, c.Task.Kill(lab.Context(), unix.SIGTERM))
	check(t, c.Task.Resume(lab.Context()))
	equal(t, "the exit code", exitOf(t, lab, c), 9)
}

func testUpdate(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	limit, pids, shares := int64(64<<20), int64(77), uint64(512)
	check(t, c.Task.Update(lab.Context(), containerd.WithResources(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit},
		Pids:   &specs.LinuxPids{Limit: &pids},
		CPU:    &specs.LinuxCPU{Shares: &shares},
	})))
	for _, f := range []struct{ controller, v1, v2, want, wantV2 string }{
		{"memory", "memory.limit_in_bytes", "memory.max", "67108864", "67108864"},
		{"pids", "pids.max", "pids.max", "77", "77"},
		{"cpu", "cpu.shares", "cpu.weight", "512", "59"},
	} {
		got, err := cgroupFile(c.Task.Pid(), f.controller, f.v1, f.v2)
		check(t, err)
		if got != f.want && got != f.wantV2 {
			t.Errorf("%s is %s, not %s", f.v1, got, f.want)
		}
	}
	// What an update leaves out stays.
	limit = 96 << 20
	check(t, c.Task.Update(lab.Context(), containerd.WithResources(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})))
	for file, want := range map[string]string{"memory.limit_in_bytes memory.max": "100663296", "pids.max pids.max": "77"} {
		v1, v2, _ := strings.Cut(file, " ")
		got, err := cgroupFile(c.Task.Pid(), strings.Split(v1, ".")[0], v1, v2)
		check(t, err)
		equal(t, v1, got, want)
	}
}

// The metrics have the stock shim's type and parts.
func testStats(t *testing.T, lab *harness.Lab) {
	parts := func(c *harness.Container) (typeURL string, names []string) {
		m, err := c.Task.Metrics(lab.Context())
		check(t, err)
		v, err := typeurl.UnmarshalAny(m.Data)
		check(t, err)
		for name := range asMap(t, v) {
			names = append(names, name)
		}
		slices.Sort(names)
		return m.Data.GetTypeUrl(), names
	}
	gotType, got := parts(lab.MustRun(sleeper()))
	wantType, want := parts(lab.MustRun(asStock(t, lab, sleeper())))
	equal(t, "the type of the metrics", gotType, wantType)
	if diff := diffLines(got, want); diff != "" {
		t.Errorf("the metrics' parts differ from the stock shim's (+ ours, - stock):\n%s", diff)
	}
	if !slices.Contains(got, "memory") || !slices.Contains(got, "pids") {
		t.Errorf("the metrics have only %v", got)
	}
}

// pipe is an input that the test writes.
type pipe struct {
	reader *io.PipeReader
	*io.PipeWriter
}

func newPipe(t *testing.T) *pipe {
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	return &pipe{r, w}
}
