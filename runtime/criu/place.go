//go:build linux

package criu

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Namespaces are open descriptors of a container's namespaces (namespaces(7)). A nil one is
// not joined, nor is one that is our own already.
//
// With a user namespace CRIU has the rights of its root and no more. The folder of the
// images is shown to it with mapped ids, so that the files in it belong to our root; the
// files of RestoreOptions.InheritFD must belong to users that the namespace maps.
type Namespaces struct {
	Cgroup, IPC, UTS, Net, PID, Mount, User *os.File
}

// OpenNamespaces opens the namespaces of the process pid, as numbered in our own pid
// namespace. pidfd, if not nil, must be a pidfd of the same process: it proves that the
// number was not given to another process meanwhile. Errors: errdefs.ErrNotFound when the
// process is gone.
func OpenNamespaces(pid int, pidfd *os.File) (_ Namespaces, err error) {
	var ns Namespaces
	defer func() {
		if err != nil {
			ns.Close()
		}
	}()
	for _, n := range []struct {
		file **os.File
		name string
	}{{&ns.Cgroup, "cgroup"}, {&ns.IPC, "ipc"}, {&ns.UTS, "uts"}, {&ns.Net, "net"}, {&ns.PID, "pid"}, {&ns.Mount, "mnt"}, {&ns.User, "user"}} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, n.name))
		if err != nil {
			return Namespaces{}, fmt.Errorf("open the %s namespace of process %d: %w: %w", n.name, pid, err, errdefs.ErrNotFound)
		}
		*n.file = f
	}
	if pidfd == nil {
		return ns, nil
	}
	fd, err := rawFd(pidfd)
	if err != nil {
		return Namespaces{}, err
	}
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil && !errors.Is(err, unix.EPERM) {
		return Namespaces{}, fmt.Errorf("process %d ended while its namespaces were opened: %w: %w", pid, err, errdefs.ErrNotFound)
	}
	return ns, nil
}

// Close closes the descriptors.
func (n Namespaces) Close() {
	for _, f := range []*os.File{n.Cgroup, n.IPC, n.UTS, n.Net, n.PID, n.Mount, n.User} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Place says where CRIU runs.
type Place struct {
	Namespaces Namespaces
	// CgroupTasks are open folders of cgroup v1, one a hierarchy, that CRIU, and so every
	// process that it restores, starts in.
	CgroupTasks []*os.File
	// CgroupV2 is the same for cgroup v2 (needs clone3, Linux 5.7).
	CgroupV2 *os.File
}

type namespace struct {
	file *os.File
	kind int
	name string
}

// joins lists what the launching thread enters by itself. The mount namespace is not
// there: CRIU enters it after its libraries are loaded (preload/preload.c).
func (n Namespaces) joins() ([]namespace, error) {
	var list []namespace
	for _, ns := range []namespace{
		{n.Cgroup, unix.CLONE_NEWCGROUP, "cgroup"},
		{n.IPC, unix.CLONE_NEWIPC, "ipc"},
		{n.UTS, unix.CLONE_NEWUTS, "uts"},
		{n.Net, unix.CLONE_NEWNET, "net"},
		{n.PID, unix.CLONE_NEWPID, "pid"},
	} {
		ours, err := isOurs(ns.file, ns.name)
		if err != nil {
			return nil, err
		}
		if !ours {
			list = append(list, ns)
		}
	}
	return list, nil
}

// isOurs says whether the namespace need not be joined. It is asked on threads that joined
// none yet.
func isOurs(file *os.File, name string) (bool, error) {
	if file == nil {
		return true, nil
	}
	theirs, err := file.Stat()
	if err != nil {
		return false, fmt.Errorf("look at the %s namespace: %w", name, err)
	}
	ours, err := os.Stat("/proc/thread-self/ns/" + name)
	if err != nil {
		return false, fmt.Errorf("look at our own %s namespace: %w", name, err)
	}
	return os.SameFile(ours, theirs), nil
}

// rawFd is the descriptor's number, without the switch to blocking mode that Fd makes. The
// caller keeps the file alive.
func rawFd(f *os.File) (int, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("descriptor of %s: %w", f.Name(), err)
	}
	fd := -1
	if err := conn.Control(func(n uintptr) { fd = int(n) }); err != nil {
		return -1, fmt.Errorf("descriptor of %s: %w", f.Name(), err)
	}
	return fd, nil
}
