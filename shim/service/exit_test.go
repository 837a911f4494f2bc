//go:build linux

package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/shim/api"
)

// TestDefaultLogic is the paper's: 0 restores, a signal leaves in standby, the rest
// starts from scratch.
func TestDefaultLogic(t *testing.T) {
	for status, want := range map[int]string{
		0: "restore", 1: "scratch", 127: "scratch", 128: "standby", 130: "standby", 137: "standby", 143: "standby",
		159: "standby", 160: "scratch",
	} {
		in(t, untied(), func(t *testing.T, r *rig) {
			if _, err := r.do(t.Context(), "checkpoint"); err != nil {
				t.Fatal(err)
			}
			first := r.f.current()
			r.f.exitApp(status)
			if want == "standby" {
				r.until(t, api.Standby)
				if st := r.Status(); *st.ExitStatus != status || st.Starts != 1 || !strings.Contains(st.Reason, "the default logic") {
					t.Errorf("%d: %+v", status, st)
				}
				return
			}
			if err := r.quiet(); err != nil {
				t.Fatal(err)
			}
			st := r.Status()
			if st.State != api.Exited || st.NextStart == nil || st.Restarts != 1 || !strings.Contains(st.Reason, want) {
				t.Errorf("%d: %+v", status, st)
			}
			r.until(t, api.Running)
			now := r.f.current()
			if now == first || (now.launch.Image != nil) != (want == "restore") || now.tied {
				t.Errorf("%d: %+v", status, now)
			}
			if st := r.Status(); st.NextStart != nil || st.Reason != "" || st.Starts != 2 {
				t.Errorf("%d: %+v", status, st)
			}
		})
	}
}

// TestTiedEnds: the container of a tied service ends with it, as if the shim were
// not there.
func TestTiedEnds(t *testing.T) {
	in(t, usual(), func(t *testing.T, r *rig) {
		r.f.exitApp(3)
		<-r.f.done
		synctest.Wait()
		st := r.Status()
		if st.State != api.Ended || st.ExitStatus == nil || *st.ExitStatus != 3 || st.Starts != 1 || st.EndedAt == nil {
			t.Errorf("%+v", st)
		}
	})
}

// TestDeciders: what one answers is done; one that does not leaves the service in
// standby, and the reason is told.
func TestDeciders(t *testing.T) {
	for answer, want := range map[string]api.State{
		"echo scratch": api.Running, "echo 1": api.Running, "echo standby": api.Standby,
		"echo maybe": api.Standby, "exit 7": api.Standby, "true": api.Standby,
	} {
		in(t, deciding(t, answer), func(t *testing.T, r *rig) {
			r.f.exitApp(1)
			synctest.Wait()
			r.until(t, want)
			st := r.Status()
			bad := !strings.HasPrefix(answer, "echo") || answer == "echo maybe"
			if bad != strings.Contains(st.Reason, "the decider failed") || bad != (st.LastError != nil) {
				t.Errorf("%s: %+v", answer, st)
			}
		})
	}
	notAllowed := deciding(t, "echo scratch")
	notAllowed.node.Deciders.Allow = nil
	in(t, notAllowed, func(t *testing.T, r *rig) {
		r.f.exitApp(1)
		r.until(t, api.Standby)
		if st := r.Status(); !strings.Contains(st.Reason, "not allowed") || st.LastError.Error.Kind != "permission_denied" {
			t.Errorf("%+v", st)
		}
	})
}

// TestDeciderHangs needs real time: a program that runs is no part of the bubble's.
func TestDeciderHangs(t *testing.T) {
	u := deciding(t, "exec sleep 1000")
	u.node.Deciders.Timeout = config.Duration(50 * time.Millisecond)
	r := u.rig()
	go r.f.watch()
	defer func() {
		r.f.killContainer()
		<-r.f.done
		r.Close()
	}()
	if err := r.boot(nil); err != nil {
		t.Fatal(err)
	}
	events := r.Events(t.Context(), 0)
	r.f.exitApp(1)
	for e := range events {
		if e.Transition != nil && e.Transition.To == api.Standby {
			break
		}
	}
	if st := r.Status(); !strings.Contains(st.Reason, "no answer within") {
		t.Errorf("%+v", st)
	}
}

// TestCrashLoop: the waits double, and after the last the service is in standby.
func TestCrashLoop(t *testing.T) {
	u := untied()
	u.node.Supervisor.Restarts = 4
	u.file = filepath.Join(t.TempDir(), "startup")
	in(t, u, func(t *testing.T, r *rig) {
		var waits []time.Duration
		for range u.node.Supervisor.Restarts {
			r.f.exitApp(1)
			if err := r.quiet(); err != nil {
				t.Fatal(err)
			}
			next := r.Status().NextStart
			if next == nil {
				t.Fatalf("no next start: %+v", r.Status())
			}
			waits = append(waits, time.Until(*next))
			r.until(t, api.Running)
		}
		for i, w := range waits {
			if late := 100*time.Millisecond<<i - w; late < 0 || late > 2*time.Millisecond {
				t.Errorf("waits: %v", waits)
			}
		}
		r.f.exitApp(1)
		r.until(t, api.Standby)
		st := r.Status()
		if !strings.Contains(st.Reason, "crash loop") || !strings.Contains(st.Reason, "status 1") || st.Restarts != 4 || st.Starts != 5 {
			t.Errorf("%+v", st)
		}
		if text, err := os.ReadFile(u.file); err != nil || string(text) != "2\n" {
			t.Errorf("the startup file: %q, %v", text, err)
		}
		// A request begins anew.
		if _, err := r.do(t.Context(), "start"); err != nil || r.Status().Restarts != 0 {
			t.Errorf("%v, %+v", err, r.Status())
		}
	})
}

// TestStartThatFails is an exit, too.
func TestStartThatFails(t *testing.T) {
	u := untied()
	u.node.Supervisor.Restarts = 2
	in(t, u, func(t *testing.T, r *rig) {
		for range 3 {
			r.f.arm("Launch", "fail")
		}
		r.f.exitApp(1)
		r.until(t, api.Standby)
		if st := r.Status(); !strings.Contains(st.Reason, "crash loop") || !strings.Contains(st.Reason, "to fail") || r.f.called("Launch") != 3 {
			t.Errorf("%+v; %v", st, r.f.calls)
		}
	})
}

// TestHealthyAgain: a service that lived long enough has all its restarts again.
func TestHealthyAgain(t *testing.T) {
	u := untied()
	u.node.Supervisor.Restarts = 1
	in(t, u, func(t *testing.T, r *rig) {
		for range 5 {
			time.Sleep(time.Duration(u.node.Supervisor.Healthy))
			r.f.exitApp(1)
			if err := r.quiet(); err != nil {
				t.Fatal(err)
			}
			r.until(t, api.Running)
		}
		r.f.exitApp(1)
		r.until(t, api.Standby)
	})
}

// TestRestartCancelled by whoever asks for another thing meanwhile.
func TestRestartCancelled(t *testing.T) {
	for op, want := range map[string]api.State{
		"stop": api.Standby, "standby": api.Standby, "update-standby": api.Standby, "start": api.Running,
	} {
		in(t, untied(), func(t *testing.T, r *rig) {
			r.f.exitApp(1)
			if err := r.quiet(); err != nil {
				t.Fatal(err)
			}
			r.is(t, api.Exited)
			if _, err := r.do(t.Context(), op); err != nil {
				t.Fatalf("%s: %v", op, err)
			}
			launches := r.f.called("Launch")
			r.is(t, want)
			time.Sleep(time.Hour)
			r.is(t, want)
			if r.f.called("Launch") != launches || r.Status().NextStart != nil {
				t.Errorf("%s: it was started again: %+v", op, r.Status())
			}
		})
	}
}

// TestRestartWaitsForPause: nothing is started in a container that the client paused.
func TestRestartWaitsForPause(t *testing.T) {
	in(t, untied(), func(t *testing.T, r *rig) {
		r.f.exitApp(1)
		if err := r.quiet(); err != nil {
			t.Fatal(err)
		}
		if err := r.f.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		r.is(t, api.Exited)
		if err := r.f.resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.until(t, api.Running)
	})
}

// TestStartupFile: what is written there while an exited service waits, is done.
func TestStartupFile(t *testing.T) {
	for text, want := range map[string]string{"0": "scratch", "1\n": "restore", " 2 ": "standby", "3": "restore", "": "restore"} {
		u := untied()
		u.file = filepath.Join(t.TempDir(), "startup")
		in(t, u, func(t *testing.T, r *rig) {
			r.f.put(imageURL, 5, false)
			r.f.exitApp(0)
			if err := r.quiet(); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(u.file); err != nil || string(got) != "1\n" {
				t.Errorf("the decision in the file: %q, %v", got, err)
			}
			if err := os.WriteFile(u.file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if want == "standby" {
				r.until(t, api.Standby)
				return
			}
			r.until(t, api.Running)
			if got := r.f.current().launch.Image != nil; got != (want == "restore") {
				t.Errorf("%q: restored %v", text, got)
			}
		})
	}
	// And at the container's start.
	u := untied()
	u.file = filepath.Join(t.TempDir(), "startup")
	if err := os.WriteFile(u.file, []byte("2"), 0o600); err != nil {
		t.Fatal(err)
	}
	in(t, u, func(t *testing.T, r *rig) { r.is(t, api.Standby) })
}

// TestEnding: a client's SIGTERM ends the container with its service, whatever the
// logic says.
func TestEnding(t *testing.T) {
	for _, status := range []int{0, 1, 143} {
		in(t, untied(), func(t *testing.T, r *rig) {
			r.Ending(t.Context())
			r.f.exitApp(status)
			<-r.f.done
			r.is(t, api.Ended)
		})
	}
}

// TestStayedContainer: a tied service that ends by itself while a stop is under way
// that is given up ends its container all the same.
func TestStayedContainer(t *testing.T) {
	in(t, usual(), func(t *testing.T, r *rig) {
		r.f.arm("Dump", "exit") // it is frozen: it ends when it is thawed, untied
		r.f.arm("Dump", "fail")
		if _, err := r.do(t.Context(), "checkpoint-end"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.do(t.Context(), "start"); err != nil {
			t.Fatal(err)
		}
		r.f.current().pending = new(int)
		if _, err := r.do(t.Context(), "checkpoint-end"); err == nil {
			t.Fatal("no error")
		}
		<-r.f.done
	})
}
