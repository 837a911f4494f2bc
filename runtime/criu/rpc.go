//go:build linux

package criu

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"golang.org/x/sys/unix"
)

// maxMessage bounds what CRIU may send. Its answers hold a few numbers and one line.
const maxMessage = 64 << 10

// conn is our end of the socket that `criu swrk` talks on: one message a packet, see
// CRIU's images/rpc.proto.
type conn struct {
	sock *net.UnixConn
	buf  [maxMessage]byte
}

// newConn makes the pair; the file is CRIU's end.
func newConn() (*conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make CRIU's socket: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "criu-rpc")
	ours := os.NewFile(uintptr(fds[0]), "criu-rpc")
	defer func() { _ = ours.Close() }()
	sock, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("make CRIU's socket: %w", err)
	}
	return &conn{sock: sock.(*net.UnixConn)}, theirs, nil
}

func (c *conn) send(req *rpc.CriuReq) error {
	packet, err := req.MarshalVT()
	if err != nil {
		return fmt.Errorf("encode a request to CRIU: %w", err)
	}
	if _, err := c.sock.Write(packet); err != nil {
		return fmt.Errorf("send a request to CRIU: %w", err)
	}
	return nil
}

// receive blocks until a message or the end of the conversation (io.EOF). A descriptor that
// comes along is closed: nothing that we ask for answers with one.
func (c *conn) receive() (*rpc.CriuResp, error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, flags, _, err := c.sock.ReadMsgUnix(c.buf[:], oob)
	closeRights(oob[:oobn])
	switch {
	case err != nil:
		return nil, fmt.Errorf("receive from CRIU: %w", err)
	case n == 0:
		return nil, io.EOF
	case flags&unix.MSG_TRUNC != 0:
		return nil, fmt.Errorf("receive from CRIU: a message of more than %d bytes", maxMessage)
	}
	resp := new(rpc.CriuResp)
	if err := resp.UnmarshalVT(c.buf[:n]); err != nil {
		return nil, fmt.Errorf("decode a message of CRIU: %w", err)
	}
	return resp, nil
}

// finish makes receive return what is queued and then io.EOF, also while a process that
// CRIU left behind still holds the other end.
func (c *conn) finish() { _ = c.sock.CloseRead() }

func (c *conn) close() { _ = c.sock.Close() }

// converse sends the request and answers notifications until CRIU gives its result or is
// gone. It returns nil, nil when CRIU ended without a result: its status and log tell more.
func (c *conn) converse(req *rpc.CriuReq, notify func(script string, pid int) error) (*rpc.CriuResp, error) {
	resp, err := c.talk(req, notify)
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return nil, nil
	}
	return resp, err
}

func (c *conn) talk(req *rpc.CriuReq, notify func(script string, pid int) error) (*rpc.CriuResp, error) {
	if err := c.send(req); err != nil {
		return nil, err
	}
	for {
		resp, err := c.receive()
		if err != nil {
			return nil, err
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			return resp, nil
		}
		var failed error
		if notify != nil {
			failed = notify(resp.GetNotify().GetScript(), int(resp.GetNotify().GetPid()))
		}
		answer := &rpc.CriuReq{Type: ptr(rpc.CriuReqType_NOTIFY), NotifySuccess: ptr(failed == nil)}
		err = c.send(answer)
		if failed != nil {
			return nil, failed
		}
		if err != nil {
			return nil, err
		}
	}
}

func closeRights(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err == nil {
			closeFds(fds)
		}
	}
}

func ptr[T any](v T) *T { return &v }
