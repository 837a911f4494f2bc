//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/fastmig/fastmig/runtime/romount"
)

// standIn is a toolkit whose CRIU follows a script (internal/testapp/standin.go).
func standIn(t testing.TB, script string) *Tool {
	t.Helper()
	return standInWith(t, script, "")
}

func standInWith(t testing.TB, script, cache string) *Tool {
	t.Helper()
	dir := t.TempDir()
	app, err := os.ReadFile(testApp)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{loaderName: app, binaryName: []byte(script), preloadName: nil} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := romount.OpenReadOnly(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, folder)
	tool, err := New(Config{Folder: folder, Cache: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tool.Close() })
	return tool
}

func TestOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		kind   error // nil: success
		text   string
	}{
		"success":              {"receive\nanswer DUMP true", nil, ""},
		"failure with reason":  {"receive\nlog (00.1) Error (a.c:1): inet: Unsupported proto 132 for socket 1\nanswer DUMP false\nexit 1", errdefs.ErrFailedPrecondition, "IP protocol number 132"},
		"failure, no reason":   {"receive\nlog a last line\nanswer DUMP false\nexit 1", errdefs.ErrUnknown, "a last line"},
		"success and status 1": {"receive\nanswer DUMP true\nexit 1", errdefs.ErrUnknown, "status 1"},
		"no answer":            {"receive\nexit 3", errdefs.ErrUnknown, "status 3"},
		"not even asked":       {"exit 0", errdefs.ErrUnknown, ""},
		"killed":               {"receive\nkill", errdefs.ErrAborted, "signal 9"},
		"killed after success": {"receive\nanswer DUMP true\nkill", errdefs.ErrAborted, "signal 9"},
		"garbage":              {"receive\ngarbage 100\nexit 1", errdefs.ErrUnknown, "decode a message"},
		"too much":             {"receive\ngarbage 70000\nexit 1", errdefs.ErrUnknown, "more than 65536 bytes"},
		"loader":               {"log criu: error while loading shared libraries: libx.so: cannot open\nexit 127", errdefs.ErrFailedPrecondition, "fastmig install"},
		"no proc":              {"log fastmig: the container's /proc is not a procfs: Invalid argument\nexit 125", errdefs.ErrFailedPrecondition, "/proc of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			cp := newCheckpoint(t)
			_, err := standIn(t, c.script).Dump(testContext(t), DumpOptions{Pid: 1, Images: cp.images, Log: cp.log})
			if c.kind == nil {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, c.kind) {
				t.Fatalf("error: %#v %v", err, err)
			}
			for _, part := range []string{c.text, "dump the container's processes", cp.log.Name()} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q lacks %q", err, part)
				}
			}
		})
	}
}

func TestCancelWithStandIn(t *testing.T) {
	for name, script := range map[string]string{
		"obeys":       "receive\nlog busy\nobey\nanswer DUMP false\nexit 1",
		"hangs":       "receive\nlog busy\nhang",
		"never reads": "log busy\nhang",
	} {
		t.Run("dump "+name, func(t *testing.T) {
			tool := standIn(t, script)
			tool.grace = 50 * time.Millisecond
			cp := newCheckpoint(t)
			ctx, cancel := context.WithCancel(testContext(t))
			go func() {
				defer cancel()
				eventually(t, "CRIU is busy", func() bool { return strings.Contains(readLog(t, cp.log), "busy") })
			}()
			if _, err := tool.Dump(ctx, DumpOptions{Pid: 1, Images: cp.images, Log: cp.log}); !errors.Is(err, context.Canceled) {
				t.Errorf("error: %v", err)
			}
		})
	}
	t.Run("restore", func(t *testing.T) {
		tool := standIn(t, "fork\nfork\nreceive\nlog busy\nhang")
		cp := newCheckpoint(t)
		ctx, cancel := context.WithTimeout(testContext(t), patience)
		var children []int
		go func() {
			defer cancel()
			eventually(t, "CRIU is busy", func() bool { return strings.Contains(readLog(t, cp.log), "busy") })
			eventually(t, "CRIU has two children", func() bool {
				children = nil
				for _, pid := range childrenOf(os.Getpid()) {
					children = append(children, childrenOf(pid)...)
				}
				return len(children) == 2
			})
		}()
		if _, err := tool.Restore(ctx, RestoreOptions{Images: cp.images, Log: cp.log}); !errors.Is(err, context.Canceled) {
			t.Errorf("error: %v", err)
		}
		for _, pid := range children {
			if state := stateOf(pid); state != "" && state != "Z" {
				t.Errorf("child %d of CRIU is in state %s", pid, state)
			}
		}
	})
	t.Run("before it began", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		cp := newCheckpoint(t)
		tool := standIn(t, "log started")
		if _, err := tool.Dump(ctx, DumpOptions{Pid: 1, Images: cp.images, Log: cp.log}); !errors.Is(err, context.Canceled) {
			t.Errorf("error: %v", err)
		}
		expect(t, "log", readLog(t, cp.log), "")
	})
}

// stateOf is the letter of a process's state, or "" when it is gone.
func stateOf(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

func TestNotify(t *testing.T) {
	cp := newCheckpoint(t)
	var steps []string
	o := DumpOptions{Pid: 1, Images: cp.images, Log: cp.log, Notify: func(script string, _ int) error {
		steps = append(steps, script)
		if script == "post-dump" {
			return fmt.Errorf("changed my mind: %w", errdefs.ErrFailedPrecondition)
		}
		return nil
	}}
	_, err := standIn(t, "receive\nnotify pre-dump\nnotify post-dump\nanswer DUMP true").Dump(testContext(t), o)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "changed my mind") {
		t.Errorf("error: %v", err)
	}
	expect(t, "steps", strings.Join(steps, " "), "pre-dump post-dump")
}

func TestUnexpectedRoot(t *testing.T) {
	cp := newCheckpoint(t)
	tool := standIn(t, "receive\nnotify post-restore 7\nanswer RESTORE true 7")
	_, err := tool.Restore(testContext(t), RestoreOptions{Pid: 1000, Images: cp.images, Log: cp.log})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "process 7, not 1000") {
		t.Errorf("error: %v", err)
	}
}

func TestEnvironmentIsFixed(t *testing.T) {
	t.Setenv("LD_PRELOAD_OF_OURS", "x")
	cp := newCheckpoint(t)
	if _, err := standIn(t, "environment\nreceive\nanswer DUMP true").Dump(testContext(t), DumpOptions{Pid: 1, Images: cp.images, Log: cp.log}); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(readLog(t, cp.log)) {
		name, _, _ := strings.Cut(line, "=")
		// Of CRIU's own, only that a dump sets no breakpoints.
		if name != "PATH" && name != "LC_ALL" && !strings.HasPrefix(name, "FASTMIG_") && strings.TrimSpace(line) != "CRIU_FAULT=130" {
			t.Errorf("CRIU's environment has %s", line)
		}
	}
}

func TestWriteOnlyLog(t *testing.T) {
	cp := newCheckpoint(t)
	log, err := os.OpenFile(cp.log.Name(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, log)
	tool := standIn(t, "receive\nlog (00.1) Error (a.c:1): the reason\nexit 1")
	for range 2 { // the second one's lines begin where the first one's end
		_, err = tool.Dump(testContext(t), DumpOptions{Pid: 1, Images: cp.images, Log: log})
		if err == nil || strings.Count(err.Error(), "the reason") != 2 {
			t.Errorf("error: %v", err)
		}
	}
}

func TestBadOptions(t *testing.T) {
	cp := newCheckpoint(t)
	tool := standIn(t, "")
	if _, err := tool.Dump(t.Context(), DumpOptions{Images: cp.images, Log: cp.log}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no pid: %v", err)
	}
	if _, err := tool.Dump(t.Context(), DumpOptions{Pid: 1, Images: cp.images, Log: cp.log, FreezeCgroup: cp.images}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a freezer that is none: %v", err)
	}
}

func TestIncompleteToolkit(t *testing.T) {
	dir := t.TempDir()
	folder, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, folder)
	for _, name := range []string{loaderName, binaryName, preloadName} {
		_, err := New(Config{Folder: folder})
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "fastmig install") {
			t.Errorf("without %s: %v", name, err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := New(Config{Folder: folder}); err != nil {
		t.Error(err)
	}
}

func TestProbeIsKept(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "fastmig", "kdat")
	first := standInWith(t, "", cache)
	if err := first.Prepare(testContext(t)); err != nil {
		t.Fatal(err)
	}
	name, err := first.probeName()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(name); err != nil || string(b) != "probe" {
		t.Fatalf("cache: %q %v", b, err)
	}
	// What is on disk is used, and nothing but what root alone can write.
	if err := os.WriteFile(name, []byte("from the file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := readProbe(name); err != nil || string(b) != "from the file" {
		t.Errorf("read: %q %v", b, err)
	}
	if err := os.Chmod(name, 0o622); err != nil {
		t.Fatal(err)
	}
	if b, err := readProbe(name); err == nil {
		t.Errorf("a file that others can write was read: %q", b)
	}
	if err := os.Rename(name, name+"-moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(name+"-moved", name); err != nil {
		t.Fatal(err)
	}
	if b, err := readProbe(name); err == nil {
		t.Errorf("a symbolic link was followed: %q", b)
	}
	if err := standIn(t, "").Prepare(testContext(t)); err != nil {
		t.Errorf("without a cache file: %v", err)
	}
}
