//go:build linux

package service

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"pgregory.net/rapid"

	"github.com/fastmig/fastmig/runtime/fastfreeze"
	"github.com/fastmig/fastmig/shim/api"
)

// step is one of a random sequence: one or two operations, and what happens in
// the middle of them.
type step struct {
	Op     string
	Second string // at once with Op
	Event  string // in the middle
	After  int    // ms from the begin of Op to Second and Event
	Cancel int    // ms until Op's client goes away; 0: it stays
	Faults []fault
	Idle   int // seconds that pass at the end
}

func (s step) plain() bool {
	return s.Second == "" && s.Event == "" && s.Cancel == 0 && len(s.Faults) == 0
}

var (
	opNames = []string{
		"start", "restore", "checkpoint", "checkpoint-end", "task", "task-exit", "stop", "standby", "run",
		"checkpoint-run", "pause", "resume", "update-restore", "update-scratch", "update-standby",
		"update-interval", "none",
	}
	eventNames = []string{
		"exit 0", "exit 3", "exit 130", "exit 137", "lose", "oom", "term", "damage",
		"file 0", "file 1", "file 2", "file x", "kill",
	}
	faultCalls = []string{"Launch", "Tie", "Freeze", "Dump", "Open", "Stat", "Signal", "EndService", "EndContainer", "Exec", "Renew", "Breathe"}
	faultKinds = []string{"fail", "abort", "refuse", "hang", "lose", "exit"}
)

func drawSteps(rt *rapid.T) []step {
	often := func(name string, percent int) bool { return rapid.IntRange(0, 99).Draw(rt, name) >= 100-percent }
	return rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
		s := step{Op: rapid.SampledFrom(opNames).Draw(rt, "op")}
		s.After = rapid.IntRange(0, 40).Draw(rt, "after")
		if often("two", 25) {
			s.Second = rapid.SampledFrom(opNames).Draw(rt, "second")
		}
		if often("happens", 40) {
			// A container that is killed ends the sequence, so that is rarer.
			s.Event = rapid.SampledFrom(eventNames[:len(eventNames)-1]).Draw(rt, "event")
			if often("killed", 5) {
				s.Event = "kill"
			}
		}
		if often("cancel", 15) {
			s.Cancel = rapid.IntRange(1, 60).Draw(rt, "ms")
		}
		if often("wrong", 35) {
			s.Faults = rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) fault {
				return fault{
					call:   rapid.SampledFrom(faultCalls).Draw(rt, "call"),
					kind:   rapid.SampledFrom(faultKinds).Draw(rt, "kind"),
					status: rapid.SampledFrom([]int{0, 3, 130, 137}).Draw(rt, "status"),
				}
			}), 1, 3).Draw(rt, "faults")
		}
		s.Idle = rapid.SampledFrom([]int{0, 0, 1, 40, 200}).Draw(rt, "idle")
		return s
	}), 1, 25).Draw(rt, "steps")
}

// do carries out one operation.
func (r *rig) do(ctx context.Context, op string) (res api.Result, err error) {
	no := false
	set := r.settings()
	stage := func() (fastfreeze.Staging, error) { return nil, nil }
	switch op {
	case "start":
		return r.Start(ctx, api.StartRequest{Env: []string{"A=1"}})
	case "restore":
		return r.Restore(ctx, api.RestoreRequest{})
	case "checkpoint":
		return r.Checkpoint(ctx, api.CheckpointRequest{})
	case "checkpoint-end":
		return r.Checkpoint(ctx, api.CheckpointRequest{LeaveRunning: &no})
	case "checkpoint-run":
		return r.CheckpointRun(ctx, api.CheckpointRun{LeaveRunning: true, ImageURL: "file:/ckpt"}, true)
	case "task", "task-exit":
		err = r.CheckpointTask(ctx, Dump{Stage: stage}, op == "task-exit")
	case "stop":
		return r.Stop(ctx, api.StopRequest{Timeout: "1s"})
	case "standby":
		return r.Standby(ctx, api.StopRequest{})
	case "run":
		return r.Run(ctx, api.Run{}, false)
	case "pause":
		err = r.f.pause(ctx)
	case "resume":
		err = r.f.resume(ctx)
	case "update-restore", "update-scratch", "update-standby":
		set.Startup = strings.TrimPrefix(op, "update-")
		err = r.Update(ctx, set, true)
	case "update-interval":
		set.Interval = (30*time.Second - set.Interval) % (31 * time.Second)
		err = r.Update(ctx, set, false)
	}
	return res, err
}

func (r *rig) happen(event string) {
	verb, what, _ := strings.Cut(event, " ")
	switch verb {
	case "exit":
		status := 0
		_, _ = fmt.Sscan(what, &status)
		r.f.exitApp(status)
	case "lose":
		r.f.loseInit(true)
	case "oom":
		r.f.mu.Lock()
		r.f.oom = true
		r.f.mu.Unlock()
		r.f.exitApp(137)
	case "term":
		r.Ending(context.Background())
		_ = r.f.Signal(15)
	case "damage":
		r.f.mu.Lock()
		if p := r.f.places[imageURL]; len(p) > 1 {
			p[len(p)-1].broken = true
		}
		r.f.mu.Unlock()
	case "file":
		_ = os.WriteFile(r.cfg.StartupFile, []byte(what), 0o600)
	case "kill":
		r.f.killContainer()
	}
}

// outcome is what a plain operation leads to in a quiet state: the state after it,
// and whether it is refused.
func outcome(op string, st api.State, tied, there bool) (after api.State, refused bool) {
	in := func(states ...api.State) bool { return slices.Contains(states, st) }
	switch op {
	case "start", "update-scratch":
		return api.Running, !in(api.Standby)
	case "restore", "update-restore":
		return api.Running, !in(api.Standby) || !there
	case "run":
		return api.Running, !in(api.Standby)
	case "checkpoint", "checkpoint-run":
		return st, !in(api.Running)
	case "task":
		return st, !in(api.Running, api.Paused)
	case "checkpoint-end":
		return api.Standby, !in(api.Running)
	case "task-exit":
		if tied {
			return api.Ended, !in(api.Running, api.Paused)
		}
		return api.Standby, !in(api.Running, api.Paused)
	case "stop":
		return api.Standby, !in(api.Running)
	case "standby", "update-standby":
		return api.Standby, !in(api.Standby, api.Running)
	}
	return "", false
}

// play runs a sequence and says what is wrong.
func (r *rig) play(steps []step) []string {
	go r.f.watch()
	if err := r.boot(nil); err != nil {
		return []string{"boot: " + err.Error()}
	}
	for i, s := range steps {
		var bad []string
		if err := r.quiet(); err != nil {
			return []string{err.Error()}
		}
		for _, x := range s.Faults {
			r.f.armFault(x)
		}
		before := r.Status()
		doomed := r.f.doomed()
		paused := r.f.isPaused()
		there := len(r.f.place(imageURL)) > 0
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{}, 2)
		var res api.Result
		var err error
		go func() {
			res, err = r.do(ctx, s.Op)
			ended <- struct{}{}
		}()
		if s.Cancel > 0 {
			time.AfterFunc(time.Duration(s.Cancel)*time.Millisecond, cancel)
		}
		if s.Second != "" || s.Event != "" {
			time.Sleep(time.Duration(s.After) * time.Millisecond)
		}
		if s.Event != "" {
			r.happen(s.Event)
		}
		if s.Second != "" {
			go func() {
				_, _ = r.do(context.Background(), s.Second)
				ended <- struct{}{}
			}()
			<-ended
		}
		<-ended
		cancel()
		// A mode that is so already is not asked for.
		again := s.Op == "update-"+before.Startup && before.State == api.Running
		if s.plain() && !doomed && !again && r.settings().Interval == 0 && before.State != api.Exited && (!paused || before.State == api.Paused) {
			synctest.Wait()
			after, refused := outcome(s.Op, before.State, before.OnExit == OnExitTied, there)
			if refused {
				after = before.State
			}
			switch {
			case after == "":
			case refused != (err != nil) || refused && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err):
				bad = append(bad, fmt.Sprintf("%s when %s: refused should be %v, and the error is: %v", s.Op, before.State, refused, err))
			case r.now() != after:
				bad = append(bad, fmt.Sprintf("%s when %s: the service is %s, not %s", s.Op, before.State, r.now(), after))
			case err == nil && res.State != "" && res.State != after:
				bad = append(bad, fmt.Sprintf("%s when %s: the answer says %s, not %s", s.Op, before.State, res.State, after))
			}
		}
		// What was reported is there.
		if c := res.Checkpoint; err == nil && c != nil && strings.HasPrefix(s.Op, "checkpoint") && s.Second == "" && before.State != api.Exited {
			if p := r.f.place(c.URL); !slices.ContainsFunc(p, func(k kept) bool { return k.digest == c.Digest }) && r.settings().Interval == 0 {
				bad = append(bad, fmt.Sprintf("%s: the checkpoint %s is not in the store: %v", s.Op, c.Digest, p))
			}
		}
		if err := r.quiet(); err != nil {
			return []string{err.Error()}
		}
		r.f.disarm()
		if s.Event != "" || s.Cancel > 0 {
			time.Sleep(20 * time.Millisecond) // a signal may be on its way
			if err := r.quiet(); err != nil {
				return []string{err.Error()}
			}
		}
		bad = append(bad, r.wrong()...)
		if s.Idle > 0 && len(bad) == 0 {
			time.Sleep(time.Duration(s.Idle) * time.Second)
			if err := r.quiet(); err != nil {
				return []string{err.Error()}
			}
			bad = append(bad, r.wrong()...)
		}
		if len(bad) > 0 {
			bad = append(bad, fmt.Sprintf("in step %d: %+v (error: %v); calls: %v", i, s, err, tailOf(r.f.calls, 12)))
			for _, h := range tailOf(r.Status().History, 12) {
				bad = append(bad, fmt.Sprintf("%s -> %s: %s", h.From, h.To, h.Cause))
			}
			return bad
		}
	}
	return nil
}

func tailOf[T any](list []T, n int) []T { return list[max(0, len(list)-n):] }

// doomed says that the application ends as soon as it is thawed, or that its end is
// told then.
func (f *fake) doomed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.app != nil && f.app.pending != nil || len(f.unsaid) > 0
}

func (f *fake) isPaused() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.paused
}

func (f *fake) place(url string) []kept {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.places[url])
}

// TestRandomSequences drives services against a faithful container. For a long run:
// go test -race -run TestRandomSequences -rapid.checks=5000.
func TestRandomSequences(t *testing.T) {
	decider := deciding(t, `case "$1" in
*'"exit_status":0,'*) echo restore;;
*'"exit_status":3,'*) echo 0;;
*'"exit_status":130,'*) echo standby;;
*'"event":"start_failed"'*) echo scratch;;
*) exit 1;;
esac`)
	for name, u := range map[string]setup{"tied": usual(), "default": untied(), "decider": decider} {
		for _, supervise := range []string{SuperviseAuto, SuperviseAlways, SuperviseNever} {
			t.Run(name+"/"+supervise, func(t *testing.T) {
				dir := t.TempDir()
				runs := 0
				rapid.Check(t, func(rt *rapid.T) {
					u := u
					u.set.Supervise = supervise
					u.seed = rapid.Uint64().Draw(rt, "seed")
					u.set.Startup = rapid.SampledFrom([]string{api.StartScratch, api.StartStandby}).Draw(rt, "startup")
					if rapid.Bool().Draw(rt, "hooks") {
						u.set.Hooks = Hooks{BeforeCheckpoint: []string{"bc"}, AfterCheckpoint: []string{"ac"}, BeforeRestore: []string{"br"}, AfterRestore: []string{"ar"}}
					}
					steps := drawSteps(rt)
					runs++
					u.file = filepath.Join(dir, fmt.Sprint(runs))
					var bad []string
					synctest.Test(t, func(t *testing.T) {
						r := u.rig()
						bad = r.play(steps)
						if bad == nil {
							bad = r.shut()
						} else {
							r.shut()
						}
					})
					if len(bad) > 0 {
						rt.Fatal(strings.Join(bad, "\n"))
					}
				})
			})
		}
	}
}
