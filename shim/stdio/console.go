//go:build linux

package stdio

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// Consoles serves the terminals of all of a shim's processes with one epoll
// descriptor.
type Consoles struct {
	epoller *console.Epoller
}

// NewConsoles starts serving.
func NewConsoles() (*Consoles, error) {
	e, err := console.NewEpoller()
	if err != nil {
		return nil, fmt.Errorf("make an epoll descriptor for terminals: %w", err)
	}
	go e.Wait()
	return &Consoles{epoller: e}, nil
}

// Close ends the serving.
func (c *Consoles) Close() error { return c.epoller.Close() }

// ConsoleSocket is where a starting process's terminal arrives.
type ConsoleSocket struct {
	ours *os.File
	// Child is the end for the process that makes the terminal.
	Child *os.File
}

// NewConsoleSocket makes the socket.
func NewConsoleSocket() (*ConsoleSocket, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a console socket: %w", err)
	}
	return &ConsoleSocket{ours: os.NewFile(uintptr(fds[0]), "console-ours"), Child: os.NewFile(uintptr(fds[1]), "console-child")}, nil
}

// CloseChild is called once the process has its end.
func (s *ConsoleSocket) CloseChild() { s.Child.Close() }

// Close gives the socket up. Idempotent.
func (s *ConsoleSocket) Close() {
	s.Child.Close()
	s.ours.Close()
}

// Receive blocks until the terminal's master has arrived, timeout at most.
func (s *ConsoleSocket) Receive(timeout time.Duration) (*os.File, error) {
	tv := unix.NsecToTimeval(timeout.Nanoseconds())
	fd := int(s.ours.Fd())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	name := make([]byte, 4096)
	oob := make([]byte, unix.CmsgSpace(4))
	_, oobn, _, _, err := unix.Recvmsg(fd, name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("failed to retrieve console master: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return nil, errors.New("failed to retrieve console master: no descriptor came")
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("failed to retrieve console master: not one descriptor came")
	}
	return os.NewFile(uintptr(fds[0]), "pty-master"), nil
}
