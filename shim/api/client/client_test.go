//go:build linux

package client

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
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/shim/api"
)

// testFolder is an empty folder of sockets, of a short path.
func testFolder(t *testing.T) Folder {
	t.Helper()
	dir, err := os.MkdirTemp("", "fastmig")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return Folder(dir)
}

// serve answers at a container's socket.
func serve(t *testing.T, f Folder, n Name, h http.Handler) *http.Server {
	t.Helper()
	l := listen(t, f.Path(n))
	s := &http.Server{Handler: h}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return s
}

// listen makes a socket, of however long a path.
func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // the descriptor is gone by then
	return l
}

func answer(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v) }
}

var web = Name{"default", "web"}

func TestCalls(t *testing.T) {
	f := testFolder(t)
	mux := http.NewServeMux()
	serve(t, f, web, mux)
	c := f.Dial(web.Namespace, web.ID)
	mux.HandleFunc("GET /v1/status", answer(api.Status{ID: "web", State: api.Running}))
	if s, err := c.Status(t.Context()); err != nil || s.ID != "web" || s.State != api.Running {
		t.Errorf("status: %+v, %v", s, err)
	}
	for name, call := range map[string]func() (api.Result, error){
		"checkpoint": func() (api.Result, error) {
			return c.Checkpoint(t.Context(), api.CheckpointRequest{ImageURL: "node:checkpoint"})
		},
		"restore": func() (api.Result, error) {
			return c.Restore(t.Context(), api.RestoreRequest{ImageURL: "node:restore"})
		},
		"start":   func() (api.Result, error) { return c.Start(t.Context(), api.StartRequest{Args: []string{"start"}}) },
		"stop":    func() (api.Result, error) { return c.Stop(t.Context(), api.StopRequest{Signal: "stop"}) },
		"standby": func() (api.Result, error) { return c.Standby(t.Context(), api.StopRequest{Signal: "standby"}) },
	} {
		var body string
		mux.HandleFunc("POST /v1/"+name, func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			body = r.Header.Get("Content-Type") + " " + string(b)
			answer(api.Result{State: api.Standby, AppPid: 9})(w, r)
		})
		r, err := call()
		if err != nil || r.AppPid != 9 || r.State != api.Standby {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if !strings.HasPrefix(body, "application/json {") || !strings.Contains(body, name) {
			t.Errorf("%s: request %s", name, body)
		}
	}
}

func TestErrors(t *testing.T) {
	f := testFolder(t)
	mux := http.NewServeMux()
	serve(t, f, web, mux)
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, _ *http.Request) {
		e, code := api.NewError(fmt.Errorf("it does not run: %w", errdefs.ErrFailedPrecondition), api.Standby)
		w.WriteHeader(code)
		json.NewEncoder(w).Encode(e)
	})
	mux.HandleFunc("POST /v1/start", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"state":`) })
	mux.HandleFunc("POST /v1/restore", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	listen(t, f.Path(Name{"default", "dead"})).Close()
	if err := os.WriteFile(filepath.Join(string(f), "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stop := func(namespace, id string) error {
		_, err := f.Dial(namespace, id).Stop(t.Context(), api.StopRequest{})
		return err
	}
	for name, tc := range map[string]struct {
		err  func() error
		kind error
		text string
	}{
		"refused":                   {func() error { return stop("default", "web") }, errdefs.ErrFailedPrecondition, "it does not run"},
		"no such":                   {func() error { return stop("moby", "web") }, errdefs.ErrNotFound, "in namespace moby: web; `fastmig ps`"},
		"no id":                     {func() error { return stop("default", "") }, errdefs.ErrNotFound, "no such container"},
		"elsewhere":                 {func() error { return stop("default", "../default/web") }, errdefs.ErrNotFound, "no such container"},
		"upwards":                   {func() error { return stop("..", "web") }, errdefs.ErrNotFound, "no such container"},
		"no folder":                 {func() error { return stop("file", "web") }, errdefs.ErrNotFound, "no such container"},
		"too long":                  {func() error { return stop("default", strings.Repeat("x", 300)) }, errdefs.ErrNotFound, "no such container"},
		"too long for a descriptor": {func() error { return stop("default", strings.Repeat("x", 200)) }, errdefs.ErrNotFound, "no such container"},
		"dead":                      {func() error { return stop("default", "dead") }, errdefs.ErrUnavailable, "shim is gone"},
		"half an answer": {func() error {
			_, err := f.Dial("default", "web").Start(t.Context(), api.StartRequest{})
			return err
		}, errdefs.ErrUnavailable, "ended the conversation"},
		"no answer": {func() error {
			_, err := f.Dial("default", "web").Restore(t.Context(), api.RestoreRequest{})
			return err
		}, errdefs.ErrUnavailable, "ended the conversation"},
		"another server": {func() error {
			_, err := f.Dial("default", "web").Status(t.Context())
			return err
		}, errdefs.ErrUnknown, "404"},
		"path": {func() error {
			_, err := New("/nonexistent/x.sock").Status(t.Context())
			return err
		}, errdefs.ErrNotFound, "/nonexistent/x.sock"},
		"events": {func() error {
			_, err := f.Dial("default", "none").Events(t.Context(), 0)
			return err
		}, errdefs.ErrNotFound, "no such container"},
	} {
		err := tc.err()
		var e *api.Error
		if !errors.As(err, &e) || !errors.Is(err, tc.kind) || !strings.Contains(e.Message, tc.text) {
			t.Errorf("%s: %v; want %v with %q", name, err, tc.kind, tc.text)
		}
	}
	var e *api.Error
	if errors.As(stop("default", "web"), &e); e.State != api.Standby {
		t.Errorf("state %q", e.State)
	}
}

// The sockets are root's alone; who is not root is told so.
func TestPermission(t *testing.T) {
	c := newClient("/x/y.sock", "")
	for _, errno := range []unix.Errno{unix.EACCES, unix.EPERM} {
		err := c.broken(t.Context(), &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)})
		if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "run this as root") {
			t.Errorf("%v: %v", errno, err)
		}
	}
}

// The end of a call's context is the end of the request for the server.
func TestCancel(t *testing.T) {
	f := testFolder(t)
	begun, ended := make(chan struct{}), make(chan struct{})
	serve(t, f, web, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		close(begun)
		<-r.Context().Done()
		close(ended)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := f.Dial("default", "web").Checkpoint(ctx, api.CheckpointRequest{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-ended
}

func TestLongPath(t *testing.T) {
	f := testFolder(t)
	n := Name{strings.Repeat("n", 76), strings.Repeat("i", 76)}
	if len(f.Path(n)) <= maxAddress {
		t.Fatal("it is not too long")
	}
	serve(t, f, n, answer(api.Status{ID: n.ID}))
	before := descriptors(t)
	for range 20 {
		if s, err := f.Dial(n.Namespace, n.ID).Status(t.Context()); err != nil || s.ID != n.ID {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	// Each call's connection closes when it has been read; the server's end and the
	// client's both do so in their own time.
	for deadline := time.Now().Add(20 * time.Second); descriptors(t) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors, %d before", descriptors(t), before)
		}
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(open)
}

func TestList(t *testing.T) {
	f := testFolder(t)
	if listed, err := f.List(t.Context(), ""); err != nil || len(listed) != 0 {
		t.Errorf("none: %v, %v", listed, err)
	}
	serve(t, f, web, answer(api.Status{ID: "web", Namespace: "default", State: api.Running}))
	serve(t, f, Name{"k8s.io", "hung"}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	listen(t, f.Path(Name{"default", "dead"})).Close()
	for _, other := range []string{"default/web.tmp", "default/file.sock", "file"} {
		if err := os.WriteFile(filepath.Join(string(f), other), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	listed, err := f.List(t.Context(), "")
	if err != nil || len(listed) != 3 {
		t.Fatalf("%+v, %v", listed, err)
	}
	for i, want := range []struct {
		name  string
		state api.State
		err   string
	}{{"dead", "", "unavailable"}, {"web", api.Running, ""}, {"hung", "", "deadline_exceeded"}} {
		got := listed[i]
		if got.ID != want.name || (got.Status == nil) != (want.err != "") || (got.Error == nil) != (want.err == "") {
			t.Errorf("%+v, want %+v", got, want)
		} else if got.Error != nil && got.Error.Kind != want.err || got.Status != nil && got.State != want.state {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
	if listed, err := f.List(t.Context(), "default"); err != nil || len(listed) != 2 {
		t.Errorf("of one namespace: %+v, %v", listed, err)
	}
	if _, err := f.List(t.Context(), ".."); !errdefs.IsInvalidArgument(err) {
		t.Errorf("of no namespace: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.List(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestListedAsJSON(t *testing.T) {
	for want, l := range map[string]Listed{
		`{"namespace":"n","id":"i","error":{"kind":"unavailable","message":"m"}}`: {Namespace: "n", ID: "i", Error: &api.Error{Kind: "unavailable", Message: "m"}},
	} {
		if got, err := json.Marshal(l); err != nil || string(got) != want {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
	got, err := json.Marshal(Listed{Namespace: "n", ID: "i", Status: &api.Status{Namespace: "n", ID: "i", State: api.Standby}})
	var back Listed
	if err != nil || strings.Count(string(got), `"id"`) != 1 || json.Unmarshal(got, &back) != nil || back.ID != "i" || back.State != api.Standby {
		t.Errorf("%s, %v: %+v", got, err, back)
	}
}
