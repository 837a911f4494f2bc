//go:build linux

package service

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
)

// TestPreserve: the run's paths are in each of its checkpoints, besides those of the
// request; they are looked for before anything is frozen.
func TestPreserve(t *testing.T) {
	in(t, standby(), func(t *testing.T, r *rig) {
		ctx := t.Context()
		for _, bad := range []string{"relative", "/a:b", "/a/../b", "/proc/1", "/dev", "/"} {
			if _, err := r.Run(ctx, api.Run{PreservedPaths: bad}, false); !errdefs.IsInvalidArgument(err) {
				t.Errorf("run with %q: %v", bad, err)
			}
		}
		if _, err := r.Run(ctx, api.Run{ImageURL: "file:/ckpt", PreservedPaths: "/b:/a/:/b"}, false); err != nil {
			t.Fatal(err)
		}
		checkpoint := func(want []string, more ...string) {
			t.Helper()
			_, err := r.Checkpoint(ctx, api.CheckpointRequest{PreservedPaths: more})
			if err != nil || !slices.Equal(r.f.preserved, want) {
				t.Errorf("preserved %q, not %q, %v", r.f.preserved, want, err)
			}
		}
		checkpoint([]string{"/a", "/b"})
		checkpoint([]string{"/a", "/a/c", "/b"}, "/a/c", "/b/")
		checkpoint([]string{"/a", "/b"})
		if _, err := r.CheckpointRun(ctx, api.CheckpointRun{LeaveRunning: true, PreservedPaths: ":/x:"}, true); err == nil {
			if want := []string{"/a", "/b", "/x"}; !slices.Equal(r.f.preserved, want) {
				t.Errorf("preserved %q, not %q", r.f.preserved, want)
			}
		} else {
			t.Error(err)
		}
		r.f.preserved = nil
		_, err := r.Checkpoint(ctx, api.CheckpointRequest{PreservedPaths: []string{"/missing"}})
		if !errdefs.IsFailedPrecondition(err) || r.f.preserved != nil || r.now() != api.Running {
			t.Errorf("%v, preserved %q, %s", err, r.f.preserved, r.now())
		}
		if _, err := r.Checkpoint(ctx, api.CheckpointRequest{PreservedPaths: []string{"x"}}); !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
		if _, err := r.do(ctx, "standby"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Run(ctx, api.Run{NoRestore: true}, false); err != nil {
			t.Fatal(err)
		}
		checkpoint(nil)
	})
}
