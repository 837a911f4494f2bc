//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
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

	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/api/client"
)

// mainEnv makes the test's program the command itself, with the folder of sockets that
// it names.
const mainEnv = "FASTMIG_TEST_SOCKETS"

func TestMain(m *testing.M) {
	if dir := os.Getenv(mainEnv); dir != "" {
		sockets = client.Folder(dir)
		main()
	}
	time.Local = time.UTC
	os.Unsetenv(namespaceEnv)
	os.Exit(m.Run())
}

// then is what tests have as the present.
var then = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// testNode gives the commands an empty folder of sockets.
func testNode(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fastmig") // shorter than t.TempDir, for the sockets' sake
	if err != nil {
		t.Fatal(err)
	}
	formerSockets, formerNow := sockets, now
	sockets, now = client.Folder(dir), func() time.Time { return then }
	t.Cleanup(func() {
		sockets, now = formerSockets, formerNow
		os.RemoveAll(dir)
	})
}

// shim is a scripted one of one container.
type shim struct {
	*http.ServeMux
	t      *testing.T
	path   string
	server *http.Server
	events chan api.Event // what subscribers get; closed: the stream's end

	mu       sync.Mutex
	status   api.Status
	requests []string // METHOD PATH BODY
}

// testShim serves a container that answers its status and events.
func testShim(t *testing.T, namespace, id string) *shim {
	t.Helper()
	s := &shim{ServeMux: http.NewServeMux(), t: t, path: sockets.Path(client.Name{Namespace: namespace, ID: id}), events: make(chan api.Event, 100)}
	s.status = api.Status{ID: id, Namespace: namespace, State: api.Standby, Container: "running", Since: then.Add(-90 * time.Second),
		InitPid: 100, Startup: api.StartStandby, OnExit: "default", Supervise: "auto", History: []api.Transition{}}
	s.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		json.NewEncoder(w).Encode(s.status)
	})
	s.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case e, ok := <-s.events:
				if !ok {
					return
				}
				data, _ := json.Marshal(e)
				fmt.Fprintf(w, "event: %s\nid: %d\ndata: %s\n\n", e.Kind, e.Seq, data)
				w.(http.Flusher).Flush()
			}
		}
	})
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	s.server = &http.Server{Handler: http.HandlerFunc(s.serve)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.server.Serve(l)
	}()
	t.Cleanup(func() {
		s.server.Close()
		<-served
	})
	return s
}

func (s *shim) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Errorf("%s: %v", r.URL, err)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	s.mu.Lock()
	line := r.Method + " " + r.URL.Path
	if after := r.Header.Get("Last-Event-ID"); after != "" {
		line += " after " + after
	}
	s.requests = append(s.requests, strings.TrimSpace(line+" "+string(body)))
	s.mu.Unlock()
	s.ServeHTTP(w, r)
}

// set changes the status.
func (s *shim) set(change func(*api.Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.status)
}

// operate scripts what an operation answers.
func (s *shim) operate(name string, do func(ctx context.Context) (api.Result, error)) {
	s.HandleFunc("POST /v1/"+name, func(w http.ResponseWriter, r *http.Request) {
		res, err := do(r.Context())
		if err != nil {
			s.mu.Lock()
			e, code := api.NewError(err, s.status.State)
			s.mu.Unlock()
			w.WriteHeader(code)
			json.NewEncoder(w).Encode(e)
			return
		}
		json.NewEncoder(w).Encode(res)
	})
}

// last is the last request that was no GET.
func (s *shim) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := len(s.requests) - 1; i >= 0; i-- {
		if !strings.HasPrefix(s.requests[i], "GET") {
			return s.requests[i]
		}
	}
	return ""
}

// asked says whether a request was made.
func (s *shim) asked(request string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.requests {
		if r == request {
			return true
		}
	}
	return false
}

// buffer is an output that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually waits for something. Scripted handlers wait by it as well, which may
// not end the test.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited in vain for %s", what)
			return
		}
	}
}

// fastmig runs a command line.
func fastmig(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err buffer
	code = run(t.Context(), append([]string{"fastmig"}, args...), &out, &err)
	return code, out.String(), err.String()
}
