package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
)

// privateFolder is where Isolate copies to.
func privateFolder(t *testing.T) *os.File {
	t.Helper()
	d, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// commitLarge makes a checkpoint with a file of more than one chunk that is
// copied, and an empty page file.
func commitLarge(t *testing.T, dir string) {
	t.Helper()
	s, err := Stage(dir)
	if err != nil {
		t.Fatal(err)
	}
	writeImages(t, s.Dir())
	writeFile(t, s.Dir(), "pages-2.img", "")
	writeFile(t, s.Dir(), "tmpfs-0.img", strings.Repeat("0123456789abcdef", chunkSize/16)+"more")
	if err := s.Commit(context.Background(), sampleManifest()); err != nil {
		t.Fatal(err)
	}
}

func TestIsolate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cp")
	commitLarge(t, dir)
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var beats atomic.Int64
	ctx := WithPulse(context.Background(), func() { beats.Add(1) })
	private := privateFolder(t)
	released := 0
	isolated, err := c.Isolate(ctx, private, func() error { released++; return nil })
	if err != nil {
		t.Fatal(err)
	}
	if beats.Load() == 0 {
		t.Error("no pulse")
	}
	if isolated.File() != private || isolated.Pages() == nil || isolated.Manifest.Digest != c.Manifest.Digest {
		t.Errorf("%+v", isolated)
	}
	var copied int64
	for _, name := range names(t, private.Name()) {
		if name == "pages-1.img" || name == ManifestName {
			t.Errorf("%s was copied", name)
		}
		copy, err := os.ReadFile(filepath.Join(private.Name(), name))
		if err != nil {
			t.Fatal(err)
		}
		source, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(copy) != string(source) {
			t.Errorf("%s differs (%v)", name, err)
		}
		copied += int64(len(copy))
	}
	if copied != c.Manifest.CopiedBytes() || len(names(t, private.Name())) != len(c.Manifest.Files)-1 {
		t.Errorf("%d bytes in %q", copied, names(t, private.Name()))
	}
	// It stays what it was.
	writeFile(t, dir, "inventory.img", "evil")
	if err := isolated.Verify(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := isolated.Pages().Stat(); err != nil {
		t.Error(err)
	}
	if err := isolated.Close(); err != nil || released != 1 {
		t.Errorf("%v, released %d times", err, released)
	}
}

func TestIsolateFindsDamage(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(dir string) error
		says  string
	}{
		"page file":  {func(dir string) error { return os.Truncate(dir+"/pages-1.img", 3) }, "pages-1.img is truncated"},
		"small file": {func(dir string) error { return os.WriteFile(dir+"/pstree.img", nil, 0o600) }, "pstree.img is truncated"},
		"large file": {func(dir string) error {
			f, err := os.OpenFile(dir+"/tmpfs-0.img", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("!"), chunkSize)
			return errors.Join(err, f.Close())
		}, "tmpfs-0.img: content changed"},
		"link":  {func(dir string) error { return os.Rename(dir+"/files.img", dir+"/f") }, "files.img is missing"},
		"extra": {func(dir string) error { return os.Mkdir(dir+"/sub", 0o700) }, "extra folder"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cp")
			commitLarge(t, dir)
			c := openSample(t, dir)
			if err := tc.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Isolate(context.Background(), privateFolder(t), nil); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

// Everything goes by the parent's descriptor, whatever its name means by now.
func TestFolderWasMoved(t *testing.T) {
	base := t.TempDir()
	before, after := filepath.Join(base, "before"), filepath.Join(base, "after")
	if err := os.Mkdir(before, 0o755); err != nil {
		t.Fatal(err)
	}
	parent, err := os.Open(before)
	if err != nil {
		t.Fatal(err)
	}
	defer parent.Close()
	if err := os.Rename(before, after); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), before); err != nil {
		t.Fatal(err)
	}
	aborted, err := StageAt(parent, "gone")
	if err != nil {
		t.Fatal(err)
	}
	writeImages(t, self(aborted.File()))
	if err := aborted.Abort(); err != nil {
		t.Error(err)
	}
	s, err := StageAt(parent, "cp")
	if err != nil {
		t.Fatal(err)
	}
	writeImages(t, self(s.File()))
	if err := s.Commit(context.Background(), sampleManifest()); err != nil {
		t.Fatal(err)
	}
	c, err := OpenAt(parent, "cp")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Verify(context.Background()); err != nil {
		t.Error(err)
	}
	if got := names(t, after); len(got) != 1 || got[0] != "cp" {
		t.Errorf("%q", got)
	}
	if err := RemoveAt(parent, "cp"); err != nil {
		t.Error(err)
	}
	if got := names(t, after); len(got) != 0 {
		t.Errorf("%q is left", got)
	}
}
