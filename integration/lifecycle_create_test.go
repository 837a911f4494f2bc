package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestCreate checks what becomes of specs, good ones and bad ones.
func TestCreate(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox}, []labTest{
		{"missing program", testMissingProgram},
		{"no process", testNoProcess},
		{"unknown annotation", testUnknownAnnotation},
		{"working folder", testWorkingFolder},
		{"hooks", testHooks},
		{"failing hook", testFailingHook},
		{"user namespace", testUserNamespace},
		{"host pid namespace", testHostPids},
		{"info", testInfo},
	})
}

// createError is what the creation of a task says.
func createError(t *testing.T, lab *harness.Lab, opts harness.RunOptions) error {
	t.Helper()
	c, err := lab.Create(lab.Context(), opts)
	if err == nil {
		lab.RemoveAtEnd(c)
		t.Error("the task was created")
	}
	return err
}

func testMissingProgram(t *testing.T, lab *harness.Lab) {
	before := traces(t, lab)
	for _, program := range []string{"nosuchprogram", "/no/such/program", "/etc/passwd", "/etc"} {
		opts := harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{program}}
		got := createError(t, lab, opts)
		want := createError(t, lab, asStock(t, lab, opts))
		equal(t, "the message", tail(got, "exec:"), tail(want, "exec:"))
		if got != nil && !strings.Contains(got.Error(), "OCI runtime create failed") {
			t.Errorf("the message does not begin like the stock shim's: %v", got)
		}
	}
	leavesNothing(t, lab, before)
}

func testNoProcess(t *testing.T, lab *harness.Lab) {
	opts := sleeper()
	opts.Spec = []oci.SpecOpts{func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Process = nil
		return nil
	}}
	err := createError(t, lab, opts)
	want := createError(t, lab, asStock(t, lab, opts))
	equal(t, "the message", tail(err, "process property"), tail(want, "process property"))
}

func testUnknownAnnotation(t *testing.T, lab *harness.Lab) {
	if !lab.Runtime.IsFastMig() {
		return // annotations of ours mean nothing to the stock shim
	}
	for name, value := range map[string]string{"io.fastmig.mode": "fast", "io.fastmig.tcp": "", "io.fastmig.speed": "high"} {
		opts := sleeper()
		opts.Annotations = map[string]string{name: value}
		err := createError(t, lab, opts)
		refused(t, name, err, errdefs.IsInvalidArgument)
		if err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("the message does not name %s: %v", name, err)
		}
	}
	opts := sleeper()
	opts.Annotations = map[string]string{"io.fastmig.mode": "plain"}
	c := lab.MustRun(opts)
	if out := lab.MustExec(c, "cat", "/proc/1/comm"); out != "sleep\n" {
		t.Errorf("PID 1 of a plain container is %q", out)
	}
}

// A working folder that the image lacks is made, as under the stock shim.
func testWorkingFolder(t *testing.T, lab *harness.Lab) {
	opts := script("pwd")
	opts.Spec = []oci.SpecOpts{oci.WithProcessCwd("/new/folder")}
	c := lab.MustRun(opts)
	equal(t, "the exit code", exitOf(t, lab, c), 0)
	waitText(t, lab, c.Output, "/new/folder\n")
}

// hookRun is one line that a hook left.
type hookRun struct {
	Name string
	specs.State
}

func testHooks(t *testing.T, lab *harness.Lab) {
	var want []string
	run := func(opts harness.RunOptions) []string {
		// The hooks' log lies on the host and is mounted into the container,
		// for those that run there.
		dir := t.TempDir()
		hook := func(name, path string) []specs.Hook {
			text := fmt.Sprintf("{ printf '%%s ' %s; cat; echo; } >>%s/log", name, path)
			return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", text}, Env: []string{"PATH=/bin:/usr/bin"}}}
		}
		opts.Annotations = map[string]string{"test.word": "passed on"}
		opts.Spec = []oci.SpecOpts{
			oci.WithMounts([]specs.Mount{{Type: "bind", Source: dir, Destination: "/hooks", Options: []string{"rbind", "rw"}}}),
			func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
				s.Hooks = &specs.Hooks{
					CreateRuntime:   hook("createRuntime", dir),
					CreateContainer: hook("createContainer", dir),
					StartContainer:  hook("startContainer", "/hooks"),
					Poststart:       hook("poststart", dir),
					Poststop:        hook("poststop", dir),
				}
				return nil
			},
		}
		c := lab.MustCreate(opts)
		created := readHooks(t, dir)
		pid := c.Task.Pid()
		check(t, c.Start(lab.Context()))
		check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
		equal(t, "the exit code", exitOf(t, lab, c), 137)
		_, err := c.Task.Delete(lab.Context())
		check(t, err)
		var lines []string
		for i, h := range readHooks(t, dir) {
			if h.ID != c.ID() || h.Bundle != bundleDir(lab, c.ID()) || h.Annotations["test.word"] != "passed on" {
				t.Errorf("%s: the wrong state: %+v", h.Name, h.State)
			}
			when := "at create"
			if i >= len(created) {
				when = "later"
			}
			line := fmt.Sprintf("%s %s: version %s, status %s", h.Name, when, h.Version, h.Status)
			if h.Pid != 0 && h.Pid != 1 && h.Pid != int(pid) {
				t.Errorf("%s: pid %d, not %d", h.Name, h.Pid, pid)
			}
			lines = append(lines, line+fmt.Sprintf(", has pid %v", h.Pid != 0))
		}
		return lines
	}
	got := run(sleeper())
	want = run(asStock(t, lab, sleeper()))
	if len(got) != 5 {
		t.Errorf("%d hooks ran, not 5", len(got))
	}
	if diff := diffLines(got, want); diff != "" {
		t.Errorf("the hooks differ from the stock shim's (+ ours, - stock):\n%s", diff)
	}
}

func readHooks(t *testing.T, dir string) []hookRun {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "log"))
	check(t, err)
	var runs []hookRun
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		name, text, _ := strings.Cut(line, " ")
		h := hookRun{Name: name}
		check(t, json.Unmarshal([]byte(text), &h.State))
		runs = append(runs, h)
	}
	return runs
}

// A hook that fails at create fails the creation and leaves nothing.
func testFailingHook(t *testing.T, lab *harness.Lab) {
	before := traces(t, lab)
	opts := sleeper()
	opts.Spec = []oci.SpecOpts{func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo the reason >&2; exit 1"}}}}
		return nil
	}}
	if err := createError(t, lab, opts); err != nil && !strings.Contains(err.Error(), "the reason") {
		t.Errorf("the message does not tell the hook's: %v", err)
	}
	leavesNothing(t, lab, before)
}

// mapped puts the container into a user namespace.
func mapped(opts harness.RunOptions) harness.RunOptions {
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	opts.Spec = append(slices.Clone(opts.Spec), oci.WithUserNamespace(maps, maps))
	opts.Snapshot = func(id string, image containerd.Image) containerd.NewContainerOpts {
		return containerd.WithUserNSRemappedSnapshot(id, image, maps, maps)
	}
	return opts
}

func testUserNamespace(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(mapped(script("id -u; cat /proc/self/uid_map; echo ready; exec sleep 100000")))
	waitText(t, lab, c.Output, "ready")
	if words := strings.Fields(c.Output.String()); len(words) < 4 || strings.Join(words[:4], " ") != "0 0 200000 65536" {
		t.Errorf("the container says %q", c.Output)
	}
	equal(t, "the exec's user", lab.MustExec(c, "id", "-u"), "0\n")
	uid := func(pid int) string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		check(t, err)
		_, rest, _ := strings.Cut(string(data), "\nUid:")
		return strings.Fields(rest)[0]
	}
	equal(t, "the application's user on the host", uid(applicationPid(t, lab, c)), "200000")
	if lab.Runtime.IsFastMig() {
		check(t, c.Checkpoint(lab.Context(), "fastmig.test/mapped:1", false))
		restored := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/mapped:1"})
		equal(t, "an exec's user in the restored one", lab.MustExec(restored, "id", "-u"), "0\n")
		equal(t, "the restored application's user on the host", uid(applicationPid(t, lab, restored)), "200000")
	}
	check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
}

// In the host's pid namespace FastFreeze is not PID 1 but works all the same.
func testHostPids(t *testing.T, lab *harness.Lab) {
	opts := script("sleep 100000 & echo child=$!; wait")
	opts.Spec = []oci.SpecOpts{oci.WithHostNamespace(specs.PIDNamespace)}
	c := lab.MustRun(opts)
	waitText(t, lab, c.Output, "child=")
	child := strings.TrimPrefix(strings.TrimSpace(c.Output.String()), "child=")
	if _, err := os.Stat("/proc/" + child); err != nil {
		t.Error(err)
	}
	lab.MustExec(c, "true")
	check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
	lab.WaitFor("the child to be gone", func(context.Context) (bool, error) {
		_, err := os.Stat("/proc/" + child)
		return os.IsNotExist(err), nil
	})
}

// -info tells the name and the features, which are those of the stock shim.
func testInfo(t *testing.T, lab *harness.Lab) {
	read := func(runtime string) map[string]any {
		info, err := lab.Client().RuntimeInfo(lab.Context(), runtime, nil)
		check(t, err)
		if info.Name == "" || info.Version.Version == "" && lab.Runtime.IsFastMig() && runtime == lab.Runtime.Name {
			t.Errorf("no name or version in %+v", info)
		}
		f, ok := info.Features.(*features.Features)
		if !ok {
			t.Fatalf("the features of %s are a %T", runtime, info.Features)
		}
		return asMap(t, f)
	}
	got, want := read(lab.Runtime.Name), read(stockShim(t, lab))
	for _, name := range []string{"hooks", "mountOptions"} {
		gotList, wantList := sortedStrings(got[name]), sortedStrings(want[name])
		if diff := diffLines(gotList, wantList); diff != "" {
			t.Errorf("the feature %s differs from the stock shim's (+ ours, - stock):\n%s", name, diff)
		}
	}
	gotLinux, wantLinux := got["linux"].(map[string]any), want["linux"].(map[string]any)
	for name := range wantLinux {
		a, err := json.MarshalIndent(gotLinux[name], "", " ")
		check(t, err)
		b, err := json.MarshalIndent(wantLinux[name], "", " ")
		check(t, err)
		if diff := diffLines(sortedLines(string(a)), sortedLines(string(b))); diff != "" {
			t.Errorf("the feature linux.%s differs from the stock shim's (+ ours, - stock):\n%s", name, diff)
		}
	}
}

func sortedStrings(v any) []string {
	var list []string
	if all, ok := v.([]any); ok {
		for _, s := range all {
			list = append(list, fmt.Sprint(s))
		}
	}
	slices.Sort(list)
	return list
}

// sortedLines are a text's lines without the commas that JSON puts at some.
func sortedLines(text string) []string {
	lines := strings.Split(strings.ReplaceAll(text, ",\n", "\n"), "\n")
	slices.Sort(lines)
	return lines
}
