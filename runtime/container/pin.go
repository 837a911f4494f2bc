//go:build linux

package container

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// pinned are the namespaces that outlive PID 1: addresses and published ports belong
// to the network's, a name that was set at run time to the uts', and both to the
// user's, which a new PID 1 must therefore be in.
var pinned = []configs.NamespaceType{configs.NEWUSER, configs.NEWUTS, configs.NEWNET}

// Pins hold what outlives PID 1: the kernel ends a namespace with its last user.
type Pins struct {
	files map[configs.NamespaceType]*os.File
}

// Pin takes the namespaces of PID 1 while it lives; pid is its number as this process
// sees it. Those that the spec names by a path are somebody else's to hold.
//
// ErrNotFound if that process is not, or no longer, the container's first.
func (c *Container) Pin(pid int) (_ *Pins, err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, c.notFirst(pid)
	}
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// libcontainer knows when it started: so the pidfd, which is older than this
	// look, is the first process's, and if that lives in the end, no other process had
	// its number meanwhile.
	st, err := c.lc.State()
	if err != nil {
		return nil, err
	}
	if st.InitProcessPid != pid || errors.Is(c.lc.Signal(unix.Signal(0)), libcontainer.ErrNotRunning) {
		return nil, c.notFirst(pid)
	}
	p := &Pins{files: map[configs.NamespaceType]*os.File{}}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	for _, kind := range pinned {
		if !c.spaces.IsPrivate(kind) {
			continue
		}
		ns := configs.Namespace{Type: kind}
		f, err := os.Open(ns.GetPath(pid))
		if err != nil {
			return nil, fmt.Errorf("open the first process's %s namespace: %w", configs.NsName(kind), err)
		}
		p.files[kind] = f
	}
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
		return nil, c.notFirst(pid)
	}
	return p, nil
}

func (c *Container) notFirst(pid int) error {
	return fmt.Errorf("process %d is not the first of container %s, or has ended: %w", pid, c.config.ID, errdefs.ErrNotFound)
}

// Close lets go. A container that was renewed with the pins has its own.
func (p *Pins) Close() {
	if p == nil {
		return
	}
	for _, f := range p.files {
		f.Close()
	}
	p.files = nil
}

// dup gives pins that are closed on their own; all namespaces of the spec that do
// not have a path must be there.
func (p *Pins) dup(spaces configs.Namespaces) (*Pins, error) {
	out := &Pins{files: map[configs.NamespaceType]*os.File{}}
	for _, ns := range spaces {
		if ns.Path != "" || !slices.Contains(pinned, ns.Type) {
			continue
		}
		var f *os.File
		if p != nil {
			f = p.files[ns.Type]
		}
		if f == nil {
			out.Close()
			return nil, fmt.Errorf("its %s namespace was not pinned: %w", configs.NsName(ns.Type), errdefs.ErrInvalidArgument)
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			out.Close()
			return nil, fmt.Errorf("hold its %s namespace: %w", configs.NsName(ns.Type), err)
		}
		out.files[ns.Type] = os.NewFile(uintptr(fd), f.Name())
	}
	return out, nil
}

// join are the spec's namespaces with the pinned ones by their path. What opens it is a
// child of this process, in which the descriptor has no number.
func (p *Pins) join(spaces configs.Namespaces) configs.Namespaces {
	out := slices.Clone(spaces)
	for i, ns := range out {
		if f := p.files[ns.Type]; f != nil {
			out[i].Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
		}
	}
	return out
}
