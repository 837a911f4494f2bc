package integration_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// How often the leak tests go round.
const (
	warmUp           = 5
	runCycles        = 50
	checkpointCycles = 10
)

// TestLeaks goes through a container's life again and again in a shim that
// lives on, and in shims of their own: nothing stays, and the shim that lives
// on holds no more than before.
func TestLeaks(t *testing.T) {
	var tests []labTest
	for _, shared := range []bool{true, false} {
		name := map[bool]string{true: "shared shim", false: "own shims"}[shared]
		tests = append(tests,
			labTest{"run, " + name, func(t *testing.T, lab *harness.Lab) { testCycles(t, lab, shared, runCycles, runCycle) }},
			labTest{"checkpoint, " + name, func(t *testing.T, lab *harness.Lab) {
				testCycles(t, lab, shared, checkpointCycles, checkpointCycle)
			}})
	}
	runSuite(t, []images.Image{images.Busybox}, tests)
}

func testCycles(t *testing.T, lab *harness.Lab, shared bool, count int, cycle func(*testing.T, *harness.Lab, harness.RunOptions)) {
	opts := sleeper()
	shim := 0
	if shared {
		opts = grouped(t, lab, opts)
		keeper, err := lab.Client().Containers(lab.Context())
		check(t, err)
		shim = shimPid(t, lab, keeper[0].ID())
	} else {
		count /= 2
	}
	for range warmUp {
		cycle(t, lab, opts)
	}
	settled(t, lab, shared)
	before, err := lab.Traces(lab.Context())
	check(t, err)
	fds := descriptors(t, shim)
	for range count - warmUp {
		cycle(t, lab, opts)
	}
	settled(t, lab, shared)
	leavesNothing(t, lab, before)
	lab.WaitFor("the shim's descriptors to be as many as before", func(context.Context) (bool, error) {
		now := descriptors(t, shim)
		return len(now) <= len(fds), fmt.Errorf("%d, not %d:\n%s", len(now), len(fds), diffLines(now, fds))
	})
}

// settled waits until the shims of the cycles have ended.
func settled(t *testing.T, lab *harness.Lab, shared bool) {
	t.Helper()
	want := 0
	if shared {
		want = 1
	}
	lab.WaitFor("the shims to end", func(context.Context) (bool, error) {
		shims := lab.Shims()
		return len(shims) == want, fmt.Errorf("%v", shims)
	})
}

// descriptors are what a process has open, sorted.
func descriptors(t *testing.T, pid int) []string {
	t.Helper()
	if pid == 0 {
		return nil
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	check(t, err)
	var list []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			list = append(list, target)
		}
	}
	slices.Sort(list)
	return list
}

// runCycle is a container's life with an exec, every third one ended by
// itself, every fifth with a terminal.
func runCycle(t *testing.T, lab *harness.Lab, opts harness.RunOptions) {
	t.Helper()
	opts.ID = harness.NewID("cycle")
	opts.Terminal = strings.HasSuffix(opts.ID, "5") || strings.HasSuffix(opts.ID, "0")
	c, err := lab.Run(lab.Context(), opts)
	check(t, err)
	out, err := c.Exec(lab.Context(), "echo", "word")
	check(t, err)
	equal(t, "the output", out, "word\n")
	check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
	check(t, c.Remove(lab.Context()))
}

// checkpointCycle checkpoints a container twice, restores it and removes all.
func checkpointCycle(t *testing.T, lab *harness.Lab, opts harness.RunOptions) {
	t.Helper()
	ctx := lab.Context()
	opts.ID = harness.NewID("cycle")
	c, err := lab.Run(ctx, opts)
	check(t, err)
	ref := "fastmig.test/" + opts.ID + ":1"
	check(t, c.Checkpoint(ctx, ref+"-a", false))
	check(t, c.Checkpoint(ctx, ref+"-b", true))
	exitOf(t, lab, c)
	check(t, c.Remove(ctx))
	r, err := lab.Restore(ctx, harness.RestoreOptions{Ref: ref + "-b"})
	check(t, err)
	_, err = r.Exec(ctx, "true")
	check(t, err)
	check(t, r.Remove(ctx))
	for _, suffix := range []string{"-a", "-b"} {
		check(t, lab.Client().ImageService().Delete(ctx, ref+suffix))
	}
}
