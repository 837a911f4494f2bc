// Package initconn is the shim's end of the socket to FastFreeze's PID 1.
package initconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// Conn sends and receives whole messages. Send and Receive may be called from different goroutines; each of
// them from several, one after the other.
type Conn struct {
	c         *net.UnixConn
	sendMu    sync.Mutex
	receiveMu sync.Mutex
	buf       [initproto.MaxSize + 1]byte
}

// Pair makes a connected pair: the shim's Conn, and the file that PID 1 gets as descriptor 3. The caller
// closes the file once PID 1 is started, so that the end of PID 1 is the end of the connection.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making the socket to PID 1: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "fastfreeze-init")
	c, err := New(os.NewFile(uintptr(fds[0]), "fastfreeze-shim"))
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

// New takes a SOCK_SEQPACKET socket over. The file is closed in any case.
func New(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("taking the socket to PID 1: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok || u.LocalAddr().Network() != "unixpacket" {
		_ = c.Close()
		return nil, fmt.Errorf("taking the socket to PID 1: not a SOCK_SEQPACKET socket: %w", errdefs.ErrInvalidArgument)
	}
	return &Conn{c: u}, nil
}

// Send sends one message and the descriptors that it needs (initproto.Message.Descriptors); the files stay the
// caller's to close. It blocks while PID 1 does not read and the socket is full, at most until ctx ends. When PID 1
// is gone the error is an errdefs.ErrUnavailable.
func (c *Conn) Send(ctx context.Context, m initproto.Message, files ...*os.File) error {
	b, err := initproto.Append(make([]byte, 0, 64), &m)
	if err != nil {
		return fmt.Errorf("sending %v to PID 1: %w: %w", m.Type, err, errdefs.ErrInvalidArgument)
	}
	if want := m.Descriptors(); len(files) != want {
		return fmt.Errorf("sending %v to PID 1: %d descriptors are to come along, not %d: %w", m.Type, want, len(files), errdefs.ErrInvalidArgument)
	}
	var rights []byte
	if len(files) > 0 {
		if rights, err = encodeRights(files); err != nil {
			return fmt.Errorf("sending %v to PID 1: %w", m.Type, err)
		}
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	done := deadline(ctx, c.c.SetWriteDeadline)
	_, _, err = c.c.WriteMsgUnix(b, rights, nil)
	done()
	runtime.KeepAlive(files)
	return wrap(ctx, "sending "+m.Type.String()+" to PID 1", err)
}

// encodeRights makes the control data that takes descriptors along. The application gets the open files
// themselves, so they must block as it expects (os.Pipe makes pipes that do not).
func encodeRights(files []*os.File) ([]byte, error) {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
		if fds[i] < 0 {
			return nil, fmt.Errorf("descriptor %d is closed already: %w", i, errdefs.ErrInvalidArgument)
		}
		if err := unix.SetNonblock(fds[i], false); err != nil {
			return nil, fmt.Errorf("making descriptor %d block: %w", i, err)
		}
	}
	return unix.UnixRights(fds...), nil
}

// CommandFile makes the file that comes with initproto.Command: a sealed memfd. The caller closes it. What PID 1
// would refuse is an errdefs.ErrInvalidArgument.
func CommandFile(args, env []string) (*os.File, error) {
	const step = "making the command for PID 1"
	b := initproto.EncodeCommand(args, env)
	if _, err := initproto.DecodeCommand(b); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", step, err, errdefs.ErrInvalidArgument)
	}
	fd, err := unix.MemfdCreate("fastfreeze-command", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("%s: memfd_create: %w", step, err)
	}
	f := os.NewFile(uintptr(fd), "fastfreeze-command")
	if _, err = f.Write(b); err == nil {
		const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", step, err)
	}
	return f, nil
}

// Receive blocks until the next message of PID 1 or the end of ctx. When the connection is at its end the error
// is an io.EOF and an errdefs.ErrUnavailable. That too is only PID 1's word (an empty datagram looks the same):
// whether the process has ended is for wait(2) to say. What is not a message of PID 1 is an errdefs.ErrDataLoss
// and leaves the connection usable: PID 1 belongs to the container, which may have taken it over.
func (c *Conn) Receive(ctx context.Context) (initproto.Message, error) {
	const step = "receiving from PID 1"
	c.receiveMu.Lock()
	defer c.receiveMu.Unlock()
	done := deadline(ctx, c.c.SetReadDeadline)
	// Without a buffer for control data the kernel drops descriptors that come along.
	n, _, flags, _, err := c.c.ReadMsgUnix(c.buf[:], nil)
	done()
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return initproto.Message{}, wrap(ctx, step, err)
	}
	if flags&unix.MSG_TRUNC != 0 {
		n = len(c.buf)
	}
	m, err := initproto.DecodeFromInit(c.buf[:n])
	if err != nil {
		return initproto.Message{}, fmt.Errorf("%s: %w: %w", step, err, errdefs.ErrDataLoss)
	}
	return m, nil
}

// Close ends the connection: PID 1 goes on if it has an application, else it ends.
func (c *Conn) Close() error { return c.c.Close() }

// deadline makes a blocking call end with ctx; the returned function must be called after it.
func deadline(ctx context.Context, set func(time.Time) error) func() {
	if ctx.Done() == nil {
		return func() {}
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = set(time.Unix(1, 0))
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired
		}
		_ = set(time.Time{})
	}
}

func wrap(ctx context.Context, step string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
		return fmt.Errorf("%s: PID 1 does not answer: %w", step, ctx.Err())
	case errors.Is(err, io.EOF), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, net.ErrClosed):
		return fmt.Errorf("%s: PID 1 has closed the connection: %w: %w", step, err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w", step, err)
}
