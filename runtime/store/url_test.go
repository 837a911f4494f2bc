package store

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestParse(t *testing.T) {
	for url, want := range map[string]string{
		"node:a":                               "node:a",
		"node:A_b.c-9":                         "node:A_b.c-9",
		"node:" + strings.Repeat("a", maxName): "node:" + strings.Repeat("a", maxName),
		"file:/a":                              "file:/a",
		"file://a//b/":                         "file:/a/b",
		"file:/a b/.c:d":                       "file:/a b/.c:d",
		"file:/..a/b..":                        "file:/..a/b..",
	} {
		u, err := Parse(url)
		if err != nil || u.String() != want {
			t.Errorf("%q: %q, %v", url, u, err)
		}
		if again, err := Parse(u.String()); err != nil || again != u {
			t.Errorf("%q again: %q, %v", url, again, err)
		}
	}
	for url, says := range map[string]string{
		"":                                       "it is empty",
		"a":                                      "no scheme",
		"/a":                                     "no scheme",
		"s3:bucket":                              `scheme "s3" is unknown`,
		"NODE:a":                                 `scheme "NODE" is unknown`,
		"node:":                                  "name is missing",
		"node:.a":                                "must begin with",
		"node:..":                                "must begin with",
		"node:-a":                                "must begin with",
		"node:a/b":                               "may have letters",
		"node:a\x00b":                            "may have letters",
		"node:ä":                                 "must begin with",
		"node:" + strings.Repeat("a", maxName+1): "longer than 128",
		"file:":                                  "path is missing",
		"file:a":                                 "must be absolute",
		"file:/":                                 "no folder below the root",
		"file://":                                "no folder below the root",
		"file:/a/../b":                           `".."`,
		"file:/..":                               `".."`,
		"file:/a/./b":                            `"."`,
		"file:/a\x00":                            "NUL",
		"file:/a/" + strings.Repeat("b", maxName+1): "last part",
		"file:/" + strings.Repeat("a/", 2048):       "longer than",
	} {
		_, err := Parse(url)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// A place must take no other place's folders for its own.
func TestNamesOfPlaces(t *testing.T) {
	a := &place{name: "a"}
	for _, other := range []string{"a.previous", "a.new-b", "a.old-b", "a.previous-1", "a.new-" + strings.Repeat("A", 26)} {
		p := &place{name: other}
		for _, name := range []string{p.name, p.previous(0), p.previous(1), p.newName(), p.oldName()} {
			if _, ok := a.previousIndex(name); ok || a.isLeftover(name) {
				t.Errorf("%s of %s is taken for one of a's", name, other)
			}
		}
	}
	for i := range 3 {
		if got, ok := a.previousIndex(a.previous(i)); !ok || got != i {
			t.Errorf("%s: %d, %v", a.previous(i), got, ok)
		}
	}
	for _, name := range []string{".a.previous-0", ".a.previous-01", ".a.previous-x", ".a.previous1", ".a.previous-", ".a.previous--1"} {
		if _, ok := a.previousIndex(name); ok {
			t.Errorf("%s is taken for one of a's", name)
		}
	}
	if !a.isLeftover(a.newName()) || !a.isLeftover(a.oldName()) || a.isLeftover(".a.new-b") || !a.isNew(a.newName()) || a.isNew(a.oldName()) {
		t.Error("leftovers are mistaken")
	}
}
