//go:build linux

// Package debpkg fetches Debian packages with everything they depend on, and
// unpacks them into a folder. Nothing is installed: the host's dpkg database
// and apt's own lists and archives are neither read for the plan nor written.
//
// It drives apt-get (see apt-get(8), apt.conf(5), sources.list(5)) with a state
// directory of its own, so signatures, proxies and credentials work as the
// machine's administrator has set them up.
package debpkg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// listsMaxAge is how long fetched package lists are trusted without asking the
// archive again. Debian publishes four times a day; a list that is too old
// shows as a package that is gone, and Fetch then refreshes by itself.
const listsMaxAge = 24 * time.Hour

// Options says what Fetch fetches and where it keeps it.
type Options struct {
	// Dir holds the private state and the fetched archives. It is created when
	// missing and may be shared by any number of processes at the same time;
	// kept between calls it saves the downloads.
	Dir string
	// Suite replaces the suite of the machine's own archive entries, e.g.
	// "trixie" or "testing". Empty means the machine's own suites.
	Suite string
	// Packages are the names that apt-get install would take.
	Packages []string
	// Recommends adds recommended packages to the dependencies.
	Recommends bool
	// Progress receives a line for each step; nil means none.
	Progress io.Writer
}

// Fetch downloads opts.Packages with all packages they depend on, as if on a
// machine on which nothing is installed, and returns the paths of the .deb
// files, the named packages and their whole closure.
//
// It blocks until the archives are there or ctx ends; another process at work
// in the same Dir is waited for. A cancelled call leaves only whole archives
// behind. Errors: errdefs.ErrNotImplemented where there is no apt-get or
// dpkg-deb, ErrFailedPrecondition where the machine names no archive,
// ErrNotFound for packages that the suite does not have, ErrInvalidArgument
// for wrong options, ErrUnavailable when the archive cannot be reached.
func Fetch(ctx context.Context, opts Options) ([]string, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	if err := available(); err != nil {
		return nil, err
	}
	rel, err := HostRelease()
	if err != nil {
		return nil, err
	}
	machine, err := readSources(hostSources)
	if err != nil {
		return nil, err
	}
	sources := deriveSources(machine, rel, opts.Suite)
	if len(sources) == 0 {
		return nil, fmt.Errorf("debpkg: read apt's sources: no entry of the distribution's own archive with the component main in %s: add one (see sources.list(5)): %w",
			hostSources, errdefs.ErrFailedPrecondition)
	}
	lock, err := lockDir(ctx, opts.stateDir())
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	a, err := newApt(ctx, opts, formatSources(sources), lock)
	if err != nil {
		return nil, err
	}
	return a.fetch(ctx)
}

func (o Options) validate() error {
	if o.Dir == "" || !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("debpkg: the directory %q is not an absolute path: %w", o.Dir, errdefs.ErrInvalidArgument)
	}
	if len(o.Packages) == 0 {
		return fmt.Errorf("debpkg: no package named: %w", errdefs.ErrInvalidArgument)
	}
	for _, name := range append([]string{o.suiteName()}, o.Packages...) {
		// Names go onto apt-get's command line and into a path.
		if !isName(name) {
			return fmt.Errorf("debpkg: %q is no name of a package or suite: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func isName(s string) bool {
	if s == "" || !isAlnum(s[0]) {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case isAlnum(c), c == '.', c == '+', c == '-', c == ':', c == '~', c == '=', c == '_':
		default:
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func (o Options) suiteName() string {
	if o.Suite == "" {
		return "own"
	}
	return o.Suite
}

// stateDir is the folder of one suite: lists of different suites do not mix.
func (o Options) stateDir() string { return filepath.Join(o.Dir, o.suiteName()) }

func (o Options) progress(format string, args ...any) {
	if o.Progress != nil {
		fmt.Fprintf(o.Progress, format+"\n", args...)
	}
}

func available() error {
	for _, tool := range []string{"apt-get", "dpkg", "dpkg-deb", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("debpkg: %s not found: packages can be fetched only on Debian and distributions made from it: %w", tool, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// Unpack extracts the packages' files below root, which is created when
// missing. No maintainer script runs. Top-level folders that Debian has merged
// into /usr (/bin, /sbin, /lib, /lib64) are links, as on an installed system,
// so that packages from before and after the merge fit together.
//
// An error may leave root partly filled; the caller removes it.
func Unpack(ctx context.Context, debs []string, root string) error {
	if err := available(); err != nil {
		return err
	}
	if err := mergedRoot(root); err != nil {
		return fmt.Errorf("debpkg: prepare %s: %w", root, err)
	}
	for _, deb := range debs {
		if err := unpack(ctx, deb, root); err != nil {
			return fmt.Errorf("debpkg: unpack %s: %w", filepath.Base(deb), err)
		}
	}
	return nil
}

// unpack pipes the package's files into tar instead of letting dpkg-deb extract
// them: dpkg-deb would replace the links of mergedRoot by folders.
func unpack(ctx context.Context, deb, root string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	reader := make(chan error, 1)
	go func() {
		_, err := run(ctx, command{name: "dpkg-deb", args: []string{"--fsys-tarfile", deb}, stdout: w})
		w.Close()
		reader <- err
	}()
	_, err = run(ctx, command{name: "tar", args: []string{"--extract", "--keep-directory-symlink", "--directory", root}, stdin: r})
	r.Close()
	// Either may have failed because the other did.
	return errors.Join(err, <-reader)
}

func mergedRoot(root string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", name), 0o755); err != nil {
			return err
		}
		err := os.Symlink("usr/"+name, filepath.Join(root, name))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}
