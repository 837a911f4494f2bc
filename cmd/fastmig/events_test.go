//go:build linux

package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/fastmig/fastmig/shim/api"
)

func state(at time.Time, seq uint64, to api.State) api.Event {
	return api.Event{Seq: seq, At: at, Kind: api.EventState, Transition: &api.Transition{At: at, From: api.Standby, To: to, Cause: "request"}}
}

func TestEventsOfOne(t *testing.T) {
	testNode(t)
	s := testShim(t, "default", "web")
	s.events <- state(then, 8, api.Starting)
	s.events <- api.Event{Seq: 9, At: then, Kind: api.EventProgress, Progress: &api.Progress{Operation: "restore", Step: "verify", Bytes: 1 << 20, Total: 1 << 21, Percent: 50}}
	s.events <- api.Event{Seq: 10, At: then, Kind: api.EventNote, Note: "a\nnote"}
	close(s.events) // the container ends, and with it the command
	code, stdout, stderr := fastmig(t, "events", "we", "--since", "7")
	want := `2026-03-01T12:00:00.000Z default/web state standby -> starting: request
2026-03-01T12:00:00.000Z default/web progress restore verify 50% 1.0 MiB of 2.0 MiB
2026-03-01T12:00:00.000Z default/web note a note
`
	if code != 0 || stderr != "" || stdout != want {
		t.Errorf("exit %d, %s\n%s\nwant\n%s", code, stderr, stdout, want)
	}
	if !s.asked("GET /v1/events after 7") {
		t.Errorf("requests: %q", s.requests)
	}
}

// Without a container all are followed, from now on, also one that comes later.
func TestEventsOfAll(t *testing.T) {
	testNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := testShim(t, "default", "a")
	testShim(t, "k8s.io", "b").events <- state(time.Now().Add(time.Hour), 1, api.Running)
	deadSocket(t, "default", "dead")
	a.events <- state(then.Add(-1000*time.Hour), 1, api.Starting) // only known still
	var stdout, stderr buffer
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"fastmig", "events", "--json"}, &stdout, &stderr) }()
	eventually(t, "the event of b", func() bool { return strings.Contains(stdout.String(), `"b"`) })

	c := testShim(t, "k8s.io", "c")
	c.events <- state(then, 1, api.Restoring)
	eventually(t, "the event of c", func() bool { return strings.Contains(stdout.String(), `"c"`) })
	a.events <- state(time.Now().Add(time.Hour), 2, api.Running)
	eventually(t, "the event of a", func() bool { return strings.Contains(stdout.String(), `"a"`) })
	cancel()
	if code := <-ended; code != exitInterrupted || stderr.String() != "" {
		t.Errorf("exit %d: %s", code, &stderr)
	}
	seen := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	if len(seen) != 3 {
		t.Errorf("events:\n%s", &stdout)
	}
	for _, line := range seen {
		var e struct {
			Namespace, ID string
			api.Event
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Namespace == "" || e.Transition == nil || e.Transition.To == api.Starting {
			t.Errorf("%v: %s", err, line)
		}
	}
}
