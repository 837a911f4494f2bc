//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/api/client"
)

var containerVerbs = []string{"status", "checkpoint", "restore", "start", "stop", "standby", "events"}

func TestWrongUsage(t *testing.T) {
	testNode(t)
	testShim(t, "default", "web")
	for args, want := range map[string]string{
		"status":                                  "status needs a container",
		"checkpoint":                              "checkpoint needs a container",
		"status web other":                        `got "other"`,
		"restore web other":                       `got "other"`,
		"ps web":                                  "ps takes no argument",
		"status web --history -1":                 "--history",
		"checkpoint web --tcp maybe":              "--tcp is close or keep",
		"checkpoint web --stop --leave-running":   "exclude each other",
		"checkpoint web --hook-before '":          "a quote is open",
		"checkpoint web --hook-timeout 0s":        "--hook-timeout",
		"restore web --hook-after \\":             "a backslash",
		"start web --env =x":                      "NAME=VALUE",
		"start web --env x":                       "NAME=VALUE",
		"stop web --timeout soon":                 "soon",
		"stop web --timeout=-1s":                  "not negative",
		"standby web --nonsense":                  "nonsense",
		"events web --since many":                 "many",
		"events web other":                        `got "other"`,
		"restore web --image-url node:a --stop=1": "stop",
	} {
		code, stdout, stderr := fastmig(t, strings.Fields(args)...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, want) || !strings.Contains(stderr, "--help") {
			t.Errorf("%s: exit %d, stdout %q, stderr %q; want %q", args, code, stdout, stderr, want)
		}
	}
}

func TestHelpTeaches(t *testing.T) {
	for _, verb := range append(slices.Clone(containerVerbs), "ps") {
		code, stdout, stderr := fastmig(t, verb, "--help")
		if code != 0 || stderr != "" || !strings.Contains(stdout, "Example") || !strings.Contains(stdout, "fastmig "+verb) || !strings.Contains(stdout, "--json") {
			t.Errorf("%s --help: exit %d\n%s%s", verb, code, stdout, stderr)
		}
	}
}

func TestFind(t *testing.T) {
	testNode(t)
	for _, name := range []string{"default/web", "default/web-2", "k8s.io/abc123", "k8s.io/abd", "k8s.io/shared", "moby/shared", "moby/web", "moby/pair", "k8s.io/pair-2"} {
		ns, id, _ := strings.Cut(name, "/")
		testShim(t, ns, id)
	}
	for _, tc := range []struct{ env, namespace, id, want, err string }{
		{"", "", "web", "default/web", ""},            // in several: the default
		{"", "moby", "web", "moby/web", ""},           // as told
		{"moby", "", "web", "moby/web", ""},           // as the environment tells
		{"moby", "default", "web", "default/web", ""}, // the flag counts
		{"", "", "web-", "default/web-2", ""},         // a beginning
		{"", "", "abc", "k8s.io/abc123", ""},          // the only namespace that has it
		{"", "", "pair", "moby/pair", ""},             // the whole id before a beginning
		{"k8s.io", "", "pair", "k8s.io/pair-2", ""},   //
		{"", "", "shared", "", "k8s.io/shared, moby/shared"},
		{"", "", "ab", "", "k8s.io/abc123, k8s.io/abd"},
		{"", "", "none", "default/none", ""}, // its client says that there is none
		{"", "moby", "abc", "moby/abc", ""},
		{"", "", "../web", "default/../web", ""},
		{"", "../moby", "web", "", "no namespace"},
	} {
		t.Setenv(namespaceEnv, tc.env)
		got, err := find(tc.namespace, tc.id)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("find(%+v): %v", tc, err)
			}
		} else if err != nil || got.String() != tc.want {
			t.Errorf("find(%+v) = %v, %v", tc, got, err)
		}
	}
	t.Setenv(namespaceEnv, "")
	for _, id := range []string{"none", "../web", ".."} {
		if code, _, stderr := fastmig(t, "status", id); code != exitFailed || !strings.Contains(stderr, "no such container") || !strings.Contains(stderr, "fastmig ps") {
			t.Errorf("status %s: exit %d: %s", id, code, stderr)
		}
	}
}

// deadSocket leaves the socket of a shim that is gone.
func deadSocket(t *testing.T, namespace, id string) {
	t.Helper()
	path := sockets.Path(client.Name{Namespace: namespace, ID: id})
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestPs(t *testing.T) {
	testNode(t)
	const header = "NAMESPACE  ID  CONTAINER  SERVICE  PID  SINCE  CHECKPOINT  REASON\n"
	if code, stdout, stderr := fastmig(t, "ps"); code != 0 || stdout != header || stderr != "" {
		t.Errorf("none: exit %d\n%s%s", code, stdout, stderr)
	}
	if _, stdout, _ := fastmig(t, "ps", "--json"); stdout != "[]\n" {
		t.Errorf("none: %s", stdout)
	}
	testShim(t, "default", "web").set(func(s *api.Status) {
		s.State, s.AppPid = api.Running, 4711
		s.Checkpoint = &api.Checkpoint{URL: "node:web", CreatedAt: then.Add(-3 * time.Hour), Bytes: 1 << 20}
	})
	testShim(t, "k8s.io", "abc").set(func(s *api.Status) { s.Reason = "crash loop:\x1b[2J\n8 exits" })
	deadSocket(t, "default", "gone")
	t.Setenv(namespaceEnv, "moby") // means nothing to ps

	code, stdout, stderr := fastmig(t, "ps")
	want := `NAMESPACE  ID    CONTAINER  SERVICE  PID   SINCE  CHECKPOINT            REASON
default    gone  -          -        -     -      -                     nobody listens at ` + string(sockets) + `/default/gone.sock: the container's shim is gone, and the container with it; delete the container
default    web   running    running  4711  1m30s  node:web (3h00m ago)  -
k8s.io     abc   running    standby  -     1m30s  -                     crash loop:?[2J 8 exits
`
	if code != 0 || stderr != "" || stdout != want {
		t.Errorf("exit %d, %s\n%s\nwant\n%s", code, stderr, stdout, want)
	}
	if _, stdout, _ := fastmig(t, "ps", "-n", "k8s.io"); strings.Count(stdout, "\n") != 2 || !strings.Contains(stdout, "abc") {
		t.Errorf("-n k8s.io:\n%s", stdout)
	}
	_, stdout, _ = fastmig(t, "ps", "--json")
	var listed []map[string]any
	if err := json.Unmarshal([]byte(stdout), &listed); err != nil || len(listed) != 3 {
		t.Fatalf("%v\n%s", err, stdout)
	}
	if l := listed[0]; l["id"] != "gone" || l["namespace"] != "default" || l["state"] != nil || l["error"].(map[string]any)["kind"] != "unavailable" {
		t.Errorf("a dead one: %v", l)
	}
	if l := listed[1]; l["id"] != "web" || l["namespace"] != "default" || l["state"] != "running" || l["error"] != nil {
		t.Errorf("a living one: %v", l)
	}
}

func TestStatus(t *testing.T) {
	testNode(t)
	s := testShim(t, "default", "web")
	at := func(seconds int) time.Time { return then.Add(time.Duration(seconds-100) * time.Second) }
	ended, status := at(10), 137
	s.set(func(s *api.Status) {
		s.Reason, s.ImageURL = "it was killed", "node:web"
		s.Checkpoint = &api.Checkpoint{URL: "node:web", CreatedAt: at(5), Bytes: 12345678, Digest: "abcd"}
		s.Starts, s.Recoveries, s.Restarts, s.EndedAt, s.ExitStatus = 2, 1, 0, &ended, &status
		s.LastError = &api.Failure{At: at(7), Operation: "checkpoint", Error: api.Error{Kind: "aborted", Message: "the disk\nis full"}}
		s.History = []api.Transition{
			{At: at(0), To: api.Standby, Cause: "created"},
			{At: at(1), From: api.Standby, To: api.Starting, Cause: "request"},
			{At: at(2), From: api.Starting, To: api.Running, Cause: "it runs"},
		}
	})
	code, stdout, stderr := fastmig(t, "status", "web", "--history", "2")
	want := `container:    default/web, running
service:      standby since 2026-03-01T11:58:30.000Z (1m30s)
reason:       it was killed
application:  none runs; the container's PID 1 is pid 100
lives:        2 (restarts 0, recoveries 1), the last ended 2026-03-01T11:58:30.000Z
last exit:    137 (signal 9)
settings:     startup standby, on-exit default, supervise auto
image url:    node:web
checkpoint:   node:web, 11.8 MiB, 2026-03-01T11:58:25.000Z (1m35s ago), sha256 abcd
last error:   checkpoint at 2026-03-01T11:58:27.000Z: the disk is full
history:
  (1 earlier)
  2026-03-01T11:58:21.000Z  standby -> starting  request
  2026-03-01T11:58:22.000Z  starting -> running  it runs
`
	if code != 0 || stderr != "" || stdout != want {
		t.Errorf("exit %d, %s\n%s\nwant\n%s", code, stderr, stdout, want)
	}
	_, stdout, _ = fastmig(t, "status", "--json", "web")
	var got api.Status
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || len(got.History) != 3 || got.LastError.Error.Kind != "aborted" {
		t.Errorf("%v\n%s", err, stdout)
	}
	if _, stdout, _ := fastmig(t, "status", "web", "--history", "0"); strings.Contains(stdout, "history") {
		t.Errorf("unwanted history:\n%s", stdout)
	}
}

func TestCompletion(t *testing.T) {
	testNode(t)
	testShim(t, "default", "web")
	testShim(t, "k8s.io", "abc")
	complete := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := fastmig(t, append(args, "--generate-shell-completion")...)
		if code != 0 || stderr != "" {
			t.Errorf("%v: exit %d, %s", args, code, stderr)
		}
		return stdout
	}
	for _, verb := range containerVerbs {
		if got, want := complete(verb), "web:in namespace default\nabc:in namespace k8s.io\n"; got != want {
			t.Errorf("%s: %q, want %q", verb, got, want)
		}
	}
	for _, tc := range []struct{ args, want string }{
		{"status -n k8s.io", "abc:in namespace k8s.io\n"},
		{"status -n", "default\nk8s.io\n"},
		{"ps --namespace", "default\nk8s.io\n"},
		{"status web", ""},
		{"ps", ""},
	} {
		if got := complete(strings.Fields(tc.args)...); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.args, got, tc.want)
		}
	}
	if got := complete("start", "web", "--"); !strings.Contains(got, "--env:") {
		t.Errorf("flags: %q", got)
	}
	if got := complete("checkpoint", "web", "--hook"); !strings.Contains(got, "--hook-before:") || strings.Contains(got, "--tcp") {
		t.Errorf("flags: %q", got)
	}
	t.Setenv(namespaceEnv, "k8s.io")
	if got := complete("stop"); got != "abc:in namespace k8s.io\n" {
		t.Errorf("with %s: %q", namespaceEnv, got)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, stdout, _ := fastmig(t, "completion", shell); code != 0 || !strings.Contains(stdout, "generate-shell-completion") {
			t.Errorf("completion %s: exit %d\n%s", shell, code, stdout)
		}
	}
}

// bash completes with what `fastmig completion bash` prints.
func TestBashCompletes(t *testing.T) {
	testNode(t)
	testShim(t, "default", "web-1")
	testShim(t, "k8s.io", "web-2")
	testShim(t, "k8s.io", "abc")
	bin := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := fmt.Sprintf("#!/bin/sh\nGORACE=atexit_sleep_ms=0 %s='%s' exec '%s' \"$@\"\n", mainEnv, sockets, exe)
	if err := os.WriteFile(filepath.Join(bin, "fastmig"), []byte(command), 0o700); err != nil {
		t.Fatal(err)
	}
	// What bash-completion, which is not everywhere, is asked for is done already.
	const script = `_comp_initialize() { :; }
eval "$(fastmig completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
__fastmig_bash_autocomplete
printf '%s\n' "${COMPREPLY[@]}"`
	for _, tc := range []struct{ words, want string }{
		{"fastmig|sta", "status start standby"},
		{"fastmig|restore|w", "web-1 web-2"},
		{"fastmig|restore|", "web-1 abc web-2"},
		{"fastmig|restore|-n|k8s.io|w", "web-2"},
		{"fastmig|restore|--leave", "--leave-stopped"},
		{"fastmig|restore|-n|k", "k8s.io"},
	} {
		args := append([]string{"-c", script, "bash"}, strings.Split(tc.words, "|")...)
		cmd := exec.CommandContext(t.Context(), "bash", args...)
		cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.Output()
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.words, got, err, tc.want)
		}
	}
}

// Every command that speaks to containers tells its errors as JSON when it is asked to.
func TestErrorsAsJSON(t *testing.T) {
	testNode(t)
	for _, verb := range containerVerbs {
		code, stdout, stderr := fastmig(t, verb, "none", "--json")
		var e api.Error
		if err := json.Unmarshal([]byte(stderr), &e); err != nil || code != exitFailed || stdout != "" || e.Kind != "not_found" {
			t.Errorf("%s: exit %d, %v\n%s%s", verb, code, err, stdout, stderr)
		}
	}
	testShim(t, "a", "x1")
	testShim(t, "a", "x2")
	_, _, stderr := fastmig(t, "status", "x", "--json")
	var e api.Error
	if err := json.Unmarshal([]byte(stderr), &e); err != nil || e.Kind != "invalid_argument" {
		t.Errorf("%v\n%s", err, stderr)
	}
}

// The completion of containers relies on each verb's saying that it takes one.
func TestContainerVerbsAreComplete(t *testing.T) {
	var got []string
	for _, cmd := range newApp(nil, nil).Commands {
		if strings.Contains(cmd.ArgsUsage, "CONTAINER") {
			got = append(got, cmd.Name)
		}
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(containerVerbs))
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
