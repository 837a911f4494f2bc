//go:build linux

package toolkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// InstallOptions says what Install installs and where.
type InstallOptions struct {
	// Root is the toolkit's folder, absolute; empty means RootFromEnv.
	Root string
	// FastfreezePath is the static fastfreeze to copy; empty means the one that
	// lies beside the running executable.
	FastfreezePath string
	// PreloadPath is the library that joins CRIU to a container; empty means
	// the one that lies beside fastfreeze.
	PreloadPath string
	// CriuFrom is the CRIU to take; empty means the host's when it works, else
	// a package.
	CriuFrom string
	// CacheDir keeps fetched packages between installs; empty means
	// fastmig/debpkg in the user's cache folder.
	CacheDir string
	// Progress receives a line for each step; nil means none.
	Progress io.Writer
}

// Result says what Install did.
type Result struct {
	Toolkit  Toolkit
	Manifest Manifest
	Changed  bool // false: everything was in place already
}

type installer struct {
	opts InstallOptions
	root string
}

// Install lays the toolkit out below opts.Root, or does nothing when what is
// there is whole and what it would install. It is all or nothing: it builds the
// new toolkit in a folder of its own inside the root, makes it durable, and then
// exchanges the parts; whoever holds descriptors of the old ones keeps them.
// Other files below the root are left alone. It needs root's rights, blocks
// (fetching packages can take a minute) until ctx ends, and waits for another
// Install of the same root.
//
// Errors: errdefs.ErrPermissionDenied, errdefs.ErrResourceExhausted for a full
// disk, errdefs.ErrInvalidArgument for wrong options, errdefs.ErrFailedPrecondition
// when no usable CRIU or fastfreeze can be found. Nothing has changed then.
func Install(ctx context.Context, opts InstallOptions) (Result, error) {
	in := &installer{opts: opts, root: opts.Root}
	if in.root == "" {
		in.root = RootFromEnv()
	}
	if !filepath.IsAbs(in.root) || filepath.Clean(in.root) == "/" {
		return Result{}, fmt.Errorf("toolkit: %q cannot be the root: give the absolute path of a folder of its own: %w", in.root, errdefs.ErrInvalidArgument)
	}
	in.root = filepath.Clean(in.root)
	if os.Geteuid() != 0 {
		return Result{}, fmt.Errorf("toolkit: installing needs root (CRIU is tried out on this kernel): run `sudo fastmig install`: %w", errdefs.ErrPermissionDenied)
	}
	if err := in.findFastfreeze(); err != nil {
		return Result{}, err
	}
	if err := in.findPreload(); err != nil {
		return Result{}, err
	}
	root, err := openRoot(ctx, in.root)
	if err != nil {
		return Result{}, err
	}
	result, err := in.install(ctx)
	// Still under the lock: what is left over from this or a killed install.
	sweepErr := sweep(in.root, in.progress)
	if err != nil {
		root.removeCreated()
	}
	root.close()
	if err != nil {
		return Result{}, err
	}
	return result, sweepErr
}

func (in *installer) install(ctx context.Context) (Result, error) {
	t := Toolkit{root: in.root}
	if m, ok := in.upToDate(ctx, t); ok {
		in.progress("%s is up to date: CRIU %s (%s)", in.root, m.Criu.Version, m.Criu.Source)
		return Result{Toolkit: t, Manifest: m}, nil
	}
	stage, err := os.MkdirTemp(in.root, stagePrefix)
	if err != nil {
		return Result{}, explain("prepare "+in.root, in.root, err)
	}
	m, err := in.stage(ctx, stage)
	if err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, fmt.Errorf("toolkit: the install was stopped, nothing has changed: %w", err)
	}
	if err := commit(stage, in.root); err != nil {
		return Result{}, explain("put the new toolkit in place", in.root, err)
	}
	in.progress("installed at %s: CRIU %s (%s)", in.root, m.Criu.Version, m.Criu.Source)
	return Result{Toolkit: t, Manifest: m, Changed: true}, nil
}

// upToDate tells whether the installed toolkit is whole and what would be
// installed now. It asks no archive: a package that works stays.
func (in *installer) upToDate(ctx context.Context, t Toolkit) (Manifest, bool) {
	m, err := t.Verify()
	if err != nil {
		return m, false
	}
	for _, want := range []struct{ path, source, mode string }{
		{fastfreezePath, in.opts.FastfreezePath, "0755"},
		{preloadPath, in.opts.PreloadPath, "0644"},
	} {
		digest, err := digestOf(want.source)
		if err != nil || !hasFile(m, want.path, digest, want.mode) {
			return m, false
		}
	}
	wrapper := sha256.Sum256([]byte(wrapperScript(t)))
	if !hasFile(m, wrapperPath, hex.EncodeToString(wrapper[:]), "0755") {
		return m, false
	}
	if from := in.opts.CriuFrom; from != "" {
		digest, err := digestOf(from)
		if err != nil || m.Criu.Digest != digest {
			return m, false
		}
	} else if host := in.hostCriu(); host != "" {
		digest, err := digestOf(host)
		if err != nil {
			return m, false
		}
		if m.Criu.Digest != digest {
			// Worth an install if it would be taken.
			probe, err := os.MkdirTemp("", "fastmig-criu-")
			if err != nil {
				return m, false
			}
			defer os.RemoveAll(probe)
			if _, err := in.tryCriu(ctx, binary{path: host, within: "/"}, filepath.Join(probe, criuDir)); err == nil {
				return m, false
			}
		}
	}
	_, err = checkCriu(ctx, t.CriuDir())
	return m, err == nil
}

func hasFile(m Manifest, path, digest, mode string) bool {
	for _, f := range m.Files {
		if f.Path == path {
			return f.Digest == digest && f.Mode == mode
		}
	}
	return false
}

// stage builds the whole toolkit in the folder stage and makes it durable.
func (in *installer) stage(ctx context.Context, stage string) (Manifest, error) {
	step := "write the new toolkit"
	bin := filepath.Join(stage, "bin")
	if err := errors.Join(os.Chmod(stage, 0o755), makeDir(bin)); err != nil {
		return Manifest{}, explain(step, in.root, err)
	}
	// Readable: the memory of a process that runs an unreadable file belongs to
	// the host's user namespace, out of reach of a CRIU in the container's.
	if err := copyFile(in.opts.FastfreezePath, filepath.Join(stage, fastfreezePath), 0o755); err != nil {
		return Manifest{}, explain(step, in.root, err)
	}
	origin, err := in.stageCriu(ctx, filepath.Join(stage, criuDir))
	if err != nil {
		return Manifest{}, err
	}
	if err := copyFile(in.opts.PreloadPath, filepath.Join(stage, preloadPath), 0o644); err != nil {
		return Manifest{}, explain(step, in.root, err)
	}
	wrapper := wrapperScript(Toolkit{root: in.root})
	if err := writeFile(filepath.Join(stage, wrapperPath), []byte(wrapper), 0o755); err != nil {
		return Manifest{}, explain(step, in.root, err)
	}
	m, err := writeManifest(stage, origin)
	if err == nil {
		err = syncTree(stage)
	}
	return m, explain(step, in.root, err)
}

// wrapperScript is bin/criu. What names files is quoted for the shell.
func wrapperScript(t Toolkit) string {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	return fmt.Sprintf("#!/bin/sh\n# CRIU of FastMig's toolkit, for use on the host.\nexec %s --library-path %s --preload %s %s \"$@\"\n",
		quote(t.Loader()), quote(t.LibDir()), quote(filepath.Join(t.root, preloadPath)), quote(t.Criu()))
}

// findFastfreeze settles and checks the source of fastfreeze.
func (in *installer) findFastfreeze() error {
	path := in.opts.FastfreezePath
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("toolkit: find fastfreeze: %w", err)
		}
		path = filepath.Join(filepath.Dir(self), "fastfreeze")
		in.opts.FastfreezePath = path
	}
	f, err := openELF(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("toolkit: find fastfreeze: %s does not exist: put it beside fastmig (`make` builds both into bin/): %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return explain("read fastfreeze", in.root, err)
	}
	defer f.Close()
	interp, err := interpOf(f)
	if err != nil {
		return fmt.Errorf("toolkit: read fastfreeze: %s: %w", path, err)
	}
	if interp != "" {
		return fmt.Errorf("toolkit: %s is not linked statically, it would not start in every image: build it with CGO_ENABLED=0: %w", path, errdefs.ErrInvalidArgument)
	}
	return nil
}

// findPreload settles and checks the source of the preload library.
func (in *installer) findPreload() error {
	if in.opts.PreloadPath == "" {
		in.opts.PreloadPath = filepath.Join(filepath.Dir(in.opts.FastfreezePath), PreloadName)
	}
	f, err := openELF(in.opts.PreloadPath)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("toolkit: find CRIU's preload library: %s does not exist: put it beside fastfreeze (`make` builds both into bin/): %w", in.opts.PreloadPath, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return explain("read CRIU's preload library", in.root, err)
	}
	return f.Close()
}

func (in *installer) cacheDir() (string, error) {
	dir := in.opts.CacheDir
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			base = "/var/cache" // no home: started by a service manager
		}
		dir = filepath.Join(base, "fastmig", "debpkg")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", explain("prepare the cache "+dir, dir, err)
	}
	return dir, nil
}

func (in *installer) progress(format string, args ...any) {
	if in.opts.Progress != nil {
		fmt.Fprintf(in.opts.Progress, "toolkit: "+format+"\n", args...)
	}
}

func isDiskFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
