//go:build linux

package service

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/shim/api"
)

const imageURL = "node:web"

// rig is a service in a fake container, in a synctest bubble.
type rig struct {
	*Service
	f   *fake
	rec *recorder
}

// setup is what a test wants otherwise than usual: a service that starts from
// scratch, tied, with an image URL.
type setup struct {
	set   Settings
	node  *config.Config
	file  string // the startup file
	env   []string
	seed  uint64
	store func(*fake)
	// cold leaves the service in standby without having been booted.
	cold bool
}

func usual() setup {
	return setup{
		set: Settings{
			Startup: api.StartScratch, OnExit: OnExitTied, Supervise: SuperviseAuto, ImageURL: imageURL,
		},
		node: config.Default(),
	}
}

func untied() setup {
	u := usual()
	u.set.OnExit = OnExitDefault
	return u
}

func (u setup) rig() *rig {
	f, rec := newFake(u.seed), &recorder{}
	s := New(Config{
		ID: "web", Namespace: "default", Args: []string{"serve"}, Env: u.env,
		Settings: u.set, Node: u.node, Body: f, Recorder: rec, StartupFile: u.file,
	})
	f.svc = s
	if u.store != nil {
		u.store(f)
	}
	return &rig{s, f, rec}
}

// boot starts the service as its container does.
func (r *rig) boot(image *Image) error {
	release, err := r.f.Acquire(context.Background())
	if err != nil {
		return err
	}
	defer release()
	return r.Boot(context.Background(), image)
}

// shut ends container and service, and says what is wrong then.
func (r *rig) shut() []string {
	r.f.killContainer()
	<-r.f.done
	r.Close()
	problems := r.f.problems
	if left := leftover(); left != "" {
		problems = append(problems, "a goroutine is left:\n"+left)
	}
	// Time stops when a bubble's test returns, and what still sleeps would be stuck.
	time.Sleep(2 * hangLimit)
	if r.now() != api.Ended {
		problems = append(problems, "the service is "+string(r.now())+" after its end")
	}
	return append(problems, r.wrong()...)
}

// leftover is the stack of a goroutine of the service's that is still there.
func leftover() string {
	synctest.Wait()
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	stacks := strings.Split(string(buf), "\n\n")
	bubble := stacks[0][strings.Index(stacks[0], "synctest bubble"):]
	bubble = bubble[:strings.IndexByte(bubble, ']')+1]
	for _, one := range stacks[1:] {
		head, _, _ := strings.Cut(one, "\n")
		if strings.Contains(head+"]", bubble) && strings.Contains(one, "service.(*Service)") {
			return one
		}
	}
	return ""
}

// quiet waits until no operation is under way.
func (r *rig) quiet() error {
	pause := time.Millisecond
	for i := range 10000 {
		synctest.Wait()
		if len(r.f.lock) == 0 {
			return nil
		}
		if i == 1000 {
			pause *= 100
		}
		time.Sleep(pause)
	}
	return fmt.Errorf("the operation lock is held for ever; the service is %s", r.now())
}

// wrong says which invariants do not hold between operations.
func (r *rig) wrong() []string {
	var bad []string
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	st := r.Status()
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	bad = append(bad, r.f.problems...)
	alive := !isClosed(r.f.gone)
	if len(r.f.lock) != 0 {
		say("the operation lock is held")
	}
	if r.f.frozen {
		say("the container is frozen after an operation")
	}
	if r.f.images != 0 {
		say("%d images are open", r.f.images)
	}
	if (st.State == api.Ended) != r.f.ended {
		say("the service is %s, the container ended: %v", st.State, r.f.ended)
	}
	if !r.f.ended && !alive {
		say("PID 1 is dead, and nobody does anything about it; the service is %s", st.State)
	}
	switch st.State {
	case api.Ended:
	case api.Running, api.Paused:
		if r.f.app == nil && st.State == api.Paused && len(r.f.unsaid) > 0 {
			break // PID 1 is frozen, and has not said that it ended
		}
		if r.f.app == nil {
			say("the service is %s and there is none", st.State)
		} else {
			if r.f.app.pid != st.AppPid {
				say("the service is pid %d, status says %d", r.f.app.pid, st.AppPid)
			}
			if !r.isEnding() && r.f.app.tied != r.settings().tied() {
				say("PID 1 holds the container tied: %v, on-exit is %s", r.f.app.tied, r.settings().OnExit)
			}
		}
		if (st.State == api.Paused) != r.f.paused {
			say("the service is %s, the container paused: %v", st.State, r.f.paused)
		}
	case api.Standby, api.Exited:
		if r.f.app != nil {
			say("the service is %s and one lives", st.State)
		}
		if st.AppPid != 0 {
			say("the service is %s with pid %d", st.State, st.AppPid)
		}
		if (st.State == api.Exited) != (st.NextStart != nil) {
			say("the service is %s, its next start: %v", st.State, st.NextStart)
		}
	default:
		say("the service is %s and nothing is under way", st.State)
	}
	if c := st.Checkpoint; c != nil && !slices.ContainsFunc(r.f.places[c.URL], func(k kept) bool { return k.count >= int(c.Bytes) }) {
		say("the checkpoint %s that was reported whole is not there: %v", c.Digest, r.f.places[c.URL])
	}
	return append(bad, wrongHistory(st)...)
}

func wrongHistory(st api.Status) []string {
	var bad []string
	from := api.Standby
	if len(st.History) == historyKept {
		from = st.History[0].From
	}
	for _, h := range st.History {
		if h.From != from {
			bad = append(bad, fmt.Sprintf("a gap in the history: %s, then %s -> %s", from, h.From, h.To))
		}
		if !slices.Contains(transitions[h.From], h.To) {
			bad = append(bad, fmt.Sprintf("a transition that is none: %s -> %s", h.From, h.To))
		}
		if h.Cause == "" || h.At.IsZero() {
			bad = append(bad, fmt.Sprintf("%s -> %s has no cause or time", h.From, h.To))
		}
		from = h.To
	}
	if from != st.State {
		bad = append(bad, fmt.Sprintf("the history ends with %s, the service is %s", from, st.State))
	}
	return bad
}

// in runs a test with a booted service, and checks the invariants at its end.
func in(t *testing.T, u setup, do func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := u.rig()
		go r.f.watch()
		defer func() {
			for _, p := range r.shut() {
				t.Error(p)
			}
		}()
		if !u.cold {
			if err := r.boot(nil); err != nil {
				t.Fatal(err)
			}
		}
		do(t, r)
		if err := r.quiet(); err != nil {
			t.Fatal(err)
		}
		for _, w := range r.wrong() {
			t.Error(w)
		}
	})
}

// until waits for a state; virtual time passes.
func (r *rig) until(t *testing.T, want api.State) {
	t.Helper()
	for range 100000 {
		synctest.Wait()
		if r.now() == want && len(r.f.lock) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("the service is %s and never %s; history: %v", r.now(), want, r.Status().History)
}

func (r *rig) is(t *testing.T, want api.State) {
	t.Helper()
	synctest.Wait()
	if got := r.now(); got != want {
		t.Errorf("the service is %s, not %s; history: %v", got, want, r.Status().History)
	}
}

// rootsFolder is one that only root may write, with all above it.
func rootsFolder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/lib", "fastmig-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// deciding makes a decider, and a setup that has it.
func deciding(t *testing.T, script string) setup {
	t.Helper()
	path := filepath.Join(rootsFolder(t), "decide")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	u := usual()
	u.set.OnExit = path
	u.node.Deciders.Allow = []string{path}
	return u
}
