package harness

import (
	"context"
	"testing"
	"time"

	"github.com/fastmig/fastmig/integration/images"
)

// Lab is a node for one test: its methods fail the test instead of returning
// an error, and it is stopped at the test's end.
type Lab struct {
	*Node
	t   testing.TB
	ctx context.Context
}

// testTimeout bounds one test, so that a hang names itself before the whole
// run's time is up.
const testTimeout = 10 * time.Minute

// New starts a node for the test.
func New(t testing.TB, opts Options) *Lab {
	t.Helper()
	if opts.Progress == nil {
		opts.Progress = testWriter{t}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	node, err := Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of containerd's log:\n%s", node.LogTail(60))
		}
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
	})
	return &Lab{node, t, ctx}
}

// For is the same node seen by a subtest.
func (l *Lab) For(t testing.TB) *Lab {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return &Lab{l.Node, t, ctx}
}

// Context ends with the test or its time limit.
func (l *Lab) Context() context.Context { return l.ctx }

// MustImport is Node.Import.
func (l *Lab) MustImport(all ...images.Image) {
	l.t.Helper()
	l.check(l.Import(l.ctx, all...))
}

// MustCtr is Node.Ctr.
func (l *Lab) MustCtr(args ...string) string {
	l.t.Helper()
	out, err := l.Ctr(l.ctx, args...)
	l.check(err)
	return out
}

// MustNerdctl is Node.Nerdctl.
func (l *Lab) MustNerdctl(args ...string) string {
	l.t.Helper()
	out, err := l.Nerdctl(l.ctx, args...)
	l.check(err)
	return out
}

// MustRun is Node.Run; the container is removed at the test's end.
func (l *Lab) MustRun(opts RunOptions) *Container {
	l.t.Helper()
	c, err := l.Run(l.ctx, opts)
	l.check(err)
	l.RemoveAtEnd(c)
	return c
}

// MustCreate is Node.Create; the container is removed at the test's end.
func (l *Lab) MustCreate(opts RunOptions) *Container {
	l.t.Helper()
	c, err := l.Create(l.ctx, opts)
	l.check(err)
	l.RemoveAtEnd(c)
	return c
}

// MustRestore is Node.Restore; the container is removed at the test's end.
func (l *Lab) MustRestore(opts RestoreOptions) *Container {
	l.t.Helper()
	c, err := l.Restore(l.ctx, opts)
	l.check(err)
	l.RemoveAtEnd(c)
	return c
}

// MustExec is Container.Exec.
func (l *Lab) MustExec(c *Container, args ...string) string {
	l.t.Helper()
	out, err := c.Exec(l.ctx, args...)
	l.check(err)
	return out
}

// WaitFor is the function WaitFor with at most a minute to wait.
func (l *Lab) WaitFor(what string, cond func(context.Context) (bool, error)) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.ctx, time.Minute)
	defer cancel()
	l.check(WaitFor(ctx, what, cond))
}

// RemoveAtEnd removes the container at the end of the test.
func (l *Lab) RemoveAtEnd(c *Container) {
	l.t.Cleanup(func() {
		if l.t.Failed() {
			l.t.Logf("output of %s:\n%s", c.ID(), c.Output)
			l.t.Log(l.CRIUErrors(c.ID()))
		}
		if err := c.Remove(context.WithoutCancel(l.ctx)); err != nil {
			l.t.Error(err)
		}
	})
}

func (l *Lab) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
