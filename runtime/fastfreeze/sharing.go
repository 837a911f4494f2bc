//go:build linux

package fastfreeze

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// OwnIPC says whether the spec gives the container an IPC namespace of its own.
func OwnIPC(spec *specs.Spec) bool {
	return spec.Linux != nil && slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.IPCNamespace && ns.Path == ""
	})
}

// OwnTmpfs lists the mount points of the file systems in memory that the spec
// mounts for the container alone and that are empty, or filled from the image,
// when it starts. /dev is not one of them: what is in it is the runtime's.
func OwnTmpfs(spec *specs.Spec) []string {
	var own []string
	for _, m := range spec.Mounts {
		dest := filepath.Join("/", m.Destination)
		// A later mount covers what is at or below its mount point.
		own = slices.DeleteFunc(own, func(path string) bool { return within(path, dest) })
		if m.Type == "tmpfs" && dest != "/" && dest != "/dev" &&
			!slices.ContainsFunc(m.Options, func(o string) bool { return o == "bind" || o == "rbind" || o == "ro" }) {
			own = append(own, dest)
		}
	}
	return own
}

func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// tmpfs resolves Config.Tmpfs in the container: where an image has /var/run as
// a link to /run, the file system for /var/run is mounted at /run. What the
// container has no folder for is left out.
func (e *Engine) tmpfs() ([]string, error) {
	if len(e.cfg.Tmpfs) == 0 {
		return nil, nil
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", e.pid))
	if err != nil {
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	defer root.Close()
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	var real []string
	for _, path := range e.cfg.Tmpfs {
		fd, err := unix.Openat2(int(root.Fd()), path, &how)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("resolve the container's %s: %w", path, err)
		}
		resolved, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("resolve the container's %s: %w", path, err)
		}
		if !slices.Contains(real, resolved) {
			real = append(real, resolved)
		}
	}
	return real, nil
}

// elsewhere leaves out the files that travel in the checkpoint itself, below
// one of the folders.
func elsewhere(files []image.FileCheck, folders []string) []image.FileCheck {
	return slices.DeleteFunc(files, func(f image.FileCheck) bool {
		return slices.ContainsFunc(folders, func(folder string) bool { return within(f.Path, folder) })
	})
}
