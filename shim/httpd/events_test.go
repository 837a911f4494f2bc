//go:build linux

package httpd

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fastmig/fastmig/shim/api"
)

func (s *served) stream(t *testing.T, path string, header ...string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://c"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Body.Close() })
	return w
}

func TestEvents(t *testing.T) {
	list := []api.Event{
		{Seq: 5, At: time.Unix(1, 0).UTC(), Kind: api.EventState, Transition: &api.Transition{From: api.Standby, To: api.Restoring, Cause: "asked"}},
		{Seq: 6, At: time.Unix(2, 0).UTC(), Kind: api.EventProgress, Progress: &api.Progress{Operation: "restore", Step: "verify", Bytes: 1, Total: 2, Percent: 50}},
		{Seq: 7, At: time.Unix(3, 0).UTC(), Kind: api.EventNote, Note: "a line\nand one more"},
	}
	s := newServed(t, &scripted{events: func(_ context.Context, after uint64) <-chan api.Event {
		ch := make(chan api.Event, len(list))
		for _, e := range list {
			if e.Seq > after {
				ch <- e
			}
		}
		close(ch) // as when the container ends
		return ch
	}})
	for _, tc := range []struct {
		path   string
		header []string
		want   []api.Event
	}{
		{"/v1/events", nil, list},
		{"/v1/events?after=5", nil, list[1:]},
		{"/v1/events?after=0", []string{"Last-Event-ID", "6"}, list[2:]},
		{"/v1/events?after=99", nil, nil},
	} {
		w := s.stream(t, tc.path, tc.header...)
		if w.StatusCode != http.StatusOK || w.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%d %v", w.StatusCode, w.Header)
		}
		body, err := io.ReadAll(w.Body) // ends with the channel
		if err != nil {
			t.Fatal(err)
		}
		want := ": the events of the service\n\n"
		for _, e := range tc.want {
			b, _ := json.Marshal(e)
			want += map[uint64]string{5: "id: 5\nevent: state\n", 6: "id: 6\nevent: progress\n", 7: "id: 7\nevent: note\n"}[e.Seq] + "data: " + string(b) + "\n\n"
		}
		if string(body) != want {
			t.Errorf("%s %v:\n%s\nwant\n%s", tc.path, tc.header, body, want)
		}
	}
	for _, bad := range []string{"x", "-1", "1.5", "99999999999999999999"} {
		if status, _, _ := s.ask(t, "GET", "/v1/events?after="+bad, ""); status != http.StatusBadRequest {
			t.Errorf("after=%s: %d", bad, status)
		}
		if status, _, _ := s.ask(t, "GET", "/v1/events", "", "Last-Event-ID", bad); status != http.StatusBadRequest {
			t.Errorf("Last-Event-ID %s: %d", bad, status)
		}
	}
}

// A quiet stream has signs of life, outlasts all time limits, and its source ends with
// the client, and with the server.
func TestEventsLive(t *testing.T) {
	ended := make(chan struct{}, 2)
	source := make(chan api.Event)
	limit := 20 * time.Millisecond
	s := newServedWith(t, &scripted{events: func(ctx context.Context, _ uint64) <-chan api.Event {
		context.AfterFunc(ctx, func() { ended <- struct{}{} })
		return source
	}}, timing{header: limit, body: limit, write: 10 * time.Second, idle: limit, keepAlive: limit})

	w := s.stream(t, "/v1/events")
	lines := bufio.NewReader(w.Body)
	for alive := 0; alive < 5; {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == ": alive\n" {
			alive++
		}
	}
	source <- api.Event{Seq: 1, Kind: api.EventNote}
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if line == "id: 1\n" {
			break
		}
	}
	w.Body.Close()
	waitFor(t, "the source's end with the client", ended)

	w = s.stream(t, "/v1/events")
	closeServer(t, s.Server)
	waitFor(t, "the source's end with the server", ended)
	if _, err := io.ReadAll(w.Body); err != nil {
		t.Errorf("the stream is torn: %v", err)
	}
}

// A client that does not read is let go.
func TestEventsStuckClient(t *testing.T) {
	ended := make(chan struct{})
	s := newServedWith(t, &scripted{events: func(ctx context.Context, _ uint64) <-chan api.Event {
		context.AfterFunc(ctx, func() { close(ended) })
		ch := make(chan api.Event)
		go func() {
			note := strings.Repeat("x", 64<<10)
			for {
				select {
				case ch <- api.Event{Seq: 1, Kind: api.EventNote, Note: note}:
				case <-ctx.Done():
					return
				}
			}
		}()
		return ch
	}}, timing{header: time.Second, body: time.Second, write: 50 * time.Millisecond, idle: time.Second, keepAlive: time.Second})
	c, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/events HTTP/1.1\r\nHost: c\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the stream's end", ended)
}
