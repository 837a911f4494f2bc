//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// cgroup is an open cgroup folder that can be frozen: of v1's freezer hierarchy
// (freezer.state) or of v2 (cgroup.freeze).
type cgroup struct {
	folder *os.File
	v2     bool
}

// Freezer is a cgroup that can be frozen.
type Freezer struct{ c cgroup }

// OpenFreezer takes an open cgroup folder: of v1's freezer hierarchy or of v2. The folder stays
// the caller's to close. Errors: InvalidArgument if it cannot be frozen.
func OpenFreezer(folder *os.File) (Freezer, error) {
	c, err := openFreezer(folder)
	return Freezer{c}, err
}

// Freeze returns when every task of the cgroup and of those below it stands still, or ctx ends.
func (f Freezer) Freeze(ctx context.Context) error { return f.c.freezeAndWait(ctx) }

// Thaw lets them go on, but for those below a cgroup that is frozen itself.
func (f Freezer) Thaw() error { return f.c.thaw() }

func openFreezer(folder *os.File) (cgroup, error) {
	dir, err := rawFd(folder)
	if err != nil {
		return cgroup{}, err
	}
	if unix.Faccessat(dir, "freezer.state", unix.F_OK, 0) == nil {
		return cgroup{folder: folder}, nil
	}
	if unix.Faccessat(dir, "cgroup.freeze", unix.F_OK, 0) == nil {
		return cgroup{folder: folder, v2: true}, nil
	}
	return cgroup{}, fmt.Errorf("%s has neither freezer.state (cgroup v1) nor cgroup.freeze (v2): %w", folder.Name(), errdefs.ErrInvalidArgument)
}

func (c cgroup) write(name, value string) error {
	dir, err := rawFd(c.folder)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		_ = unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("write %q to %s/%s: %w", value, c.folder.Name(), name, err)
	}
	return nil
}

func (c cgroup) read(name string) (string, error) {
	dir, err := rawFd(c.folder)
	if err != nil {
		return "", err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s/%s: %w", c.folder.Name(), name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer func() { _ = f.Close() }()
	var b strings.Builder
	if _, err := f.WriteTo(&b); err != nil {
		return "", fmt.Errorf("read %s/%s: %w", c.folder.Name(), name, err)
	}
	return b.String(), nil
}

// freeze asks for it and does not wait: a task that has not stopped yet does so before its
// next instruction in user mode, unless it is in the middle of a system call.
func (c cgroup) freeze() error {
	if c.v2 {
		return c.write("cgroup.freeze", "1")
	}
	return c.write("freezer.state", "FROZEN")
}

func (c cgroup) thaw() error {
	if c.v2 {
		return c.write("cgroup.freeze", "0")
	}
	return c.write("freezer.state", "THAWED")
}

// asked says whether the cgroup is frozen or on the way to it.
func (c cgroup) asked() (bool, error) {
	if c.v2 {
		s, err := c.read("cgroup.freeze")
		return strings.TrimSpace(s) == "1", err
	}
	s, err := c.read("freezer.state")
	return err == nil && strings.TrimSpace(s) != "THAWED", err
}

// frozen says whether every task of it is stopped.
func (c cgroup) frozen() (bool, error) {
	if c.v2 {
		s, err := c.read("cgroup.events")
		return strings.Contains(s, "frozen 1"), err
	}
	s, err := c.read("freezer.state")
	return strings.TrimSpace(s) == "FROZEN", err
}

// freezeAndWait returns when every task is stopped.
func (c cgroup) freezeAndWait(ctx context.Context) error {
	if err := c.freeze(); err != nil {
		return err
	}
	for wait := time.Millisecond / 4; ; wait = min(2*wait, 50*time.Millisecond) {
		frozen, err := c.frozen()
		if err != nil || frozen {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("freeze %s: %w", c.folder.Name(), context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// killAll ends every process in the cgroup, frozen or not, and returns when it is empty.
func (c cgroup) killAll(ctx context.Context) error {
	for wait := time.Millisecond / 4; ; wait = min(2*wait, 50*time.Millisecond) {
		procs, err := c.read("cgroup.procs")
		if err != nil {
			return err
		}
		pids := strings.Fields(procs)
		if len(pids) == 0 {
			return nil
		}
		for _, p := range pids {
			// 0 stands for a process that our pid namespace does not show.
			if pid, err := strconv.Atoi(p); err == nil && pid > 1 {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("kill process %d of %s: %w", pid, c.folder.Name(), err)
				}
			}
		}
		// On v1 a frozen task does not even die.
		if err := c.thaw(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("empty %s: %w", c.folder.Name(), context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}
