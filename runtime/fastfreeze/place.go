//go:build linux

package fastfreeze

import (
	"fmt"
	"os"

	"github.com/fastmig/fastmig/runtime/criu"
)

// freezer opens the cgroup folder that freezes the container.
func (e *Engine) freezer() (*os.File, error) {
	folders, err := e.cfg.CgroupFolders()
	if err != nil {
		return nil, err
	}
	path, ok := folders["freezer"]
	if !ok {
		path = folders[""]
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the container's freezer cgroup: %w", err)
	}
	return f, nil
}

// place opens the container's namespaces, and its cgroups if CRIU's children
// are to be born into them.
func (e *Engine) place(inside bool) (_ criu.Place, release func(), err error) {
	var open []*os.File
	var place criu.Place
	release = func() {
		place.Namespaces.Close()
		for _, f := range open {
			f.Close()
		}
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if place.Namespaces, err = criu.OpenNamespaces(e.pid, e.pidfd); err != nil {
		return place, nil, err
	}
	if !inside {
		return place, release, nil
	}
	folders, err := e.cfg.CgroupFolders()
	if err != nil {
		return place, nil, err
	}
	seen := make(map[string]bool)
	for controller, path := range folders {
		if seen[path] {
			continue
		}
		seen[path] = true
		f, err := os.Open(path)
		if err != nil {
			return place, nil, fmt.Errorf("open the container's cgroup: %w", err)
		}
		open = append(open, f)
		if controller == "" {
			place.CgroupV2 = f
		} else {
			place.CgroupTasks = append(place.CgroupTasks, f)
		}
	}
	return place, release, nil
}
