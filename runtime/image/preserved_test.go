package image

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// The archive is not copied to the private folder, but found.
func TestPreserved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cp")
	s := stage(t, dir)
	writeImages(t, s.Dir())
	writeFile(t, s.Dir(), PreservedName, "archive")
	m := sampleManifest()
	m.PreservedPaths = []string{"/data"}
	if err := s.Commit(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	read := func(c *Checkpoint) {
		t.Helper()
		f, size, err := c.Preserved()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if text, err := io.ReadAll(f); err != nil || string(text) != "archive" || size != 7 {
			t.Errorf("%q of %d bytes, %v", text, size, err)
		}
	}
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Manifest.PreservedPaths; len(got) != 1 || got[0] != "/data" {
		t.Errorf("paths %q", got)
	}
	read(c)
	private := privateFolder(t)
	isolated, err := c.Isolate(t.Context(), private, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer isolated.Close()
	read(isolated)
	if _, err := os.Stat(filepath.Join(private.Name(), PreservedName)); !os.IsNotExist(err) {
		t.Errorf("in the private folder: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, PreservedName)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := isolated.Preserved(); !errdefs.IsDataLoss(err) {
		t.Errorf("one that was removed: %v", err)
	}
}

// Paths and archive go together.
func TestPreservedAlone(t *testing.T) {
	for _, paths := range [][]string{nil, {"/data"}} {
		s := stage(t, filepath.Join(t.TempDir(), "cp"))
		writeImages(t, s.Dir())
		if paths == nil {
			writeFile(t, s.Dir(), PreservedName, "archive")
		}
		m := sampleManifest()
		m.PreservedPaths = paths
		if err := s.Commit(context.Background(), m); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", paths, err)
		}
	}
}
