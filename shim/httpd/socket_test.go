//go:build linux

package httpd

import (
	"context"
	"errors"
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

// open starts a server on a socket and closes it when the test ends.
func open(t *testing.T, cfg Config) *Server {
	t.Helper()
	s, err := Serve(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeServer(t, s) })
	return s
}

func closeServer(t *testing.T, s *Server) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

// answers tells whether a server answers on the socket, by way of its folder.
func answers(t *testing.T, path string) bool {
	t.Helper()
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", through(dir, filepath.Base(path)))
	}}
	defer transport.CloseIdleConnections()
	w, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get("http://c/v1/status")
	if err != nil {
		return false
	}
	w.Body.Close()
	return w.StatusCode == http.StatusOK
}

func TestSocketFile(t *testing.T) {
	top := t.TempDir()
	path := filepath.Join(top, "run", strings.Repeat("n", 100), strings.Repeat("i", 76)+".sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	open(t, Config{Service: &scripted{}, Socket: path})
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if st, err := os.Lstat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", name, st.Mode(), err, want)
		}
	}
	if !answers(t, path) {
		t.Error("no answer")
	}
}

func TestSocketOfALivingShim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	first := open(t, Config{Service: &scripted{}, Socket: path})
	if s, err := Serve(Config{Service: &scripted{}, Socket: path}); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("a second server: %v %v", s, err)
	}
	if !answers(t, path) {
		t.Error("the first does not answer any more")
	}
	closeServer(t, first)
	if answers(t, path) {
		t.Error("it answers after Close")
	}
	open(t, Config{Service: &scripted{}, Socket: path})
	if !answers(t, path) {
		t.Error("the next one does not answer")
	}
}

// A living listener that has no room for one more connection is alive all the same.
func TestSocketOfABusyShim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := Serve(Config{Service: &scripted{}, Socket: path}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("%v", err)
	}
}

func TestSocketOfADeadShim(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	open(t, Config{Service: &scripted{}, Socket: path})
	if !answers(t, path) {
		t.Error("no answer")
	}
}

func TestSocketPathIsSomethingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(Config{Service: &scripted{}, Socket: path}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a file: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file has %q now", b)
	}

	// A folder of someone else's, or a link in its place, is not used.
	if err := os.Chown(filepath.Dir(path), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(filepath.Dir(path), "d.sock")
	if _, err := Serve(Config{Service: &scripted{}, Socket: other}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another's folder: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Serve(Config{Service: &scripted{}, Socket: filepath.Join(link, "c.sock")}); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("a link: %v", err)
	}
}

func TestCloseLeavesAnothersSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	s := open(t, Config{Service: &scripted{}, Socket: path})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	open(t, Config{Service: &scripted{}, Socket: path})
	closeServer(t, s)
	if !answers(t, path) {
		t.Error("the other one's socket is gone")
	}
}

// Close cancels what runs, waits for it, and its client is told why.
func TestClose(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	s := newServed(t, &scripted{do: func(ctx context.Context, _ any) (api.Result, error) {
		close(started)
		<-ctx.Done()
		<-release
		return api.Result{}, ctx.Err()
	}})
	// One that has never said a word does not hold it up.
	silent, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()

	type answer struct {
		status int
		body   string
	}
	answered := make(chan answer, 1)
	go func() {
		status, _, body := s.ask(t, "POST", "/v1/checkpoint", "{}")
		answered <- answer{status, body}
	}()
	waitFor(t, "the operation's start", started)

	ended := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second) // less than net/http would take for the silent one
		defer cancel()
		ended <- s.Close(ctx)
	}()
	await(t, "the socket's removal", func() bool { _, err := os.Lstat(s.socket); return err != nil })
	select {
	case err := <-ended:
		t.Fatalf("Close did not wait: %v", err)
	default:
	}
	close(release)
	if err := waitFor(t, "Close", ended); err != nil {
		t.Error(err)
	}
	a := waitFor(t, "the answer", answered)
	if a.status != http.StatusServiceUnavailable || !strings.Contains(a.body, "being closed") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestCloseGivesUp(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	s := newServed(t, &scripted{do: func(context.Context, any) (api.Result, error) {
		close(started)
		<-release
		return api.Result{}, nil
	}})
	asked := make(chan error, 1)
	go func() {
		_, err := s.client.Post("http://c/run", "", nil)
		asked <- err
	}()
	waitFor(t, "the operation's start", started)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 requests still run") {
		t.Errorf("%v", err)
	}
	if err := waitFor(t, "the client", asked); err == nil {
		t.Error("the client has an answer")
	}
	close(release)
	await(t, "the request's end", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.running == 0 })
}

func TestClientGoesAway(t *testing.T) {
	cancelled := make(chan error, 1)
	started := make(chan struct{}, 1)
	s := newServed(t, &scripted{do: func(ctx context.Context, _ any) (api.Result, error) {
		started <- struct{}{}
		<-ctx.Done()
		cancelled <- ctx.Err()
		return api.Result{}, ctx.Err()
	}})
	for _, body := range []string{"", "{}"} {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := http.NewRequestWithContext(ctx, "POST", "http://c/v1/restore", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := s.client.Do(r)
			done <- err
		}()
		waitFor(t, "the operation's start", started)
		cancel()
		waitFor(t, "the client", done)
		if err := waitFor(t, "the operation's end", cancelled); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
