//go:build linux

package toolkit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// probeTimeout bounds commands that ask CRIU or its loader something. They take
// a tenth of a second; a machine under load may need much longer.
const probeTimeout = time.Minute

// HostCommand is CRIU on the host with the given arguments, started through its
// own loader as bin/criu does, in a process group of its own that ends with ctx.
func (t Toolkit) HostCommand(ctx context.Context, args ...string) *exec.Cmd {
	return loaderCommand(ctx, t.CriuDir(), args...)
}

// RunHost runs CRIU on the host and returns what it printed, standard output
// and error together. It blocks until CRIU ends or ctx does. An error carries
// CRIU's last lines.
func (t Toolkit) RunHost(ctx context.Context, args ...string) (string, error) {
	return output(ctx, t.HostCommand(ctx, args...), "criu "+strings.Join(args, " "))
}

func loaderCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	full := append([]string{"--library-path", filepath.Join(dir, LibName), filepath.Join(dir, CriuName)}, args...)
	return prepare(exec.CommandContext(ctx, filepath.Join(dir, LoaderName), full...))
}

func prepare(cmd *exec.Cmd) *exec.Cmd {
	// Libraries forced upon the caller are not CRIU's.
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "LD_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func output(ctx context.Context, cmd *exec.Cmd, what string) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return out.String(), fmt.Errorf("%s was stopped: %w", what, ctx.Err())
	case err != nil:
		return out.String(), fmt.Errorf("%s: %w: %s", what, err, lastLines(out.String(), 3))
	}
	return out.String(), nil
}

func lastLines(text string, n int) string {
	lines := strings.FieldsFunc(text, func(r rune) bool { return r == '\n' })
	return strings.Join(lines[max(0, len(lines)-n):], "; ")
}

// checkCriu runs `criu check` of the CRIU in dir and returns its version. An
// error of the kind errdefs.ErrFailedPrecondition says that this CRIU does not
// work on this kernel.
func checkCriu(ctx context.Context, dir string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	text, err := output(ctx, loaderCommand(ctx, dir, "--version"), "criu --version")
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	version := parseVersion(text)
	if version == "" {
		return "", fmt.Errorf("criu --version says %q: %w", lastLines(text, 1), errdefs.ErrFailedPrecondition)
	}
	if text, err := output(ctx, loaderCommand(ctx, dir, "check"), "criu check"); err != nil {
		if ctx.Err() != nil {
			return "", err
		}
		return "", fmt.Errorf("CRIU %s does not work on this kernel: criu check: %s: %w", version, failure(text), errdefs.ErrFailedPrecondition)
	}
	return version, nil
}

func parseVersion(text string) string {
	for line := range strings.Lines(text) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), "Version: "); ok {
			return version
		}
	}
	return ""
}

// failure picks CRIU's error lines out of what it printed.
func failure(text string) string {
	var picked []string
	for line := range strings.Lines(text) {
		if strings.Contains(line, "Error") {
			picked = append(picked, strings.TrimSpace(line))
		}
	}
	if len(picked) == 0 {
		return lastLines(text, 3)
	}
	return strings.Join(picked[:min(3, len(picked))], "; ")
}
