package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// machine is what a node believes to be its host: a mount namespace with a
// private /run and /var/lib, and a network namespace with a loopback of its
// own. All default paths of containerd, runc, CNI and nerdctl fall into the
// private folders, and bridges, firewall rules and sysctls of the network
// vanish with the namespace, so nothing of the real host is touched.
//
// The pid and cgroup trees are the real host's.
type machine struct {
	mnt, net *os.File
	run      *os.File // its /run, for those outside
}

// newMachine makes the namespaces. varLib is the folder that becomes /var/lib.
func newMachine(varLib string) (*machine, error) {
	m := &machine{}
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare the mount and network namespaces: %w; this needs root", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("detach from the host's mounts: %w", err)
		}
		if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount a private /run: %w", err)
		}
		if err := unix.Mount(varLib, "/var/lib", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount a private /var/lib: %w", err)
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			return fmt.Errorf("set up the loopback device: %w", err)
		}
		if m.run, err = os.Open("/run"); err != nil {
			return err
		}
		if m.mnt, err = os.Open("/proc/thread-self/ns/mnt"); err != nil {
			return err
		}
		m.net, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *machine) close() {
	for _, f := range []*os.File{m.mnt, m.net, m.run} {
		if f != nil {
			f.Close()
		}
	}
}

// start starts the command inside the machine. Its folder is / unless it says
// otherwise.
func (m *machine) start(cmd *exec.Cmd) error {
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	return m.do(cmd.Start)
}

// do calls f on a thread that is inside the machine. Goroutines that f starts
// are not.
func (m *machine) do(f func() error) error {
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare the file system attributes: %w", err)
		}
		if err := unix.Setns(int(m.mnt.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the machine's mounts: %w", err)
		}
		if err := unix.Setns(int(m.net.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the machine's network: %w", err)
		}
		return f()
	})
}

// onOwnThread calls f on a thread that ends with it, so that what f changes
// about the thread reaches nobody else.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		done <- f()
	}()
	return <-done
}

// lookPath finds a program in the folders of a PATH value.
func lookPath(name, path string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		file := filepath.Join(dir, name)
		if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", &exec.Error{Name: name, Err: errors.Join(exec.ErrNotFound, fmt.Errorf("not in %s", path))}
}
