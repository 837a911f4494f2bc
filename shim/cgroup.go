//go:build linux

package shim

import (
	"context"
	"fmt"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/oom"
	oomv1 "github.com/containerd/containerd/v2/pkg/oom/v1"
	oomv2 "github.com/containerd/containerd/v2/pkg/oom/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// loadCgroup finds a process's cgroup for its metrics; nil if it cannot.
func loadCgroup(ctx context.Context, pid int) any {
	if cgroups.Mode() != cgroups.Unified {
		cg, err := cgroup1.Load(cgroup1.PidPath(pid))
		if err != nil {
			log.G(ctx).WithError(err).Errorf("loading cgroup for %d", pid)
			return nil
		}
		return cg
	}
	path, err := cgroup2.PidGroupPath(pid)
	if err == nil {
		var cg *cgroup2.Manager
		if cg, err = cgroup2.Load(path); err == nil {
			return cg
		}
	}
	log.G(ctx).WithError(err).Errorf("loading cgroup2 for %d", pid)
	return nil
}

// cgroupMetrics are those of the stock shim, in containerd/cgroups' types.
func cgroupMetrics(cgroup any) (any, error) {
	switch cg := cgroup.(type) {
	case cgroup1.Cgroup:
		return cg.Stat(cgroup1.IgnoreNotExist)
	case *cgroup2.Manager:
		return cg.Stat()
	default:
		return nil, fmt.Errorf("cgroup does not exist: %w", errdefs.ErrNotFound)
	}
}

// newOOMWatcher publishes a TaskOOM event for each OOM kill in a cgroup that
// is added to it.
func newOOMWatcher(ctx context.Context, publisher events.Publisher) (oom.Watcher, error) {
	create := oomv1.New
	if cgroups.Mode() == cgroups.Unified {
		create = oomv2.New
	}
	w, err := create(publisher)
	if err != nil {
		return nil, fmt.Errorf("watch for OOM: %w", err)
	}
	go w.Run(ctx)
	return w, nil
}

// delegateControllers makes the controllers of a new v2 cgroup's ancestors
// available in it, as the stock shim does.
func delegateControllers(ctx context.Context, cgroup any) {
	cg, ok := cgroup.(*cgroup2.Manager)
	if !ok {
		return
	}
	all, err := cg.RootControllers()
	if err == nil {
		err = cg.ToggleControllers(all, cgroup2.Enable)
	}
	if err != nil {
		log.G(ctx).WithError(err).Debug("enable the cgroup's controllers")
	}
}
