package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestShim checks the lives of shim processes: their own, and how they bear
// containerd's.
func TestShim(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox}, []labTest{
		{"connect and shutdown", testConnect},
		{"group", testGroup},
		{"containerd stopped", testDaemonRestart((*harness.Node).StopDaemon)},
		{"containerd killed", testDaemonRestart((*harness.Node).KillDaemon)},
		{"shim killed", testShimKilled},
		{"shim killed while paused", testShimKilledPaused},
	})
}

// connect speaks with the container's shim itself.
func connect(t *testing.T, lab *harness.Lab, id string) (context.Context, taskapi.TTRPCTaskService) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(bundleDir(lab, id), "bootstrap.json"))
	check(t, err)
	var params struct{ Address string }
	check(t, json.Unmarshal(data, &params))
	conn, err := net.Dial("unix", strings.TrimPrefix(params.Address, "unix://"))
	check(t, err)
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	return namespaces.WithNamespace(lab.Context(), lab.Namespace), taskapi.NewTTRPCTaskClient(client)
}

func shimPid(t *testing.T, lab *harness.Lab, id string) int {
	t.Helper()
	ctx, shim := connect(t, lab, id)
	r, err := shim.Connect(ctx, &taskapi.ConnectRequest{ID: id})
	check(t, err)
	return int(r.ShimPid)
}

func isShim(lab *harness.Lab, pid int) bool {
	for _, p := range lab.Shims() {
		if p.Pid == pid {
			return true
		}
	}
	return false
}

func testConnect(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(sleeper())
	ctx, shim := connect(t, lab, c.ID())
	r, err := shim.Connect(ctx, &taskapi.ConnectRequest{ID: c.ID()})
	check(t, err)
	equal(t, "the task's pid", r.TaskPid, c.Task.Pid())
	if !isShim(lab, int(r.ShimPid)) {
		t.Errorf("%d is none of the shims %v", r.ShimPid, lab.Shims())
	}
	s, err := shim.State(ctx, &taskapi.StateRequest{ID: c.ID()})
	check(t, err)
	equal(t, "the bundle", s.Bundle, bundleDir(lab, c.ID()))
	equal(t, "the id", s.ID, c.ID())
	_, err = shim.State(ctx, &taskapi.StateRequest{ID: "another"})
	refused(t, "state of another container", err, nil)

	// A shim with a container goes on.
	_, err = shim.Shutdown(ctx, &taskapi.ShutdownRequest{ID: c.ID()})
	check(t, err)
	lab.MustExec(c, "true")
	check(t, c.Remove(lab.Context()))
	lab.WaitFor("the shim to end", func(context.Context) (bool, error) {
		return !isShim(lab, int(r.ShimPid)), nil
	})
}

// Containers of one group share a shim, and nothing else.
func testGroup(t *testing.T, lab *harness.Lab) {
	opts := sleeper()
	opts.Annotations = map[string]string{groupLabel: harness.NewID("group")}
	first, second := lab.MustRun(opts), lab.MustRun(opts)
	pid := shimPid(t, lab, first.ID())
	equal(t, "the second one's shim", shimPid(t, lab, second.ID()), pid)
	check(t, first.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code", exitOf(t, lab, first), 137)
	equal(t, "the second one's status", status(t, lab, second.Task).Status, containerd.Running)
	check(t, first.Remove(lab.Context()))
	lab.MustExec(second, "true")
	third := lab.MustRun(opts)
	equal(t, "the third one's shim", shimPid(t, lab, third.ID()), pid)
	check(t, second.Remove(lab.Context()))
	check(t, third.Remove(lab.Context()))
	lab.WaitFor("the shim to end", func(context.Context) (bool, error) { return !isShim(lab, pid), nil })
}

// Containers outlive containerd, and what happens meanwhile is not lost.
func testDaemonRestart(end func(*harness.Node, context.Context) error) func(*testing.T, *harness.Lab) {
	return func(t *testing.T, lab *harness.Lab) {
		ctx := lab.Context()
		stays, ends := lab.MustRun(sleeper()), lab.MustRun(script("trap 'exit 8' TERM; echo ready; while :; do sleep 0.05; done"))
		waitText(t, lab, ends.Output, "ready")
		shim := shimPid(t, lab, stays.ID())
		var pids []uint32
		processes, err := ends.Task.Pids(ctx)
		check(t, err)
		for _, p := range processes {
			pids = append(pids, p.Pid)
		}
		check(t, end(lab.Node, ctx))
		// One ends while nobody is there to be told.
		for _, pid := range pids {
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && strings.HasPrefix(string(comm), "sh\x00") {
				check(t, unix.Kill(int(pid), unix.SIGTERM))
			}
		}
		check(t, lab.StartDaemon(ctx))

		c, err := lab.Load(ctx, stays.ID())
		check(t, err)
		equal(t, "the status", status(t, lab, c.Task).Status, containerd.Running)
		equal(t, "the pid", c.Task.Pid(), stays.Task.Pid())
		equal(t, "the shim", shimPid(t, lab, stays.ID()), shim)
		lab.MustExec(c, "true")
		check(t, c.Task.Kill(ctx, unix.SIGKILL))
		equal(t, "the exit code", exitOf(t, lab, c), 137)

		c, err = lab.Load(ctx, ends.ID())
		if errors.Is(err, errdefs.ErrNotFound) || err != nil && strings.Contains(err.Error(), "not found") {
			return // containerd has cleaned the ended one up
		}
		check(t, err)
		equal(t, "the exit code of the one that ended meanwhile", exitOf(t, lab, c), 8)
	}
}

// killShim ends a container's shim and waits for containerd to clean up.
func killShim(t *testing.T, lab *harness.Lab, paused bool) {
	t.Helper()
	before := traces(t, lab)
	c := lab.MustRun(script("sleep 100000 & sleep 100000 & wait"))
	e := startExec(t, lab, c, execOptions{args: []string{"sleep", "100000"}})
	r := record(t, lab)
	pid := shimPid(t, lab, c.ID())
	if paused {
		check(t, c.Task.Pause(lab.Context()))
	}
	check(t, unix.Kill(pid, unix.SIGKILL))
	// containerd ends the client's wait with the connection to the shim, and
	// tells of the exit when it has cleaned up.
	r.waitFor(lab, c.ID(), "/tasks/exit")
	for _, line := range r.lines(t, lab, c.ID()) {
		if strings.HasPrefix(line, "/tasks/exit") && !strings.Contains(line, "exit_status=137") {
			t.Error(line)
		}
	}
	lab.WaitFor("the task to be gone", func(ctx context.Context) (bool, error) {
		_, err := c.Container.Task(ctx, nil)
		return errdefs.IsNotFound(err), err
	})
	// The fifos are the client's to remove.
	c.Stdin.Close()
	for _, p := range []containerd.Process{c.Task, e} {
		p.IO().Cancel()
		p.IO().Wait()
		check(t, p.IO().Close())
	}
	check(t, c.Delete(lab.Context(), containerd.WithSnapshotCleanup))
	// A killed shim cannot remove its sockets: they are taken over by the next
	// shim for a container of that name.
	sockets := "+ file " + filepath.Join(lab.Dir, "s") + "/"
	lab.WaitFor("all but the shim's sockets to be gone", func(ctx context.Context) (bool, error) {
		now, err := lab.Traces(ctx)
		if err != nil {
			return false, err
		}
		diff := slices.DeleteFunc(strings.Split(now.Diff(before), "\n"), func(line string) bool {
			return line == "" || strings.HasPrefix(line, sockets)
		})
		return len(diff) == 0, errors.New(strings.Join(diff, "\n"))
	})
}

func testShimKilled(t *testing.T, lab *harness.Lab)       { killShim(t, lab, false) }
func testShimKilledPaused(t *testing.T, lab *harness.Lab) { killShim(t, lab, true) }
