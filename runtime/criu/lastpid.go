//go:build linux

package criu

import (
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
)

// SetLastPid makes n+1 the next process number of a pid namespace: it runs
// `fastfreeze last-pid N` there, with the host's mounts, since the container's own
// /proc/sys is read-only and its files are not to be trusted. Only a process of the
// namespace can do it (/proc/sys/kernel/ns_last_pid acts on the writer's). fastfreeze is an
// O_PATH descriptor of the toolkit's binary. Blocks for some milliseconds.
func SetLastPid(pidns, fastfreeze *os.File, n int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	var cmd command
	for _, f := range []*os.File{null, null, null, fastfreeze} {
		if _, err := cmd.fds.add(f); err != nil {
			return err
		}
	}
	cmd.path = selfFd(3)
	cmd.argv = []string{"fastfreeze", "last-pid", strconv.Itoa(n)}
	p, err := spawn(cmd, Place{Namespaces: Namespaces{PID: pidns}})
	if err != nil {
		return fmt.Errorf("choose the next process number: %w", err)
	}
	defer p.close()
	<-p.ended
	if p.err != nil || !p.status.Exited() || p.status.ExitStatus() != 0 {
		return fmt.Errorf("choose the next process number: fastfreeze last-pid %d ended with status %#x (%v): "+
			"is the toolkit complete? Run `fastmig install`: %w", n, p.status, p.err, errdefs.ErrInternal)
	}
	return nil
}
