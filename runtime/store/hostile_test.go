package store

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// outside is a folder beside the container's root, with a checkpoint that
// nothing in the container may lead to.
func outside(t *testing.T, s *Store) string {
	t.Helper()
	mustTake(t, s, mustParse(t, "node:secret"), "secret")
	return s.Node
}

func rootOf(t *testing.T, s *Store) string {
	t.Helper()
	root, err := s.Root()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return root.Name()
}

// A link of the container's, as a parent, means what it means in there.
func TestLinksStayInside(t *testing.T) {
	s := testStore(t)
	dir, root := outside(t, s), rootOf(t, s)
	for name, target := range map[string]string{
		"absolute": dir, "relative": "../node", "far": strings.Repeat("../", 30) + dir, "loop": "loop", "proc": "/proc/self/root/" + dir,
	} {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		u := mustParse(t, "file:/"+name+"/secret")
		if o, err := s.Open(context.Background(), u); err == nil {
			t.Errorf("%s leads out of the container: %s", u, o.Dir())
			o.Close()
		}
		if err := s.take(u, "x"); err == nil {
			t.Errorf("%s was written to", u)
		}
	}
	expectNames(t, dir, "secret")
	// One that stays inside is followed.
	if err := os.Symlink("/data", filepath.Join(root, "inside")); err != nil {
		t.Fatal(err)
	}
	mustTake(t, s, mustParse(t, "file:/inside/one"), "a")
	if text, _ := newestText(t, s, mustParse(t, "file:/data/one")); text != "a" {
		t.Error(text)
	}
}

// The last part of the path is never followed, whatever is there.
func TestLastPartIsNoLink(t *testing.T) {
	s := testStore(t)
	dir, root := outside(t, s), rootOf(t, s)
	secret := filepath.Join(dir, "secret")
	for _, name := range []string{"link", ".other.previous"} {
		if err := os.Symlink(secret, filepath.Join(root, "data", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, url := range []string{"file:/data/link", "file:/data/other"} {
		if o, err := s.Open(context.Background(), mustParse(t, url)); err == nil {
			t.Errorf("%s leads out of the container", url)
			o.Close()
		} else if url == "file:/data/link" && !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	}
}

// Leftovers are removed only where they are a writer's, and no deeper.
func TestLeftoversAreNotFollowed(t *testing.T) {
	s, u := testStore(t), mustParse(t, "file:/data/one")
	dir, root := outside(t, s), rootOf(t, s)
	data := filepath.Join(root, "data")
	p := &place{name: "one"}
	mkdir := func(parts ...string) string {
		path := filepath.Join(append([]string{data}, parts...)...)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write := func(path string) {
		if err := os.WriteFile(path, []byte("keep"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, path string) {
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
	}
	link(filepath.Join(dir, "secret"), filepath.Join(data, p.newName()))
	link(filepath.Join(dir, "secret"), filepath.Join(data, p.previous(0)))
	// Somebody's folder under a writer's name.
	foreign := mkdir(p.newName())
	write(foreign + "/file")
	// A writer's, with somebody's folder and links in it.
	mixed := mkdir(p.newName())
	write(mixed + "/fastmig.json")
	link(dir, mixed+"/link")
	write(mkdir(filepath.Base(mixed), ".fastmig-partial-X", "deep") + "/file")
	link(dir, mixed+"/.fastmig-partial-Y")
	for range 2 {
		mustTake(t, s, u, "a")
	}
	if text, _ := newestText(t, s, u); text != "a" {
		t.Error(text)
	}
	if text, _ := newestText(t, s, mustParse(t, "node:secret")); text != "secret" {
		t.Error(text)
	}
	for _, path := range []string{foreign + "/file", mixed + "/.fastmig-partial-X/deep/file"} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%s is gone: %v", path, err)
		}
	}
	if _, err := os.Lstat(mixed + "/fastmig.json"); err == nil {
		t.Error("what a writer left is still there")
	}
}

// What was verified is what is restored, however the container's files change.
func TestVerifiedIsWhatIsUsed(t *testing.T) {
	s, u := testStore(t), mustParse(t, "file:/data/one")
	mustTake(t, s, u, "good")
	o, err := s.Open(context.Background(), u)
	if err != nil {
		t.Fatal(err)
	}
	parent, name := s.folder(t, u)
	if err := os.WriteFile(filepath.Join(parent, name, "inventory.img"), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.Verify(context.Background()); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(s.Private, namesIn(t, s.Private)[0], "inventory.img"))
	if err != nil || string(b) != "good" {
		t.Errorf("%q, %v", b, err)
	}
	if st, err := os.Stat(s.Private); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if o.Pages() == nil {
		t.Error("the page files were copied too")
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	expectNames(t, s.Private)
}

// A private copy whose maker is gone is removed with the next.
func TestPrivateLeftovers(t *testing.T) {
	s, u := testStore(t), mustParse(t, "file:/data/one")
	mustTake(t, s, u, "a")
	if err := os.MkdirAll(filepath.Join(s.Private, "DEAD"), 0o700); err != nil {
		t.Fatal(err)
	}
	first, err := s.Open(context.Background(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	living := namesIn(t, s.Private)
	second, err := s.Open(context.Background(), u)
	if err != nil {
		t.Fatal(err)
	}
	if got := namesIn(t, s.Private); len(living) != 1 || len(got) != 2 {
		t.Errorf("%q, then %q", living, got)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	expectNames(t, s.Private, living...)
}

// Files that are no regular ones are neither opened nor waited for.
func TestFifo(t *testing.T) {
	s, u := testStore(t), mustParse(t, "file:/data/one")
	mustTake(t, s, u, "a")
	parent, name := s.folder(t, u)
	for _, file := range []string{"pages-1.img", "inventory.img", "fastmig.json"} {
		path := filepath.Join(parent, name, file)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(context.Background(), u); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "fifo") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// The container swaps folders and links for one another all the time.
func TestSwaps(t *testing.T) {
	s, u := testStore(t), mustParse(t, "file:/data/sub/one")
	dir, root := outside(t, s), rootOf(t, s)
	sub, aside := filepath.Join(root, "data", "sub"), filepath.Join(root, "data", "aside")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../node", aside); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, sub, unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE)
			}
		}
	})
	good := 0
	for range 60 {
		if s.take(u, "a") == nil {
			good++
		}
		if o, err := s.Open(context.Background(), mustParse(t, "file:/data/sub/secret")); err == nil {
			t.Error("the container led out of its root")
			o.Close()
		}
	}
	close(done)
	wg.Wait()
	expectNames(t, dir, "secret")
	t.Logf("%d of 60 checkpoints were taken", good)
}
