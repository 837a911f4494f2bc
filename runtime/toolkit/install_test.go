//go:build linux

package toolkit

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// staticProgram builds a small static executable that stands for fastfreeze,
// and beside it a file that stands for the preload library.
func staticProgram(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	src := "package main\n\nfunc main() { println(" + `"` + text + `"` + ") }\n"
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "fastfreeze")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", out, filepath.Join(dir, "main.go"))
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a static program: %v\n%s", err, text)
	}
	// Any ELF file passes for the preload library, until a CRIU loads it.
	if err := copyFile(out, filepath.Join(dir, PreloadName), 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// tree lists everything below dir.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if err == nil && p != dir {
			list = append(list, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return list
}

func TestInstallWhole(t *testing.T) {
	needRoot(t)
	root := filepath.Join(t.TempDir(), "made", "for it", "root")
	first := staticProgram(t, "first")
	// What an install that was killed has left.
	if err := os.MkdirAll(filepath.Join(root, stagePrefix+"killed", "criu"), 0o755); err != nil {
		t.Fatal(err)
	}
	opts := InstallOptions{Root: root, FastfreezePath: first, Progress: t.Output()}
	res, err := Install(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if !res.Changed || res.Manifest.Criu.Version == "" || res.Manifest.Criu.Source == "" {
		t.Errorf("result %+v; want a changed toolkit with a CRIU", res)
	}
	tk, err := LocateAt(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("criu check from the toolkit", func(t *testing.T) {
		out, err := tk.RunHost(t.Context(), "check")
		if err != nil || !strings.Contains(out, "Looks good") {
			t.Errorf("criu check: %v\n%s", err, out)
		}
		wrapped, err := exec.CommandContext(t.Context(), tk.CriuWrapper(), "--version").CombinedOutput()
		if err != nil || parseVersion(string(wrapped)) != res.Manifest.Criu.Version {
			t.Errorf("bin/criu --version: %v\n%s", err, wrapped)
		}
	})
	t.Run("only what is needed, with the right owners and modes", func(t *testing.T) {
		for _, name := range tree(t, root) {
			if strings.HasPrefix(name, ".") {
				t.Errorf("left behind: %s", name)
			}
			st, err := os.Lstat(filepath.Join(root, name))
			if err != nil {
				t.Fatal(err)
			}
			want := os.FileMode(0o644)
			switch {
			case st.IsDir(), name == fastfreezePath, name == wrapperPath, name == "criu/criu", name == "criu/ld.so":
				want = 0o755
			}
			if st.Mode().Perm() != want || st.Sys().(*syscall.Stat_t).Uid != 0 || (!st.IsDir() && !st.Mode().IsRegular()) {
				t.Errorf("%s: %v, owner %d; want %v of root", name, st.Mode(), st.Sys().(*syscall.Stat_t).Uid, want)
			}
		}
		for _, lib := range []string{"libm.so.6", "libcompel.so.1", "libBrokenLocale.so.1"} {
			listed := strings.Contains(loaderList(t, tk), lib)
			_, err := os.Stat(filepath.Join(tk.LibDir(), lib))
			if (err == nil) != listed {
				t.Errorf("%s: installed %v, needed %v", lib, err == nil, listed)
			}
		}
	})
	t.Run("again is nothing", func(t *testing.T) {
		again, err := Install(t.Context(), opts)
		if err != nil || again.Changed {
			t.Errorf("second install: %+v, %v; want nothing done", again, err)
		}
	})
	t.Run("a damaged file is repaired", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(tk.LibDir(), "libc.so.6"), []byte("broken"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := tk.Verify(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "libc.so.6") {
			t.Errorf("verify: %v; want the damaged file named", err)
		}
		repaired, err := Install(t.Context(), opts)
		if err != nil || !repaired.Changed {
			t.Errorf("install: %+v, %v; want a repair", repaired, err)
		}
		if _, err := tk.Verify(); err != nil {
			t.Error(err)
		}
	})
	t.Run("holders of the old one go on", func(t *testing.T) {
		hold := exec.CommandContext(t.Context(), "sleep", "600")
		dir, err := os.Open(tk.CriuDir())
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		hold.ExtraFiles = []*os.File{dir}
		if err := hold.Start(); err != nil {
			t.Fatal(err)
		}
		opts.FastfreezePath = staticProgram(t, "second")
		if _, err := Install(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		if err := unix.Faccessat(int(dir.Fd()), "lib/libc.so.6", unix.R_OK, 0); err != nil {
			t.Errorf("the old library folder, held by a process: %v", err)
		}
		if err := Uninstall(t.Context(), UninstallOptions{Root: root}); err != nil {
			t.Errorf("uninstall while only the old one is held: %v", err)
		}
		if left := tree(t, root); len(left) == 0 {
			t.Error("the held folder is gone")
		}
		if err := hold.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = hold.Wait()
		if _, err := Install(t.Context(), opts); err != nil {
			t.Fatal(err)
		}
		if stages, _ := filepath.Glob(filepath.Join(root, stagePrefix+"*")); len(stages) != 0 {
			t.Errorf("left behind: %v", stages)
		}
	})
	t.Run("uninstall takes only what is ours", func(t *testing.T) {
		foreign := filepath.Join(root, "bin", "foreign")
		if err := os.WriteFile(foreign, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Uninstall(t.Context(), UninstallOptions{Root: root}); err != nil {
			t.Fatal(err)
		}
		if left := tree(t, root); !slices.Equal(left, []string{"bin", "bin/foreign"}) {
			t.Errorf("left behind: %v", left)
		}
		if err := Uninstall(t.Context(), UninstallOptions{Root: root}); !errdefs.IsNotFound(err) {
			t.Errorf("second uninstall: %v; want ErrNotFound", err)
		}
	})
}

// hostCriu puts a stand-in for the host's criu in front of PATH: a program with
// a loader, as the real one is, that says it is version 99 and whose check ends
// with the given code.
func hostCriu(t *testing.T, dir string, check int) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "criu.c")
	code := `#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
	if (argc > 1 && !strcmp(argv[1], "--version")) { puts("Version: 99.0"); return 0; }
	puts("Error (stand-in): this kernel is too strange");
	return ` + strconv.Itoa(check) + `;
}
`
	if err := os.WriteFile(src, []byte(code), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cc", "-o", filepath.Join(dir, "criu"), src).CombinedOutput(); err != nil {
		t.Fatalf("compile the stand-in: %v\n%s", err, out)
	}
}

func TestInstallTakesTheHostsCriu(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	opts := InstallOptions{Root: filepath.Join(t.TempDir(), "root"), FastfreezePath: staticProgram(t, "x"), Progress: t.Output()}
	hostCriu(t, dir, 0)
	res, err := Install(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if origin := res.Manifest.Criu; origin.From != FromHost || origin.Version != "99.0" || origin.Source != filepath.Join(dir, "criu") {
		t.Errorf("origin %+v; want the host's", origin)
	}
	if again, err := Install(t.Context(), opts); err != nil || again.Changed {
		t.Errorf("again: %+v, %v; want nothing done", again, err)
	}
	// The host's is replaced by one that does not work: what is installed does,
	// so it stays; a new toolkit takes the package.
	hostCriu(t, dir, 1)
	if again, err := Install(t.Context(), opts); err != nil || again.Changed || again.Manifest.Criu.Version != "99.0" {
		t.Errorf("with a broken one on the host: %+v, %v; want nothing done", again, err)
	}
	opts.Root = filepath.Join(t.TempDir(), "root")
	res, err = Install(t.Context(), opts)
	if err != nil || res.Manifest.Criu.From != FromDebian {
		t.Errorf("new, with a broken one on the host: %+v, %v; want the package", res.Manifest.Criu, err)
	}
	opts.CriuFrom = filepath.Join(dir, "criu")
	if _, err := Install(t.Context(), opts); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "this kernel is too strange") {
		t.Errorf("asked for one that does not work: %v; want CRIU's own words", err)
	}
}

func loaderList(t *testing.T, tk Toolkit) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), tk.Loader(), "--library-path", tk.LibDir(), "--list", tk.Criu()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

func TestUninstallRefusesWhileInUse(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	fake(t, root)
	tk := Toolkit{root: root}
	if _, err := writeManifest(root, CriuOrigin{}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(tk.Fastfreeze())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hold := exec.CommandContext(t.Context(), "sleep", "600")
	hold.ExtraFiles = []*os.File{f}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hold.Process.Kill(); _ = hold.Wait() }()
	if err := Uninstall(t.Context(), UninstallOptions{Root: root}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("uninstall: %v; want a refusal", err)
	}
	if _, err := LocateAt(root); err != nil {
		t.Error(err)
	}
	if err := Uninstall(t.Context(), UninstallOptions{Root: root, Force: true}); err != nil {
		t.Errorf("by force: %v", err)
	}
}

func TestInstallStopped(t *testing.T) {
	needRoot(t)
	old := filepath.Join(t.TempDir(), "root")
	fake(t, old)
	if _, err := writeManifest(old, CriuOrigin{}); err != nil {
		t.Fatal(err)
	}
	before := tree(t, old)
	ctx, cancel := context.WithCancel(t.Context())
	progress := cancelOn{text: "looking for a CRIU", cancel: cancel}
	_, err := Install(ctx, InstallOptions{Root: old, FastfreezePath: staticProgram(t, "x"), CacheDir: t.TempDir(), Progress: progress})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want context.Canceled", err)
	}
	if after := tree(t, old); !slices.Equal(before, after) {
		t.Errorf("before %v\nafter  %v", before, after)
	}
	if _, err := (Toolkit{root: old}).Verify(); err != nil {
		t.Errorf("the old toolkit: %v", err)
	}
	fresh := filepath.Join(t.TempDir(), "a", "b")
	if _, err := Install(ctx, InstallOptions{Root: fresh, FastfreezePath: staticProgram(t, "x")}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want context.Canceled", err)
	}
	if _, err := os.Stat(filepath.Dir(fresh)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s was left behind", filepath.Dir(fresh))
	}
}

// cancelOn cancels when a line of progress contains text.
type cancelOn struct {
	text   string
	cancel context.CancelFunc
}

func (c cancelOn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		c.cancel()
	}
	return len(p), nil
}

func TestInstallDiskFull(t *testing.T) {
	needRoot(t)
	program := staticProgram(t, "x")
	for _, size := range []string{"64k", "5m"} { // too small for fastfreeze; for CRIU
		t.Run(size, func(t *testing.T) {
			mnt := t.TempDir()
			if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size="+size); err != nil {
				t.Fatalf("mount a tmpfs: %v", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
					t.Errorf("unmount: %v", err)
				}
			})
			_, err := Install(t.Context(), InstallOptions{Root: filepath.Join(mnt, "opt", "fastmig"), FastfreezePath: program})
			if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "disk full") {
				t.Errorf("error %v; want that the disk is full", err)
			}
			if left := tree(t, mnt); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestInstallRefusals(t *testing.T) {
	needRoot(t)
	program := staticProgram(t, "x")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	readOnly := t.TempDir()
	if err := unix.Mount("tmpfs", readOnly, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(readOnly, unix.MNT_DETACH) })
	for _, tc := range []struct {
		name string
		opts InstallOptions
		kind error
		text string
	}{
		{"the system's root", InstallOptions{Root: "/", FastfreezePath: program}, errdefs.ErrInvalidArgument, "cannot be the root"},
		{"relative root", InstallOptions{Root: "x", FastfreezePath: program}, errdefs.ErrInvalidArgument, "absolute"},
		{"no fastfreeze", InstallOptions{FastfreezePath: "/does/not/exist"}, errdefs.ErrFailedPrecondition, "/does/not/exist"},
		{"dynamic fastfreeze", InstallOptions{FastfreezePath: "/bin/sleep"}, errdefs.ErrInvalidArgument, "statically"},
		{"script as fastfreeze", InstallOptions{FastfreezePath: script}, errdefs.ErrInvalidArgument, "no ELF"},
		{"script as criu", InstallOptions{FastfreezePath: program, CriuFrom: script}, errdefs.ErrInvalidArgument, "no ELF"},
		{"static criu", InstallOptions{FastfreezePath: program, CriuFrom: program}, errdefs.ErrFailedPrecondition, "statically"},
		{"not a criu", InstallOptions{FastfreezePath: program, CriuFrom: "/bin/true"}, errdefs.ErrFailedPrecondition, "criu --version"},
		{"no criu", InstallOptions{FastfreezePath: program, CriuFrom: "/does/not/exist"}, os.ErrNotExist, "/does/not/exist"},
		{"read-only", InstallOptions{Root: filepath.Join(readOnly, "root"), FastfreezePath: program}, errdefs.ErrPermissionDenied, "read-only"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			base := t.TempDir()
			if tc.opts.Root == "" {
				tc.opts.Root = filepath.Join(base, "root")
			}
			_, err := Install(t.Context(), tc.opts)
			if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v; want kind %v and the text %q", err, tc.kind, tc.text)
			}
			if left := tree(t, base); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestOpenRootWaitsForAnother(t *testing.T) {
	root := t.TempDir()
	first, err := openRoot(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	if _, err := openRoot(ctx, root); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second: %v; want the deadline", err)
	}
	done := make(chan error, 1)
	go func() {
		second, err := openRoot(t.Context(), root)
		if err == nil {
			second.close()
		}
		done <- err
	}()
	first.close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the lock was not handed on")
	}
}

func TestRemoveStale(t *testing.T) {
	cache := t.TempDir()
	old, fresh, other := filepath.Join(cache, unpackPrefix+"old"), filepath.Join(cache, unpackPrefix+"new"), filepath.Join(cache, "trixie")
	for _, dir := range []string{old, fresh, other} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * time.Hour)
	for _, dir := range []string{old, other} {
		if err := os.Chtimes(dir, past, past); err != nil {
			t.Fatal(err)
		}
	}
	removeStale(cache)
	if left := tree(t, cache); !slices.Equal(left, []string{"trixie", unpackPrefix + "new"}) {
		t.Errorf("left are %v", left)
	}
}
