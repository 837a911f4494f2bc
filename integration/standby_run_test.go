package integration_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// TestRun is about what the published request to run a service may ask for.
func TestRun(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	for _, test := range []labTest{
		{"command and environment", testRunCommand},
		{"no image yet", testRunNoImage},
		{"no restore", testRunNoRestore},
		{"bad image", testRunBadImage},
		{"leave stopped", testRunLeaveStopped},
		{"on app ready", testRunOnAppReady},
		{"no such program", testRunNoProgram},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
	}
}

func testRunCommand(t *testing.T, lab *harness.Lab) {
	opts := standby(tickOptions())
	opts.Env = []string{"WORD=old", "OTHER=kept"}
	c := lab.MustRun(opts)
	text := done(t, "run", post(t, lab, c, "/run",
		`{"app_args":"sh -c 'echo \"<$WORD> <$OTHER> <$1>\"; sleep 100000' zero one\\ arg","envs":["WORD=two words"]}`), 200)
	wantText(t, text, "from scratch")
	waitText(t, lab, c.Output, "<two words> <kept> <one arg>\n")
	s := wantState(t, lab, c, api.Running)
	equal(t, "the application's pid", hostPid(t, lab, c, 1000), s.AppPid)
	sameNamespaces(t, s.AppPid, s.InitPid)
	// Without any, it is the container's own command again.
	done(t, "standby", post(t, lab, c, "/v1/standby", ``), 200)
	done(t, "run", post(t, lab, c, "/run", ``), 200)
	tickSeen(lab, t, c, 0)
}

// Where no checkpoint is, the service starts from scratch; what is saved later goes there.
func testRunNoImage(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(standby(tickOptions()))
	url := nodeURL()
	text := done(t, "run", post(t, lab, c, "/run", `{"image_url":`+quoted(url)+`}`), 200)
	wantText(t, text, "from scratch", "note:", url)
	continues := ticking(lab, t, c)
	wantText(t, done(t, "checkpoint", post(t, lab, c, "/checkpoint", `{"leave_running":true}`), 200), url)
	continues(c)
	equal(t, "the checkpoint in the status", wantState(t, lab, c, api.Running).Checkpoint.URL, url)
	wantText(t, done(t, "checkpoint", post(t, lab, c, "/checkpoint", ``), 200), url, "has ended")
	wantState(t, lab, c, api.Standby)
	wantText(t, done(t, "run", post(t, lab, c, "/run", ``), 200), "restored from "+url)
	continues(c)
}

func testRunNoRestore(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(annotated(tickOptions(), "image-url", nodeURL()))
	nonce, _ := tickSeen(lab, t, c, 0)
	done(t, "checkpoint", post(t, lab, c, "/checkpoint", ``), 200)
	lab.MustExec(c, "rm", "/tick")
	wantText(t, done(t, "run", post(t, lab, c, "/run", `{"no_restore":true}`), 200), "from scratch")
	if now, _ := tickSeen(lab, t, c, 0); now == nonce {
		t.Error("the service was restored")
	}
}

// spoil changes all that is in the biggest of the checkpoint's files of memory.
func spoil(t *testing.T, dir string) {
	t.Helper()
	var biggest string
	var size int64
	for _, name := range folderNames(t, dir) {
		info, err := os.Stat(filepath.Join(dir, name))
		check(t, err)
		if strings.HasPrefix(name, "pages-") && info.Size() > size {
			biggest, size = name, info.Size()
		}
	}
	data, err := os.ReadFile(filepath.Join(dir, biggest))
	check(t, err)
	for i := range data {
		data[i] ^= 0x55
	}
	check(t, os.WriteFile(filepath.Join(dir, biggest), data, 0o600))
}

// A damaged checkpoint is refused with the reason, and the container stays in standby,
// unless the request allows it.
func testRunBadImage(t *testing.T, lab *harness.Lab) {
	url := nodeURL()
	c := lab.MustRun(annotated(tickOptions(), "image-url", url))
	nonce, _ := tickSeen(lab, t, c, 0)
	done(t, "checkpoint", post(t, lab, c, "/checkpoint", ``), 200)
	spoil(t, filepath.Join(nodeCheckpoints(lab), strings.TrimPrefix(url, "node:")))
	text := done(t, "run", post(t, lab, c, "/run", ``), 500)
	wantText(t, text, url, "content changed")
	s := wantState(t, lab, c, api.Standby)
	if s.LastError == nil || s.LastError.Error.Kind != "data_loss" || s.Reason == "" {
		t.Errorf("the status tells of %+v, because of %q", s.LastError, s.Reason)
	}
	lab.MustExec(c, "rm", "/tick")
	wantText(t, done(t, "run", post(t, lab, c, "/run", `{"allow_bad_image":true}`), 200), "from scratch", "note:")
	if now, _ := tickSeen(lab, t, c, 0); now == nonce {
		t.Error("the damaged checkpoint was restored")
	}
}

func testRunLeaveStopped(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(annotated(tickOptions(), "image-url", nodeURL()))
	continues := ticking(lab, t, c)
	done(t, "checkpoint", post(t, lab, c, "/checkpoint", ``), 200)
	done(t, "run", post(t, lab, c, "/run", `{"leave_stopped":true}`), 200)
	s := wantState(t, lab, c, api.Running)
	stopped := func() string {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(s.AppPid) + "/status")
		check(t, err)
		_, after, _ := strings.Cut(string(data), "State:\t")
		return after[:1]
	}
	equal(t, "the application's state", stopped(), "T")
	// All of its processes are stopped.
	check(t, c.Task.Kill(lab.Context(), unix.SIGCONT, containerd.WithKillAll))
	continues(c)
}

func testRunOnAppReady(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(standby(tickOptions()))
	text := done(t, "run", post(t, lab, c, "/run", `{"on_app_ready":"sh -c 'echo $0 >/ready; readlink /proc/self/ns/pid >>/ready' 'a word'"}`), 200)
	if strings.Contains(text, "note:") {
		t.Errorf("the answer is %q", text)
	}
	want, err := os.Readlink("/proc/" + strconv.Itoa(int(c.Task.Pid())) + "/ns/pid")
	check(t, err)
	equal(t, "what the command saw", lab.MustExec(c, "cat", "/ready"), "a word\n"+want+"\n")
	tickSeen(lab, t, c, 0)
	done(t, "standby", post(t, lab, c, "/v1/standby", ``), 200)
	// One that fails is reported, and the service runs.
	text = done(t, "run", post(t, lab, c, "/run", `{"on_app_ready":"sh -c 'echo not yet; exit 3'"}`), 200)
	wantText(t, text, "note:", "not yet", "3")
	wantState(t, lab, c, api.Running)
}

func testRunNoProgram(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(standby(tickOptions()))
	a := post(t, lab, c, "/run", `{"app_args":"/no/such/program"}`)
	if a.Status < 400 {
		t.Fatalf("the answer is %d: %s", a.Status, a.Text)
	}
	wantText(t, a.Text, "/no/such/program")
	wantState(t, lab, c, api.Standby)
	done(t, "run", post(t, lab, c, "/run", ``), 200)
	tickSeen(lab, t, c, 0)
}
