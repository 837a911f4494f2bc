//go:build linux

package toolkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/internal/debpkg"
)

// stageCriu puts a CRIU that works on this kernel into dir, the best that can be
// had: the one that was asked for; the host's own; a package of a newer suite.
func (in *installer) stageCriu(ctx context.Context, dir string) (CriuOrigin, error) {
	in.progress("looking for a CRIU that works on this kernel")
	if from := in.opts.CriuFrom; from != "" {
		origin, err := in.stageHost(ctx, from, dir)
		if err != nil {
			return CriuOrigin{}, explain("take CRIU from "+from, in.root, err)
		}
		return origin, nil
	}
	var hostErr error
	if host := in.hostCriu(); host == "" {
		hostErr = errors.New("the host has no criu")
	} else {
		origin, err := in.stageHost(ctx, host, dir)
		if err == nil || hopeless(ctx, err) {
			return origin, explain("take CRIU from "+host, in.root, err)
		}
		hostErr = fmt.Errorf("%s: %w", host, err)
		in.progress("the host's %s cannot be used: %v", host, err)
	}
	origin, err := in.stageDebian(ctx, dir)
	if err == nil || hopeless(ctx, err) {
		return origin, err
	}
	return CriuOrigin{}, fmt.Errorf("toolkit: find a CRIU that works on this kernel: %w; %w: install CRIU (4.1 or newer for kernels from 6.13 on) and run `fastmig install --criu PATH`: %w",
		hostErr, err, errdefs.ErrFailedPrecondition)
}

// hopeless tells errors after which another source of CRIU cannot help.
func hopeless(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errdefs.IsResourceExhausted(err) || isDiskFull(err)
}

// hostCriu is the path of the host's criu, "" when there is none. The folders
// for administrators are looked at even when they are not in PATH.
func (in *installer) hostCriu() string {
	path, err := exec.LookPath("criu")
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, "criu"))
	}
	if err != nil {
		return ""
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil || strings.HasPrefix(real, in.root+"/") {
		return "" // a link to our own wrapper is no criu of the host
	}
	return path
}

func (in *installer) stageHost(ctx context.Context, path, dir string) (CriuOrigin, error) {
	digest, err := digestOf(path)
	if err != nil {
		return CriuOrigin{}, err
	}
	version, err := in.tryCriu(ctx, binary{path: path, within: "/"}, dir)
	return CriuOrigin{Version: version, From: FromHost, Source: path, Digest: digest}, err
}

// tryCriu collects a CRIU into dir and checks that it works; if it does not, dir
// is gone again.
func (in *installer) tryCriu(ctx context.Context, b binary, dir string) (version string, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := collect(ctx, b, dir); err != nil {
		return "", err
	}
	return checkCriu(ctx, dir)
}

// stageDebian tries the suites in order and takes the first whose CRIU works.
func (in *installer) stageDebian(ctx context.Context, dir string) (CriuOrigin, error) {
	rel, err := debpkg.HostRelease()
	if err != nil {
		return CriuOrigin{}, err
	}
	cache, err := in.cacheDir()
	if err != nil {
		return CriuOrigin{}, err
	}
	var causes []error
	for _, suite := range suitesFor(rel) {
		origin, err := in.stageSuite(ctx, cache, suite, dir)
		if err == nil || hopeless(ctx, err) || errdefs.IsNotImplemented(err) {
			return origin, explain("take CRIU from Debian's package", cache, err)
		}
		causes = append(causes, fmt.Errorf("suite %s: %w", suiteName(suite), err))
		in.progress("CRIU of the suite %s cannot be used: %v", suiteName(suite), err)
	}
	return CriuOrigin{}, errors.Join(causes...)
}

// suitesFor lists where to look for CRIU, the likeliest first. The empty suite
// is the machine's own.
func suitesFor(rel debpkg.Release) []string {
	// Their CRIU knows no kernel from 6.13 on, and an upgraded kernel is what
	// people run these with; the newer one works on old kernels as well.
	old := []string{"stretch", "buster", "bullseye", "bookworm"}
	switch {
	case rel.ID == "ubuntu" || slices.Contains(rel.Like, "ubuntu"):
		return []string{"", "devel"}
	case slices.ContainsFunc(rel.Codenames, func(c string) bool { return slices.Contains(old, c) }):
		return []string{"trixie", "testing"}
	default:
		return []string{"", "testing"}
	}
}

func suiteName(suite string) string {
	if suite == "" {
		return "of the machine"
	}
	return suite
}

// unpackPrefix begins the names of folders with unpacked packages.
const unpackPrefix = "unpack-"

// removeStale removes what killed installs have left unpacked. Unpacking takes
// seconds: what is an hour old is nobody's. It is only a cache, so errors show
// when the space is needed.
func removeStale(cache string) {
	found, _ := filepath.Glob(filepath.Join(cache, unpackPrefix+"*"))
	for _, dir := range found {
		if st, err := os.Stat(dir); err == nil && time.Since(st.ModTime()) > time.Hour {
			_ = os.RemoveAll(dir)
		}
	}
}

func (in *installer) stageSuite(ctx context.Context, cache, suite, dir string) (CriuOrigin, error) {
	debs, err := debpkg.Fetch(ctx, debpkg.Options{Dir: cache, Suite: suite, Packages: []string{"criu"}, Progress: in.opts.Progress})
	if err != nil {
		return CriuOrigin{}, err
	}
	// Unpacked beside the archives: much more than what is kept of it.
	removeStale(cache)
	root, err := os.MkdirTemp(cache, unpackPrefix)
	if err != nil {
		return CriuOrigin{}, err
	}
	defer os.RemoveAll(root)
	if err := debpkg.Unpack(ctx, debs, root); err != nil {
		return CriuOrigin{}, err
	}
	path, err := resolve(root, "/usr/sbin/criu")
	if err != nil {
		return CriuOrigin{}, err
	}
	libs, err := filepath.Glob(filepath.Join(root, "usr/lib/*-linux-*"))
	if err != nil {
		return CriuOrigin{}, err
	}
	b := binary{path: path, within: root, libraryPath: append(libs, filepath.Join(root, "usr/lib"))}
	version, err := in.tryCriu(ctx, b, dir)
	if err != nil {
		return CriuOrigin{}, err
	}
	i := slices.IndexFunc(debs, func(p string) bool { return strings.HasPrefix(filepath.Base(p), "criu_") })
	if i < 0 {
		return CriuOrigin{}, fmt.Errorf("no package criu among %v: %w", debs, errdefs.ErrNotFound)
	}
	return CriuOrigin{Version: version, From: FromDebian, Source: suiteName(suite) + " " + filepath.Base(debs[i])}, nil
}
