//go:build linux

package container

import (
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestEnded(t *testing.T) {
	l := newLab(t).start()
	for script, want := range map[string]Ended{
		"exit 3":        {Status: 3},
		"exit 137":      {Status: 137},
		"kill -KILL $$": {Status: 137, Signaled: true},
	} {
		if got, err := l.background(script).Wait(); err != nil || got != want {
			t.Errorf("%s: %+v, %v", script, got, err)
		}
	}
}

func TestUpdateThenExec(t *testing.T) {
	l := newLab(t).start()
	must(t, l.c.Pause())
	must(t, l.c.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(77))}}))
	must(t, l.c.Resume())
	must(t, l.c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}}))
	if got := l.sh("echo goes on"); got != "goes on" {
		t.Error(got)
	}
	if got := l.read(filepath.Join(l.cgroup("pids"), "pids.max")); got != "77" {
		t.Error(got)
	}
}

// What a tracer that is a thread of this program stops has not ended.
func TestWaitIsNotFooledByATracer(t *testing.T) {
	l := newLab(t).start()
	p := l.background("sleep 1000")
	ended := make(chan Ended, 1)
	go func() {
		e, err := p.Wait()
		if err != nil {
			t.Error(err)
		}
		ended <- e
	}()
	traced := make(chan error, 1)
	go func() {
		// Its tracees go with the thread.
		runtime.LockOSThread()
		traced <- func() error {
			if err := unix.PtraceSeize(p.Pid); err != nil {
				return err
			}
			if err := unix.PtraceInterrupt(p.Pid); err != nil {
				return err
			}
			var ws unix.WaitStatus
			if _, err := unix.Wait4(p.Pid, &ws, unix.WALL, nil); err != nil {
				return err
			}
			return unix.PtraceDetach(p.Pid)
		}()
	}()
	must(t, <-traced)
	select {
	case e := <-ended:
		t.Fatalf("ended: %+v", e)
	default:
	}
	must(t, p.Signal(unix.SIGKILL))
	if e := <-ended; e != (Ended{Status: 137, Signaled: true}) {
		t.Errorf("%+v", e)
	}
}
