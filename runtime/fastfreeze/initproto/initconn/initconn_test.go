package initconn_test

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto/initconn"
)

func pair(t *testing.T) (*initconn.Conn, int) {
	t.Helper()
	c, theirs, err := initconn.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = theirs.Close() })
	return c, int(theirs.Fd())
}

func TestMessages(t *testing.T) {
	c, theirs := pair(t)
	ctx := context.Background()
	if err := c.Send(ctx, initproto.Message{Type: initproto.Start, Flags: initproto.Tied}); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	if n, err := unix.Read(theirs, b); err != nil || string(b[:n]) != "\x02\x01\x02" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if _, err := unix.Write(theirs, []byte("\x02\x82\x01\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	if m, err := c.Receive(ctx); err != nil || m.Type != initproto.Started || m.Pid != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if err := c.Send(ctx, initproto.Message{Type: initproto.Signal, Signo: 99}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a bad message: %v", err)
	}
}

func TestHostileMessages(t *testing.T) {
	c, theirs := pair(t)
	fds := openDescriptors(t)
	for _, b := range []string{"x", "\x02\x01\x00", string(make([]byte, initproto.MaxSize+1)), string(make([]byte, 100_000))} {
		if err := unix.Sendmsg(theirs, []byte(b), unix.UnixRights(theirs), nil, 0); err != nil {
			t.Fatal(err)
		}
		if m, err := c.Receive(context.Background()); !errdefs.IsDataLoss(err) {
			t.Errorf("%d bytes: %+v, %v", len(b), m, err)
		}
	}
	if now := openDescriptors(t); now != fds {
		t.Errorf("descriptors: %d before, %d after", fds, now)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

func TestContext(t *testing.T) {
	c, theirs := pair(t)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Receive(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("receiving: %v", err)
	}
	late, cancel := context.WithCancel(context.Background())
	received := make(chan error)
	go func() {
		_, err := c.Receive(late)
		received <- err
	}()
	cancel()
	if err := <-received; !errors.Is(err, context.Canceled) {
		t.Errorf("receiving: %v", err)
	}
	// A peer that does not read: the socket fills, then the context decides.
	full, cancel := context.WithCancel(context.Background())
	sent := make(chan error)
	go func() {
		for {
			if err := c.Send(full, initproto.Message{Type: initproto.Ping}); err != nil {
				sent <- err
				return
			}
		}
	}()
	cancel()
	if err := <-sent; !errors.Is(err, context.Canceled) {
		t.Errorf("sending: %v", err)
	}
	// The connection is good for more.
	if _, err := unix.Write(theirs, []byte("\x02\x82\x01\x00\x00\x00")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestPeerGone(t *testing.T) {
	c, theirs, err := initconn.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Receive(context.Background()); !errors.Is(err, io.EOF) || !errdefs.IsUnavailable(err) {
		t.Errorf("receiving: %v", err)
	}
	if err := c.Send(context.Background(), initproto.Message{Type: initproto.Ping}); !errdefs.IsUnavailable(err) {
		t.Errorf("sending: %v", err)
	}
}

func TestWrongSocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	if c, err := initconn.New(os.NewFile(uintptr(fds[0]), "stream")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v, %v", c, err)
	}
}

// TestDescriptors: those that a message needs come along, in their order, and nothing is sent with others.
func TestDescriptors(t *testing.T) {
	c, theirs := pair(t)
	ctx := context.Background()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	command, err := initconn.CommandFile([]string{"true"}, []string{"A=1"})
	if err != nil {
		t.Fatal(err)
	}
	defer command.Close()
	start := initproto.Message{Type: initproto.Start, Flags: initproto.NewStdio | initproto.Command}
	for _, files := range [][]*os.File{nil, {command}, {r, w, w}, {r, w, w, w, command}} {
		if err := c.Send(ctx, start, files...); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d descriptors: %v", len(files), err)
		}
	}
	if err := c.Send(ctx, initproto.Message{Type: initproto.Ping}, r); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a descriptor with PING: %v", err)
	}
	if err := c.Send(ctx, start, r, w, w, command); err != nil {
		t.Fatal(err)
	}
	b, oob := make([]byte, 100), make([]byte, unix.CmsgSpace(4*initproto.MaxDescriptors))
	n, oobn, _, _, err := unix.Recvmsg(theirs, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || string(b[:n]) != "\x02\x01\x18" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%v, %v", messages, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 4 {
		t.Fatalf("%v, %v", fds, err)
	}
	for i, f := range []*os.File{r, w, w, command} {
		defer unix.Close(fds[i])
		var came, sent unix.Stat_t
		if err := errors.Join(unix.Fstat(fds[i], &came), unix.Fstat(int(f.Fd()), &sent)); err != nil || came.Ino != sent.Ino {
			t.Errorf("descriptor %d is another file, %v", i, err)
		}
		if flags, err := unix.FcntlInt(uintptr(fds[i]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("descriptor %d does not block, %v", i, err)
		}
	}
}

func TestCommandFile(t *testing.T) {
	f, err := initconn.CommandFile([]string{"true"}, []string{"A=1"})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := initproto.EncodeCommand([]string{"true"}, []string{"A=1"})
	got := make([]byte, len(want)+1)
	if n, err := f.ReadAt(got, 0); !errors.Is(err, io.EOF) || string(got[:n]) != string(want) {
		t.Errorf("%q, %v", got[:n], err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be changed")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("it can be cut")
	}
	for _, args := range [][]string{nil, {"a\x00b"}, {"x", string(make([]byte, initproto.MaxCommand))}} {
		if f, err := initconn.CommandFile(args, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d arguments: %v, %v", len(args), f, err)
		}
	}
}
