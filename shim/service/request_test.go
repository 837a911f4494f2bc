//go:build linux

package service

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
)

func standby() setup {
	u := usual()
	u.set.Startup = api.StartStandby
	return u
}

// TestRun: words as a shell's, the environment merged, the URL kept for later.
func TestRun(t *testing.T) {
	u := standby()
	u.env = []string{"A=1", "B=2"}
	in(t, u, func(t *testing.T, r *rig) {
		_, err := r.Run(t.Context(), api.Run{
			AppArgs: `serve "two words" it\'s '$HOME'`, ImageURL: "file:/ckpt", OnAppReady: "ready 'now'",
			Envs: []string{"B=3", "C=x=y", "C=z"}, LeaveStopped: true,
		}, false)
		if err != nil {
			t.Fatal(err)
		}
		l := r.f.current().launch
		if want := []string{"serve", "two words", "it's", "$HOME"}; !slices.Equal(l.Args, want) {
			t.Errorf("args %q, not %q", l.Args, want)
		}
		if want := []string{"A=1", "B=3", "C=z"}; !slices.Equal(l.Env, want) {
			t.Errorf("env %q, not %q", l.Env, want)
		}
		if !l.LeaveStopped || l.Image != nil || r.f.executed("ready") != 1 || r.Status().ImageURL != "file:/ckpt" {
			t.Errorf("%+v, ran %v, %+v", l, r.f.execs, r.Status())
		}
		if res, err := r.do(t.Context(), "checkpoint"); err != nil || res.Checkpoint.URL != "file:/ckpt" {
			t.Errorf("%+v, %v", res, err)
		}
		if _, err := r.Run(t.Context(), api.Run{}, false); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("run of a running service: %v", err)
		}
		if _, err := r.do(t.Context(), "standby"); err != nil {
			t.Fatal(err)
		}
		if res, err := r.Run(t.Context(), api.Run{}, false); err != nil || res.Checkpoint == nil || r.f.current().launch.Image == nil {
			t.Errorf("%+v, %v", res, err)
		}
		if r.f.current().launch.Args != nil || r.f.current().launch.Env != nil {
			t.Errorf("the container's own command: %+v", r.f.current().launch)
		}
		if _, err := r.do(t.Context(), "standby"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Run(t.Context(), api.Run{NoRestore: true}, false); err != nil || r.f.current().launch.Image != nil {
			t.Errorf("no_restore: %v", err)
		}
	})
}

// TestMergeEnv replaces by name, and only by the whole name.
func TestMergeEnv(t *testing.T) {
	base := []string{"PATH=/bin", "PATHS=x"}
	got := mergeEnv(base, []string{"PATH=/sbin", "P=1", "P=2", "E="})
	if want := []string{"PATH=/sbin", "PATHS=x", "P=2", "E="}; !slices.Equal(got, want) {
		t.Errorf("%q, not %q", got, want)
	}
	if base[0] != "PATH=/bin" {
		t.Error("the base is changed")
	}
	for v, want := range map[string]bool{"A=": true, "A=b=c": true, "": false, "A": false, "=A": false, "A=\x00": false} {
		if validEnv(v) != want {
			t.Errorf("%q is valid: %v", v, !want)
		}
	}
}

// TestNetworkOrigin may name the container's own checkpoints, and nobody else's.
func TestNetworkOrigin(t *testing.T) {
	for url, allowed := range map[string]bool{
		"": true, imageURL: true, "file:/ckpt": true, "node:other": false, "node:web2": false,
	} {
		in(t, standby(), func(t *testing.T, r *rig) {
			check := func(what string, err error) {
				t.Helper()
				if allowed != (err == nil) || !allowed && !errdefs.IsPermissionDenied(err) {
					t.Errorf("%s of %q: %v", what, url, err)
				}
			}
			_, err := r.Run(t.Context(), api.Run{ImageURL: url}, true)
			check("run", err)
			if !allowed {
				r.is(t, api.Standby)
				if len(r.f.calls) > 0 || r.Status().ImageURL != imageURL {
					t.Errorf("%q: something was done: %v", url, r.f.calls)
				}
				if _, err := r.do(t.Context(), "start"); err != nil {
					t.Fatal(err)
				}
			}
			_, err = r.CheckpointRun(t.Context(), api.CheckpointRun{ImageURL: url}, true)
			check("checkpoint", err)
			// The host may.
			if r.now() == api.Running {
				if _, err := r.CheckpointRun(t.Context(), api.CheckpointRun{ImageURL: url}, false); err != nil {
					t.Errorf("the host's checkpoint to %q: %v", url, err)
				}
			}
		})
	}
	// What the host has named is not open to the network by that.
	in(t, standby(), func(t *testing.T, r *rig) {
		if _, err := r.Run(t.Context(), api.Run{ImageURL: "node:other"}, false); err != nil {
			t.Fatal(err)
		}
		for _, url := range []string{"", "node:other"} {
			if _, err := r.CheckpointRun(t.Context(), api.CheckpointRun{ImageURL: url}, true); !errdefs.IsPermissionDenied(err) {
				t.Errorf("%q: %v", url, err)
			}
		}
	})
}

// TestNothingNamed: without a URL there is nothing to restore, and run starts.
func TestNothingNamed(t *testing.T) {
	u := standby()
	u.set.ImageURL = ""
	in(t, u, func(t *testing.T, r *rig) {
		if _, err := r.do(t.Context(), "restore"); !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
		if _, err := r.do(t.Context(), "run"); err != nil {
			t.Error(err)
		}
		if _, err := r.do(t.Context(), "checkpoint"); !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

// TestNoCheckpoint: where there is none, nothing is changed by a restore.
func TestNoCheckpoint(t *testing.T) {
	in(t, standby(), func(t *testing.T, r *rig) {
		if _, err := r.do(t.Context(), "restore"); !errdefs.IsNotFound(err) || len(r.Status().History) > 0 {
			t.Errorf("%v, %v", err, r.Status().History)
		}
	})
	in(t, untied(), func(t *testing.T, r *rig) {
		r.f.exitApp(1)
		if err := r.quiet(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.do(t.Context(), "restore"); !errdefs.IsNotFound(err) {
			t.Error(err)
		}
		// Not even the restart that it waits for.
		r.is(t, api.Exited)
		r.until(t, api.Running)
	})
}

// TestUpdate acts on a startup mode, and forgets the settings of one that failed.
func TestUpdate(t *testing.T) {
	in(t, standby(), func(t *testing.T, r *rig) {
		if _, err := r.do(t.Context(), "update-restore"); !errdefs.IsNotFound(err) || r.Status().Startup != api.StartStandby {
			t.Errorf("%v, %+v", err, r.Status())
		}
		r.f.put(imageURL, 3, false)
		if _, err := r.do(t.Context(), "update-restore"); err != nil || r.Status().Startup != api.StartRestore {
			t.Errorf("%v, %+v", err, r.Status())
		}
		r.is(t, api.Running)
		if _, err := r.do(t.Context(), "update-standby"); err != nil {
			t.Error(err)
		}
		r.is(t, api.Standby)
	})
}

// TestStop sends the signal that was asked for, waits as long as was asked, and
// kills then, which it notes.
func TestStop(t *testing.T) {
	for _, tc := range []struct {
		request api.StopRequest
		signal  int
		wait    time.Duration
	}{
		{api.StopRequest{}, 15, 10 * time.Second},
		{api.StopRequest{Signal: "int", Timeout: "3s"}, 2, 3 * time.Second},
		{api.StopRequest{Signal: "SIGUSR1", Timeout: "1m"}, 10, time.Minute},
		{api.StopRequest{Signal: "9"}, 0, 0},
		{api.StopRequest{Timeout: "0s"}, 0, 0},
	} {
		for _, ignores := range []bool{false, true} {
			in(t, usual(), func(t *testing.T, r *rig) {
				a := r.f.current()
				a.ignores = ignores
				began := time.Now()
				res, err := r.Stop(t.Context(), tc.request)
				if err != nil || res.State != api.Standby || res.AppPid != 0 {
					t.Errorf("%+v: %+v, %v", tc, res, err)
				}
				took, want := time.Since(began), time.Duration(0)
				if ignores {
					want = tc.wait
				}
				if took < want || took > want+time.Second {
					t.Errorf("%+v: it took %v", tc, took)
				}
				if noted := len(res.Notes) == 1 && strings.Contains(res.Notes[0], "was killed"); noted != (ignores && tc.wait > 0) {
					t.Errorf("%+v: notes %q", tc, res.Notes)
				}
				if want := tc.signal; want == 0 && len(a.signals) > 0 || want != 0 && (len(a.signals) != 1 || a.signals[0] != want) {
					t.Errorf("%+v: signals %v", tc, a.signals)
				}
			})
		}
	}
}

// TestBoot: a start that fails is the task's to tell; a checkpoint that the client
// named is restored whatever the mode.
func TestBoot(t *testing.T) {
	u := usual()
	u.cold, u.set.Startup = true, api.StartRestore
	in(t, u, func(t *testing.T, r *rig) {
		if err := r.boot(nil); !errdefs.IsNotFound(err) {
			t.Error(err)
		}
		r.is(t, api.Standby)
		r.f.put(imageURL, 4, false)
		if err := r.boot(nil); err != nil || r.f.current().count != 4 {
			t.Errorf("%v, %+v", err, r.f.current())
		}
	})
	u.set.Startup = api.StartStandby
	in(t, u, func(t *testing.T, r *rig) {
		closed := 0
		if err := r.boot(&Image{Info: api.Checkpoint{Bytes: 9}, Close: func() { closed++ }}); err != nil {
			t.Fatal(err)
		}
		if r.f.current().count != 9 || closed != 1 || r.Status().Checkpoint != nil {
			t.Errorf("%+v, closed %d times, %+v", r.f.current(), closed, r.Status())
		}
	})
}
