package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// labTest is one test of a suite, on a node that it shares with the others.
type labTest struct {
	name string
	run  func(t *testing.T, lab *harness.Lab)
}

// runSuite runs the tests under both names of our shim, or only under the
// runtime that FASTMIG_TEST_RUNTIME names, each on a node of its own.
func runSuite(t *testing.T, imgs []images.Image, tests []labTest) {
	runtimes := []harness.Runtime{harness.FastMig, harness.InPlace}
	if os.Getenv("FASTMIG_TEST_RUNTIME") != "" {
		runtimes = []harness.Runtime{harness.Default()}
	}
	for _, r := range runtimes {
		t.Run(r.String(), func(t *testing.T) {
			lab := harness.New(t, harness.Options{Runtime: r})
			lab.MustImport(imgs...)
			for _, test := range tests {
				t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
			}
		})
	}
}

// asStock makes the container run under the stock shim, on a node of any
// runtime, to compare with.
func asStock(t *testing.T, lab *harness.Lab, opts harness.RunOptions) harness.RunOptions {
	t.Helper()
	opts.Runtime = harness.Stock
	opts.Task = append(slices.Clone(opts.Task), containerd.WithRuntimePath(stockShim(t, lab)))
	return opts
}

// stockShim is the file of the stock shim, which ours may hide on the PATH.
func stockShim(t *testing.T, lab *harness.Lab) string {
	t.Helper()
	for _, dir := range filepath.SplitList(lab.Toolpath()) {
		path := filepath.Join(dir, "containerd-shim-runc-v2")
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	t.Fatalf("no stock shim in %s", lab.Toolpath())
	return ""
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused checks that there is an error, of the kind if that is not nil.
func refused(t *testing.T, what string, err error, kind func(error) bool) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%s: no error", what)
	case kind != nil && !kind(err):
		t.Errorf("%s: an error of the wrong kind: %v", what, err)
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %v, not %v", what, got, want)
	}
}

// sleeper is a container that does nothing for long.
func sleeper() harness.RunOptions {
	return harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"sleep", "100000"}}
}

// script is a container that runs a shell script.
func script(text string) harness.RunOptions {
	return harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"sh", "-c", text}}
}

// exitOf waits for the container's end.
func exitOf(t *testing.T, lab *harness.Lab, c *harness.Container) uint32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(lab.Context(), time.Minute)
	defer cancel()
	code, err := c.WaitExit(ctx)
	check(t, err)
	return code
}

// waitText waits until the container has printed the text.
func waitText(t *testing.T, lab *harness.Lab, out *harness.Buffer, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(lab.Context(), time.Minute)
	defer cancel()
	check(t, out.WaitForText(ctx, text))
}

// status is the task's, as containerd tells it.
func status(t *testing.T, lab *harness.Lab, p containerd.Process) containerd.Status {
	t.Helper()
	s, err := p.Status(lab.Context())
	check(t, err)
	return s
}

// standsStill checks that what read returns does not change for a while.
func standsStill(t *testing.T, what string, d time.Duration, read func() (string, error)) {
	t.Helper()
	first, err := read()
	check(t, err)
	end := time.NewTimer(d)
	defer end.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-end.C:
			return
		case <-tick.C:
			now, err := read()
			check(t, err)
			if now != first {
				t.Errorf("%s went from %q to %q", what, first, now)
				return
			}
		}
	}
}

// execution is an exec'ed process with its output.
type execution struct {
	containerd.Process
	output *harness.Buffer
	exited <-chan containerd.ExitStatus
}

// execOptions says what is exec'ed.
type execOptions struct {
	args     []string
	terminal bool
	// stdin makes the process's input a pipe that the test writes to.
	stdin  *pipe
	change func(*specs.Process)
}

// addExec is the task's Exec, without a start.
func addExec(t *testing.T, lab *harness.Lab, c *harness.Container, opts execOptions) *execution {
	t.Helper()
	spec, err := c.Spec(lab.Context())
	check(t, err)
	process := *spec.Process
	process.Args, process.Terminal = opts.args, opts.terminal
	if opts.change != nil {
		opts.change(&process)
	}
	e := &execution{output: &harness.Buffer{}}
	streams := cio.WithStreams(nil, e.output, e.output)
	if opts.stdin != nil {
		streams = cio.WithStreams(opts.stdin.reader, e.output, e.output)
	}
	ioOpts := []cio.Opt{streams, cio.WithFIFODir(filepath.Join(lab.Dir, "fifo"))}
	if opts.terminal {
		ioOpts = append(ioOpts, cio.WithTerminal)
	}
	e.Process, err = c.Task.Exec(lab.Context(), harness.NewID("exec"), &process, cio.NewCreator(ioOpts...))
	check(t, err)
	e.exited, err = e.Wait(lab.Context())
	check(t, err)
	return e
}

// startExec is Exec and Start.
func startExec(t *testing.T, lab *harness.Lab, c *harness.Container, opts execOptions) *execution {
	t.Helper()
	e := addExec(t, lab, c, opts)
	check(t, e.Start(lab.Context()))
	return e
}

// exit waits for the end of the exec.
func (e *execution) exit(t *testing.T, lab *harness.Lab) uint32 {
	t.Helper()
	select {
	case s := <-e.exited:
		check(t, s.Error())
		return s.ExitCode()
	case <-time.After(time.Minute):
		t.Fatalf("exec %s does not end; its output: %s", e.ID(), e.output)
	case <-lab.Context().Done():
		t.Fatal(lab.Context().Err())
	}
	return 0
}

// cgroupFile reads a file of the cgroup that a process is in: v1 is its name
// on cgroup v1, v2 that on v2.
func cgroupFile(pid uint32, controller, v1, v2 string) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(string(data), "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) < 3 || !slices.Contains(strings.Split(parts[1], ","), controller) {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, parts[2], v1))
		return strings.TrimSpace(string(text)), err
	}
	_, path, _ := strings.Cut(string(data), "0::")
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", strings.TrimSpace(path), v2))
	return strings.TrimSpace(string(text)), err
}

// bundleDir is the folder of the task's bundle.
func bundleDir(lab *harness.Lab, id string) string {
	return filepath.Join(lab.Dir, "state", "io.containerd.runtime.v2.task", lab.Namespace, id)
}

// diffLines compares two texts line by line, in order; it is empty if they are
// equal.
func diffLines(got, want []string) string {
	if slices.Equal(got, want) {
		return ""
	}
	var b strings.Builder
	short := len(got) < 40
	// The longest common subsequence; the texts are short.
	n, m := len(got), len(want)
	table := make([][]int, n+1)
	for i := range table {
		table[i] = make([]int, m+1)
	}
	for i := n - 1; i >= 0; i-- {
		for j := m - 1; j >= 0; j-- {
			if got[i] == want[j] {
				table[i][j] = table[i+1][j+1] + 1
			} else {
				table[i][j] = max(table[i+1][j], table[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < n || j < m; {
		switch {
		case i < n && j < m && got[i] == want[j]:
			if short {
				fmt.Fprintf(&b, "    %s\n", got[i])
			}
			i, j = i+1, j+1
		case j == m || i < n && table[i+1][j] >= table[i][j+1]:
			fmt.Fprintf(&b, "  + %s\n", got[i])
			i++
		default:
			fmt.Fprintf(&b, "  - %s\n", want[j])
			j++
		}
	}
	return b.String()
}

// asMap turns a message into plain values by way of JSON.
func asMap(t *testing.T, v any) map[string]any {
	t.Helper()
	data, err := json.Marshal(v)
	check(t, err)
	m := map[string]any{}
	check(t, json.Unmarshal(data, &m))
	return m
}

// traces looks at the node after a first container, of each shim, has made the
// folders that stay.
func traces(t *testing.T, lab *harness.Lab) harness.Traces {
	t.Helper()
	for _, opts := range []harness.RunOptions{sleeper(), asStock(t, lab, sleeper())} {
		c, err := lab.Run(lab.Context(), opts)
		check(t, err)
		check(t, c.Remove(lab.Context()))
	}
	lab.WaitFor("the shims to end", func(context.Context) (bool, error) {
		shims := lab.Shims()
		return len(shims) == 0, fmt.Errorf("%v", shims)
	})
	before, err := lab.Traces(lab.Context())
	check(t, err)
	return before
}

// leavesNothing waits until the node is as it was.
func leavesNothing(t *testing.T, lab *harness.Lab, before harness.Traces) {
	t.Helper()
	ctx, cancel := context.WithTimeout(lab.Context(), 30*time.Second)
	defer cancel()
	if err := lab.WaitForNoLeak(ctx, before); err != nil {
		t.Error(err)
	}
}
