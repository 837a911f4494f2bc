//go:build linux

package container

import (
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
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
