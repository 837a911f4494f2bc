package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	objects["pipe"] = pipe
	objects["unix-stream-pair"] = func() (check, error) { return socketPair(unix.SOCK_STREAM) }
	objects["unix-dgram-pair"] = func() (check, error) { return socketPair(unix.SOCK_DGRAM) }
	objects["unix-seqpacket-pair"] = func() (check, error) { return socketPair(unix.SOCK_SEQPACKET) }
	objects["unix-listener-path"] = func() (check, error) { return listener("unix", dataDir+"/sock") }
	objects["unix-listener-abstract"] = func() (check, error) { return listener("unix", "@objects") }
	objects["tcp-listener"] = func() (check, error) { return listener("tcp", "127.0.0.1:7001") }
	objects["tcp6-listener"] = func() (check, error) { return listener("tcp", "[::]:7001") }
	objects["udp"] = udp
	objects["tcp-connection"] = connection
	objects["epoll"] = epoll
	objects["eventfd"] = eventfd
}

// inFlight puts bytes into a channel; the check takes them out and puts them
// back.
func inFlight(in, out int, messages ...string) (check, error) {
	put := func() error {
		for _, m := range messages {
			if _, err := unix.Write(in, []byte(m)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := put(); err != nil {
		return nil, err
	}
	return func(bool) error {
		buf := make([]byte, 100_000)
		for _, m := range messages {
			if err := readable(out); err != nil {
				return err
			}
			n, err := unix.Read(out, buf[:len(m)])
			if err != nil || string(buf[:n]) != m {
				return fmt.Errorf("in flight was %.40q, %v", buf[:max(n, 0)], err)
			}
		}
		return put()
	}, nil
}

func pipe() (check, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	return inFlight(p[1], p[0], string(pattern(50_000)), "the end")
}

func socketPair(kind int) (check, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	there, err := inFlight(p[0], p[1], "first message", "second")
	if err != nil {
		return nil, err
	}
	back, err := inFlight(p[1], p[0], "answer")
	return func(restored bool) error { return errors.Join(there(restored), back(restored)) }, err
}

func listener(network, address string) (check, error) {
	l, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	return func(bool) error {
		a, b, err := connect(l)
		if err != nil {
			return err
		}
		defer a.Close()
		defer b.Close()
		return talk(a, b)
	}, nil
}

func connect(l net.Listener) (a, b net.Conn, err error) {
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			accepted <- conn
		}
	}()
	address := l.Addr().String()
	if _, port, err := net.SplitHostPort(address); err == nil {
		address = "127.0.0.1:" + port
	}
	if a, err = net.DialTimeout(l.Addr().Network(), address, 5*time.Second); err != nil {
		return nil, nil, err
	}
	select {
	case b = <-accepted:
		return a, b, nil
	case <-time.After(5 * time.Second):
		a.Close()
		return nil, nil, errors.New("nobody accepts")
	}
}

func talk(a, b net.Conn) error {
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		deadline := time.Now().Add(5 * time.Second)
		_ = pair[0].SetDeadline(deadline)
		_ = pair[1].SetDeadline(deadline)
		if _, err := pair[0].Write([]byte("hello")); err != nil {
			return err
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(pair[1], buf); err != nil || string(buf) != "hello" {
			return fmt.Errorf("heard %q, %v", buf, err)
		}
	}
	return nil
}

func udp() (check, error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:7002")
	if err != nil {
		return nil, err
	}
	return func(bool) error {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.WriteTo([]byte("to myself"), conn.LocalAddr()); err != nil {
			return err
		}
		buf := make([]byte, 100)
		n, _, err := conn.ReadFrom(buf)
		return errors.Join(err, want("the datagram", string(buf[:n]), "to myself"))
	}, nil
}

// connection is closed by a restore; the listener takes a new client then.
func connection() (check, error) {
	l, err := net.Listen("tcp", "127.0.0.1:7001")
	if err != nil {
		return nil, err
	}
	a, b, err := connect(l)
	if err != nil {
		return nil, err
	}
	return func(restored bool) error {
		if !restored {
			return talk(a, b)
		}
		for _, c := range []net.Conn{a, b} {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			n, err := c.Read(make([]byte, 1))
			var timeout net.Error
			if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				return fmt.Errorf("the old connection is not closed: %d, %v", n, err)
			}
		}
		x, y, err := connect(l)
		if err != nil {
			return err
		}
		return talk(x, y)
	}, nil
}

func epoll() (check, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	for fd, data := range map[int]int32{p[0]: 4711, ev: 4712} {
		if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: data, Pad: 99}); err != nil {
			return nil, err
		}
	}
	return func(bool) error {
		for _, c := range []struct {
			in, out int
			data    int32
		}{{p[1], p[0], 4711}, {ev, ev, 4712}} {
			value := []byte{1, 0, 0, 0, 0, 0, 0, 0}
			if _, err := unix.Write(c.in, value); err != nil {
				return err
			}
			if err := readable(ep); err != nil {
				return err
			}
			events := make([]unix.EpollEvent, 4)
			n, err := unix.EpollWait(ep, events, 0)
			if err != nil || n != 1 || events[0].Fd != c.data || events[0].Pad != 99 {
				return fmt.Errorf("epoll gives %d events, %+v, %v", n, events[0], err)
			}
			if _, err := unix.Read(c.out, value); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func eventfd() (check, error) {
	fd, err := unix.Eventfd(7, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	seven := []byte{7, 0, 0, 0, 0, 0, 0, 0}
	return func(bool) error {
		buf := make([]byte, 8)
		if _, err := unix.Read(fd, buf); err != nil || !bytes.Equal(buf, seven) {
			return fmt.Errorf("the count is %v, %v", buf, err)
		}
		_, err := unix.Write(fd, seven)
		return err
	}, nil
}
