//go:build linux

package fastfreeze

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ownIPC says whether the container has an IPC namespace of its own, by the
// spec in its bundle. In another one, the host's or a pod's, there may be
// objects of others.
func ownIPC(bundle string) (bool, error) {
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return false, fmt.Errorf("read the container's spec: %w", err)
	}
	defer f.Close()
	var spec struct {
		Linux struct {
			Namespaces []specs.LinuxNamespace `json:"namespaces"`
		} `json:"linux"`
	}
	if err := json.NewDecoder(f).Decode(&spec); err != nil {
		return false, fmt.Errorf("read the container's spec: %w", err)
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.IPCNamespace {
			return ns.Path == "", nil
		}
	}
	return false, nil
}
