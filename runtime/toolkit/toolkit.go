//go:build linux

// Package toolkit knows what FastMig needs on a host besides its shim: the
// static fastfreeze, and CRIU with its own libraries and loader, so that it runs
// in the mount namespace of any image. It finds that folder, installs it and
// removes it.
//
//	ROOT/bin/fastfreeze     PID 1 of the containers
//	ROOT/bin/criu           wrapper for use on the host
//	ROOT/criu/criu          CRIU
//	ROOT/criu/ld.so         the loader that it is started through
//	ROOT/criu/lib/          its libraries
//	ROOT/toolkit.json       versions, origin, digest of each file
package toolkit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// RootEnv is the environment variable that names another root than DefaultRoot.
const RootEnv = "FASTMIG_ROOT"

// DefaultRoot is where the toolkit lies unless RootEnv says otherwise.
const DefaultRoot = "/opt/fastmig"

// Names inside CriuDir, for callers that hold a descriptor of that folder.
const (
	CriuName   = "criu"
	LoaderName = "ld.so"
	LibName    = "lib"
	// PreloadName, in LibName, is the library that joins CRIU to a
	// container's mount namespace.
	PreloadName = "fastmig-preload.so"
)

const (
	fastfreezePath = "bin/fastfreeze"
	wrapperPath    = "bin/criu"
	criuDir        = "criu"
	manifestName   = "toolkit.json"
	preloadPath    = criuDir + "/" + LibName + "/" + PreloadName
)

// Toolkit is an installed toolkit. The zero value is none: use Locate.
type Toolkit struct {
	root string
}

// Root is the absolute path of the toolkit's folder.
func (t Toolkit) Root() string { return t.root }

// Fastfreeze is the path of the static fastfreeze.
func (t Toolkit) Fastfreeze() string { return filepath.Join(t.root, fastfreezePath) }

// CriuDir is the folder that holds CRIU, its loader and its libraries.
func (t Toolkit) CriuDir() string { return filepath.Join(t.root, criuDir) }

// Criu is the path of CRIU itself. It must be started through Loader.
func (t Toolkit) Criu() string { return filepath.Join(t.CriuDir(), CriuName) }

// Loader is the path of the dynamic loader that belongs to CRIU.
func (t Toolkit) Loader() string { return filepath.Join(t.CriuDir(), LoaderName) }

// LibDir is the folder of CRIU's libraries.
func (t Toolkit) LibDir() string { return filepath.Join(t.CriuDir(), LibName) }

// CriuWrapper is the path of the script that starts CRIU on the host.
func (t Toolkit) CriuWrapper() string { return filepath.Join(t.root, wrapperPath) }

// ManifestPath is the path of toolkit.json.
func (t Toolkit) ManifestPath() string { return filepath.Join(t.root, manifestName) }

// RootFromEnv is the root that the environment asks for.
func RootFromEnv() string {
	if root := os.Getenv(RootEnv); root != "" {
		return root
	}
	return DefaultRoot
}

// Locate finds the toolkit at RootFromEnv. See LocateAt.
func Locate() (Toolkit, error) { return LocateAt(RootFromEnv()) }

// LocateAt finds the toolkit at root. It looks at each file that a container's
// start needs with one stat and reads none; Verify reads them all. Errors are of
// the kind errdefs.ErrFailedPrecondition and name the file that is not as it
// must be; a root that is no absolute path is an errdefs.ErrInvalidArgument.
func LocateAt(root string) (Toolkit, error) {
	if !filepath.IsAbs(root) {
		return Toolkit{}, fmt.Errorf("toolkit: %q is not an absolute path: correct %s or --root: %w", root, RootEnv, errdefs.ErrInvalidArgument)
	}
	t := Toolkit{root: filepath.Clean(root)}
	for _, want := range []struct {
		path  string
		check func(fs.FileInfo) string
	}{
		{t.Fastfreeze(), executable},
		{t.Criu(), executable},
		{t.Loader(), executable},
		{t.LibDir(), folder},
		{filepath.Join(t.root, preloadPath), file},
		{t.ManifestPath(), file},
	} {
		wrong := ""
		if st, err := os.Stat(want.path); err != nil {
			wrong = reason(err)
		} else {
			wrong = want.check(st)
		}
		if wrong != "" {
			return Toolkit{}, fmt.Errorf("toolkit missing at %s: %s %s: run `fastmig install`%s: %w",
				t.root, want.path, wrong, rootHint(t.root), errdefs.ErrFailedPrecondition)
		}
	}
	return t, nil
}

func rootHint(root string) string {
	if root == DefaultRoot {
		return ""
	}
	return " with --root " + root
}

func reason(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "does not exist"
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return "cannot be looked at (" + err.Error() + ")"
}

func file(st fs.FileInfo) string {
	if !st.Mode().IsRegular() {
		return "is not a regular file"
	}
	return ""
}

func executable(st fs.FileInfo) string {
	if wrong := file(st); wrong != "" {
		return wrong
	}
	if st.Mode().Perm()&0o111 == 0 {
		return "is not executable"
	}
	return ""
}

func folder(st fs.FileInfo) string {
	if !st.IsDir() {
		return "is not a folder"
	}
	return ""
}
