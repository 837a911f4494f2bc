//go:build linux

package criu

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What processes share outside of themselves.
//
// System V objects (sysvipc(7)) belong to an IPC namespace, not to a process. CRIU dumps the
// objects of the processes' namespace if it is not in it itself, and at the restore makes them
// in the one that the root process is born into: a new one, but for preload/preload.c.

// sysvKinds are the kinds of objects: the file in /proc/sysvipc and the call that removes one.
var sysvKinds = []struct {
	name    string
	control uintptr
}{{"shm", unix.SYS_SHMCTL}, {"sem", unix.SYS_SEMCTL}, {"msg", unix.SYS_MSGCTL}}

type sysvObject struct {
	kind int // in sysvKinds
	id   int
}

// dumpIPC returns the IPC namespace that CRIU joins for a dump of processes in ns: none if
// there is something in ns to be dumped. The dump of an empty one would cost time, and bind the
// checkpoint to containers with such a namespace. Our own is never dumped.
func dumpIPC(ns *os.File) (*os.File, error) {
	if ours, err := isOurs(ns, "ipc"); err != nil || ours {
		return ns, err
	}
	objects, err := sysvObjects(ns)
	if err != nil || len(objects) == 0 {
		return ns, err
	}
	return nil, nil
}

// ipcRestore is what a restore does to the container's IPC namespace; nil: nothing.
type ipcRestore struct {
	ns     *os.File
	before []sysvObject
}

// restoreIPC tells CRIU where the checkpoint's System V objects go.
func (s *session) restoreIPC(o RestoreOptions) (*ipcRestore, error) {
	names, err := namesIn(o.Images)
	if err != nil || !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, "ipcns-") }) {
		return nil, err
	}
	ns := o.Place.Namespaces.IPC
	ours, err := isOurs(ns, "ipc")
	if err != nil {
		return nil, err
	}
	if ours || !o.OwnIPC {
		return nil, fmt.Errorf("the checkpoint holds System V objects, and the container shares its IPC namespace with others: "+
			"restore into a container with one of its own: %w", errdefs.ErrFailedPrecondition)
	}
	before, err := sysvObjects(ns)
	if err != nil {
		return nil, err
	}
	s.env = append(s.env, "FASTMIG_SAME_IPC=1")
	return &ipcRestore{ns, before}, nil
}

// check makes sure that the restored process pid, which does not run yet, is in the
// container's namespace.
func (r *ipcRestore) check(pid int) error {
	if r == nil {
		return nil
	}
	want, err := r.ns.Stat()
	if err != nil {
		return fmt.Errorf("look at the container's IPC namespace: %w", err)
	}
	got, err := os.Stat(fmt.Sprintf("/proc/%d/ns/ipc", pid))
	if err != nil {
		return fmt.Errorf("look at the restored process's IPC namespace: %w", err)
	}
	if !os.SameFile(got, want) {
		return fmt.Errorf("the restored process is not in the container's IPC namespace: %w", errdefs.ErrInternal)
	}
	return nil
}

// undo removes what a failed restore has made. Whoever made objects meanwhile loses them.
func (r *ipcRestore) undo() error {
	if r == nil {
		return nil
	}
	objects, err := sysvObjects(r.ns)
	if err != nil {
		return err
	}
	objects = slices.DeleteFunc(objects, func(o sysvObject) bool { return slices.Contains(r.before, o) })
	return inIPC(r.ns, func() error {
		var errs []error
		for _, o := range objects {
			// semctl has the number of a semaphore in the second place, which is not used here.
			kind, args := sysvKinds[o.kind], [2]uintptr{unix.IPC_RMID}
			if kind.name == "sem" {
				args = [2]uintptr{0, unix.IPC_RMID}
			}
			_, _, errno := unix.Syscall6(kind.control, uintptr(o.id), args[0], args[1], 0, 0, 0)
			if errno != 0 && errno != unix.EINVAL && errno != unix.EIDRM {
				errs = append(errs, fmt.Errorf("remove the System V object (%s) %d of the failed restore: %w", kind.name, o.id, errno))
			}
		}
		return errors.Join(errs...)
	})
}

// sysvObjects lists the objects of an IPC namespace. It takes less than a millisecond.
func sysvObjects(ns *os.File) ([]sysvObject, error) {
	var objects []sysvObject
	err := inIPC(ns, func() error {
		for kind, k := range sysvKinds {
			text, err := os.ReadFile("/proc/sysvipc/" + k.name) // the reader's namespace, sysvipc(7)
			if errors.Is(err, os.ErrNotExist) {
				continue // not in this kernel
			}
			if err != nil {
				return fmt.Errorf("list the container's System V objects: %w", err)
			}
			for i, line := range slices.Collect(strings.Lines(string(text))) {
				columns := strings.Fields(line)
				if i == 0 || len(columns) < 2 {
					continue // the heads
				}
				id, err := strconv.Atoi(columns[1])
				if err != nil {
					return fmt.Errorf("list the container's System V objects: /proc/sysvipc/%s: %w", k.name, err)
				}
				objects = append(objects, sysvObject{kind, id})
			}
		}
		return nil
	})
	return objects, err
}

// inIPC runs f in an IPC namespace.
func inIPC(ns *os.File, f func() error) error {
	fd, err := rawFd(ns)
	if err != nil {
		return err
	}
	onSpareThread(func() {
		if err = unix.Setns(fd, unix.CLONE_NEWIPC); err != nil {
			err = fmt.Errorf("join the container's IPC namespace: %w", err)
			return
		}
		err = f()
	})
	return err
}
