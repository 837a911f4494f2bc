package integration_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// TestHooks is about the programs that run in the container around an operation.
func TestHooks(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	for _, test := range []labTest{
		{"all four, annotated", testHooksAnnotated},
		{"all four, requested", testHooksRequested},
		{"before a checkpoint fails", testVetoCheckpoint},
		{"before a restore fails", testVetoRestore},
		{"after an operation fails", testHooksAfterFail},
		{"hangs", testHookHangs},
		{"rights", testHookRights},
		{"containerd's checkpoint", testHooksTask},
		{"containerd's checkpoint, vetoed", testHooksTaskVeto},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
	}
}

// hooked is the counting shell with hooks that leave their names in a file, in which
// there is also whether the service was there, and what ps says of its state.
func hooked(opts harness.RunOptions) harness.RunOptions {
	var pairs []string
	for _, name := range hookNames {
		pairs = append(pairs, "hook."+name, "sh -c 'echo $0 $(test -e /proc/1000 && echo with || echo without) >>/log' "+name)
	}
	return annotated(opts, pairs...)
}

var hookNames = []string{"before-checkpoint", "after-checkpoint", "before-restore", "after-restore"}

func testHooksAnnotated(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	c := lab.MustRun(hooked(annotated(tickOptions(), "image-url", url)))
	continues := ticking(lab, t, c)
	log := func(want string) {
		t.Helper()
		equal(t, "what the hooks left", lab.MustExec(c, "cat", "/log"), want)
		lab.MustExec(c, "rm", "/log")
	}
	log("after-restore with\n") // it has started
	saveTo(t, lab, c, url, true)
	log("before-checkpoint with\nafter-checkpoint with\n")
	saveTo(t, lab, c, url, false)
	log("before-checkpoint with\nafter-checkpoint without\n")
	restoreFrom(t, lab, c, url)
	log("before-restore without\nafter-restore with\n")
	continues(c)
}

func testHooksRequested(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	// Those of a request are instead of those of the annotations.
	c := lab.MustRun(annotated(tickOptions(), "hook.before-checkpoint", "false", "hook.before-restore", "false"))
	continues := ticking(lab, t, c)
	say := func(word string) []string { return []string{"sh", "-c", "echo " + word + " >>/log"} }
	leave := false
	_, err := c.Interface().Checkpoint(lab.Context(), api.CheckpointRequest{ImageURL: url, LeaveRunning: &leave,
		Hooks: &api.Hooks{BeforeCheckpoint: say("one"), AfterCheckpoint: say("two")}})
	check(t, err)
	_, err = c.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: url,
		Hooks: &api.Hooks{BeforeRestore: say("three"), AfterRestore: say("four")}})
	check(t, err)
	equal(t, "what the hooks left", lab.MustExec(c, "cat", "/log"), "one\ntwo\nthree\nfour\n")
	continues(c)
}

// vetoed checks the error of a hook that failed.
func vetoed(t *testing.T, what string, err error, texts ...string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) {
		t.Fatalf("%s: %v", what, err)
	}
	wantText(t, e.Message, texts...)
}

func testVetoCheckpoint(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	c := lab.MustRun(annotated(tickOptions(), "hook.before-checkpoint", `sh -c 'echo much; echo not now >&2; exit 3'`, "hook.after-checkpoint", "touch /after"))
	continues := ticking(lab, t, c)
	before := serviceOf(t, lab, c)
	for _, leave := range []bool{true, false} {
		_, err := c.Interface().Checkpoint(lab.Context(), api.CheckpointRequest{ImageURL: url, LeaveRunning: &leave})
		vetoed(t, "the checkpoint", err, "before-checkpoint", "not now", "status 3")
	}
	if _, err := os.Stat(filepath.Join(nodeCheckpoints(lab), strings.TrimPrefix(url, "node:"))); err == nil {
		t.Error("there is a checkpoint")
	}
	continues(c)
	after := wantState(t, lab, c, api.Running)
	equal(t, "the application", after.AppPid, before.AppPid)
	equal(t, "the number of transitions", len(after.History), len(before.History))
	lab.MustExec(c, "test", "!", "-e", "/after")
}

func testVetoRestore(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	c := lab.MustRun(tickOptions())
	continues := ticking(lab, t, c)
	saveTo(t, lab, c, url, false)
	_, err := c.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: url,
		Hooks: &api.Hooks{BeforeRestore: []string{"sh", "-c", "echo not here; exit 4"}, AfterRestore: []string{"touch", "/after"}}})
	vetoed(t, "the restore", err, "before-restore", "not here", "status 4")
	s := wantState(t, lab, c, api.Standby)
	wantText(t, s.Reason, "not here")
	lab.MustExec(c, "test", "!", "-e", "/after")
	restoreFrom(t, lab, c, url)
	continues(c)
}

// A hook after an operation that fails is told, and changes nothing.
func testHooksAfterFail(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	bad := annotated(tickOptions(), "hook.after-checkpoint", "sh -c 'echo late; exit 5'", "hook.after-restore", "/no/such/hook")
	c := lab.MustRun(bad)
	continues := ticking(lab, t, c)
	watch, err := c.Interface().Watch(lab.Context())
	check(t, err)
	r := saveTo(t, lab, c, url, false)
	wantText(t, strings.Join(r.Notes, "\n"), "after-checkpoint", "late", "status 5")
	r = restoreFrom(t, lab, c, url)
	wantText(t, strings.Join(r.Notes, "\n"), "after-restore", "/no/such/hook")
	continues(c)
	_, err = watch.WaitEvent(lab.Context(), "a note of the hook", func(e api.Event) bool {
		return e.Kind == api.EventNote && strings.Contains(e.Note, "late")
	})
	check(t, err)
	if s := wantState(t, lab, c, api.Running); s.LastError == nil || s.LastError.Operation != "after-restore" {
		t.Errorf("the last error is %+v", s.LastError)
	}
}

// A hook that hangs is ended with all that it has started when its time is up.
func testHookHangs(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	c := lab.MustRun(tickOptions())
	continues := ticking(lab, t, c)
	hang := []string{"sh", "-c", "trap '' TERM INT; setsid sleep 100005 & (sleep 100006; true) & echo stuck here; sleep 100007"}
	gone := func() {
		t.Helper()
		lab.WaitFor("nothing of the hook to be left", func(ctx context.Context) (bool, error) {
			out, err := c.Exec(ctx, "ps")
			return err == nil && !strings.Contains(out, "sleep 10000"), errors.Join(err, errors.New(out))
		})
	}
	leave := false
	_, err := c.Interface().Checkpoint(lab.Context(), api.CheckpointRequest{ImageURL: url, LeaveRunning: &leave, Hooks: &api.Hooks{BeforeCheckpoint: hang, Timeout: "300ms"}})
	vetoed(t, "the checkpoint", err, "300ms", "stuck here", "before-checkpoint")
	gone()
	continues(c)
	r, err := c.Interface().Checkpoint(lab.Context(), api.CheckpointRequest{ImageURL: url, LeaveRunning: &leave, Hooks: &api.Hooks{AfterCheckpoint: hang, Timeout: "300ms"}})
	check(t, err)
	wantText(t, strings.Join(r.Notes, "\n"), "300ms", "stuck here")
	gone()
	wantState(t, lab, c, api.Standby)
	restoreFrom(t, lab, c, url)
	continues(c)
}

// report is what a program may do and where it is.
const report = `id; pwd; umask; echo "$WORD"; grep -E "^(Cap|Seccomp|NoNewPrivs|Groups)" /proc/self/status
for n in mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup; cat /proc/self/oom_score_adj; ulimit -n`

func testHookRights(t *testing.T, lab *harness.Lab) {
	volume := t.TempDir()
	check(t, os.Chmod(volume, 0o777))
	opts := script(`(` + report + `) >/vol/application; echo up; while :; do sleep 0.02; done`)
	opts.Env = []string{"WORD=a word"}
	opts.Spec = append(opts.Spec, seccomp.WithDefaultProfile(), noNewPrivileges(true), someUser,
		oci.WithMounts([]specs.Mount{{Type: "bind", Source: volume, Destination: "/vol", Options: []string{"rbind", "rw"}}}))
	opts = annotated(opts, "image-url", "file:/vol/ckpt", "hook.before-checkpoint", "sh -c '("+report+") >/vol/hook'")
	c := lab.MustRun(opts)
	waitText(t, lab, c.Output, "up\n")
	saveTo(t, lab, c, "file:/vol/ckpt", true)
	read := func(name string) []string {
		data, err := os.ReadFile(filepath.Join(volume, name))
		check(t, err)
		return strings.Split(strings.TrimSpace(string(data)), "\n")
	}
	want := read("application")
	wantText(t, strings.Join(want, "\n"), "uid=1234", "/usr", "a word", "Seccomp:\t2", "NoNewPrivs:\t1")
	if diff := diffLines(read("hook"), want); diff != "" {
		t.Errorf("the hook differs from the application (+ hook, - application):\n%s", diff)
	}
}

// containerd's client pauses the container before it asks for a checkpoint: the hook
// before it runs all the same, the one after it when the client resumes.
func testHooksTask(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(hooked(tickOptions()))
	continues := ticking(lab, t, c)
	lab.MustExec(c, "rm", "/log")
	check(t, c.Checkpoint(lab.Context(), "fastmig.test/hooked:"+c.ID(), false))
	lab.WaitFor("both hooks", func(ctx context.Context) (bool, error) {
		out, err := c.Exec(ctx, "cat", "/log")
		return out == "before-checkpoint with\nafter-checkpoint with\n", errors.Join(err, errors.New(out))
	})
	continues(c)
	lab.MustExec(c, "rm", "/log")
	lab.MustCtr("task", "checkpoint", "--image-path", filepath.Join(t.TempDir(), "images"), c.ID())
	lab.WaitFor("both hooks", func(ctx context.Context) (bool, error) {
		out, err := c.Exec(ctx, "cat", "/log")
		return out == "before-checkpoint with\nafter-checkpoint with\n", errors.Join(err, errors.New(out))
	})
	continues(c)
}

func testHooksTaskVeto(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(annotated(tickOptions(), "hook.before-checkpoint", "sh -c 'echo no checkpoints; exit 9'"))
	continues := ticking(lab, t, c)
	dir := filepath.Join(t.TempDir(), "images")
	_, err := lab.Ctr(lab.Context(), "task", "checkpoint", "--image-path", dir, c.ID())
	wantText(t, stderrOf(t, err), "before-checkpoint", "no checkpoints", "status 9")
	if names := folderNames(t, dir); len(names) > 0 {
		t.Errorf("the folder has %v", names)
	}
	wantStatus(lab, t, c, containerd.Running)
	continues(c)
}
