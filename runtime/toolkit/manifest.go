//go:build linux

package toolkit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"github.com/containerd/errdefs"
)

// manifestFormat is the version of toolkit.json's layout.
const manifestFormat = 1

// Where an installed CRIU came from.
const (
	FromHost   = "host"   // a criu found on or named by the host
	FromDebian = "debian" // a package of a Debian suite
)

// Manifest is toolkit.json: what is installed and where it came from.
type Manifest struct {
	Format int         `json:"format"`
	Arch   string      `json:"arch"` // as in Go's GOARCH
	Criu   CriuOrigin  `json:"criu"`
	Files  []FileEntry `json:"files"` // sorted by path; without toolkit.json itself
}

// CriuOrigin says which CRIU is installed.
type CriuOrigin struct {
	Version string `json:"version"` // as `criu --version` prints it
	From    string `json:"from"`    // FromHost or FromDebian
	// Source is the host's file, or the suite and package, e.g.
	// "trixie criu_4.1.1-1_amd64.deb".
	Source string `json:"source"`
	// Digest is the sha256 of the host's file, hexadecimal; empty for a package.
	Digest string `json:"digest,omitempty"`
}

// FileEntry is one installed regular file.
type FileEntry struct {
	Path   string `json:"path"` // below the root
	Mode   string `json:"mode"` // permissions, octal
	Size   int64  `json:"size"` // bytes
	Digest string `json:"sha256"`
}

// ReadManifest reads toolkit.json. Errors: errdefs.ErrNotFound when there is
// none, errdefs.ErrFailedPrecondition when it cannot be understood.
func (t Toolkit) ReadManifest() (Manifest, error) {
	data, err := os.ReadFile(t.ManifestPath())
	if err != nil {
		kind := error(errdefs.ErrFailedPrecondition)
		if os.IsNotExist(err) {
			kind = errdefs.ErrNotFound
		}
		return Manifest{}, fmt.Errorf("toolkit: read the manifest: %w: %w", err, kind)
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return Manifest{}, fmt.Errorf("toolkit: read the manifest %s: %w: run `fastmig install`: %w", t.ManifestPath(), err, errdefs.ErrFailedPrecondition)
	}
	if m.Format != manifestFormat {
		return Manifest{}, fmt.Errorf("toolkit: %s has format %d, this FastMig knows %d: run `fastmig install`: %w",
			t.ManifestPath(), m.Format, manifestFormat, errdefs.ErrFailedPrecondition)
	}
	for _, f := range m.Files {
		if !owned(f.Path) {
			return Manifest{}, fmt.Errorf("toolkit: %s names %q, which is no file of a toolkit: %w", t.ManifestPath(), f.Path, errdefs.ErrFailedPrecondition)
		}
	}
	return m, nil
}

// owned tells whether path, below the root, is one that an install writes.
func owned(path string) bool {
	if !filepath.IsLocal(path) || path != filepath.Clean(path) {
		return false
	}
	dir, _ := filepath.Split(path)
	switch dir {
	case criuDir + "/", criuDir + "/" + LibName + "/":
		return true
	}
	return path == fastfreezePath || path == wrapperPath
}

// Verify reads every installed file and compares it with the manifest: digest,
// size, permissions, owner. It returns the manifest. Errors are of the kinds of
// ReadManifest and name the file.
func (t Toolkit) Verify() (Manifest, error) {
	m, err := t.ReadManifest()
	if err != nil {
		return Manifest{}, err
	}
	if m.Arch != runtime.GOARCH {
		return Manifest{}, fmt.Errorf("toolkit: %s is for %s, this machine is %s: run `fastmig install`: %w", t.root, m.Arch, runtime.GOARCH, errdefs.ErrFailedPrecondition)
	}
	for _, want := range m.Files {
		have, err := describe(t.root, want.Path)
		if err == nil && have != want {
			err = fmt.Errorf("it has changed since it was installed")
		}
		if err == nil {
			err = safe(t.root, filepath.Join(t.root, want.Path))
		}
		if err != nil {
			return Manifest{}, fmt.Errorf("toolkit: verify %s: %w: run `fastmig install`: %w", filepath.Join(t.root, want.Path), err, errdefs.ErrFailedPrecondition)
		}
	}
	return m, nil
}

// safe refuses what somebody else than root and us could have written, because
// these files run with all of root's rights.
func safe(root, path string) error {
	// Up to the root, whose parents are the administrator's affair.
	for _, p := range []string{path, filepath.Dir(path), root} {
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		sys, ok := st.Sys().(*syscall.Stat_t)
		if ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
			return fmt.Errorf("%s belongs to user %d", p, sys.Uid)
		}
		if st.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%s can be written by others (%v)", p, st.Mode())
		}
	}
	return nil
}

// describe makes the manifest's entry of a file below root.
func describe(root, path string) (FileEntry, error) {
	full := filepath.Join(root, path)
	st, err := os.Lstat(full)
	if err != nil {
		return FileEntry{}, err
	}
	if !st.Mode().IsRegular() {
		return FileEntry{}, fmt.Errorf("%s is not a regular file", full)
	}
	digest, err := digestOf(full)
	if err != nil {
		return FileEntry{}, err
	}
	return FileEntry{Path: path, Mode: fmt.Sprintf("%04o", st.Mode().Perm()), Size: st.Size(), Digest: digest}, nil
}

func digestOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// writeManifest describes all files below root and writes toolkit.json.
func writeManifest(root string, origin CriuOrigin) (Manifest, error) {
	m := Manifest{Format: manifestFormat, Arch: runtime.GOARCH, Criu: origin}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		entry, err := describe(root, rel)
		m.Files = append(m.Files, entry)
		return err
	})
	if err != nil {
		return Manifest{}, err
	}
	slices.SortFunc(m.Files, func(a, b FileEntry) int {
		if a.Path < b.Path {
			return -1
		}
		return 1
	})
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return Manifest{}, err
	}
	return m, writeFile(filepath.Join(root, manifestName), append(data, '\n'), 0o644)
}
