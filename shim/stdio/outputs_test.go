//go:build linux

package stdio_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fastmig/fastmig/shim/stdio"
)

func TestFile(t *testing.T) {
	for _, late := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "log")
		s := open(t, stdio.Addresses{Stdout: "file://" + path, Stderr: "file://" + path})
		if !late {
			s.Keep()
		}
		for range 3 {
			l := begin(t, s)
			l.say("line", "line")
			l.end()
			drain(t, s.Drain)
			if err := s.Renew(stdio.Owner{}); err != nil {
				t.Fatal(err)
			}
		}
		s.CloseChild()
		drain(t, s.Drain)
		s.Close()
		if b, err := os.ReadFile(path); err != nil || string(b) != strings.Repeat("line\n", 6) {
			t.Errorf("%q, %v", b, err)
		}
	}
}

func TestLogger(t *testing.T) {
	for name, want := range map[string]string{
		"one life":  "started\nout1\nerr1\nended\n",
		"kept":      "started\nout1\nerr1\nout2\nerr2\nended\n",
		"kept late": "started\nout1\nerr1\nended\nstarted\nout2\nerr2\nended\n",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			logged := func(text string) {
				t.Helper()
				eventually(t, "logging "+text, func() bool {
					b, _ := os.ReadFile(path)
					return strings.HasSuffix(string(b), text+"\n")
				})
			}
			s := open(t, stdio.Addresses{Stdout: "binary://" + self(t) + "?log-to=" + path})
			if name == "kept" {
				s.Keep()
			}
			l := begin(t, s)
			fmt.Fprintln(l.out, "out1")
			logged("out1")
			fmt.Fprintln(l.errs, "err1")
			logged("err1")
			l.end()
			if name == "one life" || name == "kept late" {
				logged("ended")
			}
			if name != "one life" {
				if err := s.Renew(stdio.Owner{}); err != nil {
					t.Fatal(err)
				}
				l := begin(t, s)
				fmt.Fprintln(l.out, "out2")
				logged("out2")
				fmt.Fprintln(l.errs, "err2")
				logged("err2")
				l.end()
				s.End()
				logged("ended")
			}
			s.Close()
			if b, err := os.ReadFile(path); err != nil || string(b) != want {
				t.Errorf("%q, %v; want %q", b, err, want)
			}
		})
	}
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}
