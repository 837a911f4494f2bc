package harness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// baseDir holds all nodes of this host. It is short for the sake of
	// socket names.
	baseDir = "/tmp/fastmig-it"
	// namespacePrefix and a node's id make its containerd namespace.
	namespacePrefix = "fm-"
	// nodeVariable marks the node's processes by its id in their environment.
	nodeVariable = "FASTMIG_TEST_NODE"
	cgroupRoot   = "/sys/fs/cgroup"
)

// newDir makes the folder of a new node.
func newDir() (string, error) {
	if err := os.MkdirAll(baseDir, 0o711); err != nil {
		return "", err
	}
	// The owner is written before the folder gets its place, so that a sweep
	// never sees a node without one.
	// All ids are of one length, so that none is another's prefix.
	id := fmt.Sprintf("%08x", rand.Uint32())
	tmp := filepath.Join(baseDir, ".new-"+id)
	if err := os.Mkdir(tmp, 0o711); err != nil {
		return "", err
	}
	for _, sub := range []string{"bin", "s", "fifo", "home", "varlib", "cni", "nerdctl", "root", "state"} {
		if err := os.Mkdir(filepath.Join(tmp, sub), 0o711); err != nil {
			return "", err
		}
	}
	owner := fmt.Sprintf("%d %s", os.Getpid(), startTime(os.Getpid()))
	if err := os.WriteFile(filepath.Join(tmp, "owner"), []byte(owner), 0o644); err != nil {
		return "", err
	}
	dir := filepath.Join(baseDir, id)
	return dir, os.Rename(tmp, dir)
}

// sweep destroys nodes whose process died without stopping them.
func sweep() error {
	dirs, err := filepath.Glob(filepath.Join(baseDir, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "owner"))
		if err != nil {
			continue // being removed by its owner this moment
		}
		pid, start, _ := strings.Cut(string(data), " ")
		if n, err := strconv.Atoi(pid); err == nil && startTime(n) == start {
			continue
		}
		errs = append(errs, destroy(dir))
	}
	return errors.Join(errs...)
}

// destroy kills every process of the node, waits until they are gone and
// removes its cgroups, mounts and folder.
func destroy(dir string) error {
	id := filepath.Base(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := WaitFor(ctx, "the processes of node "+id+" to end", func(context.Context) (bool, error) {
		thaw(id)
		procs := processesOf(id)
		for _, p := range procs {
			_ = unix.Kill(p.Pid, unix.SIGKILL)
		}
		return len(procs) == 0, fmt.Errorf("still there: %v", procs)
	})
	if err != nil {
		return err
	}
	err = WaitFor(ctx, "the cgroups of node "+id+" to go", func(context.Context) (bool, error) {
		groups := cgroupsOf(id)
		slices.Reverse(groups) // children come after their parents
		for _, g := range groups {
			_ = unix.Rmdir(g)
		}
		left := cgroupsOf(id)
		return len(left) == 0, fmt.Errorf("still there: %v", left)
	})
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			// Removing the folder could now remove what is mounted there.
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	// The owner's file goes last: without it a sweep could not tell a half
	// removed node from one that is being removed.
	entries, err := os.ReadDir(dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, e := range entries {
		if e.Name() == "owner" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.RemoveAll(dir)
}

// cgroupsOf lists the node's cgroups in all hierarchies, parents first.
func cgroupsOf(id string) []string {
	// v1 has one folder a controller below the root, v2 is the root itself.
	tops, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", namespacePrefix+id+"*"))
	v2, _ := filepath.Glob(filepath.Join(cgroupRoot, namespacePrefix+id+"*"))
	var all []string
	for _, top := range append(tops, v2...) {
		_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
	}
	return all
}

// thaw lets frozen processes of the node die: on cgroup v1 a frozen process
// does not act on SIGKILL.
func thaw(id string) {
	for _, g := range cgroupsOf(id) {
		state := filepath.Join(g, "freezer.state")
		if data, err := os.ReadFile(state); err == nil && !strings.HasPrefix(string(data), "THAWED") {
			_ = os.WriteFile(state, []byte("THAWED"), 0)
		}
	}
}
