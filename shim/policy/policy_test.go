//go:build linux

package policy

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/shim/api"
)

func TestDefault(t *testing.T) {
	for status, want := range map[int]Mode{
		0:   api.StartRestore,
		1:   api.StartScratch,
		127: api.StartScratch,
		128: api.StartStandby,
		137: api.StartStandby,
		159: api.StartStandby,
		160: api.StartScratch,
		255: api.StartScratch,
	} {
		if got := Default(Event{ExitStatus: status}); got != want {
			t.Errorf("%d: %s, want %s", status, got, want)
		}
	}
}

func TestParseAnswer(t *testing.T) {
	for in, want := range map[string]Mode{
		"scratch":           api.StartScratch,
		"restore\n":         api.StartRestore,
		"  standby because": api.StartStandby,
		"0":                 api.StartScratch,
		"1\n":               api.StartRestore,
		"2":                 api.StartStandby,
	} {
		if got, err := ParseAnswer(in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"", " \n", "3", "Restore", "restore!", "scratchy"} {
		if got, err := ParseAnswer(in); !errdefs.IsInvalidArgument(err) || got != "" {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	b := NewBackoff(config.Supervisor{
		Backoff:    config.Duration(100 * time.Millisecond),
		BackoffMax: config.Duration(700 * time.Millisecond),
		Restarts:   5,
		Healthy:    config.Duration(time.Minute),
	})
	row := func(waits ...time.Duration) {
		t.Helper()
		for i, want := range waits {
			if got, ok := b.Next(time.Second); !ok || got != want*time.Millisecond || b.Restarts() != i+1 {
				t.Fatalf("restart %d: %v, %v, counted %d; want %v ms", i+1, got, ok, b.Restarts(), int(want))
			}
		}
	}
	row(100, 200, 400, 700, 700)
	if _, ok := b.Next(time.Second); ok {
		t.Error("the sixth in a row is allowed")
	}
	if _, ok := b.Next(59 * time.Second); ok || b.Restarts() != 5 {
		t.Error("a life that was too short ends the crash loop")
	}
	if wait, ok := b.Next(time.Minute); !ok || wait != 100*time.Millisecond || b.Restarts() != 1 {
		t.Errorf("after a healthy life: %v, %v, counted %d", wait, ok, b.Restarts())
	}
	b.Reset()
	row(100, 200, 400)
}

func TestBackoffDoesNotOverflow(t *testing.T) {
	most := config.Duration(1<<63 - 1)
	b := NewBackoff(config.Supervisor{Backoff: most - 1, BackoffMax: most, Restarts: 200, Healthy: most})
	for range 200 {
		if wait, ok := b.Next(0); !ok || wait < time.Duration(most-1) {
			t.Fatalf("%v, %v", wait, ok)
		}
	}
}
