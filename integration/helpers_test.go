package integration_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
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

// stderrOf is what a tool that failed told its user.
func stderrOf(t *testing.T, err error) string {
	t.Helper()
	var tool *harness.ToolError
	if !errors.As(err, &tool) {
		t.Fatalf("want the failure of a tool, got %v", err)
	}
	return tool.Stderr
}
