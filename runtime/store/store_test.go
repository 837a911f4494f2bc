package store

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/runtime/image"
)

func TestKeep(t *testing.T) {
	for _, url := range both {
		for keep, want := range map[int][]string{
			0: {"one", ".one.previous"},
			1: {"one"},
			2: {"one", ".one.previous"},
			4: {"one", ".one.previous", ".one.previous-1", ".one.previous-2"},
		} {
			s := testStore(t)
			s.Keep = keep
			u := mustParse(t, url)
			if _, err := s.Open(context.Background(), u); !errdefs.IsNotFound(err) {
				t.Errorf("nothing there: %v", err)
			}
			for _, text := range []string{"a", "b", "c", "d", "e"} {
				mustTake(t, s, u, text)
				if got, note := newestText(t, s, u); got != text || note != "" {
					t.Errorf("newest %q, %q; want %q", got, note, text)
				}
			}
			parent, _ := s.folder(t, u)
			expectNames(t, parent, want...)
			// Fewer to keep: those too many go with the next.
			s.Keep = 1
			mustTake(t, s, u, "f")
			expectNames(t, parent, "one")
		}
	}
}

func TestFallBack(t *testing.T) {
	for _, url := range both {
		for name, tc := range map[string]struct {
			spoil func(dir string) error
			says  string
		}{
			"content":  {func(dir string) error { return os.WriteFile(dir+"/inventory.img", []byte("B"), 0o600) }, "content changed"},
			"memory":   {func(dir string) error { return os.WriteFile(dir+"/pages-1.img", []byte("B"), 0o600) }, "pages-1.img: content changed"},
			"missing":  {func(dir string) error { return os.Remove(dir + "/inventory.img") }, "inventory.img is missing"},
			"extra":    {func(dir string) error { return os.WriteFile(dir+"/core-1.img", nil, 0o600) }, "extra"},
			"manifest": {func(dir string) error { return os.Truncate(dir+"/fastmig.json", 10) }, "cut short"},
			"gone":     {os.RemoveAll, "is missing"},
			"link": {func(dir string) error {
				if err := os.Rename(dir, dir+"-real"); err != nil {
					return err
				}
				return os.Symlink(dir+"-real", dir)
			}, "symbolic link"},
		} {
			t.Run(url+" "+name, func(t *testing.T) {
				s, u := testStore(t), mustParse(t, url)
				mustTake(t, s, u, "a")
				mustTake(t, s, u, "b")
				parent, last := s.folder(t, u)
				if err := tc.spoil(filepath.Join(parent, last)); err != nil {
					t.Fatal(err)
				}
				text, note := newestText(t, s, u)
				if text != "a" || !strings.Contains(note, tc.says) {
					t.Errorf("%q, %q", text, note)
				}
				// When the other one is damaged too, the newest's error counts.
				if err := os.Remove(filepath.Join(parent, ".one.previous", "pages-1.img")); err != nil {
					t.Fatal(err)
				}
				_, err := s.Open(context.Background(), u)
				if name == "gone" {
					tc.says = "pages-1.img is missing"
				}
				if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), url) {
					t.Errorf("both damaged: %v", err)
				}
				if s.Private != "" && url == both[1] {
					expectNames(t, s.Private)
				}
				if name == "link" {
					return // no checkpoint may take its place
				}
				mustTake(t, s, u, "c")
				if text, note := newestText(t, s, u); text != "c" || note != "" {
					t.Errorf("the next: %q, %q", text, note)
				}
			})
		}
	}
}

func TestStat(t *testing.T) {
	s, u := testStore(t), mustParse(t, "node:one")
	if _, err := s.Stat(context.Background(), u); !errdefs.IsNotFound(err) {
		t.Errorf("nothing there: %v", err)
	}
	mustTake(t, s, u, "abc")
	info, err := s.Stat(context.Background(), u)
	if err != nil || info.Bytes != 6 || !strings.HasPrefix(info.Digest, "sha256:") || info.CreatedAt.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestOneWriter(t *testing.T) {
	for _, url := range both {
		s, u := testStore(t), mustParse(t, url)
		ctx := context.Background()
		first, err := s.Stage(ctx, u)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stage(ctx, u); !errdefs.IsUnavailable(err) {
			t.Errorf("a second writer: %v", err)
		}
		mustTake(t, s, mustParse(t, url+"2"), "x") // another place beside it
		if err := fill(first.File(), "a"); err != nil {
			t.Fatal(err)
		}
		m := manifest()
		if err := first.Commit(ctx, m); err != nil || m.Digest == "" || len(m.Files) != 3 {
			t.Fatal(err, m)
		}
		if err := first.Commit(ctx, m); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("committed twice: %v", err)
		}
		if err := first.Abort(); err != nil {
			t.Error(err)
		}
		mustTake(t, s, u, "b")
		if text, _ := newestText(t, s, u); text != "b" {
			t.Error(text)
		}
	}
}

func TestAbortLeavesNothing(t *testing.T) {
	for _, url := range both {
		s, u := testStore(t), mustParse(t, url)
		mustTake(t, s, u, "a")
		for _, commit := range []bool{false, true} {
			st, err := s.Stage(context.Background(), u)
			if err != nil {
				t.Fatal(err)
			}
			if commit { // of nothing, which fails
				if err := st.Commit(context.Background(), manifest()); err == nil {
					t.Error("an empty checkpoint was taken")
				}
			} else if err := fill(st.File(), "b"); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := st.Abort(); err != nil {
					t.Error(err)
				}
			}
			parent, _ := s.folder(t, u)
			expectNames(t, parent, "one")
		}
	}
}

func TestStageRefuses(t *testing.T) {
	for name, prepare := range map[string]func(at string) error{
		"a file":           func(at string) error { return os.WriteFile(at, nil, 0o600) },
		"a link":           func(at string) error { return os.Symlink("/", at) },
		"somebody's files": func(at string) error { return os.MkdirAll(at+"/sub", 0o700) },
	} {
		for _, url := range both {
			s, u := testStore(t), mustParse(t, url)
			parent, last := s.folder(t, u)
			if err := os.MkdirAll(parent, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := prepare(filepath.Join(parent, last)); err != nil {
				t.Fatal(err)
			}
			if err := s.take(u, "a"); !errdefs.IsAlreadyExists(err) {
				t.Errorf("%s, %s: %v", url, name, err)
			}
			expectNames(t, parent, "one")
		}
	}
	s := testStore(t)
	if err := s.take(mustParse(t, "file:/nowhere/one"), "a"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "/nowhere in the container") {
		t.Errorf("no parent: %v", err)
	}
	if err := s.take(URL{"file", "/data/../x"}, "a"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a URL that Parse did not make: %v", err)
	}
}

// A checkpoint may be put on the node by hand.
func TestMadeByHand(t *testing.T) {
	s := testStore(t)
	if err := os.MkdirAll(s.Node, 0o700); err != nil {
		t.Fatal(err)
	}
	st, err := image.Stage(filepath.Join(s.Node, "one"))
	if err != nil {
		t.Fatal(err)
	}
	if err := fill(st.File(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := st.Commit(context.Background(), manifest()); err != nil {
		t.Fatal(err)
	}
	u := mustParse(t, "node:one")
	if text, note := newestText(t, s, u); text != "a" || note != "" {
		t.Errorf("%q, %q", text, note)
	}
	mustTake(t, s, u, "b")
	expectNames(t, s.Node, "one", ".one.previous")
}

// What a reader has open stays, also when it is one too many.
func TestReaderKeepsIt(t *testing.T) {
	s, u := testStore(t), mustParse(t, "node:one")
	s.Keep = 1
	mustTake(t, s, u, "a")
	o, err := s.Open(context.Background(), u)
	if err != nil {
		t.Fatal(err)
	}
	mustTake(t, s, u, "b")
	mustTake(t, s, u, "c")
	if text := content(t, o); text != "a" {
		t.Error(text)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
	mustTake(t, s, u, "d")
	expectNames(t, s.Node, "one")
}
