//go:build linux

package service

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
)

// hooked is a setup in which the hook of a kind is a program.
func hooked(kind hookKind, program string) setup {
	u := usual()
	u.set.Startup = api.StartStandby
	h := &u.set.Hooks
	*map[hookKind]*[]string{
		beforeCheckpoint: &h.BeforeCheckpoint, afterCheckpoint: &h.AfterCheckpoint,
		beforeRestore: &h.BeforeRestore, afterRestore: &h.AfterRestore,
	}[kind] = []string{program, "with", "words"}
	return u
}

// TestBeforeHooksVeto: nothing is changed by an operation that one refuses.
func TestBeforeHooksVeto(t *testing.T) {
	for _, program := range []string{"fail", "hang"} {
		check := func(r *rig, err error, began time.Time) {
			t.Helper()
			switch took := time.Since(began); program {
			case "fail":
				if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "no, thanks") || !strings.Contains(err.Error(), "fail with words") {
					t.Errorf("%v", err)
				}
			case "hang":
				if !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "within 30s") || took < 30*time.Second || took > 31*time.Second {
					t.Errorf("after %v: %v", took, err)
				}
			}
		}
		for _, op := range []string{"checkpoint", "checkpoint-end", "task", "task-exit"} {
			for _, paused := range []bool{false, true} {
				if paused && strings.HasPrefix(op, "checkpoint") {
					continue
				}
				in(t, hooked(beforeCheckpoint, program), func(t *testing.T, r *rig) {
					if _, err := r.do(t.Context(), "start"); err != nil {
						t.Fatal(err)
					}
					want := api.Running
					if paused {
						want = api.Paused
						if err := r.f.pause(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					steps, began := len(r.Status().History), time.Now()
					_, err := r.do(t.Context(), op)
					check(r, err, began)
					r.is(t, want)
					if r.f.called("Dump")+r.f.called("Freeze") > 0 || len(r.Status().History) != steps || !r.f.current().tied {
						t.Errorf("%s did something: %v", op, r.f.calls)
					}
				})
			}
		}
		for _, op := range []string{"restore", "run", "update-restore"} {
			in(t, hooked(beforeRestore, program), func(t *testing.T, r *rig) {
				r.f.put(imageURL, 1, false)
				began := time.Now()
				_, err := r.do(t.Context(), op)
				check(r, err, began)
				r.is(t, api.Standby)
				if r.f.called("Launch") > 0 || r.Status().Startup != api.StartStandby {
					t.Errorf("%s did something: %v, %+v", op, r.f.calls, r.Status())
				}
			})
		}
	}
}

// TestAfterHooksAreNoted: their failure is told, and changes nothing.
func TestAfterHooksAreNoted(t *testing.T) {
	for _, program := range []string{"fine", "fail", "hang"} {
		noted := func(res api.Result, r *rig, kind hookKind) {
			t.Helper()
			st := r.Status()
			if bad := program != "fine"; bad != (len(res.Notes) == 1 && strings.Contains(res.Notes[0], string(kind))) ||
				bad != (st.LastError != nil && st.LastError.Operation == string(kind)) {
				t.Errorf("%s: notes %q, last error %+v", program, res.Notes, st.LastError)
			}
			if r.f.executed(program) != 1 {
				t.Errorf("%s ran %d times", program, r.f.executed(program))
			}
		}
		for op, want := range map[string]api.State{"checkpoint": api.Running, "checkpoint-end": api.Standby} {
			in(t, hooked(afterCheckpoint, program), func(t *testing.T, r *rig) {
				if _, err := r.do(t.Context(), "start"); err != nil {
					t.Fatal(err)
				}
				res, err := r.do(t.Context(), op)
				if err != nil || res.State != want || res.Checkpoint == nil {
					t.Errorf("%s: %+v, %v", op, res, err)
				}
				noted(res, r, afterCheckpoint)
				r.is(t, want)
			})
		}
		for _, op := range []string{"start", "restore", "run"} {
			in(t, hooked(afterRestore, program), func(t *testing.T, r *rig) {
				r.f.put(imageURL, 1, false)
				res, err := r.do(t.Context(), op)
				if err != nil || res.State != api.Running || res.AppPid == 0 {
					t.Errorf("%s: %+v, %v", op, res, err)
				}
				noted(res, r, afterRestore)
			})
		}
	}
}

// TestHooksOnPaused: a container that the client has paused is thawed for the hook
// before a checkpoint; the one after it waits for the client.
func TestHooksOnPaused(t *testing.T) {
	u := hooked(beforeCheckpoint, "bc")
	u.set.Hooks.AfterCheckpoint = []string{"ac"}
	in(t, u, func(t *testing.T, r *rig) {
		if _, err := r.do(t.Context(), "start"); err != nil {
			t.Fatal(err)
		}
		if err := r.f.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.do(t.Context(), "task"); err != nil {
			t.Fatal(err)
		}
		r.is(t, api.Paused)
		time.Sleep(time.Minute)
		if r.f.executed("bc") != 1 || r.f.executed("ac") != 0 {
			t.Errorf("ran %v", r.f.execs)
		}
		if err := r.f.resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if r.f.executed("ac") != 1 {
			t.Errorf("ran %v", r.f.execs)
		}
		r.is(t, api.Running)

		// One that ends the service ends the hook's wait.
		if err := r.f.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		u := r.settings()
		u.OnExit = OnExitDefault
		if err := r.Update(t.Context(), u, false); err != nil {
			t.Fatal(err)
		}
		if _, err := r.do(t.Context(), "task-exit"); err != nil {
			t.Fatal(err)
		}
		r.is(t, api.Standby)
		if r.f.executed("ac") != 2 || !r.f.isPaused() {
			t.Errorf("ran %v; paused: %v", r.f.execs, r.f.isPaused())
		}
	})
}

// TestHookOfRequest replaces the container's own, with its time limit.
func TestHookOfRequest(t *testing.T) {
	in(t, hooked(beforeCheckpoint, "fail"), func(t *testing.T, r *rig) {
		if _, err := r.do(t.Context(), "start"); err != nil {
			t.Fatal(err)
		}
		_, err := r.Checkpoint(t.Context(), api.CheckpointRequest{Hooks: &api.Hooks{BeforeCheckpoint: []string{"fine"}}})
		if err != nil || r.f.executed("fine") != 1 {
			t.Errorf("%v, %v", err, r.f.execs)
		}
		began := time.Now()
		_, err = r.Checkpoint(t.Context(), api.CheckpointRequest{Hooks: &api.Hooks{BeforeCheckpoint: []string{"hang"}, Timeout: "2s"}})
		if !errdefs.IsAborted(err) || time.Since(began) > 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		synctest.Wait()
		if _, err = r.Checkpoint(t.Context(), api.CheckpointRequest{}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("the container's own hook is forgotten: %v", err)
		}
	})
}
