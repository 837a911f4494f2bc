// Package checkout finds the source tree that a test, a benchmark or the demo
// runs from, and the cache that outlives it.
package checkout

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Root returns the absolute path of the checkout: the nearest folder at or
// above the working directory that holds the pinned peer tools. Tests run in
// their package's folder and commands in the checkout, so it is always found
// there.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "integration", "tools", "containerd", "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the checkout: neither the working directory nor a folder above it is a checkout of FastMig; run this inside one")
		}
		dir = parent
	}
}

// Cache returns the folder elem below FastMig's cache
// (${XDG_CACHE_HOME:-~/.cache}/fastmig), made if it is missing.
func Cache(elem ...string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache: %w; set HOME or XDG_CACHE_HOME", err)
	}
	dir := filepath.Join(append([]string{base, "fastmig"}, elem...)...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	return dir, nil
}
