package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fastmig/fastmig/runtime/image"
)

// testStore has a node's folder and a container's root in a folder of the test.
func testStore(t testing.TB) *Store {
	t.Helper()
	return storeIn(t.TempDir())
}

func storeIn(dir string) *Store {
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "data"), 0o755); err != nil {
		panic(err)
	}
	return &Store{
		Node:    filepath.Join(dir, "node"),
		Root:    func() (*os.File, error) { return os.Open(root) },
		Private: filepath.Join(dir, "private"),
		Timeout: 20 * time.Second,
	}
}

func mustParse(t testing.TB, url string) URL {
	t.Helper()
	u, err := Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// both are the two kinds of places.
var both = []string{"node:one", "file:/data/one"}

// folder is where the test finds the place of the URL.
func (s *Store) folder(t testing.TB, u URL) (parent, name string) {
	t.Helper()
	if u.Scheme == SchemeNode {
		return s.Node, u.Path
	}
	root, err := s.Root()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return filepath.Join(root.Name(), filepath.Dir(u.Path)), filepath.Base(u.Path)
}

func manifest() *image.Manifest {
	return &image.Manifest{
		Application: image.Application{Args: []string{"x"}, Pid: 1000},
		Stdio:       [3]image.StdioEntry{{Kind: image.StdioNull}, {Kind: image.StdioNull}, {Kind: image.StdioNull}},
		TCP:         image.TCPClose,
		CriuVersion: "4.1.1",
	}
}

// fill is what CRIU does: it writes the text, as memory and as something else.
func fill(dir *os.File, text string) error {
	at := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	for _, name := range []string{"inventory.img", "pages-1.img"} {
		if err := os.WriteFile(filepath.Join(at, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(at, "pages-2.img"), nil, 0o644)
}

func (s *Store) take(u URL, text string) error {
	ctx := context.Background()
	st, err := s.Stage(ctx, u)
	if err != nil {
		return err
	}
	defer st.Abort()
	if err := fill(st.File(), text); err != nil {
		return err
	}
	return st.Commit(ctx, manifest())
}

func mustTake(t testing.TB, s *Store, u URL, text string) {
	t.Helper()
	if err := s.take(u, text); err != nil {
		t.Fatal(err)
	}
}

// content is the text of an open checkpoint, as CRIU would find it.
func content(t testing.TB, o *Opened) string {
	t.Helper()
	read := func(dir *os.File, name string) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	pages := o.File()
	if o.Pages() != nil {
		pages = o.Pages()
	}
	text := read(o.File(), "inventory.img")
	if memory := read(pages, "pages-1.img"); memory != text {
		t.Errorf("the memory is of %q, the rest of %q", memory, text)
	}
	read(o.File(), "pages-2.img")
	return text
}

// newest opens the place, and tells its text and note.
func newestText(t testing.TB, s *Store, u URL) (text, note string) {
	t.Helper()
	o, err := s.Open(context.Background(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	return content(t, o), o.Note
}

func namesIn(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func expectNames(t testing.TB, dir string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := namesIn(t, dir); !slices.Equal(got, want) {
		t.Errorf("in %s: %q, want %q", dir, got, want)
	}
}
