//go:build linux

package debpkg

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// cacheDir is shared by all tests and runs: only the first one downloads.
func cacheDir(t *testing.T) string {
	t.Helper()
	base, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(base, "fastmig", "debpkg")
}

func TestFetchNewerSuite(t *testing.T) {
	opts := Options{Dir: cacheDir(t), Suite: "trixie", Packages: []string{"criu"}, Progress: t.Output()}
	debs, err := Fetch(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"criu_4", "libc6_", "libprotobuf-c1_"} {
		if !slices.ContainsFunc(debs, func(p string) bool { return strings.HasPrefix(filepath.Base(p), want) }) {
			t.Errorf("%s* is not among %v", want, debs)
		}
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := Unpack(t.Context(), debs, root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "usr/sbin/criu")); err != nil {
		t.Error(err)
	}
	again, err := Fetch(t.Context(), opts)
	if err != nil || !slices.Equal(debs, again) {
		t.Errorf("second call: %v, %v; want the same archives", again, err)
	}
}

func TestFetchOwnSuiteInParallel(t *testing.T) {
	dir := cacheDir(t)
	hostBefore := hostState(t)
	var wg sync.WaitGroup
	for _, pkg := range []string{"busybox-static", "libcap2"} {
		wg.Go(func() {
			debs, err := Fetch(t.Context(), Options{Dir: dir, Packages: []string{pkg}})
			if err != nil || len(debs) == 0 {
				t.Errorf("%s: %v, %v", pkg, debs, err)
				return
			}
			root := filepath.Join(t.TempDir(), "root")
			if err := Unpack(t.Context(), debs, root); err != nil {
				t.Error(err)
			}
			if link, err := os.Readlink(filepath.Join(root, "lib")); err != nil || link != "usr/lib" {
				t.Errorf("/lib of %s: %q, %v; want the link usr/lib", pkg, link, err)
			}
		})
	}
	wg.Wait()
	if after := hostState(t); after != hostBefore {
		t.Errorf("the host's apt state changed:\nbefore %s\nafter  %s", hostBefore, after)
	}
}

// hostState describes what apt and dpkg keep for the host itself.
func hostState(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, p := range []string{"/var/lib/apt/lists", "/var/cache/apt", "/var/cache/apt/archives", "/var/lib/dpkg/status", "/var/lib/apt/extended_states"} {
		if st, err := os.Stat(p); err == nil {
			b.WriteString(p + " " + st.ModTime().Format(time.RFC3339Nano) + "\n")
		}
	}
	return b.String()
}

func TestFetchRefusals(t *testing.T) {
	dir := cacheDir(t)
	for _, tc := range []struct {
		name string
		opts Options
		kind error
		text string
	}{
		{"no such package", Options{Dir: dir, Packages: []string{"fastmig-no-such-package"}}, errdefs.ErrNotFound, "Unable to locate package fastmig-no-such-package"},
		{"option as a name", Options{Dir: dir, Packages: []string{"-oDebug=1"}}, errdefs.ErrInvalidArgument, "-oDebug=1"},
		{"path as a suite", Options{Dir: dir, Suite: "../x", Packages: []string{"criu"}}, errdefs.ErrInvalidArgument, "../x"},
		{"nothing wanted", Options{Dir: dir}, errdefs.ErrInvalidArgument, "no package"},
		{"relative folder", Options{Dir: "x", Packages: []string{"criu"}}, errdefs.ErrInvalidArgument, "absolute"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Fetch(t.Context(), tc.opts)
			if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v; want kind %v and the text %q", err, tc.kind, tc.text)
			}
		})
	}
}

func TestFetchWithoutApt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Fetch(t.Context(), Options{Dir: cacheDir(t), Packages: []string{"criu"}})
	if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "apt-get") {
		t.Errorf("error %v; want ErrNotImplemented naming apt-get", err)
	}
}

func TestFetchCancelled(t *testing.T) {
	dir := t.TempDir()
	// A stand-in that hangs as a stalled archive does, with a child of its own
	// that must end as well.
	bin := t.TempDir()
	script := "#!/bin/sh\nsleep 600 &\necho $! > " + bin + "/child\nwait\n"
	if err := os.WriteFile(filepath.Join(bin, "apt-get"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := Fetch(ctx, Options{Dir: dir, Packages: []string{"criu"}})
		done <- err
	}()
	child := waitForFile(t, filepath.Join(bin, "child"))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want context.Canceled", err)
	}
	waitFor(t, "the hanging child to end", func() bool {
		stat, err := os.ReadFile("/proc/" + child + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	if _, err := os.Stat(filepath.Join(dir, "own", "updated")); err == nil {
		t.Error("the lists count as fetched after a cancelled update")
	}
}

func TestLockWaitsAndIsCancelled(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	if _, err := lockDir(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second holder: %v; want the deadline", err)
	}
	first.Close()
	second, err := lockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
}

func TestUnpackBrokenArchive(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(t.TempDir(), "broken_1_all.deb")
	if err := os.WriteFile(deb, []byte("not an archive"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := Unpack(t.Context(), []string{deb}, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "broken_1_all.deb") {
		t.Errorf("error %v; want one that names the archive", err)
	}
}

func waitForFile(t *testing.T, path string) string {
	t.Helper()
	var text string
	waitFor(t, path, func() bool {
		data, err := os.ReadFile(path)
		text = strings.TrimSpace(string(data))
		return err == nil && text != ""
	})
	return text
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		case <-tick.C:
		}
	}
}
