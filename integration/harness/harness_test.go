package harness_test

import (
	"context"
	"strings"
	"testing"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// A container leaves traces while it runs and none after it.
func TestTraces(t *testing.T) {
	lab := harness.New(t, harness.Options{Runtime: harness.Stock})
	lab.MustImport(images.Busybox)
	run := func() *harness.Container {
		return lab.MustRun(harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"sleep", "1000"}})
	}
	// The first container makes folders that stay.
	if err := run().Remove(lab.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := lab.Traces(lab.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := run()
	during, err := lab.Traces(lab.Context())
	if err != nil {
		t.Fatal(err)
	}
	diff := during.Diff(before)
	for _, kind := range []string{"process", "mount", "cgroup", "file", "descriptor"} {
		if !strings.Contains(diff, "+ "+kind) {
			t.Errorf("a running container shows no %s in:\n%s", kind, diff)
		}
	}
	if err := c.Remove(lab.Context()); err != nil {
		t.Fatal(err)
	}
	if err := lab.WaitForNoLeak(lab.Context(), before); err != nil {
		t.Fatal(err)
	}
}

// Two containerds can share a machine, and a container outlives its daemon.
func TestBesideAndRestart(t *testing.T) {
	first := harness.New(t, harness.Options{Runtime: harness.Stock})
	second := harness.New(t, harness.Options{Runtime: harness.Stock, Beside: first.Node})
	for _, lab := range []*harness.Lab{first, second} {
		lab.MustImport(images.Busybox)
	}
	c := first.MustRun(harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"sleep", "1000"}})
	if err := first.KillDaemon(first.Context()); err != nil {
		t.Fatal(err)
	}
	second.MustRun(harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"sleep", "1000"}})
	if err := first.StartDaemon(first.Context()); err != nil {
		t.Fatal(err)
	}
	first.MustExec(c, "true")
}

// The harness itself is tested with the stock shim.
func TestNode(t *testing.T) {
	lab := harness.New(t, harness.Options{Runtime: harness.Stock})
	lab.MustImport(images.Busybox)
	c := lab.MustRun(harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"sh", images.Tick, "/tmp/tick"}})
	lab.WaitFor("the first tick", func(ctx context.Context) (bool, error) {
		_, err := c.Exec(ctx, "cat", "/tmp/tick")
		return err == nil, err
	})
	if out := lab.MustCtr("run", "--rm", images.Busybox.Ref(), "hello", "echo", "hello"); out != "hello\n" {
		t.Errorf("ctr run printed %q", out)
	}
	if out := lab.MustNerdctl("run", "--rm", images.Busybox.Ref(), "ip", "address"); !strings.Contains(out, "198.18.0.") {
		t.Errorf("no address of the bridge in %q", out)
	}
	if err := c.Checkpoint(lab.Context(), "fastmig.test/c:1", false); err != nil {
		t.Fatal(err)
	}
	r := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/c:1"})
	lab.MustExec(r, "cat", "/tmp/tick")
}
