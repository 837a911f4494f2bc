//go:build linux

package debpkg

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// lockPoll is how often a lock held by another process is tried again: flock(2)
// cannot be waited for and be cancelled at the same time.
const lockPoll = 100 * time.Millisecond

// apt is apt-get with a state of its own in dir.
type apt struct {
	opts    Options
	dir     string
	sources string
	lock    *os.File
}

// newApt lays out the private state. The caller holds the lock.
func newApt(ctx context.Context, opts Options, sources string, lock *os.File) (*apt, error) {
	a := &apt{opts: opts, dir: opts.stateDir(), sources: sources, lock: lock}
	arch, err := run(ctx, command{name: "dpkg", args: []string{"--print-architecture"}})
	if err != nil {
		return nil, fmt.Errorf("debpkg: ask dpkg for the architecture: %w", err)
	}
	for _, sub := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("debpkg: prepare the cache: %w", err)
		}
	}
	conf := aptConf(a.dir, strings.TrimSpace(arch), reachableByAll(a.dir))
	for name, text := range map[string]string{"status": "", "apt.conf": conf, "archive.sources": sources} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("debpkg: prepare the cache: %w", err)
		}
	}
	return a, nil
}

// aptConf is read after all of the machine's own settings (-c, see apt.conf(5)),
// so proxies and the like stay in force, and what would touch the machine goes:
// its paths, its pins, and its hooks, which run whenever apt-get does.
func aptConf(dir, arch string, sandbox bool) string {
	var b strings.Builder
	for _, hook := range []string{
		"APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success",
		"APT::Update::Auth-Failure", "DPkg::Pre-Invoke", "DPkg::Post-Invoke", "DPkg::Pre-Install-Pkgs", "AptCli::Hooks",
		"APT::Architectures", "APT::Default-Release",
	} {
		fmt.Fprintf(&b, "#clear %s;\n", hook)
	}
	set := func(key, value string) { fmt.Fprintf(&b, "%s %q;\n", key, value) }
	set("Dir::State", dir)
	set("Dir::State::lists", filepath.Join(dir, "lists"))
	set("Dir::State::status", filepath.Join(dir, "status"))
	set("Dir::State::extended_states", filepath.Join(dir, "extended_states"))
	set("Dir::Cache", dir)
	set("Dir::Cache::archives", filepath.Join(dir, "archives"))
	set("Dir::Etc::sourcelist", filepath.Join(dir, "archive.sources"))
	set("Dir::Etc::sourceparts", "/dev/null")
	set("Dir::Etc::preferences", "/dev/null")
	set("Dir::Etc::preferencesparts", "/dev/null")
	set("Dir::Log", "/dev/null")
	fmt.Fprintf(&b, "APT::Architecture %q;\nAPT::Architectures { %q; };\n", arch, arch)
	set("APT::Install-Suggests", "false")
	set("APT::Get::List-Cleanup", "true")
	set("APT::Keep-Downloaded-Packages", "true")
	// A list that could not be fetched is an error, not a remark.
	set("APT::Update::Error-Mode", "any")
	set("Acquire::Languages", "none")
	set("Acquire::Retries", "3")
	if !sandbox {
		// apt-get's download user could not enter; said here, apt-get need not
		// find out file by file.
		set("APT::Sandbox::User", "root")
	}
	return b.String()
}

// reachableByAll tells whether every user may enter dir.
func reachableByAll(dir string) bool {
	for p := dir; ; p = filepath.Dir(p) {
		st, err := os.Stat(p)
		if err != nil || st.Mode().Perm()&0o001 == 0 {
			return false
		}
		if p == "/" {
			return true
		}
	}
}

// fetch plans and downloads. Lists that are fresh are trusted first; when that
// does not lead to all archives, they are refreshed, once.
func (a *apt) fetch(ctx context.Context) ([]string, error) {
	fresh := a.listsFresh()
	if !fresh {
		if err := a.update(ctx); err != nil {
			return nil, err
		}
	}
	debs, err := a.install(ctx)
	if err != nil && fresh && ctx.Err() == nil {
		if err := a.update(ctx); err != nil {
			return nil, err
		}
		debs, err = a.install(ctx)
	}
	return debs, err
}

// listsFresh says whether the last update is recent and was of these sources.
func (a *apt) listsFresh() bool {
	st, err := os.Stat(a.stampPath())
	if err != nil {
		return false
	}
	stamp, err := os.ReadFile(a.stampPath())
	age := time.Since(st.ModTime())
	return err == nil && string(stamp) == a.stamp() && age >= 0 && age < listsMaxAge
}

func (a *apt) stampPath() string { return filepath.Join(a.dir, "updated") }

func (a *apt) stamp() string {
	sum := sha256.Sum256([]byte(a.sources))
	return hex.EncodeToString(sum[:])
}

func (a *apt) update(ctx context.Context) error {
	a.opts.progress("debpkg: refreshing the package lists (%s)", a.opts.suiteName())
	if err := os.Remove(a.stampPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("debpkg: refresh the package lists: %w", err)
	}
	if _, err := a.get(ctx, "update"); err != nil {
		return fmt.Errorf("debpkg: refresh the package lists of %s: %w", a.opts.suiteName(), err)
	}
	if err := os.WriteFile(a.stampPath(), []byte(a.stamp()), 0o644); err != nil {
		return fmt.Errorf("debpkg: refresh the package lists: %w", err)
	}
	return nil
}

// install returns the archives of the plan, having downloaded what is missing.
func (a *apt) install(ctx context.Context) ([]string, error) {
	args := append([]string{"install", "--yes", "-o", fmt.Sprintf("APT::Install-Recommends=%t", a.opts.Recommends)}, a.opts.Packages...)
	names := strings.Join(a.opts.Packages, ", ")
	out, err := a.get(ctx, append([]string{"--simulate"}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("debpkg: plan %s from %s: %w", names, a.opts.suiteName(), err)
	}
	debs := make([]string, 0, 32)
	missing := 0
	for _, file := range planned(out) {
		path := filepath.Join(a.dir, "archives", file)
		if _, err := os.Stat(path); err != nil {
			missing++
		}
		debs = append(debs, path)
	}
	if missing == 0 {
		return debs, nil
	}
	a.opts.progress("debpkg: fetching %d of %d packages for %s (%s)", missing, len(debs), names, a.opts.suiteName())
	if _, err := a.get(ctx, append([]string{"--download-only"}, args...)...); err != nil {
		return nil, fmt.Errorf("debpkg: fetch %s from %s: %w", names, a.opts.suiteName(), err)
	}
	for _, path := range debs {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("debpkg: fetch %s: apt-get ended well, but %s is not there: %w", names, path, errdefs.ErrUnavailable)
		}
	}
	return debs, nil
}

// instLine is one package of a simulated installation:
// Inst NAME [OLD] (VERSION ORIGIN [ARCH]) …
var instLine = regexp.MustCompile(`(?m)^Inst (\S+) (?:\[[^]]*\] )?\((\S+) [^)]*\[([^]]+)\]\)`)

// planned turns a simulation's output into names of files in apt's archive folder.
func planned(simulation string) []string {
	var files []string
	quote := strings.NewReplacer("_", "%5f", ":", "%3a")
	for _, m := range instLine.FindAllStringSubmatch(simulation, -1) {
		name, _, _ := strings.Cut(m[1], ":")
		files = append(files, fmt.Sprintf("%s_%s_%s.deb", quote.Replace(name), quote.Replace(m[2]), m[3]))
	}
	slices.Sort(files)
	return slices.Compact(files)
}

func (a *apt) get(ctx context.Context, args ...string) (string, error) {
	// LC_ALL: the output is read by this package.
	env := []string{"LC_ALL=C.UTF-8", "LANGUAGE=", "DEBIAN_FRONTEND=noninteractive"}
	full := append([]string{"--config-file", filepath.Join(a.dir, "apt.conf"), "--quiet"}, args...)
	// apt-get holds the lock too: if this process is killed, the next one waits
	// until what it has started is over.
	return run(ctx, command{name: "apt-get", args: full, env: env, keep: []*os.File{a.lock}})
}

// command is a program to run. With stdout nil, its output is returned by run.
type command struct {
	name   string
	args   []string
	env    []string // in addition to the environment
	stdin  *os.File
	stdout *os.File
	keep   []*os.File // open files that the program inherits
}

// run runs a command in a process group of its own, which ends as a whole when
// ctx does, and returns its standard output.
func run(ctx context.Context, c command) (string, error) {
	cmd := exec.CommandContext(ctx, c.name, c.args...)
	cmd.Env = append(os.Environ(), c.env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Assigned only when set: a nil *os.File in an interface is not nil.
	if c.stdin != nil {
		cmd.Stdin = c.stdin
	}
	if c.stdout != nil {
		cmd.Stdout = c.stdout
	}
	cmd.ExtraFiles = c.keep
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if ctx.Err() != nil {
		return "", fmt.Errorf("%s was stopped: %w", c.name, ctx.Err())
	}
	if err != nil {
		return "", commandError(c.name, err, stdout.String()+"\n"+stderr.String())
	}
	return stdout.String(), nil
}

// commandError makes the decisive lines of a failed command an error with a kind.
func commandError(name string, err error, output string) error {
	lines := decisive(output)
	text := strings.Join(lines, "; ")
	if text == "" {
		return fmt.Errorf("%s: %w", name, err)
	}
	kind := error(errdefs.ErrUnknown)
	for _, known := range []struct {
		text string
		kind error
	}{
		{"No space left on device", errdefs.ErrResourceExhausted},
		{"enough free space", errdefs.ErrResourceExhausted},
		{"Unable to locate package", errdefs.ErrNotFound},
		{"has no installation candidate", errdefs.ErrNotFound},
		{"was not found", errdefs.ErrNotFound},
		{"does not have a Release file", errdefs.ErrNotFound},
		{"unmet dependencies", errdefs.ErrFailedPrecondition},
		{"Permission denied", errdefs.ErrPermissionDenied},
		{"Failed to fetch", errdefs.ErrUnavailable},
	} {
		if strings.Contains(text, known.text) {
			kind = known.kind
			break
		}
	}
	return fmt.Errorf("%s: %w: %s: %w", name, err, text, kind)
}

// decisive picks apt-get's error lines and the explanation of a plan that does
// not work out; for other commands the last lines.
func decisive(output string) []string {
	const most = 8
	var picked, all []string
	inUnmet := false
	for line := range strings.Lines(output) {
		line = strings.TrimRight(line, " \r\n")
		trimmed := strings.TrimSpace(line)
		if trimmed == "" {
			continue
		}
		all = append(all, trimmed)
		switch {
		case strings.Contains(line, "unmet dependencies"):
			inUnmet = true
			picked = append(picked, trimmed)
		case inUnmet && strings.HasPrefix(line, " "):
			picked = append(picked, trimmed)
		case strings.HasPrefix(line, "E:"), strings.HasPrefix(line, "Err:"):
			inUnmet = false
			picked = append(picked, trimmed)
		default:
			inUnmet = false
		}
	}
	if len(picked) == 0 {
		picked = all[max(0, len(all)-3):]
	}
	return picked[:min(most, len(picked))]
}

// lockDir creates dir and takes its lock, waiting for other processes.
// Closing the file gives the lock back.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("debpkg: prepare the cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("debpkg: lock the cache: %w", err)
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("debpkg: lock the cache %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("debpkg: wait for another process at work in %s: %w", dir, ctx.Err())
		case <-tick.C:
		}
	}
}
