package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// soon fails the test if the condition does not come true.
func soon(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begun := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("it never happened: %s", what)
		}
	}
}

// hang mounts a file system whose server never answers.
func hang(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())
	if err := unix.Mount("hung", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// With its server's end, all that wait for it get an error.
		server.Close()
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestHungFileSystem(t *testing.T) {
	s := testStore(t)
	s.Timeout = 300 * time.Millisecond
	hang(t, filepath.Join(rootOf(t, s), "data", "hung"))
	u := mustParse(t, "file:/data/hung/one")
	ctx := context.Background()
	for name, call := range map[string]func() error{
		"open": func() error { _, err := s.Open(ctx, u); return err },
		"stat": func() error { _, err := s.Stat(ctx, u); return err },
		"take": func() error { return s.take(u, "a") },
	} {
		begun := time.Now()
		err := call()
		if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), u.String()) || !strings.Contains(err.Error(), "300ms") {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begun); took < s.Timeout || took > 10*s.Timeout {
			t.Errorf("%s took %s", name, took)
		}
	}
	// Other places are as fast as ever.
	mustTake(t, s, mustParse(t, "file:/data/one"), "a")
}

// Only silence is given up, not what takes long; and a context that ends ends
// the wait.
func TestGuard(t *testing.T) {
	u := URL{"node", "one"}
	const timeout = 200 * time.Millisecond
	got, err := guard(context.Background(), timeout, u, "step", func(ctx context.Context) (int, error) {
		for begun := time.Now(); time.Since(begun) < 3*timeout; time.Sleep(time.Millisecond) {
			beat(t, ctx)
		}
		return 7, ctx.Err()
	}, nil)
	if got != 7 || err != nil {
		t.Errorf("long and healthy: %d, %v", got, err)
	}

	release, undone := make(chan struct{}), make(chan int, 1)
	_, err = guard(context.Background(), timeout, u, "step", func(context.Context) (int, error) {
		<-release
		return 8, nil
	}, func(n int) { undone <- n })
	if !errdefs.IsUnavailable(err) || !errors.Is(err, errSilent) {
		t.Errorf("silent: %v", err)
	}
	close(release)
	select {
	case n := <-undone:
		if n != 8 {
			t.Error(n)
		}
	case <-time.After(20 * time.Second):
		t.Error("what came late was not undone")
	}

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = guard(ctx, timeout, u, "step", func(ctx context.Context) (int, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// beat is the pulse of a reader: the digest of a small file.
func beat(t *testing.T, ctx context.Context) {
	t.Helper()
	dir := t.TempDir()
	st, err := image.Stage(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Abort()
	if err := fill(st.File(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := st.Commit(ctx, manifest()); err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
}

// A commit that is given up cleans up itself, whenever it can.
func TestCommitGivenUp(t *testing.T) {
	for _, finishes := range []bool{false, true} {
		s, u := testStore(t), mustParse(t, "node:one")
		mustTake(t, s, u, "a")
		hasty := *s
		hasty.Timeout = 200 * time.Millisecond
		st, err := hasty.Stage(context.Background(), u)
		if err != nil {
			t.Fatal(err)
		}
		if err := fill(st.File(), "b"); err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		at := map[bool]string{false: "whole", true: "name"}[finishes]
		stop := func(step string) {
			if step == at {
				<-release
			}
		}
		atStep.Store(&stop)
		defer atStep.Store(nil)
		if err := st.Commit(context.Background(), manifest()); !errdefs.IsUnavailable(err) {
			t.Errorf("%v", err)
		}
		if err := st.Abort(); err != nil {
			t.Error(err)
		}
		if err := hasty.take(u, "c"); !errdefs.IsUnavailable(err) {
			t.Errorf("while the other is still there: %v", err)
		}
		close(release)
		soon(t, "the commit ends", func() bool { st.mu.Lock(); defer st.mu.Unlock(); return st.closed })
		atStep.Store(nil)
		want := map[bool]string{false: "a", true: "b"}[finishes]
		if text, note := newestText(t, s, u); text != want || note != "" {
			t.Errorf("%q, %q; want %q", text, note, want)
		}
		mustTake(t, s, u, "d")
		if text, note := newestText(t, s, u); text != "d" || note != "" {
			t.Errorf("%q, %q", text, note)
		}
		expectNames(t, s.Node, "one", ".one.previous")
	}
}
