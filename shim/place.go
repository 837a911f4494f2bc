//go:build linux

package shim

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// leaveBundle makes / the working directory. containerd starts a shim in the
// bundle of its first container, which goes with that container while others
// of the group still come.
func leaveBundle() error {
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("leave the bundle's folder: %w", err)
	}
	return nil
}

// listeningSockets are the addresses of the sockets that this process was
// started with, the API's at descriptor 3 and the debugger's at 4. Their names
// come from the kernel: a group's cannot be computed from a container's id.
func listeningSockets() []string {
	var addresses []string
	for fd := 3; fd <= 4; fd++ {
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
			continue
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		if u, ok := sa.(*unix.SockaddrUnix); ok && filepath.IsAbs(u.Name) {
			addresses = append(addresses, "unix://"+u.Name)
		}
	}
	return addresses
}
