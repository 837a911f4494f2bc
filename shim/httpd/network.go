//go:build linux

package httpd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// listenNetwork listens on a TCP port, at all addresses, in the network namespace that
// open gives.
func listenNetwork(port int, open func() (*os.File, error)) (_ net.Listener, err error) {
	fail := func(err error) error {
		return fmt.Errorf("listen on port %d in the container's network: %w", port, err)
	}
	if port < 1 || port > 65535 {
		return nil, fail(fmt.Errorf("a port is between 1 and 65535: %w", errdefs.ErrInvalidArgument))
	}
	if open == nil {
		return nil, fail(fmt.Errorf("its network namespace is not known: %w", errdefs.ErrInvalidArgument))
	}
	ns, err := open()
	if err != nil {
		return nil, fail(fmt.Errorf("open its network namespace: %w", err))
	}
	defer ns.Close()

	var sock *os.File
	inThread(func() {
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			err = os.NewSyscallError("setns", err)
			return
		}
		sock, err = tcpSocket(port)
	})
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fail(fmt.Errorf("a program of the container has it: choose another one in the annotation io.fastmig.http: %w", errdefs.ErrAlreadyExists))
	}
	if err != nil {
		return nil, fail(err)
	}
	defer sock.Close()
	l, err := net.FileListener(sock)
	if err != nil {
		return nil, fail(err)
	}
	return l, nil
}

// inThread runs f in a thread of its own that ends with it, so that f may leave it in
// any namespace. It is never the process's main thread: that one does not end, and
// /proc/self would show its namespaces.
func inThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		inThread(f) // a goroutine holds the main thread now, so that it is another one
		runtime.UnlockOSThread()
	}()
	<-done
}

// tcpSocket listens for IPv6 and IPv4, or for IPv4 alone where there is no IPv6. It does
// not use the net package: that remembers for the whole process what the network
// namespace of its first use could do.
func tcpSocket(port int) (*os.File, error) {
	f, err := bindTCP(unix.AF_INET6, &unix.SockaddrInet6{Port: port})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return bindTCP(unix.AF_INET, &unix.SockaddrInet4{Port: port})
	}
	return f, err
}

func bindTCP(family int, addr unix.Sockaddr) (_ *os.File, err error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "tcp:"+strconv.Itoa(family))
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	// Connections of the interface before this one may still be in TIME_WAIT.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, addr); err != nil {
		return nil, os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(fd, maxNetworkConns); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return f, nil
}

// limited accepts a connection only when there are fewer than so many.
type limited struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	once   sync.Once
}

func newLimited(l net.Listener, n int) *limited {
	return &limited{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http end a connection so that the client still gets its answer.
func (c *limitedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
