package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
)

func TestOpenRefuses(t *testing.T) {
	anyIs := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	for _, tc := range []struct {
		name    string
		prepare func(t *testing.T, dir string)
		want    func(error) bool
		says    string
	}{
		{"missing", func(t *testing.T, dir string) { os.Remove(dir) }, errdefs.IsNotFound, "no such file"},
		{"empty", func(*testing.T, string) {}, anyIs(ErrEmpty), "empty"},
		{"stock runc", func(t *testing.T, dir string) {
			writeImages(t, dir)
			writeFile(t, dir, "descriptors.json", "[]")
		}, anyIs(ErrForeign), "whole container"},
		{"manifest lost", func(t *testing.T, dir string) {
			commitSample(t, dir)
			os.Remove(filepath.Join(dir, ManifestName))
		}, errdefs.IsDataLoss, "fastmig.json is missing"},
		{"something else", func(t *testing.T, dir string) { writeFile(t, dir, "notes.txt", "x") }, errdefs.IsInvalidArgument, "no checkpoint"},
		{"empty manifest", func(t *testing.T, dir string) { commitSample(t, dir); writeFile(t, dir, ManifestName, "") }, errdefs.IsDataLoss, "cut short"},
		{"huge manifest", func(t *testing.T, dir string) {
			commitSample(t, dir)
			if err := os.Truncate(filepath.Join(dir, ManifestName), maxManifest+1); err != nil {
				t.Fatal(err)
			}
		}, errdefs.IsDataLoss, "longer than"},
		{"manifest is a link", func(t *testing.T, dir string) {
			commitSample(t, dir)
			os.Rename(filepath.Join(dir, ManifestName), filepath.Join(dir, "m"))
			symlink(t, "m", filepath.Join(dir, ManifestName))
		}, errdefs.IsDataLoss, "symbolic link"},
		{"manifest is a fifo", func(t *testing.T, dir string) {
			commitSample(t, dir)
			os.Remove(filepath.Join(dir, ManifestName))
			mkfifo(t, filepath.Join(dir, ManifestName))
		}, errdefs.IsDataLoss, "fifo"},
		{"a link", func(t *testing.T, dir string) {
			commitSample(t, dir+"-real")
			os.Remove(dir)
			symlink(t, dir+"-real", dir)
		}, errdefs.IsInvalidArgument, "symbolic link"},
		{"a file", func(t *testing.T, dir string) {
			os.Remove(dir)
			writeFile(t, filepath.Dir(dir), filepath.Base(dir), "")
		}, errdefs.IsInvalidArgument, "regular file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cp")
			mkdir(t, dir)
			tc.prepare(t, dir)
			for _, d := range []string{dir, dir + "/"} {
				c, err := Open(d)
				if c != nil || !tc.want(err) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v, want %q", err, tc.says)
				}
			}
		})
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, file string)
		says  string
	}{
		{"missing", func(t *testing.T, file string) { os.Remove(file) }, "NAME is missing"},
		{"empty", func(t *testing.T, file string) { os.Truncate(file, 0) }, "NAME is truncated: 0 of"},
		{"truncated", func(t *testing.T, file string) {
			st, _ := os.Stat(file)
			os.Truncate(file, st.Size()-1)
		}, "NAME is truncated"},
		{"longer", func(t *testing.T, file string) {
			st, _ := os.Stat(file)
			os.Truncate(file, st.Size()+1)
		}, "NAME has grown"},
		{"flipped byte", func(t *testing.T, file string) {
			b, _ := os.ReadFile(file)
			b[len(b)/2] ^= 1
			os.WriteFile(file, b, 0o600)
		}, "NAME: content changed"},
		{"link", func(t *testing.T, file string) {
			os.Rename(file, file+"-real")
			symlink(t, filepath.Base(file)+"-real", file)
		}, "NAME is a symbolic link"},
		{"fifo", func(t *testing.T, file string) { os.Remove(file); mkfifo(t, file) }, "NAME is a fifo"},
		{"folder", func(t *testing.T, file string) { os.Remove(file); mkdir(t, file) }, "NAME is a folder"},
		{"extra file", func(t *testing.T, file string) { writeFile(t, filepath.Dir(file), "extra", "") }, "extra is an extra regular file"},
		{"extra folder", func(t *testing.T, file string) { mkdir(t, filepath.Dir(file)+"/extra") }, "extra is an extra folder"},
		{"filled writer's folder", func(t *testing.T, file string) {
			partial := filepath.Join(filepath.Dir(file), partialPrefix+"x")
			mkdir(t, partial)
			writeFile(t, partial, "f", "")
		}, partialPrefix + "x is an extra folder"},
		{"extra link", func(t *testing.T, file string) { symlink(t, "/etc/passwd", filepath.Dir(file)+"/extra") }, "extra is an extra symbolic link"},
		{"extra fifo", func(t *testing.T, file string) { mkfifo(t, filepath.Dir(file)+"/extra") }, "extra is an extra fifo"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pristine := filepath.Join(t.TempDir(), "cp")
			m := commitSample(t, pristine)
			for _, file := range m.Files {
				dir := filepath.Join(t.TempDir(), "cp")
				if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
					t.Fatal(err)
				}
				tc.spoil(t, filepath.Join(dir, file.Name))
				says := strings.ReplaceAll(tc.says, "NAME", file.Name)
				err := openSample(t, dir).Verify(context.Background())
				if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), says) {
					t.Errorf("%s: got %v, want %q", file.Name, err, says)
				}
			}
		})
	}
}

func TestVerifyLimitsItsMessage(t *testing.T) {
	dir := t.TempDir()
	m := commitSample(t, dir)
	for _, f := range m.Files {
		os.Remove(filepath.Join(dir, f.Name))
	}
	err := openSample(t, dir).Verify(context.Background())
	if !errdefs.IsDataLoss(err) || strings.Count(err.Error(), "is missing") != maxProblems || !strings.Contains(err.Error(), "more") {
		t.Errorf("got %v", err)
	}
}

// Large files are digested in chunks, on all CPUs.
func TestLargeFile(t *testing.T) {
	dir := t.TempDir()
	s := stage(t, dir)
	writeImages(t, s.Dir())
	const size = 2*chunkSize + 1
	writeFile(t, s.Dir(), "pages-2.img", strings.Repeat("fastmig!", size/8+1)[:size])
	if err := s.Commit(context.Background(), sampleManifest()); err != nil {
		t.Fatal(err)
	}
	c := openSample(t, dir)
	if err := c.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, pos := range []int64{0, chunkSize - 1, chunkSize, size - 1} {
		f, err := os.OpenFile(filepath.Join(dir, "pages-2.img"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		var b, flipped [1]byte
		f.ReadAt(b[:], pos)
		flipped[0] = b[0] ^ 1
		f.WriteAt(flipped[:], pos)
		if err := c.Verify(context.Background()); !errdefs.IsDataLoss(err) {
			t.Errorf("byte %d flipped: got %v, want DataLoss", pos, err)
		}
		f.WriteAt(b[:], pos)
		f.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestConcurrentOpen(t *testing.T) {
	dir := t.TempDir()
	commitSample(t, dir)
	shared := openSample(t, dir)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c, err := Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for _, c := range []*Checkpoint{c, shared} {
				if err := c.Verify(context.Background()); err != nil {
					t.Error(err)
				}
			}
			if _, err := Inspect(c.File()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A reader that looks while a commit ends sees "being written" or the
// checkpoint, nothing between.
func TestOpenDuringCommit(t *testing.T) {
	dir := t.TempDir()
	s := stage(t, dir)
	writeImages(t, s.Dir())
	committed := make(chan error, 1)
	go func() { committed <- s.Commit(context.Background(), sampleManifest()) }()
	for {
		c, err := Open(dir)
		if err == nil {
			c.Close()
			break
		}
		if !errdefs.IsUnavailable(err) {
			t.Fatal(err)
		}
	}
	if err := <-committed; err != nil {
		t.Fatal(err)
	}
}

// The folder that was opened is the one that is read, whatever its name leads
// to later.
func TestReplacedFolder(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "cp")
	commitSample(t, dir)
	c := openSample(t, dir)
	if err := os.Rename(dir, dir+"-moved"); err != nil {
		t.Fatal(err)
	}
	symlink(t, "/", dir)
	if err := c.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}
