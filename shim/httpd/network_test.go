//go:build linux

package httpd

import (
	"bytes"
	"context"
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

// network is a network namespace of the test's own, with its lo up.
type network struct{ *os.File }

func newNetwork(t *testing.T) network {
	t.Helper()
	var ns *os.File
	var err error
	inThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		if ns, err = os.Open("/proc/thread-self/ns/net"); err == nil {
			err = loUp()
		}
	})
	if ns != nil {
		t.Cleanup(func() { ns.Close() })
	}
	if err != nil {
		t.Fatal(err)
	}
	return network{ns}
}

func loUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// open gives the namespace as a Config wants it.
func (n network) open() (*os.File, error) {
	fd, err := unix.FcntlInt(n.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(fd), "netns"), err
}

// dial connects to an address in the namespace.
func (n network) dial(address string) (c net.Conn, err error) {
	inThread(func() {
		if err = unix.Setns(int(n.Fd()), unix.CLONE_NEWNET); err != nil {
			return
		}
		var sa unix.Sockaddr
		family := unix.AF_INET
		a := net.ParseIP(address)
		if v4 := a.To4(); v4 != nil {
			sa = &unix.SockaddrInet4{Port: 7878, Addr: [4]byte(v4)}
		} else {
			family, sa = unix.AF_INET6, &unix.SockaddrInet6{Port: 7878, Addr: [16]byte(a)}
		}
		var fd int
		if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		f := os.NewFile(uintptr(fd), address)
		defer f.Close()
		if err = unix.Connect(fd, sa); err == nil {
			c, err = net.FileConn(f)
		}
	})
	return c, err
}

// client speaks to an address in the namespace.
func (n network) client(t *testing.T, address string) *served {
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return n.dial(address) }}
	t.Cleanup(transport.CloseIdleConnections)
	return &served{client: &http.Client{Transport: transport, Timeout: 10 * time.Second}}
}

func TestNetwork(t *testing.T) {
	n := newNetwork(t)
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	service := &scripted{}
	s := open(t, Config{Service: service, Socket: filepath.Join(t.TempDir(), "c.sock"), Port: 7878, NetNS: n.open})

	for _, address := range []string{"127.0.0.1", "::1"} {
		c := n.client(t, address)
		for path := range routes {
			for _, method := range []string{"GET", "POST"} {
				want := http.StatusNotFound
				switch method + " " + path {
				case "POST /run", "POST /checkpoint", "GET /status", "GET /v1/status":
					want = http.StatusOK
				case "GET /run", "GET /checkpoint", "POST /status", "POST /v1/status":
					want = http.StatusMethodNotAllowed
				}
				if status, _, body := c.ask(t, method, path, ""); status != want {
					t.Errorf("%s %s: %d %s, want %d", method, path, status, body, want)
				}
			}
		}
		for _, path := range []string{"/run", "/checkpoint"} {
			service.origin = Host
			if status, _, _ := c.ask(t, "POST", path, "{}"); status != http.StatusOK || service.origin != Network {
				t.Errorf("%s: %d; the service is not told that it came by the network", path, status)
			}
		}
	}
	for _, call := range service.calls {
		switch call.(type) {
		case api.Run, api.CheckpointRun:
		default:
			t.Errorf("the network called %T", call)
		}
	}

	// It is nowhere else, and no thread of ours has stayed there.
	if c, err := net.Dial("tcp", "127.0.0.1:7878"); err == nil {
		c.Close()
		t.Error("the port is open on the host")
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatalf("%v %v", threads, err)
	}
	inside, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", n.Fd()))
	if err != nil || inside == before {
		t.Fatalf("%s %v", inside, err)
	}
	await(t, "no thread in the container's network", func() bool {
		for _, th := range threads {
			if ns, err := os.Readlink(th); err == nil && ns == inside {
				return false
			}
		}
		return true
	})

	if _, err := Serve(Config{Service: service, Socket: filepath.Join(t.TempDir(), "c.sock"), Port: 7878, NetNS: n.open}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the port is taken: %v", err)
	}
	closeServer(t, s)
	if c, err := n.dial("127.0.0.1"); err == nil {
		c.Close()
		t.Error("the port is open after Close")
	}
	// Connections that were closed just now do not keep the next one from it.
	open(t, Config{Service: service, Socket: filepath.Join(t.TempDir(), "c.sock"), Port: 7878, NetNS: n.open})
}

// A Serve that fails leaves no socket.
func TestNetworkBad(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	for name, cfg := range map[string]Config{
		"port":    {Port: 65536, NetNS: newNetwork(t).open},
		"none":    {Port: 1},
		"missing": {Port: 1, NetNS: func() (*os.File, error) { return nil, os.ErrNotExist }},
		"foreign": {Port: 1, NetNS: func() (*os.File, error) { return os.Open("/proc/self/ns/uts") }},
	} {
		cfg.Service, cfg.Socket = &scripted{}, socket
		if s, err := Serve(cfg); err == nil {
			closeServer(t, s)
			t.Errorf("%s: it listens", name)
		}
		if _, err := os.Lstat(socket); err == nil {
			t.Errorf("%s: the socket is there", name)
		}
	}
}

// The container can take all its connections, but no more than that from the shim, and
// none from the host.
func TestNetworkFull(t *testing.T) {
	n := newNetwork(t)
	socket := filepath.Join(t.TempDir(), "c.sock")
	open(t, Config{Service: &scripted{}, Socket: socket, Port: 7878, NetNS: n.open})
	const request = "GET /status HTTP/1.1\r\nHost: c\r\n\r\n"
	answer := func(c net.Conn, patience time.Duration) bool {
		c.SetDeadline(time.Now().Add(patience))
		b := make([]byte, 15)
		_, err := io.ReadFull(c, b)
		return err == nil && bytes.HasPrefix(b, []byte("HTTP/1.1 200 OK"))
	}
	var conns []net.Conn
	for range maxNetworkConns + 1 {
		c, err := n.dial("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	for i, c := range conns[:maxNetworkConns] {
		if !answer(c, 10*time.Second) {
			t.Fatalf("connection %d has no answer", i)
		}
	}
	one := conns[maxNetworkConns]
	if answer(one, 100*time.Millisecond) {
		t.Errorf("connection %d has an answer", maxNetworkConns+1)
	}
	if !answers(t, socket) {
		t.Error("the host has no answer")
	}
	conns[0].Close()
	if !answer(one, 10*time.Second) {
		t.Error("no answer after another one has gone")
	}
}

// The container's network can have only so many bodies in the shim's memory.
func TestNetworkBusy(t *testing.T) {
	n := newNetwork(t)
	release, started := make(chan struct{}), make(chan struct{}, maxNetworkBodies+1)
	service := &scripted{do: func(context.Context, any) (api.Result, error) {
		started <- struct{}{}
		<-release
		return api.Result{}, nil
	}}
	impatient := defaultTiming
	impatient.body = 100 * time.Millisecond
	s, err := serve(Config{Service: service, Socket: filepath.Join(t.TempDir(), "c.sock"), Port: 7878, NetNS: n.open}, impatient)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeServer(t, s) })
	c := n.client(t, "127.0.0.1")
	ended := make(chan int, maxNetworkBodies)
	for range maxNetworkBodies {
		go func() {
			w, err := c.client.Post("http://c/run", "", nil)
			if err != nil {
				t.Error(err)
				ended <- 0
				return
			}
			w.Body.Close()
			ended <- w.StatusCode
		}()
		waitFor(t, "an operation's start", started)
	}
	if status, _, body := c.ask(t, "POST", "/run", "{}"); status != http.StatusInternalServerError || !strings.Contains(body, "try again later") {
		t.Errorf("one more: %d %s", status, body)
	}
	if status, _, _ := c.ask(t, "GET", "/status", ""); status != http.StatusOK {
		t.Errorf("status: %d", status)
	}
	close(release)
	for range maxNetworkBodies {
		if status := waitFor(t, "an answer", ended); status != http.StatusOK {
			t.Errorf("%d", status)
		}
	}
	if status, _, body := c.ask(t, "POST", "/run", "{}"); status != http.StatusOK {
		t.Errorf("afterwards: %d %s", status, body)
	}
}
