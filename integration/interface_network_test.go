package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// publishedPort is where the published daemon listens.
const publishedPort = 7878

// TestNetworkInterface is about the port in the container's own network.
func TestNetworkInterface(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	for _, test := range []labTest{
		{"bridge", testNetworkBridge},
		{"host network", testNetworkHost},
		{"port in use", testNetworkInUse},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
	}
}

func testNetworkBridge(t *testing.T, lab *harness.Lab) {
	id := strings.TrimSpace(lab.MustNerdctl(append([]string{"run", "-d", "--name", "web", "--annotation", "io.fastmig.http=:7878",
		"--annotation", "io.fastmig.startup=standby", images.Busybox.Ref()}, tickArgs...)...))
	removeByNerdctl(lab, t, "web")
	c := load(lab, t, id)
	ip := strings.TrimSpace(lab.MustNerdctl("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"))
	address := fmt.Sprintf("%s:%d", ip, publishedPort)
	outside := func(method, path, body string) harness.Answer {
		t.Helper()
		a, err := lab.DoTCP(lab.Context(), address, method, path, body)
		check(t, err)
		return a
	}

	wantText(t, lab.MustNerdctl("exec", "web", "wget", "-q", "-O", "-", "http://127.0.0.1:7878/status"), `"state":"standby"`)
	wantText(t, lab.MustNerdctl("exec", "web", "wget", "-q", "-O", "-", "--post-data", `{"image_url":"file:/ckpt"}`, "http://127.0.0.1:7878/run"), "from scratch")
	continues := ticking(lab, t, c)
	wantText(t, done(t, "checkpoint from outside", outside("POST", "/checkpoint", `{"image_url":"file:/ckpt"}`), 200), "has ended")
	wantText(t, done(t, "status from outside", outside("GET", "/v1/status", ""), 200), `"state":"standby"`)
	a, err := c.DoTCP(lab.Context(), publishedPort, "POST", "/run", `{"image_url":"file:/ckpt"}`)
	check(t, err)
	wantText(t, done(t, "run from inside", a, 200), "restored from file:/ckpt")
	continues(c)

	for _, r := range []struct{ method, path string }{
		{"POST", "/v1/checkpoint"}, {"POST", "/v1/restore"}, {"POST", "/v1/start"}, {"POST", "/v1/stop"}, {"POST", "/v1/standby"},
		{"GET", "/v1/events"}, {"GET", "/metrics"}, {"GET", "/v1/openapi.json"}, {"GET", "/openapi.json"}, {"GET", "/"},
	} {
		done(t, r.path, outside(r.method, r.path, ""), 404)
	}
	// The node's checkpoints are none of the network's business.
	other := nodeURL()
	saveTo(t, lab, c, other, true)
	wantText(t, done(t, "checkpoint to the node", outside("POST", "/checkpoint", `{"leave_running":true,"image_url":`+quoted(other)+`}`), 400), other)
	done(t, "checkpoint", outside("POST", "/checkpoint", `{"image_url":"file:/ckpt"}`), 200)
	wantText(t, done(t, "run from the node", outside("POST", "/run", `{"image_url":`+quoted(other)+`}`), 400), other)
	wantState(t, lab, c, api.Standby)

	// The node's own network has no such port.
	_, err = lab.Dial(lab.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", publishedPort))
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a connection to the node's own port: %v", err)
	}
	if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", publishedPort)); err != nil {
		t.Errorf("the port on the host: %v", err)
	} else {
		l.Close()
	}
	lab.MustNerdctl("rm", "-f", "web")
	if conn, err := lab.Dial(lab.Context(), "tcp", address); err == nil {
		conn.Close()
		t.Error("somebody listens after the container's end")
	}
}

// The node's network is not the container's.
func testNetworkHost(t *testing.T, lab *harness.Lab) {
	opts := annotated(tickOptions(), "http", ":7878")
	opts.HostNetwork = true
	c, err := lab.Create(lab.Context(), opts)
	if err == nil {
		check(t, c.Remove(lab.Context()))
		t.Fatal("it was created")
	}
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("an error of another kind: %v", err)
	}
	wantText(t, err.Error(), "io.fastmig.http", "network")
	lab.WaitFor("its shim to end", func(context.Context) (bool, error) {
		shims := lab.Shims()
		return len(shims) == 0, fmt.Errorf("%v", shims)
	})
	leftInterfaces(t, lab)
}

// leftInterfaces checks that nothing is in the folder of the sockets.
func leftInterfaces(t *testing.T, lab *harness.Lab) {
	t.Helper()
	lab.WaitFor("the socket to be gone", func(context.Context) (bool, error) {
		found, err := filepath.Glob(filepath.Join(lab.HostPath("/run/fastmig/"+lab.Namespace), "*"))
		return err == nil && len(found) == 0, fmt.Errorf("%v %w", found, err)
	})
}

func testNetworkInUse(t *testing.T, lab *harness.Lab) {
	first := lab.MustRun(annotated(tickOptions(), "http", ":7878"))
	opts := annotated(tickOptions(), "http", ":7878")
	opts.Spec = append(opts.Spec, oci.WithLinuxNamespace(specs.LinuxNamespace{
		Type: specs.NetworkNamespace, Path: fmt.Sprintf("/proc/%d/ns/net", first.Task.Pid()),
	}))
	c, err := lab.Create(lab.Context(), opts)
	if err == nil {
		check(t, c.Remove(lab.Context()))
		t.Fatal("it was created")
	}
	wantText(t, err.Error(), "7878", "io.fastmig.http")
	wantState(t, lab, first, api.Running)
	// Another port of the same network is free.
	opts.Annotations["io.fastmig.http"] = ":7879"
	lab.MustRun(opts)
}

// TestSocket is about the container's unix socket: its place, its mode, its life.
func TestSocket(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	mode := func(path string) fs.FileMode {
		t.Helper()
		info, err := os.Lstat(lab.HostPath(path))
		check(t, err)
		if st := info.Sys(); st == nil {
			t.Fatalf("%s has no owner", path)
		}
		return info.Mode()
	}
	c := lab.MustRun(tickOptions())
	equal(t, "the socket's mode", mode(api.SocketPath(lab.Namespace, c.ID())), fs.ModeSocket|0o600)
	equal(t, "its folder's mode", mode(filepath.Join(api.SocketDir, lab.Namespace)), fs.ModeDir|0o700)
	equal(t, "the folder's mode", mode(api.SocketDir), fs.ModeDir|0o700)
	// An ended container can still be asked.
	check(t, c.Task.Kill(lab.Context(), 9))
	exitOf(t, lab, c)
	s := serviceOf(t, lab, c)
	equal(t, "the state", s.State, api.Ended)
	a := post(t, lab, c, "/run", `{}`)
	done(t, "run after the end", a, 400)
	wantText(t, a.Text, "ended")
	mustRemove(lab, t, c)
	leftInterfaces(t, lab)

	// A killed shim cannot tidy up, so containerd has it done.
	c = lab.MustRun(annotated(tickOptions(), "http", ":7878", "image-url", nodeURL()))
	saveTo(t, lab, c, serviceOf(t, lab, c).ImageURL, true)
	check(t, unix.Kill(shimOf(lab, t, c), unix.SIGKILL))
	lab.WaitFor("containerd to have cleaned up", func(ctx context.Context) (bool, error) {
		_, err := c.Container.Task(ctx, nil)
		return errdefs.IsNotFound(err), err
	})
	leftInterfaces(t, lab)
	// There is no task any more, only what the client has of it.
	c.Stdin.Close()
	c.Task.IO().Cancel()
	c.Task.IO().Wait()
	check(t, c.Task.IO().Close())
	c.Task = nil
	mustRemove(lab, t, c)
	// Its name can be used again.
	opts := standby(tickOptions())
	opts.ID = c.ID()
	wantState(t, lab, lab.MustRun(opts), api.Standby)
}
