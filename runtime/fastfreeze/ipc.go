//go:build linux

package fastfreeze

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/runtime/image"
)

// shmDir is where POSIX shared memory is, see shm_overview(7).
const shmDir = "/dev/shm"

// sharing says what of a container's means to share data is its own; in the
// host's or a pod's there may be objects of others.
type sharing struct {
	ipc bool // the IPC namespace
	shm bool // /dev/shm, a tmpfs
}

// ownSharing reads it from the spec in the container's bundle.
func ownSharing(bundle string) (sharing, error) {
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return sharing{}, fmt.Errorf("read the container's spec: %w", err)
	}
	defer f.Close()
	var spec struct {
		Mounts []specs.Mount `json:"mounts"`
		Linux  struct {
			Namespaces []specs.LinuxNamespace `json:"namespaces"`
		} `json:"linux"`
	}
	if err := json.NewDecoder(f).Decode(&spec); err != nil {
		return sharing{}, fmt.Errorf("read the container's spec: %w", err)
	}
	var s sharing
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.IPCNamespace {
			s.ipc = ns.Path == ""
		}
	}
	for _, m := range spec.Mounts {
		switch filepath.Clean(m.Destination) {
		case shmDir:
			s.shm = m.Type == "tmpfs" && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind")
		case "/", "/dev":
			s.shm = false // covered
		}
	}
	return s, nil
}

// elsewhere leaves out the files that are in the checkpoint itself.
func (s sharing) elsewhere(files []image.FileCheck) []image.FileCheck {
	return slices.DeleteFunc(files, func(f image.FileCheck) bool { return s.shm && strings.HasPrefix(f.Path, shmDir+"/") })
}
