//go:build linux

package service

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
)

// TestCheckpointFails at each stage: the service goes on, as it was, thawed.
func TestCheckpointFails(t *testing.T) {
	for _, op := range []string{"checkpoint", "checkpoint-end", "task", "task-exit"} {
		for _, paused := range []bool{false, true} {
			for _, call := range []string{"Tie", "Freeze", "Dump", "EndService", "EndContainer"} {
				for _, kind := range []string{"fail", "hang"} {
					for _, u := range []setup{usual(), untied()} {
						if paused && strings.HasPrefix(op, "checkpoint") {
							continue
						}
						in(t, u, func(t *testing.T, r *rig) { checkpointFails(t, r, op, call, kind, paused) })
					}
				}
			}
		}
	}
}

func checkpointFails(t *testing.T, r *rig, op, call, kind string, paused bool) {
	app, want := r.f.current(), api.Running
	if paused {
		if err := r.f.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		want = api.Paused
	}
	r.f.arm(call, kind)
	_, err := r.do(t.Context(), op)
	if r.f.called(call) == 0 {
		return // not a stage of it
	}
	if err == nil {
		t.Errorf("%s, %s: no error", op, call)
	}
	r.is(t, want)
	if r.f.current() != app {
		t.Errorf("%s, %s: the service is another", op, call)
	}
	saved := slices.Contains([]string{"EndService", "EndContainer"}, call)
	if saved != strings.Contains(err.Error(), "the checkpoint is saved") {
		t.Errorf("%s, %s: %v", op, call, err)
	}
	if there := len(r.f.place(imageURL)) > 0; there != (saved && strings.HasPrefix(op, "checkpoint")) {
		t.Errorf("%s, %s: there is a checkpoint: %v", op, call, there)
	}
}

// TestCancelled: each operation whose client goes away, at each moment, leaves the
// service as it was or as was asked.
func TestCancelled(t *testing.T) {
	for _, op := range []string{"start", "restore", "run", "checkpoint", "checkpoint-end", "task", "task-exit", "stop", "standby"} {
		for ms := range 50 {
			u := usual()
			u.seed = uint64(ms)
			u.set.Hooks = Hooks{BeforeCheckpoint: []string{"bc"}, BeforeRestore: []string{"br"}}
			idle := slices.Contains([]string{"start", "restore", "run"}, op)
			if idle {
				u.set.Startup = api.StartStandby
			}
			in(t, u, func(t *testing.T, r *rig) {
				r.f.put(imageURL, 1, false)
				before := r.now()
				if a := r.f.current(); a != nil {
					a.ignores = true // it would end, late, by the signal of a stop that was given up
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(ms)*time.Millisecond)
				defer cancel()
				_, err := r.do(ctx, op)
				if err := r.quiet(); err != nil {
					t.Fatal(err)
				}
				done, _ := outcome(op, before, true, true)
				switch now := r.now(); {
				case err == nil && now != done:
					t.Errorf("%s: the service is %s", op, now)
				case err != nil && (now != before || !errors.Is(err, context.DeadlineExceeded)):
					t.Errorf("%s after %d ms: the service is %s; %v", op, ms, now, err)
				}
			})
		}
	}
}

// TestWaitingIsCancelled: an operation that waits for another gives up with its client.
func TestWaitingIsCancelled(t *testing.T) {
	in(t, usual(), func(t *testing.T, r *rig) {
		release, err := r.f.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.do(ctx, "stop"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		release()
		r.is(t, api.Running)
	})
}

// TestTwoAtOnce: the second waits, and is refused if the first has changed what it
// needs.
func TestTwoAtOnce(t *testing.T) {
	in(t, usual(), func(t *testing.T, r *rig) {
		first := make(chan error, 1)
		go func() {
			_, err := r.do(t.Context(), "checkpoint-end")
			first <- err
		}()
		_, err := r.do(t.Context(), "checkpoint-end")
		errs := []error{err, <-first}
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("%v", errs)
		}
		if errs[0] == nil {
			errs[0] = errs[1]
		}
		if !errdefs.IsFailedPrecondition(errs[0]) || r.f.called("Dump") != 1 {
			t.Errorf("%v", errs)
		}
	})
}

// TestPeriodic checkpoints come at their interval, which may change; one that fails
// is noted and costs only itself.
func TestPeriodic(t *testing.T) {
	u := untied()
	u.set.Interval = 10 * time.Second
	in(t, u, func(t *testing.T, r *rig) {
		count := func(after time.Duration, want int) {
			t.Helper()
			before := r.f.called("Dump")
			time.Sleep(after)
			if err := r.quiet(); err != nil {
				t.Fatal(err)
			}
			if n := r.f.called("Dump") - before; n != want {
				t.Errorf("%d checkpoints in %v, not %d", n, after, want)
			}
		}
		change := func(d time.Duration) {
			t.Helper()
			set := r.settings()
			set.Interval = d
			if err := r.Update(t.Context(), set, false); err != nil {
				t.Fatal(err)
			}
		}
		count(55*time.Second, 5)
		if n := len(r.f.place(imageURL)); n != 2 || r.Status().Checkpoint == nil {
			t.Errorf("%d are kept; %+v", n, r.Status())
		}
		events := r.Events(t.Context(), 0)
		drain(events)
		r.f.arm("Dump", "fail")
		count(10*time.Second, 1)
		notes := slices.DeleteFunc(drain(events), func(e api.Event) bool { return e.Kind != api.EventNote })
		if len(notes) != 1 || !strings.Contains(notes[0].Note, "periodic") {
			t.Errorf("%+v", notes)
		}
		count(10*time.Second, 1)
		change(time.Minute)
		count(50*time.Second, 0)
		count(11*time.Second, 1)
		change(0)
		count(time.Hour, 0)
		change(time.Minute)
		count(61*time.Second, 1)
		if err := r.f.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		count(10*time.Minute, 0)
		if err := r.f.resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		count(time.Minute, 1)
		if _, err := r.do(t.Context(), "standby"); err != nil {
			t.Fatal(err)
		}
		count(10*time.Minute, 0)
	})
}

// TestPeriodicOnce: a container whose first start failed has one clock all the same.
func TestPeriodicOnce(t *testing.T) {
	u := usual()
	u.cold, u.set.Interval = true, 10*time.Second
	in(t, u, func(t *testing.T, r *rig) {
		r.f.arm("Launch", "fail")
		if err := r.boot(nil); err == nil {
			t.Fatal("no error")
		}
		if err := r.boot(nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(35 * time.Second)
		if n := r.f.called("Dump"); n != 3 {
			t.Errorf("%d checkpoints, not 3", n)
		}
	})
}

// TestOvertaken: a container that ends just when an operation has begun, which it
// does not wait for, leaves that one with an error.
func TestOvertaken(t *testing.T) {
	in(t, usual(), func(t *testing.T, r *rig) {
		release, err := r.f.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r.f.exitApp(0)
		<-r.f.done
		o := r.operation("stop")
		if err := r.end(t.Context(), o, defaultStopSignal, defaultStopTimeout); !errdefs.IsFailedPrecondition(err) {
			t.Error(err)
		}
		for _, end := range []ending{endNothing, endService, endContainer} {
			if err := r.save(t.Context(), o, checkpoint{cause: "a test", end: end}); !errdefs.IsFailedPrecondition(err) {
				t.Error(err)
			}
		}
		release()
	})
}
