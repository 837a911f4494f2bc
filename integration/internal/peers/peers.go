// Package peers builds the programs of other projects that FastMig is tested
// with (containerd, ctr, the stock shim, runc, CNI plugins, nerdctl) from the
// versions pinned in integration/tools, once, into a cache outside the tree.
package peers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/internal/checkout"
)

// Set names the folders that hold the built programs.
type Set struct {
	Containerd string // containerd, ctr, containerd-shim-runc-v2
	Runc       string // runc
	CNI        string // the CNI plugins
	Nerdctl    string // nerdctl
}

// Path returns the folders in the form of a PATH variable.
func (s Set) Path() string {
	return strings.Join([]string{s.Containerd, s.Runc, s.CNI, s.Nerdctl}, ":")
}

// tool is one pinned module: all programs that its go.mod declares with the
// tool directive are built in one go.
type tool struct {
	module string // folder below integration/tools
	tags   string
	cgo    bool
}

func (t tool) buildArgs(out string) []string {
	return []string{"build", "-trimpath", "-tags", t.tags, "-o", out + "/", "tool"}
}

func (t tool) environ() []string {
	if t.cgo {
		return []string{"CGO_ENABLED=1"}
	}
	return []string{"CGO_ENABLED=0"}
}

// Build returns the programs' folders, building what the cache lacks. A first
// build takes minutes and reports to progress, which may be nil. Parallel
// callers, in other processes too, wait for each other.
func Build(ctx context.Context, progress io.Writer) (Set, error) {
	if progress == nil {
		progress = io.Discard
	}
	root, err := checkout.Root()
	if err != nil {
		return Set{}, err
	}
	cache, err := checkout.Cache("tools")
	if err != nil {
		return Set{}, err
	}
	unlock, err := lock(ctx, filepath.Join(cache, ".lock"))
	if err != nil {
		return Set{}, err
	}
	defer unlock()

	var set Set
	for _, want := range []struct {
		tool
		dir *string
	}{
		{tool{module: "containerd", tags: "no_btrfs,no_devmapper,no_zfs"}, &set.Containerd},
		{tool{module: "runc", tags: "seccomp", cgo: true}, &set.Runc},
		{tool{module: "cni"}, &set.CNI},
		{tool{module: "nerdctl"}, &set.Nerdctl},
	} {
		*want.dir, err = want.build(ctx, root, cache, progress)
		if err != nil {
			return Set{}, fmt.Errorf("build the pinned %s: %w", want.module, err)
		}
	}
	return set, nil
}

// build makes the tool's programs under a temporary name and renames the
// folder when it is whole, so that an interrupted build leaves no half of one.
func (t tool) build(ctx context.Context, root, cache string, progress io.Writer) (string, error) {
	src := filepath.Join(root, "integration", "tools", t.module)
	key, err := t.key(src)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, t.module+"-"+key)
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fmt.Fprintf(progress, "building %s (once; the cache is %s) ...\n", t.module, cache)
	begin := time.Now()
	tmp, err := os.MkdirTemp(cache, t.module+".tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, "go", t.buildArgs(tmp)...)
	cmd.Dir = src
	cmd.Env = append(os.Environ(), t.environ()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s\nbuilding runc needs gcc, pkg-config and libseccomp-dev: contrib/dev/deps.sh installs them", cmd, err, out)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", err
	}
	fmt.Fprintf(progress, "built %s in %.0f s\n", t.module, time.Since(begin).Seconds())
	return dir, nil
}

// key digests everything that decides what is built.
func (t tool) key(src string) (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			return "", err
		}
		h.Write(data)
	}
	fmt.Fprintln(h, t.buildArgs(""), t.environ(), runtime.Version())
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

// lock takes an exclusive lock on the file and polls for it, so that ctx can
// end the wait.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another build of the peer tools (%s): %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}
