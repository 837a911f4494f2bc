//go:build linux

package toolkit

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/internal/debpkg"
)

// fake lays out a toolkit whose files do nothing.
func fake(t *testing.T, root string) {
	t.Helper()
	for _, dir := range []string{"bin", "criu/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{fastfreezePath, wrapperPath, "criu/criu", "criu/ld.so", "criu/lib/libc.so.6", preloadPath} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLocate(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(root string) error
		text  string
	}{
		{"whole", func(string) error { return nil }, ""},
		{"nothing", os.RemoveAll, "bin/fastfreeze does not exist"},
		{"no fastfreeze", func(r string) error { return os.Remove(filepath.Join(r, "bin/fastfreeze")) }, "bin/fastfreeze does not exist"},
		{"fastfreeze not executable", func(r string) error { return os.Chmod(filepath.Join(r, "bin/fastfreeze"), 0o644) }, "bin/fastfreeze is not executable"},
		{"no criu", func(r string) error { return os.Remove(filepath.Join(r, "criu/criu")) }, "criu/criu does not exist"},
		{"no loader", func(r string) error { return os.Remove(filepath.Join(r, "criu/ld.so")) }, "criu/ld.so does not exist"},
		{"no libraries", func(r string) error { return os.RemoveAll(filepath.Join(r, "criu/lib")) }, "criu/lib does not exist"},
		{"no manifest", func(r string) error { return os.Remove(filepath.Join(r, "toolkit.json")) }, "toolkit.json does not exist"},
		{"a folder in the place of criu", func(r string) error {
			p := filepath.Join(r, "criu/criu")
			return errors.Join(os.Remove(p), os.Mkdir(p, 0o755))
		}, "criu/criu is not a regular file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			fake(t, root)
			if _, err := writeManifest(root, CriuOrigin{Version: "1"}); err != nil {
				t.Fatal(err)
			}
			if err := tc.spoil(root); err != nil {
				t.Fatal(err)
			}
			t.Setenv(RootEnv, root)
			tk, err := Locate()
			if tc.text == "" {
				if err != nil || tk.Root() != root {
					t.Fatalf("%v, %v", tk, err)
				}
				return
			}
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), "fastmig install") {
				t.Errorf("error %v; want ErrFailedPrecondition with %q", err, tc.text)
			}
		})
	}
	if _, err := LocateAt("relative"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative root: %v; want ErrInvalidArgument", err)
	}
}

func TestManifestRefused(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":         "{",
		"another format":   `{"format": 99}`,
		"climbs out":       `{"format": 1, "files": [{"path": "../../etc/passwd"}]}`,
		"absolute":         `{"format": 1, "files": [{"path": "/etc/passwd"}]}`,
		"somebody else's":  `{"format": 1, "files": [{"path": "bin/sh"}]}`,
		"climbs in parts":  `{"format": 1, "files": [{"path": "criu/../../x"}]}`,
		"deeper than ours": `{"format": 1, "files": [{"path": "criu/lib/x/y"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, manifestName), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := (Toolkit{root: root}).ReadManifest(); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("error %v; want ErrFailedPrecondition", err)
			}
			if err := Uninstall(t.Context(), UninstallOptions{Root: root}); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("uninstall: %v; want ErrFailedPrecondition", err)
			}
		})
	}
}

func TestVerifyRefusesWhatOthersCanWrite(t *testing.T) {
	root := t.TempDir()
	fake(t, root)
	if err := os.Chmod(filepath.Join(root, "criu/criu"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := writeManifest(root, CriuOrigin{}); err != nil {
		t.Fatal(err)
	}
	if _, err := (Toolkit{root: root}).Verify(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "written by others") {
		t.Errorf("error %v; want a refusal", err)
	}
}

func TestParseList(t *testing.T) {
	text := "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibnl-3.so.200 => /usr/lib/x/libnl-3.so.200 (0x00007f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n"
	libs, err := parseList(text)
	if names := slices.Sorted(maps.Keys(libs)); err != nil || !slices.Equal(names, []string{"libc.so.6", "libnl-3.so.200"}) {
		t.Errorf("got %v, %v", libs, err)
	}
	if _, err := parseList("\tlibnl-3.so.200 => not found\n"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "libnl-3.so.200") {
		t.Errorf("error %v; want the missing library named", err)
	}
}

func TestSuitesFor(t *testing.T) {
	for _, tc := range []struct {
		rel  debpkg.Release
		want []string
	}{
		{debpkg.Release{ID: "debian", Codenames: []string{"bookworm"}}, []string{"trixie", "testing"}},
		{debpkg.Release{ID: "debian", Codenames: []string{"trixie"}}, []string{"", "testing"}},
		{debpkg.Release{ID: "linuxmint", Like: []string{"ubuntu", "debian"}, Codenames: []string{"x", "noble"}}, []string{"", "devel"}},
		{debpkg.Release{ID: "kali", Like: []string{"debian"}, Codenames: []string{"kali-rolling"}}, []string{"", "testing"}},
	} {
		if got := suitesFor(tc.rel); !slices.Equal(got, tc.want) {
			t.Errorf("%v: got %q, want %q", tc.rel, got, tc.want)
		}
	}
}

func TestResolve(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"usr/lib/x", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"lib": "usr/lib", "usr/lib/x/l.so": "l.so.1", "usr/lib/x/abs.so": "/lib/x/l.so", "out": "../../../../etc/passwd", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	real := filepath.Join(root, "usr/lib/x/l.so.1")
	if err := os.WriteFile(real, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/lib/x/l.so.1", "/usr/lib/x/l.so", "/lib/x/abs.so"} {
		if got, err := resolve(root, path); err != nil || got != real {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	for _, path := range []string{"/out", "/loop", "/missing"} {
		if got, err := resolve(root, path); err == nil {
			t.Errorf("%s: %q; want an error", path, got)
		}
	}
}

func TestExchangePutsBack(t *testing.T) {
	stage, root := t.TempDir(), t.TempDir()
	fake(t, stage)
	fake(t, root)
	if _, err := writeManifest(root, CriuOrigin{Version: "old"}); err != nil {
		t.Fatal(err)
	}
	// The staged manifest is missing and the old one cannot move: the last part
	// fails, after all others were exchanged.
	before := map[string]string{}
	for _, name := range []string{fastfreezePath, "criu/criu"} {
		if err := os.WriteFile(filepath.Join(stage, name), []byte("new"), 0o755); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		before[name] = string(data)
	}
	if err := os.Remove(filepath.Join(root, manifestName)); err != nil {
		t.Fatal(err)
	}
	if err := commit(stage, root); err == nil {
		t.Fatal("a commit without a manifest went well")
	}
	for name, want := range before {
		if data, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v; want what it was", name, data, err)
		}
	}
}

func TestExchangeByRename(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{a, b} {
		if err := os.WriteFile(p, []byte(filepath.Base(p)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := exchangeByRename(a, b); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{a: "b", b: "a"} {
		if data, err := os.ReadFile(p); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", p, data, err)
		}
	}
}
