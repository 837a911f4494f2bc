//go:build linux

package httpd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
)

// scripted is a service that does as it is told.
type scripted struct {
	mu      sync.Mutex
	calls   []any  // the requests that came, in order; under mu
	origin  Origin // of the last; under mu
	status  api.Status
	metrics http.Handler
	// do answers an operation; nil: at once.
	do func(ctx context.Context, request any) (api.Result, error)
	// events gives the stream; nil: one that never says anything.
	events func(ctx context.Context, after uint64) <-chan api.Event
}

var _ Service = (*scripted)(nil)

func (s *scripted) Status() api.Status { return s.status }

func (s *scripted) call(ctx context.Context, request any, o Origin) (api.Result, error) {
	s.mu.Lock()
	s.calls, s.origin = append(s.calls, request), o
	s.mu.Unlock()
	if s.do != nil {
		return s.do(ctx, request)
	}
	return api.Result{State: api.Running, AppPid: 4711, Seconds: 0.0314, Away: 0.02}, nil
}

func (s *scripted) last(t *testing.T) any {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.calls) == 0 {
		t.Fatal("the service was not called")
	}
	return s.calls[len(s.calls)-1]
}

func (s *scripted) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func (s *scripted) Run(ctx context.Context, r api.Run, o Origin) (api.Result, error) {
	return s.call(ctx, r, o)
}
func (s *scripted) CheckpointRun(ctx context.Context, r api.CheckpointRun, o Origin) (api.Result, error) {
	return s.call(ctx, r, o)
}
func (s *scripted) Checkpoint(ctx context.Context, r api.CheckpointRequest) (api.Result, error) {
	return s.call(ctx, r, Host)
}
func (s *scripted) Restore(ctx context.Context, r api.RestoreRequest) (api.Result, error) {
	return s.call(ctx, r, Host)
}
func (s *scripted) Start(ctx context.Context, r api.StartRequest) (api.Result, error) {
	return s.call(ctx, r, Host)
}
func (s *scripted) Stop(ctx context.Context, r api.StopRequest) (api.Result, error) {
	return s.call(ctx, r, Host)
}
func (s *scripted) Standby(ctx context.Context, r api.StopRequest) (api.Result, error) {
	return s.call(ctx, standbyCall(r), Host)
}

// standbyCall tells a call of Standby from one of Stop.
type standbyCall api.StopRequest

func (s *scripted) Events(ctx context.Context, after uint64) <-chan api.Event {
	if s.events != nil {
		return s.events(ctx, after)
	}
	ch := make(chan api.Event)
	context.AfterFunc(ctx, func() { close(ch) })
	return ch
}

// served is a server on a unix socket of its own, and a client of it.
type served struct {
	*Server
	service *scripted
	socket  string
	client  *http.Client
}

func newServed(t *testing.T, s *scripted) *served {
	t.Helper()
	return newServedWith(t, s, defaultTiming)
}

func newServedWith(t *testing.T, s *scripted, timing timing) *served {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "ns", "c.sock")
	server, err := serve(Config{Service: s, Metrics: s.metrics, Socket: socket}, timing)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := server.Close(ctx); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket's file after Close: %v", err)
		}
	})
	return &served{server, s, socket, &http.Client{Transport: transport, Timeout: 20 * time.Second}}
}

// ask makes a request and gives the answer's status, header and body.
func (s *served) ask(t *testing.T, method, path, body string, header ...string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://container"+path, strings.NewReader(body))
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
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.StatusCode, w.Header, string(b)
}

// await waits for a condition that another goroutine brings about.
func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// waitFor waits until a channel is closed or has something.
func waitFor[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("waited in vain: %s", what)
		panic("unreachable")
	}
}

func TestOperations(t *testing.T) {
	yes, shards := true, 8
	for _, tc := range []struct {
		path, body string
		want       any
	}{
		{"/run", `{"app_args":"sh -c 'a b'","image_url":"file:/ckpt","on_app_ready":"touch /ready","passphrase_file":"/p",
			"preserved_paths":"/a:/b","no_restore":true,"allow_bad_image":true,"leave_stopped":true,"verbose":2,"envs":["A=1","B="]}`,
			api.Run{AppArgs: "sh -c 'a b'", ImageURL: "file:/ckpt", OnAppReady: "touch /ready", PassphraseFile: "/p", PreservedPaths: "/a:/b",
				NoRestore: true, AllowBadImage: true, LeaveStopped: true, Verbose: 2, Envs: []string{"A=1", "B="}}},
		{"/checkpoint", `{"leave_running":true,"image_url":"file:/c","preserved_paths":"/a","num_shards":8,"cpu_budget":"high","passphrase_file":"/p","verbose":1,"envs":["A=1"]}`,
			api.CheckpointRun{LeaveRunning: true, ImageURL: "file:/c", PreservedPaths: "/a", NumShards: &shards, CPUBudget: "high", PassphraseFile: "/p", Verbose: 1, Envs: []string{"A=1"}}},
		{"/v1/checkpoint", `{"image_url":"node:x","leave_running":true,"tcp":"keep","hooks":{"before_checkpoint":["a","b"],"timeout":"3s"}}`,
			api.CheckpointRequest{ImageURL: "node:x", LeaveRunning: &yes, TCP: "keep", Hooks: &api.Hooks{BeforeCheckpoint: []string{"a", "b"}, Timeout: "3s"}}},
		{"/v1/restore", `{"image_url":"node:x","leave_stopped":true}`, api.RestoreRequest{ImageURL: "node:x", LeaveStopped: true}},
		{"/v1/start", `{"args":["a"],"env":["K=V"]}`, api.StartRequest{Args: []string{"a"}, Env: []string{"K=V"}}},
		{"/v1/stop", `{"signal":"INT","timeout":"1s"}`, api.StopRequest{Signal: "INT", Timeout: "1s"}},
		{"/v1/standby", ` `, standbyCall{}},
		{"/v1/stop", ``, api.StopRequest{}},
		{"/run", `{"envs":null}`, api.Run{}},
		{"/checkpoint", `{"num_shards":null,"envs":null}`, api.CheckpointRun{}},
	} {
		t.Run(tc.path, func(t *testing.T) {
			s := newServed(t, &scripted{})
			for _, kind := range []string{"", "application/json", "application/json; charset=utf-8", "application/x-www-form-urlencoded"} {
				status, _, body := s.ask(t, "POST", tc.path, tc.body, "Content-Type", kind)
				if status != http.StatusOK {
					t.Fatalf("Content-Type %q: %d: %s", kind, status, body)
				}
				got, want := fmt.Sprintf("%#v", asJSON(t, s.service.last(t))), fmt.Sprintf("%#v", asJSON(t, tc.want))
				if got != want || fmt.Sprintf("%T", s.service.last(t)) != fmt.Sprintf("%T", tc.want) {
					t.Errorf("called with %s, want %s", got, want)
				}
			}
			if s.service.origin != Host {
				t.Error("what came by the unix socket is said to come from the network")
			}
		})
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWords(t *testing.T) {
	result := api.Result{State: api.Running, Seconds: 0.0314}
	s := newServed(t, &scripted{do: func(context.Context, any) (api.Result, error) { return result, nil }})
	check := func(path, want string) {
		t.Helper()
		status, header, body := s.ask(t, "POST", path, "")
		if status != http.StatusOK || body != want+"\n" || header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s: %d %q %q, want %q", path, status, header.Get("Content-Type"), body, want)
		}
	}
	check("/run", "the application runs, started from scratch (0.031 s)")
	result.Checkpoint = &api.Checkpoint{URL: "node:a", Bytes: 12}
	result.Notes = []string{"the newest was damaged"}
	check("/run", "the application runs, restored from node:a (0.031 s)\nnote: the newest was damaged")
	check("/checkpoint", "checkpoint written to node:a, 12 bytes (0.031 s)\nnote: the newest was damaged")
	result.State, result.Notes = api.Standby, nil
	check("/checkpoint", "checkpoint written to node:a, 12 bytes; the application has ended (0.031 s)")
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		err             error
		published, ours int
		kind            string
	}{
		{errdefs.ErrInvalidArgument, 400, 400, "invalid_argument"},
		{errdefs.ErrFailedPrecondition, 400, 409, "failed_precondition"},
		{errdefs.ErrNotFound, 400, 404, "not_found"},
		{errdefs.ErrAlreadyExists, 400, 409, "already_exists"},
		{errdefs.ErrNotImplemented, 400, 501, "not_implemented"},
		{errdefs.ErrDataLoss, 500, 422, "data_loss"},
		{errdefs.ErrUnavailable, 500, 503, "unavailable"},
		{errdefs.ErrResourceExhausted, 500, 507, "resource_exhausted"},
		{errdefs.ErrPermissionDenied, 400, 403, "permission_denied"},
		{context.DeadlineExceeded, 500, 504, "deadline_exceeded"},
		{errors.New("boom"), 500, 500, "internal"},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			failure := fmt.Errorf("the step: the cause: %w", tc.err)
			s := newServed(t, &scripted{status: api.Status{State: api.Standby}, do: func(context.Context, any) (api.Result, error) {
				return api.Result{}, failure
			}})
			for _, path := range []string{"/run", "/checkpoint"} {
				if status, _, body := s.ask(t, "POST", path, "{}"); status != tc.published || body != failure.Error()+"\n" {
					t.Errorf("%s: %d %q, want %d", path, status, body, tc.published)
				}
			}
			for _, path := range []string{"/v1/checkpoint", "/v1/restore", "/v1/start", "/v1/stop", "/v1/standby"} {
				status, header, body := s.ask(t, "POST", path, "{}")
				var e api.Error
				if err := json.Unmarshal([]byte(body), &e); err != nil {
					t.Fatal(err)
				}
				if want := (api.Error{Kind: tc.kind, Message: failure.Error(), State: api.Standby}); status != tc.ours || e != want || header.Get("Content-Type") != "application/json" {
					t.Errorf("%s: %d %+v, want %d %+v", path, status, e, tc.ours, want)
				}
			}
		})
	}
}

func TestPanic(t *testing.T) {
	s := newServed(t, &scripted{do: func(context.Context, any) (api.Result, error) { panic("a bug") }})
	for _, path := range []string{"/run", "/v1/start"} {
		if status, _, body := s.ask(t, "POST", path, "{}"); status != http.StatusInternalServerError || strings.Contains(body, "a bug") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if status, _, _ := s.ask(t, "GET", "/v1/status", ""); status != http.StatusOK {
		t.Errorf("status after a panic: %d", status)
	}
}

func TestMetricsRoute(t *testing.T) {
	s := newServed(t, &scripted{})
	if status, _, _ := s.ask(t, "GET", "/metrics", ""); status != http.StatusNotFound {
		t.Errorf("without metrics: %d", status)
	}
	s = newServed(t, &scripted{metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "m 1\n") })})
	if status, _, body := s.ask(t, "GET", "/metrics", ""); status != http.StatusOK || body != "m 1\n" {
		t.Errorf("%d %q", status, body)
	}
}
