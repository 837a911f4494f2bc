//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/containerd/log"
	"github.com/opencontainers/cgroups"

	"github.com/fastmig/fastmig/runtime/criu"
	"github.com/fastmig/fastmig/runtime/toolkit"
)

// initCgroup is the folder, below the container's in the freezer's hierarchy,
// that PID 1 waits in while a restore fills the container's own.
const initCgroup = "fastfreeze"

// shield keeps the container off the CRIU that restores into it: PID 1 is
// frozen meanwhile, and the restored processes run only when CRIU is gone. undo
// must be called when the restore has ended.
func (e *Engine) shield(ctx context.Context) (_ criu.Shield, undo func(), err error) {
	service, err := e.freezer()
	if err != nil {
		return criu.Shield{}, nil, err
	}
	files := []*os.File{service}
	undo = func() {
		for _, f := range files {
			f.Close()
		}
		e.stepBack(ctx)
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	path, err := e.stepAside()
	if err != nil {
		return criu.Shield{}, nil, err
	}
	init, err := os.Open(path)
	if err != nil {
		return criu.Shield{}, nil, err
	}
	files = append(files, init)
	outside, err := ownFreezer()
	if err != nil {
		return criu.Shield{}, nil, fmt.Errorf("find the shim's own freezer cgroup: %w", err)
	}
	files = append(files, outside)
	return criu.Shield{Service: service, Outside: outside, Others: []*os.File{init}}, undo, nil
}

// stepAside moves PID 1 into a cgroup of its own, where it can be frozen without
// the processes that a restore makes. The move waits for a grace period of the
// kernel's, up to 10 ms, unless it follows another: it is best done right after
// the container was made.
func (e *Engine) stepAside() (string, error) {
	service, err := e.freezer()
	if err != nil {
		return "", err
	}
	defer service.Close()
	path := filepath.Join(service.Name(), initCgroup)
	if e.aside {
		return path, nil
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("make a cgroup for the container's first process: %w", err)
	}
	if err := move(path, e.pid); err != nil {
		return "", fmt.Errorf("move the container's first process: %w", err)
	}
	e.aside = true
	return path, nil
}

// stepBack undoes stepAside; PID 1 may have ended.
func (e *Engine) stepBack(ctx context.Context) {
	service, err := e.freezer()
	if err != nil {
		log.G(ctx).WithError(err).Warn("end a restore")
		return
	}
	defer service.Close()
	e.aside = false
	_ = move(service.Name(), e.pid)
	if err := os.Remove(filepath.Join(service.Name(), initCgroup)); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.G(ctx).WithError(err).Warn("remove the cgroup of a restore")
	}
}

func move(folder string, pid int) error {
	return os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// WarmCgroups starts, and does not wait for, a process that takes upon itself the
// wait which the kernel has ready for the first move between cgroups after a
// while: some 10 ms, in which the container's shim starts. It is an offer to the
// container that is about to be made; when it fails, only those 10 ms are lost.
func WarmCgroups() {
	tk, err := toolkit.Locate()
	if err != nil {
		return
	}
	own, err := ownFreezer()
	if err != nil {
		return
	}
	defer own.Close()
	cmd := exec.Command(tk.Fastfreeze(), "warm", filepath.Join(own.Name(), "cgroup.procs"))
	if cmd.Start() == nil {
		go cmd.Wait()
	}
}

// ownFreezer opens this process's cgroup in the freezer's hierarchy.
func ownFreezer() (*os.File, error) {
	if !cgroups.IsCgroup2UnifiedMode() {
		path, err := cgroups.GetOwnCgroupPath("freezer")
		if err != nil {
			return nil, err
		}
		return os.Open(path)
	}
	own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return os.Open(filepath.Join("/sys/fs/cgroup", own[""]))
}
