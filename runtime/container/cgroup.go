//go:build linux

package container

import (
	"strings"

	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer/configs"
)

// notOwn says whether a spec's cgroup is another container's: named after the
// source, or with processes in it.
func notOwn(cfg *configs.Config, path, source string) bool {
	if path == "" {
		return false
	}
	if _, name := splitCgroup(path); name == source {
		return true
	}
	m, err := manager.New(cfg.Cgroups)
	if err != nil || !m.Exists() {
		return false
	}
	pids, err := m.GetAllPids()
	return err == nil && len(pids) > 0
}

// beside is the cgroup path with the last part replaced.
func beside(path, name string) string {
	parent, _ := splitCgroup(path)
	return parent + name
}

// splitCgroup takes the last part off /PARENT/NAME or, of the systemd driver,
// SLICE:PREFIX:NAME.
func splitCgroup(path string) (parent, name string) {
	i := strings.LastIndexAny(path, "/:") + 1
	return path[:i], path[i:]
}
