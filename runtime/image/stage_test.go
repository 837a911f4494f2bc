package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func stage(t *testing.T, dir string) *Staging {
	t.Helper()
	s, err := Stage(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Abort() })
	return s
}

// crash leaves everything on the disk as a killed writer does.
func (s *Staging) crash() {
	s.done = true
	s.close()
}

func TestCommit(t *testing.T) {
	for _, existing := range []bool{false, true} {
		t.Run(fmt.Sprint("existing=", existing), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cp")
			if existing {
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			m := commitSample(t, dir+"/")
			c := openSample(t, dir)
			if err := c.Verify(context.Background()); err != nil {
				t.Error(err)
			}
			if c.Manifest.Digest != m.Digest || c.Manifest.Digest == "" {
				t.Errorf("digest %q, committed %q", c.Manifest.Digest, m.Digest)
			}
			if got, want := len(names(t, dir)), len(m.Files)+1; got != want {
				t.Errorf("%d entries in the folder, want %d: %v", got, want, names(t, dir))
			}
			for _, name := range names(t, dir) {
				st, err := os.Stat(filepath.Join(dir, name))
				if err != nil || st.Mode() != 0o600 {
					t.Errorf("%s: mode %v, %v", name, st.Mode(), err)
				}
			}
			want := os.FileMode(0o755)
			if !existing {
				want = 0o700
			}
			if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != want {
				t.Errorf("folder has mode %v, want %v", st.Mode(), want)
			}
		})
	}
}

func TestAbortLeavesNoTrace(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "cp")
	s := stage(t, dir)
	writeImages(t, s.Dir())
	if err := os.Mkdir(filepath.Join(s.Dir(), "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, parent); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
	if err := s.Commit(context.Background(), sampleManifest()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Commit after Abort: %v", err)
	}

	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s = stage(t, dir)
	if err := s.Abort(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestAbortAfterCommitDoesNothing(t *testing.T) {
	dir := t.TempDir()
	s := stage(t, dir)
	writeImages(t, s.Dir())
	if err := s.Commit(context.Background(), sampleManifest()); err != nil {
		t.Fatal(err)
	}
	if err := s.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := openSample(t, dir).Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestStageRefuses(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(t *testing.T, dir string)
		want    func(error) bool
		says    string
	}{
		{"a file in it", func(t *testing.T, dir string) { mkdir(t, dir); writeFile(t, dir, "notes.txt", "x") }, errdefs.IsAlreadyExists, `"notes.txt" is in it`},
		{"a checkpoint in it", func(t *testing.T, dir string) { commitSample(t, dir) }, errdefs.IsAlreadyExists, "it holds a checkpoint"},
		{"a symbolic link", func(t *testing.T, dir string) { mkdir(t, dir+"-real"); symlink(t, dir+"-real", dir) }, errdefs.IsInvalidArgument, "symbolic link"},
		{"a dangling link", func(t *testing.T, dir string) { symlink(t, "nowhere", dir) }, errdefs.IsInvalidArgument, "symbolic link"},
		{"a file", func(t *testing.T, dir string) { writeFile(t, filepath.Dir(dir), filepath.Base(dir), "") }, errdefs.IsInvalidArgument, "regular file"},
		{"a live writer", func(t *testing.T, dir string) { stage(t, dir) }, errdefs.IsUnavailable, "another checkpoint is being written"},
		{"no parent", func(t *testing.T, dir string) { os.Remove(filepath.Dir(dir)) }, errdefs.IsNotFound, "no such file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parent := filepath.Join(t.TempDir(), "parent")
			mkdir(t, parent)
			dir := filepath.Join(parent, "cp")
			tc.prepare(t, dir)
			before := tree(t, parent)
			for _, d := range []string{dir, dir + "/"} {
				s, err := Stage(d)
				if s != nil || !tc.want(err) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%s: got %v, want %q", d, err, tc.says)
				}
			}
			if after := tree(t, parent); after != before {
				t.Errorf("changed something:\n%s\nwas\n%s", after, before)
			}
		})
	}
}

func TestCommitRefuses(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, s *Staging, m *Manifest)
		want  func(error) bool
		says  string
	}{
		{"nothing", func(t *testing.T, s *Staging, _ *Manifest) {
			for _, name := range names(t, s.Dir()) {
				os.Remove(filepath.Join(s.Dir(), name))
			}
		}, errdefs.IsFailedPrecondition, "no files"},
		{"sub-folder", func(t *testing.T, s *Staging, _ *Manifest) { mkdir(t, s.Dir()+"/sub") }, errdefs.IsInvalidArgument, "sub: it is a folder"},
		{"link", func(t *testing.T, s *Staging, _ *Manifest) { symlink(t, "pages-1.img", s.Dir()+"/parent") }, errdefs.IsInvalidArgument, "parent: it is a symbolic link"},
		{"fifo", func(t *testing.T, s *Staging, _ *Manifest) { mkfifo(t, s.Dir()+"/f") }, errdefs.IsInvalidArgument, "f: it is a fifo"},
		{"own name", func(t *testing.T, s *Staging, _ *Manifest) { writeFile(t, s.Dir(), ManifestName, "") }, errdefs.IsInvalidArgument, "FastMig's own"},
		{"bad name", func(t *testing.T, s *Staging, _ *Manifest) { writeFile(t, s.Dir(), "a\nb", "") }, errdefs.IsInvalidArgument, "flat folder"},
		{"bad manifest", func(_ *testing.T, _ *Staging, m *Manifest) { m.Application.Pid = 0 }, errdefs.IsInvalidArgument, "pid 0"},
		{"name taken", func(t *testing.T, s *Staging, _ *Manifest) { writeFile(t, filepath.Dir(s.Dir()), "pstree.img", "x") }, errdefs.IsAlreadyExists, "move pstree.img"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			s := stage(t, dir)
			writeImages(t, s.Dir())
			m := sampleManifest()
			tc.spoil(t, s, m)
			err := s.Commit(context.Background(), m)
			if !tc.want(err) || !strings.Contains(err.Error(), tc.says) {
				t.Fatalf("got %v, want %q", err, tc.says)
			}
			if c, err := Open(dir); err == nil {
				c.Close()
				t.Error("a checkpoint exists")
			}
			if err := s.Abort(); err != nil {
				t.Fatal(err)
			}
			left := slices.DeleteFunc(names(t, dir), func(n string) bool { return tc.name == "name taken" && n == "pstree.img" })
			if len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestCommitCancelled(t *testing.T) {
	dir := t.TempDir()
	s := stage(t, dir)
	writeImages(t, s.Dir())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Commit(ctx, sampleManifest()); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if err := s.Abort(); err != nil || len(names(t, dir)) != 0 {
		t.Errorf("%v; left: %v", err, names(t, dir))
	}
}

// Whenever the writer dies, readers see no checkpoint, or all of it, and the
// next writer finds the folder usable.
func TestCrashPoints(t *testing.T) {
	steps := -1 // found out in the first round: the number of files
	for point := -2; point <= steps+1; point++ {
		dir := t.TempDir()
		s := stage(t, dir)
		writeImages(t, s.Dir())
		files := names(t, s.Dir())
		steps = len(files)
		whole := false
		switch {
		case point == -2: // while CRIU writes
		case point == -1: // while the manifest is written
			writeFile(t, s.Dir(), ManifestName, `{"formatVersion": 1`)
		default:
			sealed, err := s.seal(context.Background(), sampleManifest())
			if err != nil || !slices.Equal(sealed, files) {
				t.Fatal(err, sealed)
			}
			for _, name := range sealed[:min(point, len(sealed))] {
				if err := s.publish(name); err != nil {
					t.Fatal(err)
				}
			}
			if point > len(sealed) {
				whole = true
				if err := s.publish(ManifestName); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := Open(dir); !whole && !errdefs.IsUnavailable(err) {
			t.Fatalf("point %d, writer alive: got %v, want Unavailable", point, err)
		}
		s.crash()
		if whole {
			if err := openSample(t, dir).Verify(context.Background()); err != nil {
				t.Fatalf("point %d: %v", point, err)
			}
			if _, err := Stage(dir); !errdefs.IsAlreadyExists(err) {
				t.Fatalf("point %d: a new checkpoint would replace it: %v", point, err)
			}
			if err := Remove(dir); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if _, err := Open(dir); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "unfinished") {
			t.Fatalf("point %d: got %v, want unfinished", point, err)
		}
		commitSample(t, dir)
		if err := openSample(t, dir).Verify(context.Background()); err != nil {
			t.Fatalf("point %d, second try: %v", point, err)
		}
	}
}

// What a dead writer left is removed, but never somebody else's file.
func TestLeftoverBesideOtherFiles(t *testing.T) {
	dir := t.TempDir()
	s := stage(t, dir)
	writeImages(t, s.Dir())
	if _, err := s.seal(context.Background(), sampleManifest()); err != nil {
		t.Fatal(err)
	}
	if err := s.publish("pstree.img"); err != nil {
		t.Fatal(err)
	}
	s.crash()
	writeFile(t, dir, "notes.txt", "keep me")
	before := tree(t, dir)
	if _, err := Stage(dir); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("got %v, want AlreadyExists", err)
	}
	if after := tree(t, dir); after != before {
		t.Errorf("changed something:\n%s\nwas\n%s", after, before)
	}
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("needs the right to mount:", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	target := filepath.Join(dir, "cp")
	s := stage(t, target)
	writeImages(t, s.Dir())
	err := os.WriteFile(filepath.Join(s.Dir(), "pages-2.img"), make([]byte, 1<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal("the disk is not full:", err)
	}
	if err := s.Commit(context.Background(), sampleManifest()); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("got %v", err)
	}
	if err := s.Abort(); err != nil {
		t.Error(err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestRemove(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "cp")
	remove := func(prepare func()) error {
		t.Helper()
		prepare()
		return Remove(dir)
	}
	gone := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
		if got := names(t, parent); len(got) != 0 {
			t.Errorf("left: %v", got)
		}
	}
	gone(remove(func() { commitSample(t, dir) }))
	gone(remove(func() { commitSample(t, dir); writeFile(t, dir, ManifestName, "damaged"); mkfifo(t, dir+"/f") }))
	gone(remove(func() { s := stage(t, dir); writeImages(t, s.Dir()); s.crash() }))
	gone(remove(func() { mkdir(t, dir) }))

	if err := Remove(dir); !errdefs.IsNotFound(err) {
		t.Errorf("missing: %v", err)
	}
	var s *Staging
	if err := remove(func() { s = stage(t, dir) }); !errdefs.IsUnavailable(err) {
		t.Errorf("live: %v", err)
	}
	if err := s.Abort(); err != nil {
		t.Error(err)
	}
	if err := remove(func() { mkdir(t, dir); writeFile(t, dir, "notes.txt", "keep me") }); !errdefs.IsFailedPrecondition(err) || len(names(t, dir)) != 1 {
		t.Errorf("somebody else's folder: %v, left: %v", err, names(t, dir))
	}
	os.RemoveAll(dir)
	if err := remove(func() { commitSample(t, dir); mkdir(t, dir+"/sub") }); !errdefs.IsAlreadyExists(err) || !slices.Equal(names(t, dir), []string{"sub"}) {
		t.Errorf("sub-folder: %v, left: %v", err, names(t, dir))
	}
	os.RemoveAll(dir)
	if err := remove(func() { commitSample(t, dir+"-real"); symlink(t, dir+"-real", dir) }); !errdefs.IsInvalidArgument(err) {
		t.Errorf("link: %v", err)
	}
	openSample(t, dir+"-real")
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func mkfifo(t *testing.T, path string) {
	t.Helper()
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// tree lists a folder with all that is below.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil {
			fmt.Fprintln(&b, path, d.Type())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
