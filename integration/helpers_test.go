package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// load finds a container that ctr or nerdctl made; it is removed at the test's
// end.
func load(lab *harness.Lab, t *testing.T, id string) *harness.Container {
	t.Helper()
	c, err := lab.Load(lab.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	lab.RemoveAtEnd(c)
	return c
}

// removeByNerdctl removes a container with its network at the test's end.
func removeByNerdctl(lab *harness.Lab, t *testing.T, name string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(lab.Context()), time.Minute)
		defer cancel()
		_, _ = lab.Nerdctl(ctx, "rm", "-f", name)
	})
}

// The service of tests that are about the tools around it: a shell that counts.
// It shows "NONCE COUNT" as the target of a link, so that no file is open when
// it is checkpointed, which a container with a fresh layer would lack.
const tickScript = `read -r nonce </proc/sys/kernel/random/uuid; n=0
while :; do n=$((n+1)); ln -sfn "$nonce $n" /tick; sleep 0.02; done`

var tickArgs = []string{"sh", "-c", tickScript}

func tickOptions() harness.RunOptions {
	return harness.RunOptions{Image: images.Busybox.Ref(), Args: tickArgs}
}

// tickSeen reads the counting shell's nonce and count, as soon as there is a
// count above the given one.
func tickSeen(lab *harness.Lab, t *testing.T, c *harness.Container, above int) (nonce string, count int) {
	t.Helper()
	lab.WaitFor(fmt.Sprintf("%s to count above %d", c.ID(), above), func(ctx context.Context) (bool, error) {
		out, err := c.Exec(ctx, "readlink", "/tick")
		if err != nil {
			return false, err
		}
		if _, err := fmt.Sscan(out, &nonce, &count); err != nil {
			return false, err
		}
		return count > above, fmt.Errorf("it is at %d", count)
	})
	return nonce, count
}

// ticking remembers where the counting shell is; the returned function checks
// that a container continues it and counts on.
func ticking(lab *harness.Lab, t *testing.T, c *harness.Container) func(*harness.Container) {
	t.Helper()
	nonce, count := tickSeen(lab, t, c, 0)
	return func(c *harness.Container) {
		t.Helper()
		now, next := tickSeen(lab, t, c, count-1)
		if now != nonce {
			t.Fatalf("%s: another shell answers, %s instead of %s: it was started again", c.ID(), now, nonce)
		}
		tickSeen(lab, t, c, next)
	}
}

// wantStatus checks how containerd sees the task.
func wantStatus(lab *harness.Lab, t *testing.T, c *harness.Container, want containerd.ProcessStatus) {
	t.Helper()
	status, err := c.Task.Status(lab.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.Status != want {
		t.Fatalf("%s is %s, not %s", c.ID(), status.Status, want)
	}
}

// mustRemove ends a container before its test does.
func mustRemove(lab *harness.Lab, t *testing.T, c *harness.Container) {
	t.Helper()
	if err := c.Remove(lab.Context()); err != nil {
		t.Fatal(err)
	}
}

// stderrOf is what a tool that failed told its user.
func stderrOf(t *testing.T, err error) string {
	t.Helper()
	var tool *harness.ToolError
	if !errors.As(err, &tool) {
		t.Fatalf("want the failure of a tool, got %v", err)
	}
	return tool.Stderr
}

// wantText checks that a message holds all of the texts.
func wantText(t *testing.T, message string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(message, text) {
			t.Errorf("%q is not in the message:\n%s", text, message)
		}
	}
}

// folderNames lists a folder; nil if it does not exist.
func folderNames(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// below lists the processes that descend from a process, which the host's
// /proc/PID/task/TID/children tells.
func below(pid int) []int {
	var all []int
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", queue[0]))
		for _, f := range files {
			data, _ := os.ReadFile(f)
			for _, word := range strings.Fields(string(data)) {
				if child, err := strconv.Atoi(word); err == nil {
					all = append(all, child)
					queue = append(queue, child)
				}
			}
		}
	}
	return all
}

// shimOf is the pid of the container's shim.
func shimOf(lab *harness.Lab, t *testing.T, c *harness.Container) int {
	t.Helper()
	for _, shim := range lab.Shims() {
		if strings.Contains(shim.Args+" ", " -id "+c.ID()+" ") {
			return shim.Pid
		}
	}
	t.Fatalf("%s has no shim", c.ID())
	return 0
}

// criuOf finds the CRIU that a shim has started; 0 if there is none.
func criuOf(shim int) int {
	for _, pid := range below(shim) {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if string(name) == "criu\n" {
			return pid
		}
	}
	return 0
}

// noLeak checks that the node is soon what it was.
func noLeak(lab *harness.Lab, t *testing.T, before harness.Traces) {
	t.Helper()
	ctx, cancel := context.WithTimeout(lab.Context(), 30*time.Second)
	defer cancel()
	if err := lab.WaitForNoLeak(ctx, before); err != nil {
		t.Error(err)
	}
}
