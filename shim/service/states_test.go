//go:build linux

package service

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
)

var allStates = []api.State{
	api.Standby, api.Starting, api.Restoring, api.Running, api.Paused,
	api.Checkpointing, api.Stopping, api.Exited, api.Recovering, api.Ended,
}

// TestRefusals has each operation come in each state.
func TestRefusals(t *testing.T) {
	idle := []api.State{api.Standby, api.Exited}
	allowed := map[string][]api.State{
		"start":          idle,
		"restore":        idle,
		"run":            idle,
		"update-restore": idle,
		// The startup mode that it has: of a service that runs nothing is wanted.
		"update-scratch": append([]api.State{api.Running}, idle...),
		"checkpoint":     {api.Running, api.Paused},
		"checkpoint-run": {api.Running, api.Paused},
		"checkpoint-end": {api.Running, api.Paused},
		"task":           {api.Running, api.Paused},
		"task-exit":      {api.Running, api.Paused},
		"stop":           {api.Running, api.Exited},
		"standby":        {api.Standby, api.Running, api.Exited},
		"update-standby": {api.Standby, api.Running, api.Exited},
	}
	for op, states := range allowed {
		for _, state := range allStates {
			if slices.Contains(states, state) {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				u := usual()
				u.set.Startup = api.StartStandby
				r := u.rig()
				r.f.put(imageURL, 1, false)
				r.state = state
				before := r.settings()
				_, err := r.do(t.Context(), op)
				if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "is "+string(state)) {
					t.Errorf("%s when %s: %v", op, state, err)
				}
				if len(r.f.calls) > 0 || r.now() != state || len(r.Status().History) > 0 || len(r.rec.operations) > 0 {
					t.Errorf("%s when %s did something: %v", op, state, r.f.calls)
				}
				if !sameSettings(before, r.settings()) {
					t.Errorf("%s when %s changed the settings to %+v", op, state, r.settings())
				}
			})
		}
	}
}

func sameSettings(a, b Settings) bool { return fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) }

// TestRefusedWhenPaused: what needs a container that runs says so, and changes nothing.
func TestRefusedWhenPaused(t *testing.T) {
	u := usual()
	u.set.Startup = api.StartStandby
	for _, op := range []string{"start", "restore", "run"} {
		in(t, u, func(t *testing.T, r *rig) {
			if err := r.f.pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := r.do(t.Context(), op); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%s: %v", op, err)
			}
			r.is(t, api.Standby)
		})
	}
	in(t, usual(), func(t *testing.T, r *rig) {
		if err := r.f.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.is(t, api.Paused)
		for _, op := range []string{"checkpoint", "checkpoint-end"} {
			if _, err := r.do(t.Context(), op); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%s: %v", op, err)
			}
		}
		r.is(t, api.Paused)
	})
}

// TestTable: from everywhere a container can end, and all but that is refused by a
// panic, being a bug.
func TestTable(t *testing.T) {
	for _, from := range allStates {
		next, there := transitions[from]
		if !there {
			t.Errorf("%s is not in the table", from)
		}
		if from != api.Ended && !slices.Contains(next, api.Ended) {
			t.Errorf("%s cannot end", from)
		}
		for _, to := range allStates {
			m := machine{state: from, hub: newHub()}
			moved, panicked := false, false
			func() {
				defer func() { panicked = recover() != nil }()
				moved = m.to(to, "a test")
			}()
			legal := slices.Contains(next, to)
			if moved != legal || panicked != (!legal && from != api.Ended) {
				t.Errorf("%s -> %s: moved %v, panicked %v", from, to, moved, panicked)
			}
		}
	}
}

// TestBadInput is refused before anything is done.
func TestBadInput(t *testing.T) {
	ctx := context.Background()
	for name, do := range map[string]func(*rig) error{
		"env":       func(r *rig) error { _, err := r.Start(ctx, api.StartRequest{Env: []string{"=x"}}); return err },
		"run env":   func(r *rig) error { _, err := r.Run(ctx, api.Run{Envs: []string{"x"}}, false); return err },
		"app_args":  func(r *rig) error { _, err := r.Run(ctx, api.Run{AppArgs: `a "b`}, false); return err },
		"on ready":  func(r *rig) error { _, err := r.Run(ctx, api.Run{OnAppReady: `a 'b`}, false); return err },
		"url":       func(r *rig) error { _, err := r.Restore(ctx, api.RestoreRequest{ImageURL: "file:rel"}); return err },
		"scheme":    func(r *rig) error { _, err := r.Run(ctx, api.Run{ImageURL: "s3:x"}, false); return err },
		"signal":    func(r *rig) error { _, err := r.Stop(ctx, api.StopRequest{Signal: "65"}); return err },
		"signal 2":  func(r *rig) error { _, err := r.Stop(ctx, api.StopRequest{Signal: "SIGNAL"}); return err },
		"timeout":   func(r *rig) error { _, err := r.Stop(ctx, api.StopRequest{Timeout: "-1s"}); return err },
		"timeout 2": func(r *rig) error { _, err := r.Standby(ctx, api.StopRequest{Timeout: "soon"}); return err },
		"hook": func(r *rig) error {
			_, err := r.Start(ctx, api.StartRequest{Hooks: &api.Hooks{AfterRestore: []string{""}}})
			return err
		},
		"hook time": func(r *rig) error {
			_, err := r.Restore(ctx, api.RestoreRequest{Hooks: &api.Hooks{Timeout: "0s"}})
			return err
		},
		"tcp": func(r *rig) error { _, err := r.Checkpoint(ctx, api.CheckpointRequest{TCP: "drop"}); return err },
	} {
		u := usual()
		u.cold = true
		in(t, u, func(t *testing.T, r *rig) {
			if err := do(r); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v", name, err)
			}
			if len(r.f.calls) > 0 || len(r.Status().History) > 0 {
				t.Errorf("%s did something: %v", name, r.f.calls)
			}
		})
	}
	for name, run := range map[string]api.Run{"passphrase": {PassphraseFile: "/p"}} {
		u := usual()
		u.cold = true
		in(t, u, func(t *testing.T, r *rig) {
			if _, err := r.Run(ctx, run, false); !errdefs.IsNotImplemented(err) {
				t.Errorf("%s: %v", name, err)
			}
			c := api.CheckpointRun{PassphraseFile: run.PassphraseFile}
			if _, err := r.CheckpointRun(ctx, c, false); !errdefs.IsNotImplemented(err) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// TestEvents have numbers without gaps, in the order of the history, also for one
// who comes late.
func TestEvents(t *testing.T) {
	in(t, usual(), func(t *testing.T, r *rig) {
		live := r.Events(t.Context(), 0)
		if _, err := r.do(t.Context(), "checkpoint"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.do(t.Context(), "stop"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		all := drain(live)
		late := drain(r.Events(t.Context(), 0))
		if fmt.Sprint(numbers(all)) != fmt.Sprint(numbers(late)) {
			t.Errorf("live %v, late %v", numbers(all), numbers(late))
		}
		var to []api.State
		steps := map[string]bool{}
		for i, e := range all {
			if e.Seq != uint64(i+1) || e.At.IsZero() {
				t.Errorf("event %d: %+v", i, e)
			}
			switch e.Kind {
			case api.EventState:
				to = append(to, e.Transition.To)
			case api.EventProgress:
				steps[e.Progress.Operation+" "+e.Progress.Step] = true
			}
		}
		want := "[starting running checkpointing running stopping standby]"
		if fmt.Sprint(to) != want || !steps["checkpoint freeze"] || !steps["checkpoint dump"] {
			t.Errorf("%v, %v", to, steps)
		}
		if rest := drain(r.Events(t.Context(), all[2].Seq)); len(rest) != len(all)-3 || rest[0].Seq != 4 {
			t.Errorf("after 3: %v", numbers(rest))
		}
		// A number of another life of the shim gives all.
		if rest := drain(r.Events(t.Context(), 10000)); len(rest) != len(all) {
			t.Errorf("after 10000: %v", numbers(rest))
		}
		// A listener that goes away is forgotten.
		ctx, cancel := context.WithCancel(t.Context())
		gone := r.Events(ctx, all[len(all)-1].Seq)
		cancel()
		if _, open := <-gone; open {
			t.Error("the listener's channel is open after its end")
		}
		// All others are told the end.
		r.f.killContainer()
		<-r.f.done
		last := api.Event{}
		for e := range live {
			last = e
		}
		if last.Transition == nil || last.Transition.To != api.Ended {
			t.Errorf("the last event: %+v", last)
		}
		n := 0
		for range r.Events(t.Context(), 0) {
			n++
		}
		if n != len(all)+1 {
			t.Errorf("after the end %d events are known, not %d", n, len(all)+1)
		}
	})
}

// TestEventsAreBounded: nobody waits for a listener that does not read.
func TestEventsAreBounded(t *testing.T) {
	h := newHub()
	slow := h.listen(t.Context(), 0)
	for range 3 * eventsKept {
		h.send(api.Event{Kind: api.EventNote})
	}
	if n := len(slow); n != eventsKept+listenerQueue {
		t.Errorf("%d wait for the slow listener", n)
	}
	late := h.listen(t.Context(), 0)
	if e := <-late; len(late) != eventsKept-1 || e.Seq != 2*eventsKept+1 {
		t.Errorf("a late listener gets %d, from %d", len(late)+1, e.Seq)
	}
}

func drain(c <-chan api.Event) (list []api.Event) {
	for {
		select {
		case e := <-c:
			list = append(list, e)
		default:
			return list
		}
	}
}

func numbers(list []api.Event) (out []uint64) {
	for _, e := range list {
		out = append(out, e.Seq)
	}
	return out
}

// TestStatus tells a service's life.
func TestStatus(t *testing.T) {
	in(t, untied(), func(t *testing.T, r *rig) {
		st := r.Status()
		if st.ID != "web" || st.Namespace != "default" || st.Container != "running" || st.InitPid != 1 || st.AppPid != r.f.current().pid ||
			st.Starts != 1 || st.StartedAt == nil || st.EndedAt != nil || st.Startup != api.StartScratch || st.OnExit != OnExitDefault ||
			st.Supervise != SuperviseAuto || st.ImageURL != imageURL || st.Checkpoint != nil || st.LastError != nil {
			t.Errorf("running: %+v", st)
		}
		time.Sleep(time.Hour)
		if st.Since != r.Status().Since {
			t.Error("since moves without a transition")
		}
		res, err := r.Checkpoint(t.Context(), api.CheckpointRequest{})
		if err != nil || res.AppPid != st.AppPid || res.Away <= 0 || res.Seconds < res.Away || res.Checkpoint == nil {
			t.Errorf("%+v, %v", res, err)
		}
		r.f.exitApp(130)
		r.until(t, api.Standby)
		st = r.Status()
		if st.AppPid != 0 || st.EndedAt == nil || st.ExitStatus == nil || *st.ExitStatus != 130 || st.Checkpoint.Digest != res.Checkpoint.Digest {
			t.Errorf("ended: %+v", st)
		}
		r.f.arm("Open", "fail")
		if _, err := r.do(t.Context(), "restore"); err == nil {
			t.Fatal("no error")
		}
		st = r.Status()
		if st.LastError == nil || st.LastError.Operation != "restore" || st.LastError.At.IsZero() || !strings.Contains(st.LastError.Error.Message, "to fail") || !strings.Contains(st.Reason, "to fail") {
			t.Errorf("failed: %+v, %+v", st, st.LastError)
		}
		for range historyKept {
			_, _ = r.do(t.Context(), "start")
			_, _ = r.do(t.Context(), "standby")
		}
		if st = r.Status(); len(st.History) != historyKept || st.Reason != "" {
			t.Errorf("%d steps are kept; reason %q", len(st.History), st.Reason)
		}
	})
}
