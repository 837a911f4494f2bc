//go:build linux

package policy

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/shim/api"
)

// folder is one that only root may write, with all above it.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/lib", "fastmig-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func program(t *testing.T, dir, text string) Decider {
	t.Helper()
	path := filepath.Join(dir, "decide")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Decider{Path: path, Timeout: 20 * time.Second}
}

func TestDeciderGetsTheEvent(t *testing.T) {
	dir := folder(t)
	d := program(t, dir, `cat > `+dir+`/stdin; printf %s "$1" > `+dir+`/arg; env > `+dir+`/env; pwd > `+dir+`/cwd; echo restore as I say`)
	want := Event{
		Event: EventExit, ID: "web", Namespace: "default", ExitStatus: 137, Signal: "SIGKILL", OOMKilled: true,
		Reason: "it said \"so\"\x00", Image: "node:web", Checkpoint: true, Restarts: 3, RanSeconds: 1.5, At: time.Unix(1, 0).UTC(),
	}
	mode, err := d.Decide(t.Context(), want)
	if err != nil || mode != api.StartRestore {
		t.Fatalf("%q, %v", mode, err)
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for _, from := range []string{"stdin", "arg"} {
		var got Event
		if err := json.Unmarshal([]byte(read(from)), &got); err != nil || got != want {
			t.Errorf("%s: %+v, %v", from, got, err)
		}
	}
	for _, key := range []string{`"exit_status":137`, `"oom_killed":true`, `"ran_seconds":1.5`, `"id":"web"`} {
		if !strings.Contains(read("arg"), key) {
			t.Errorf("%s is not in %s", key, read("arg"))
		}
	}
	for line := range strings.Lines(read("env")) {
		switch name, _, _ := strings.Cut(line, "="); name {
		case "PATH", "PWD", "_", "SHLVL": // the last three are the shell's own
		default:
			t.Errorf("its environment has %s", name)
		}
	}
	if read("cwd") != "/\n" {
		t.Errorf("it runs in %s", read("cwd"))
	}
}

func TestDeciderThatFails(t *testing.T) {
	dir := folder(t)
	for _, tc := range []struct {
		name, text string
		is         func(error) bool
		says       string
	}{
		{"status", "echo restore; echo broken >&2; exit 3", func(error) bool { return true }, "exit status 3 (its last words: broken)"},
		{"signal", "kill -9 $$", func(error) bool { return true }, "signal: killed"},
		{"nothing", ":", errdefs.IsInvalidArgument, "answered nothing"},
		{"nonsense", "echo 7", errdefs.IsInvalidArgument, `answered "7"`},
		{"much", "head -c 100000 /dev/zero | tr '\\0' x; echo; echo restore", errdefs.IsInvalidArgument, "xxx"},
	} {
		_, err := program(t, dir, tc.text).Decide(t.Context(), Event{})
		if err == nil || !tc.is(err) || !strings.Contains(err.Error(), tc.says) || len(err.Error()) > 1000 {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestDeciderKeepsTheEndOfItsErrors(t *testing.T) {
	_, err := program(t, folder(t), "head -c 100000 /dev/zero | tr '\\0' x >&2; echo the end >&2; exit 1").Decide(t.Context(), Event{})
	if err == nil || !strings.Contains(err.Error(), "xxx") || !strings.Contains(err.Error(), "the end)") || len(err.Error()) > maxAnswer+500 {
		t.Errorf("%d bytes: %v", len(err.Error()), err)
	}
}

// pids reads the numbers that a script wrote, one a line.
func pids(t *testing.T, path string, n int) []int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, f := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, pid)
	}
	if len(out) != n {
		t.Fatalf("%s: %v", path, out)
	}
	return out
}

// gone waits until no process has the number.
func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if errors.Is(err, fs.ErrNotExist) || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d still runs", pid)
		}
	}
}

func TestDeciderThatHangs(t *testing.T) {
	dir := folder(t)
	d := program(t, dir, `echo $$ > `+dir+`/pids; sleep 1000 & echo $! >> `+dir+`/pids; echo restore; wait`)
	d.Timeout = 300 * time.Millisecond
	begin := time.Now()
	_, err := d.Decide(t.Context(), Event{})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "300ms") {
		t.Errorf("%v", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	for _, pid := range pids(t, filepath.Join(dir, "pids"), 2) {
		gone(t, pid)
	}
}

func TestDeciderLeavesNothingBehind(t *testing.T) {
	dir := folder(t)
	d := program(t, dir, `sleep 1000 & echo $! > `+dir+`/pids; echo standby`)
	begin := time.Now()
	mode, err := d.Decide(t.Context(), Event{})
	if err != nil || mode != api.StartStandby || time.Since(begin) > 10*time.Second {
		t.Errorf("%q, %v, after %v", mode, err, time.Since(begin))
	}
	gone(t, pids(t, filepath.Join(dir, "pids"), 1)[0])
}

func TestDeciderWhoseDaemonHoldsItsOutput(t *testing.T) {
	dir := folder(t)
	d := program(t, dir, `setsid sh -c 'echo $$ > `+dir+`/new; mv `+dir+`/new `+dir+`/pids; exec sleep 1000' &
while ! test -e `+dir+`/pids; do sleep 0.01; done; echo restore`)
	t.Cleanup(func() { unix.Kill(pids(t, filepath.Join(dir, "pids"), 1)[0], unix.SIGKILL) })
	begin := time.Now()
	mode, err := d.Decide(t.Context(), Event{})
	if err != nil || mode != api.StartRestore || time.Since(begin) > 10*time.Second {
		t.Errorf("%q, %v, after %v", mode, err, time.Since(begin))
	}
}

func TestDeciderEndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := program(t, folder(t), "sleep 1000").Decide(ctx, Event{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestUntrustedDeciders(t *testing.T) {
	for name, spoil := range map[string]func(dir, path string) error{
		"others may write it":   func(_, path string) error { return os.Chmod(path, 0o757) },
		"a group may write it":  func(_, path string) error { return os.Chmod(path, 0o775) },
		"another's":             func(_, path string) error { return os.Chown(path, 65534, 0) },
		"not executable":        func(_, path string) error { return os.Chmod(path, 0o644) },
		"others may replace it": func(dir, _ string) error { return os.Chmod(dir, 0o1777) },
		"in another's folder":   func(dir, _ string) error { return os.Chown(dir, 65534, 0) },
		"a link": func(dir, path string) error {
			return errors.Join(os.Rename(path, path+"2"), os.Symlink("decide2", path))
		},
		"a folder":               func(_, path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
		"a pipe":                 func(_, path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o755)) },
		"through another's link": func(dir, _ string) error { return errors.Join(os.Rename(dir, dir+"2"), os.Symlink(dir+"2", dir)) },
	} {
		dir := folder(t)
		t.Cleanup(func() { os.RemoveAll(dir + "2") })
		d := program(t, dir, "touch "+dir+"/ran; echo restore")
		if err := spoil(dir, d.Path); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Decide(t.Context(), Event{}); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
			t.Errorf("%s: it was run", name)
		}
	}
	d := program(t, folder(t), "echo restore")
	for path, is := range map[string]func(error) bool{
		filepath.Base(d.Path):              errdefs.IsInvalidArgument,
		filepath.Dir(d.Path) + "/../x":     errdefs.IsInvalidArgument,
		filepath.Dir(d.Path) + "/./decide": errdefs.IsInvalidArgument,
		d.Path + "/x":                      errdefs.IsPermissionDenied,
		"/":                                errdefs.IsInvalidArgument,
		filepath.Join(filepath.Dir(d.Path), "not-there"): func(err error) bool { return errors.Is(err, fs.ErrNotExist) },
	} {
		if _, err := (Decider{Path: path, Timeout: time.Second}).Decide(t.Context(), Event{}); err == nil || !is(err) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestNewDecider(t *testing.T) {
	c := config.Deciders{Allow: []string{"/opt/a", "/opt/b"}, Timeout: config.Duration(time.Second)}
	if d, err := NewDecider(c, "/opt/b"); err != nil || d != (Decider{Path: "/opt/b", Timeout: time.Second}) {
		t.Errorf("%+v, %v", d, err)
	}
	for _, path := range []string{"", "/opt", "/opt/c", "/opt//a", "/opt/a/"} {
		if _, err := NewDecider(c, path); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%q: %v", path, err)
		}
	}
}
