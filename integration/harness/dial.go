package harness

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Dial connects to an address as seen from inside the container's network
// namespace. The connection can be used anywhere.
func (c *Container) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.Task.Pid()))
	if err != nil {
		return nil, fmt.Errorf("dial %s in %s: %w", address, c.ID(), err)
	}
	defer ns.Close()
	err = onOwnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		conn, err = dialHere(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s in %s: %w", address, c.ID(), err)
	}
	return conn, nil
}

// Dial connects to an address as seen from the node's machine, where published
// ports are.
func (n *Node) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.machine.do(func() error {
		conn, err = dialHere(ctx, network, address)
		return err
	})
	return conn, err
}

// dialHere connects on the calling thread: a net.Dialer uses other threads for
// names and for more than one address, so the address must be one number.
func dialHere(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if net.ParseIP(host) == nil {
		return nil, fmt.Errorf("%q is no IP address", host)
	}
	return (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
}
