//go:build linux

package service

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fastmig/fastmig/shim/api"
)

// TestSupervise is which lost FastFreeze is brought back, by annotation.
func TestSupervise(t *testing.T) {
	for _, tc := range []struct {
		supervise   string
		tied, saved bool
		oom         bool
		back        bool
	}{
		{SuperviseNever, true, true, false, false},
		{SuperviseNever, false, true, false, false},
		{SuperviseAlways, true, false, false, true},
		{SuperviseAlways, true, true, true, true},
		{SuperviseAlways, false, false, true, true},
		{SuperviseAuto, true, true, false, true},
		{SuperviseAuto, true, false, false, false},
		{SuperviseAuto, true, true, true, false},
		{SuperviseAuto, false, false, false, true},
		{SuperviseAuto, false, true, true, true},
	} {
		u := usual()
		u.set.Supervise = tc.supervise
		if !tc.tied {
			u.set.OnExit = OnExitDefault
		}
		in(t, u, func(t *testing.T, r *rig) {
			if tc.saved {
				if _, err := r.do(t.Context(), "checkpoint"); err != nil {
					t.Fatal(err)
				}
			}
			r.f.oom = tc.oom
			r.f.loseInit(true)
			if !tc.back {
				<-r.f.done
				r.is(t, api.Ended)
				if r.f.called("Renew") > 0 {
					t.Errorf("%+v: there is a new PID 1", tc)
				}
				return
			}
			r.until(t, api.Running)
			now, st := r.f.current(), r.Status()
			if (now.launch.Image != nil) != tc.saved || now.tied != tc.tied || st.Recoveries != 1 || st.Starts != 2 || st.Reason != "" {
				t.Errorf("%+v: %+v, %+v", tc, now, st)
			}
			if len(r.rec.recoveries) != 1 || r.rec.recoveries[0] != "killed" {
				t.Errorf("%+v: recorded %v", tc, r.rec.recoveries)
			}
		})
	}
}

// TestLostWhileIdle: a container without a running service gets a new PID 1 and
// no service, unless one was about to be started.
func TestLostWhileIdle(t *testing.T) {
	u := untied()
	u.set.Startup = api.StartStandby
	in(t, u, func(t *testing.T, r *rig) {
		r.f.loseInit(true)
		r.until(t, api.Standby)
		if err := r.quiet(); err != nil {
			t.Fatal(err)
		}
		if st := r.Status(); st.Recoveries != 1 || st.Starts != 0 {
			t.Errorf("%+v", st)
		}
		// Whoever asks for it gets it.
		if _, err := r.do(t.Context(), "start"); err != nil {
			t.Error(err)
		}
	})
	in(t, untied(), func(t *testing.T, r *rig) {
		r.f.exitApp(1)
		if err := r.quiet(); err != nil {
			t.Fatal(err)
		}
		r.is(t, api.Exited)
		r.f.loseInit(true)
		r.until(t, api.Running)
		time.Sleep(time.Hour)
		if st := r.Status(); st.Recoveries != 1 || st.Starts != 2 {
			t.Errorf("%+v", st)
		}
	})
}

// TestLostWhilePaused: it comes back running.
func TestLostWhilePaused(t *testing.T) {
	in(t, untied(), func(t *testing.T, r *rig) {
		if err := r.f.pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.f.loseInit(true)
		r.until(t, api.Running)
	})
}

// TestLostInOperations: PID 1 dies in the middle of each. An operation that was to
// end the service leaves it ended, the others leave it running.
func TestLostInOperations(t *testing.T) {
	for _, tc := range []struct {
		op, call string
		standby  bool
	}{
		{"checkpoint", "Freeze", false},
		{"checkpoint", "Dump", false},
		{"checkpoint-end", "Dump", true},
		{"checkpoint-end", "EndService", true},
		{"stop", "EndService", true},
		{"standby", "EndService", true},
	} {
		in(t, untied(), func(t *testing.T, r *rig) {
			r.f.arm(tc.call, "lose")
			if _, err := r.do(t.Context(), tc.op); err == nil {
				t.Errorf("%+v: no error", tc)
			}
			want := api.Running
			if tc.standby && tc.call == "EndService" {
				want = api.Standby
			}
			time.Sleep(time.Minute)
			r.is(t, want)
			if st := r.Status(); st.Recoveries != 1 || (st.LastError == nil) {
				t.Errorf("%+v: %+v", tc, st)
			}
		})
	}
	u := untied()
	u.set.Startup = api.StartStandby
	for _, op := range []string{"start", "restore"} {
		in(t, u, func(t *testing.T, r *rig) {
			r.f.put(imageURL, 1, false)
			r.f.arm("Launch", "lose")
			if _, err := r.do(t.Context(), op); err == nil {
				t.Errorf("%s: no error", op)
			}
			time.Sleep(time.Minute)
			r.is(t, api.Standby)
			if st := r.Status(); st.Recoveries != 1 {
				t.Errorf("%s: %+v", op, st)
			}
		})
	}
}

// TestRestoreIsTriedTwice, if CRIU was killed in the middle of it; then what was
// decided is done.
func TestRestoreIsTriedTwice(t *testing.T) {
	once := func(t *testing.T, r *rig, aborts int) (api.Result, error) {
		r.f.put(imageURL, 7, false)
		for range aborts {
			r.f.arm("Launch", "abort")
		}
		return r.do(t.Context(), "restore")
	}
	u := untied()
	u.set.Startup = api.StartStandby
	in(t, u, func(t *testing.T, r *rig) {
		res, err := once(t, r, 1)
		if err != nil || len(res.Notes) != 1 || !strings.Contains(res.Notes[0], "once more") || r.f.current().count != 7 {
			t.Errorf("%+v, %v", res, err)
		}
	})
	in(t, u, func(t *testing.T, r *rig) {
		if _, err := once(t, r, 2); err == nil || r.f.called("Launch") != 2 {
			t.Errorf("%v, %v", err, r.f.calls)
		}
		r.is(t, api.Standby)
	})
	// By itself: after an exit, and after a loss.
	in(t, untied(), func(t *testing.T, r *rig) {
		r.f.put(imageURL, 7, false)
		r.f.arm("Launch", "abort")
		r.f.arm("Launch", "abort")
		r.f.exitApp(0)
		r.until(t, api.Running)
		if r.f.current().launch.Image != nil || r.f.called("Launch") != 4 {
			t.Errorf("%v", r.f.calls)
		}
	})
	in(t, untied(), func(t *testing.T, r *rig) {
		if _, err := r.do(t.Context(), "checkpoint"); err != nil {
			t.Fatal(err)
		}
		r.f.arm("Launch", "abort")
		r.f.arm("Launch", "abort")
		r.f.loseInit(true)
		r.until(t, api.Running)
		if r.f.current().launch.Image != nil || r.f.called("Launch") != 4 {
			t.Errorf("%v", r.f.calls)
		}
	})
}

// TestDamagedCheckpoint: the one before is used, and that is said; without one the
// service stays away, or starts from scratch if that was allowed.
func TestDamagedCheckpoint(t *testing.T) {
	u := untied()
	u.set.Startup = api.StartStandby
	in(t, u, func(t *testing.T, r *rig) {
		r.f.put(imageURL, 1, false)
		r.f.put(imageURL, 2, true)
		res, err := r.do(t.Context(), "restore")
		if err != nil || len(res.Notes) != 1 || r.f.current().count != 1 || !strings.Contains(r.Status().Reason, "damaged") {
			t.Errorf("%+v, %v, %+v", res, err, r.Status())
		}
	})
	in(t, u, func(t *testing.T, r *rig) {
		r.f.put(imageURL, 2, true)
		if _, err := r.do(t.Context(), "restore"); err == nil {
			t.Error("no error")
		}
		if _, err := r.do(t.Context(), "run"); err == nil {
			t.Error("no error")
		}
		r.is(t, api.Standby)
		res, err := r.Run(t.Context(), api.Run{AllowBadImage: true}, false)
		if err != nil || len(res.Notes) != 1 || r.f.current().launch.Image != nil {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

// TestLostAgainAndAgain ends in standby, and there in the container's end.
func TestLostAgainAndAgain(t *testing.T) {
	u := untied()
	u.node.Supervisor.Restarts = 3
	in(t, u, func(t *testing.T, r *rig) {
		for i := range 3 {
			r.f.loseInit(true)
			r.until(t, api.Running)
			if st := r.Status(); st.Recoveries != i+1 {
				t.Errorf("%+v", st)
			}
		}
		r.f.loseInit(true)
		r.until(t, api.Standby)
		if err := r.quiet(); err != nil {
			t.Fatal(err)
		}
		if st := r.Status(); !strings.Contains(st.Reason, "crash loop") {
			t.Errorf("%+v", st)
		}
		r.f.loseInit(true)
		<-r.f.done
	})
	// Losses that are far apart are no loop.
	u.set.Startup = api.StartStandby
	in(t, u, func(t *testing.T, r *rig) {
		for range 10 {
			time.Sleep(time.Hour)
			r.f.loseInit(true)
			synctest.Wait()
			if err := r.quiet(); err != nil {
				t.Fatal(err)
			}
			r.is(t, api.Standby)
		}
	})
}

// TestRenewFails: then the container ends.
func TestRenewFails(t *testing.T) {
	in(t, untied(), func(t *testing.T, r *rig) {
		r.f.arm("Renew", "fail")
		r.f.loseInit(true)
		<-r.f.done
		if st := r.Status(); st.LastError == nil || st.LastError.Operation != "recover" {
			t.Errorf("%+v", st)
		}
	})
}

// TestNotBroughtBack: what a client ends, and what ends with its service, stays ended.
func TestNotBroughtBack(t *testing.T) {
	in(t, untied(), func(t *testing.T, r *rig) {
		r.Ending(t.Context())
		r.f.loseInit(true)
		<-r.f.done
		if r.f.called("Renew") > 0 {
			t.Error("there is a new PID 1")
		}
	})
}
