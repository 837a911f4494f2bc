//go:build linux

package toolkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// UninstallOptions says what Uninstall removes.
type UninstallOptions struct {
	// Root is the toolkit's folder, absolute; empty means RootFromEnv.
	Root string
	// Force removes a toolkit that running processes hold.
	Force bool
}

// Uninstall removes the files that Install wrote, as the manifest lists them,
// and the folders that are empty then, the root included. Other files below the
// root stay. Errors: errdefs.ErrNotFound when nothing is installed there,
// errdefs.ErrFailedPrecondition when containers run with this toolkit (without
// it they can no longer be checkpointed), errdefs.ErrPermissionDenied.
func Uninstall(ctx context.Context, opts UninstallOptions) error {
	root := opts.Root
	if root == "" {
		root = RootFromEnv()
	}
	if !filepath.IsAbs(root) {
		return fmt.Errorf("toolkit: %q is not an absolute path: %w", root, errdefs.ErrInvalidArgument)
	}
	t := Toolkit{root: filepath.Clean(root)}
	// Before the lock: openRoot would make the folder.
	if _, err := t.ReadManifest(); err != nil {
		return err
	}
	locked, err := openRoot(ctx, t.root)
	if err != nil {
		return err
	}
	defer locked.close()
	m, err := t.ReadManifest()
	if err != nil {
		return err
	}
	if pids := holders(t.Fastfreeze(), t.CriuDir()); len(pids) > 0 && !opts.Force {
		return fmt.Errorf("toolkit: uninstall %s: the processes %v use it, containers most likely: stop them first, or force it: %w",
			t.root, pids, errdefs.ErrFailedPrecondition)
	}
	// The manifest goes last: until then a second try knows what to remove.
	for _, path := range append(paths(m), manifestName) {
		if err := os.Remove(filepath.Join(t.root, path)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return explain("uninstall "+t.root, t.root, err)
		}
	}
	if err := sweep(t.root, func(string, ...any) {}); err != nil {
		return err
	}
	for _, dir := range []string{t.LibDir(), t.CriuDir(), filepath.Join(t.root, "bin"), t.root} {
		// A folder with somebody else's files stays; so does one in use.
		_ = os.Remove(dir)
	}
	return nil
}

func paths(m Manifest) []string {
	list := make([]string, 0, len(m.Files)+1)
	for _, f := range m.Files {
		list = append(list, f.Path)
	}
	return list
}
