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
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/criu"
	"github.com/fastmig/fastmig/runtime/toolkit"
)

// initCgroup is the folder, below the container's in the freezer's hierarchy,
// that PID 1 waits in while a restore fills the container's own.
const initCgroup = "fastfreeze"

// asideRounds bounds how often what runs in the container is moved aside; more
// than two are needed only if somebody goes on putting processes there.
const asideRounds = 10

// guard keeps the container off the CRIU that restores into it: PID 1 and all
// that was exec'ed into the container stand still meanwhile, and the restored
// processes run only when CRIU is gone.
type guard struct {
	e      *Engine
	shield criu.Shield
	files  []*os.File
	frozen []criu.Freezer
}

// Prepare does ahead of time, in a container in which a restore is expected, what
// takes long at the beginning of one: the first move between cgroups waits for a
// grace period of the kernel's, up to 10 ms, unless it follows another; and the
// seccomp filters of PID 1 are read. It is best called right after the container was made. A Launch from scratch takes it
// back. Errors: FailedPrecondition if nothing can be restored there.
func (e *Engine) Prepare(ctx context.Context) error {
	e.launching.Lock()
	defer e.launching.Unlock()
	if !e.cfg.OwnPids {
		return fmt.Errorf("restore %s: %w", e.cfg.ID, errSharedPids)
	}
	if e.AppPid() != 0 {
		return fmt.Errorf("an application runs in container %s already: %w", e.cfg.ID, errdefs.ErrFailedPrecondition)
	}
	if err := e.learnFilters(); err != nil {
		return err
	}
	e.mu.Lock()
	before := e.launched
	e.mu.Unlock()
	if before {
		e.LowPids(ctx)
	}
	_, err := e.stepAside()
	return err
}

// shield freezes what runs in the container, out of the cgroup that the restored
// processes will be in.
func (e *Engine) shield(ctx context.Context) (_ *guard, err error) {
	g := &guard{e: e}
	defer func() {
		if err != nil {
			g.thaw(ctx)
			g.lower(ctx)
		}
	}()
	service, err := e.freezer()
	if err != nil {
		return nil, err
	}
	g.files = append(g.files, service)
	path, err := e.stepAside()
	if err != nil {
		return nil, err
	}
	if err := e.othersAside(ctx, service, path); err != nil {
		return nil, fmt.Errorf("freeze what else runs in the container: %w", err)
	}
	below, err := childCgroups(service.Name())
	if err != nil {
		return nil, err
	}
	for _, folder := range below {
		f, err := os.Open(folder)
		if err != nil {
			return nil, fmt.Errorf("freeze what else runs in the container: %w", err)
		}
		g.files = append(g.files, f)
		freezer, err := criu.OpenFreezer(f)
		if err != nil {
			return nil, fmt.Errorf("freeze what else runs in the container: %w", err)
		}
		g.frozen = append(g.frozen, freezer)
		g.shield.Others = append(g.shield.Others, f)
		if err := freezer.Freeze(ctx); err != nil {
			return nil, fmt.Errorf("freeze what else runs in the container: %w", err)
		}
	}
	outside, err := ownFreezer()
	if err != nil {
		return nil, fmt.Errorf("find the shim's own freezer cgroup: %w", err)
	}
	g.files = append(g.files, outside)
	g.shield.Service, g.shield.Outside = service, outside
	return g, nil
}

// thaw lets them go on; idempotent.
func (g *guard) thaw(ctx context.Context) {
	if g == nil {
		return
	}
	for _, f := range g.frozen {
		if err := f.Thaw(); err != nil && !errors.Is(err, unix.ENODEV) {
			log.G(ctx).WithError(err).Warn("thaw what stood still for a restore")
		}
	}
	g.frozen = nil
}

// lower brings them back to where they were.
func (g *guard) lower(ctx context.Context) {
	g.thaw(ctx)
	g.e.stepBack(ctx)
	for _, f := range g.files {
		f.Close()
	}
}

// stepAside moves PID 1 into a cgroup of its own, where it can be frozen without
// the processes that a restore makes.
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
		return "", errors.Join(fmt.Errorf("move the container's first process: %w", err), os.Remove(path))
	}
	e.aside = true
	return path, nil
}

// othersAside moves the processes that were exec'ed into the container to where
// PID 1 is. While they are moved they are frozen, so that none forks on or ends
// and its number means another process. Those in cgroups that the container made
// itself stay there: they are frozen in place.
func (e *Engine) othersAside(ctx context.Context, service *os.File, path string) error {
	all, err := criu.OpenFreezer(service)
	if err != nil {
		return err
	}
	aside, err := os.Open(path)
	if err != nil {
		return err
	}
	defer aside.Close()
	group, err := criu.OpenFreezer(aside)
	if err != nil {
		return err
	}
	for range asideRounds {
		pids, err := members(service.Name())
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := e.moveFrozen(ctx, all, group, service.Name(), path); err != nil {
			return err
		}
	}
	return fmt.Errorf("processes keep coming into the container: %w", errdefs.ErrUnavailable)
}

func (e *Engine) moveFrozen(ctx context.Context, all, aside criu.Freezer, from, to string) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, aside.Thaw())
		}
		err = errors.Join(err, all.Thaw())
	}()
	if err := all.Freeze(ctx); err != nil {
		return err
	}
	// By itself, for when the one above is thawed.
	if err := aside.Freeze(ctx); err != nil {
		return err
	}
	pids, err := members(from)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := move(to, pid); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %d: %w", pid, err)
		}
	}
	return nil
}

// stepBack undoes stepAside and othersAside for what has not ended meanwhile.
func (e *Engine) stepBack(ctx context.Context) {
	if !e.aside {
		return
	}
	if err := e.bringBack(context.WithoutCancel(ctx)); err != nil {
		log.G(ctx).WithError(err).Warn("bring the container's processes back after a restore")
	}
}

func (e *Engine) bringBack(ctx context.Context) error {
	service, err := e.freezer()
	if err != nil {
		return err
	}
	defer service.Close()
	e.aside = false
	path := filepath.Join(service.Name(), initCgroup)
	aside, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer aside.Close()
	group, err := criu.OpenFreezer(aside)
	if err != nil {
		return err
	}
	for range asideRounds {
		pids, err := members(path)
		if err != nil {
			return err
		}
		// PID 1's number stays its own until the shim reaps it.
		if len(pids) > 1 || len(pids) == 1 && pids[0] != e.pid {
			if err := group.Freeze(ctx); err != nil {
				return errors.Join(err, group.Thaw())
			}
			if pids, err = members(path); err != nil {
				return errors.Join(err, group.Thaw())
			}
		}
		for _, pid := range pids {
			_ = move(service.Name(), pid) // what is still there is seen below
		}
		if err = group.Thaw(); err != nil {
			return err
		}
		if err = os.Remove(path); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		} else if !errors.Is(err, unix.EBUSY) {
			return err
		}
	}
	return fmt.Errorf("%s does not get empty: %w", path, errdefs.ErrUnavailable)
}

// members are the processes of a cgroup.
func members(folder string) ([]int, error) {
	procs, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, word := range strings.Fields(string(procs)) {
		// 0 stands for a process that our pid namespace does not show.
		if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// childCgroups are the cgroups right below one.
func childCgroups(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("list the container's cgroups: %w", err)
	}
	var folders []string
	for _, entry := range entries {
		if entry.IsDir() {
			folders = append(folders, filepath.Join(folder, entry.Name()))
		}
	}
	return folders, nil
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
