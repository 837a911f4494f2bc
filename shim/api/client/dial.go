//go:build linux

package client

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxAddress is the longest path that a unix socket's address holds: one byte is
// for the NUL.
const maxAddress = len(unix.RawSockaddrUnix{}.Path) - 1

// dial connects to the unix socket at path, however long that is.
func dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	if len(path) <= maxAddress {
		return d.DialContext(ctx, "unix", path)
	}
	// Too long for an address: by way of a descriptor of its folder.
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir)
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	if len(short) > maxAddress {
		return nil, &os.PathError{Op: "connect", Path: path, Err: unix.ENAMETOOLONG}
	}
	return d.DialContext(ctx, "unix", short)
}
