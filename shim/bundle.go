//go:build linux

package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"

	"github.com/fastmig/fastmig/runtime/container"
)

// What the shim leaves in a bundle for the `delete` that follows its death.
const (
	optionsFile = "options.json"
	pidFile     = "init.pid"
	exitFile    = "exit.json"
)

// exitRecord is how a container's first process ended.
type exitRecord struct {
	Timestamp time.Time
	Pid       int
	Status    int
}

// stateRoot is libcontainer's folder for the containers of a namespace.
func stateRoot(opts *options.Options, ns string) string {
	root := container.DefaultRoot
	if opts != nil && opts.Root != "" {
		root = opts.Root
	}
	return filepath.Join(root, ns)
}

func writeOptions(bundle string, opts *options.Options) error {
	data, err := json.Marshal(opts)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(bundle, optionsFile), data)
}

// readOptions returns nil without an error if the shim never wrote any.
func readOptions(bundle string) (*options.Options, error) {
	data, err := os.ReadFile(filepath.Join(bundle, optionsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var opts options.Options
	if err := json.Unmarshal(data, &opts); err != nil {
		return nil, fmt.Errorf("read %s: %w", optionsFile, err)
	}
	return &opts, nil
}

func writePid(bundle string, pid int) error {
	return writeFile(filepath.Join(bundle, pidFile), []byte(strconv.Itoa(pid)))
}

func readPid(bundle string) (int, error) {
	data, err := os.ReadFile(filepath.Join(bundle, pidFile))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

func writeExit(bundle string, e exitRecord) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(bundle, exitFile), data)
}

func readExit(bundle string) (exitRecord, error) {
	var e exitRecord
	data, err := os.ReadFile(filepath.Join(bundle, exitFile))
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("read %s: %w", exitFile, err)
	}
	if e.Pid <= 0 || e.Status < 0 || e.Timestamp.IsZero() {
		return e, fmt.Errorf("read %s: it makes no sense: %+v", exitFile, e)
	}
	return e, nil
}

// writeFile replaces a file as a whole. Bundles do not outlive a reboot, so
// nothing is synced.
func writeFile(path string, data []byte) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}
