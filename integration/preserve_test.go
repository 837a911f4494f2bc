package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// A shell that keeps a file open in the container's own layer and appends to it.
const appendScript = `umask 022; mkdir -p /var/tmp/kept/sub; echo mark >/var/tmp/kept/sub/mark; ln -s sub/mark /var/tmp/kept/link
chmod 640 /var/tmp/kept/sub/mark
exec 5>>/var/tmp/kept/log; n=0; while :; do n=$((n+1)); echo "line $n" >&5; sleep 0.02; done`

func appendOptions() harness.RunOptions {
	return harness.RunOptions{Image: images.Busybox.Ref(), Args: []string{"sh", "-c", appendScript}}
}

// appended waits for the file to have more than so many lines, and checks that none is
// missing.
func appended(t *testing.T, lab *harness.Lab, c *harness.Container, above int) (count int, text string) {
	t.Helper()
	for count = -1; count <= above; {
		out, err := c.Exec(lab.Context(), "cat", "/var/tmp/kept/log")
		if err != nil && count >= 0 {
			t.Fatal(err)
		}
		text = out[:strings.LastIndexByte(out, '\n')+1]
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		for i, line := range lines {
			if want := fmt.Sprintf("line %d", i+1); text != "" && line != want {
				t.Fatalf("%s: line %d is %q", c.ID(), i+1, line)
			}
		}
		if text != "" {
			count = len(lines)
		}
		check(t, lab.Context().Err())
	}
	return count, text
}

// TestPreserve moves services with the files of their containers' own layers.
func TestPreserve(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox}, []labTest{
		{"published requests", testPreservePublished},
		{"run's paths", testPreserveRun},
		{"another user", testPreserveUser},
		{"user namespace", testPreserveMapped},
		{"file system in memory", testPreserveMemory},
		{"refusals", testPreserveRefused},
	})
}

func testPreservePublished(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(appendOptions())
	appended(t, lab, source, 10)
	url := nodeURL()
	done(t, "checkpoint", post(t, lab, source, "/checkpoint", `{"image_url":`+quoted(url)+`,"preserved_paths":"/var/tmp/kept"}`), 200)
	count, text := appended(t, lab, source, 0)
	if _, err := os.Stat(filepath.Join(nodeCheckpoints(lab), strings.TrimPrefix(url, "node:"), "preserved.tar")); err != nil {
		matches, _ := filepath.Glob(nodeCheckpoints(lab) + "/*/*")
		t.Errorf("%v; there are %v", err, matches)
	}
	target := lab.MustRun(standby(appendOptions()))
	done(t, "run", post(t, lab, target, "/run", `{"image_url":`+quoted(url)+`}`), 200)
	more, now := appended(t, lab, target, count)
	if !strings.HasPrefix(now, text) {
		t.Error("the file has another content")
	}
	appended(t, lab, target, more)
	equal(t, "a file below", lab.MustExec(target, "stat", "-c", "%a %n", "/var/tmp/kept/sub/mark"), "640 /var/tmp/kept/sub/mark\n")
	equal(t, "a link", lab.MustExec(target, "cat", "/var/tmp/kept/link"), "mark\n")
	equal(t, "what is left besides", lab.MustExec(target, "ls", "-A", "/var/tmp/kept"), "link\nlog\nsub\n")

	// Without its files it does not run in a fresh container.
	plain := nodeURL()
	saveTo(t, lab, target, plain, true)
	fresh := lab.MustRun(standby(appendOptions()))
	if a := post(t, lab, fresh, "/run", `{"image_url":`+quoted(plain)+`}`); a.Status != 400 {
		t.Errorf("a restore without the files: %d %s", a.Status, a.Text)
	}
	wantState(t, lab, fresh, api.Standby)
}

// The run's paths travel in every checkpoint, also in the container's own file system; the
// service is brought back from it in the same container.
func testPreserveRun(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(standby(appendOptions()))
	done(t, "run", post(t, lab, c, "/run", `{"image_url":"file:/ckpt","preserved_paths":"/var/tmp/kept:/var/tmp/kept/sub"}`), 200)
	appended(t, lab, c, 5)
	events, err := c.Interface().Watch(lab.Context())
	check(t, err)
	r, err := c.Interface().Checkpoint(lab.Context(), api.CheckpointRequest{LeaveRunning: new(bool)})
	check(t, err)
	equal(t, "its URL", r.Checkpoint.URL, "file:/ckpt")
	_, err = events.WaitEvent(lab.Context(), "the progress of preserving", func(e api.Event) bool {
		return e.Progress != nil && e.Progress.Operation == "checkpoint" && e.Progress.Step == "preserve"
	})
	check(t, err)
	count, text := appended(t, lab, c, 0)
	lab.MustExec(c, "rm", "-r", "/var/tmp/kept")
	lab.MustExec(c, "mkdir", "/var/tmp/kept")
	lab.MustExec(c, "sh", "-c", "echo stays >/var/tmp/kept/other; echo changed >/var/tmp/kept/log")
	done(t, "run", post(t, lab, c, "/run", `{}`), 200)
	_, now := appended(t, lab, c, count)
	if !strings.HasPrefix(now, text) {
		t.Error("the file has another content")
	}
	equal(t, "a file of the container", lab.MustExec(c, "cat", "/var/tmp/kept/other"), "stays\n")
	// The command line.
	out, err := lab.Tool(lab.Context(), "fastmig", "checkpoint", c.ID(), "--image-url", "file:/two", "--preserve", "/etc/passwd", "--preserve", "/ckpt")
	check(t, err)
	wantText(t, out, "checkpointed to file:/two")
}

// A user without rights takes his files along; into a container in which they would be in
// root's folders, they do not go.
func testPreserveUser(t *testing.T, lab *harness.Lab) {
	user := func(o harness.RunOptions) harness.RunOptions {
		o.Spec = append(o.Spec, oci.WithUserID(1234))
		return o
	}
	source := lab.MustRun(user(appendOptions()))
	appended(t, lab, source, 10)
	url := nodeURL()
	done(t, "checkpoint", post(t, lab, source, "/checkpoint", `{"image_url":`+quoted(url)+`,"preserved_paths":"/var/tmp/kept"}`), 200)
	count, _ := appended(t, lab, source, 0)
	target := lab.MustRun(standby(user(appendOptions())))
	done(t, "run", post(t, lab, target, "/run", `{"image_url":`+quoted(url)+`}`), 200)
	appended(t, lab, target, count)
	equal(t, "the owner", lab.MustExec(target, "stat", "-c", "%u", "/var/tmp/kept/log"), "1234\n")

	opts := standby(user(appendOptions()))
	opts.Spec = append(opts.Spec, oci.WithRootFSReadonly())
	closed := lab.MustRun(opts)
	a := post(t, lab, closed, "/run", `{"image_url":`+quoted(url)+`}`)
	equal(t, "the answer", a.Status, 400)
	wantText(t, a.Text, "/var/tmp/kept", "read-only")
	wantState(t, lab, closed, api.Standby)
}

// In a user namespace the files are its users', on the host as well.
func testPreserveMapped(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(mapped(appendOptions()))
	appended(t, lab, source, 10)
	lab.MustExec(source, "chown", "-R", "33:44", "/var/tmp/kept/sub")
	url := nodeURL()
	done(t, "checkpoint", post(t, lab, source, "/checkpoint", `{"image_url":`+quoted(url)+`,"preserved_paths":"/var/tmp/kept"}`), 200)
	count, _ := appended(t, lab, source, 0)
	target := lab.MustRun(standby(mapped(appendOptions())))
	done(t, "run", post(t, lab, target, "/run", `{"image_url":`+quoted(url)+`}`), 200)
	appended(t, lab, target, count)
	equal(t, "the owner", lab.MustExec(target, "stat", "-c", "%u:%g", "/var/tmp/kept/sub/mark"), "33:44\n")
	var st unix.Stat_t
	check(t, unix.Stat(fmt.Sprintf("/proc/%d/root/var/tmp/kept/sub/mark", target.Task.Pid()), &st))
	equal(t, "the owner on the host", st.Uid, 200033)
}

// What travels with the application anyhow may be named, too.
func testPreserveMemory(t *testing.T, lab *harness.Lab) {
	opts := appendOptions()
	opts.Args = []string{"sh", "-c", "mkdir -p /run/work /var/tmp && ln -s /run/work /var/tmp/kept; " + appendScript}
	source := lab.MustRun(opts)
	appended(t, lab, source, 10)
	url := nodeURL()
	done(t, "checkpoint", post(t, lab, source, "/checkpoint", `{"image_url":`+quoted(url)+`,"preserved_paths":"/run/work"}`), 200)
	lab.MustExec(source, "sh", "-c", "stat -f -c %T /run | grep tmpfs")
	count, text := appended(t, lab, source, 0)
	target := lab.MustRun(standby(opts))
	done(t, "run", post(t, lab, target, "/run", `{"image_url":`+quoted(url)+`}`), 200)
	lab.MustExec(target, "ln", "-s", "/run/work", "/var/tmp/kept")
	if _, now := appended(t, lab, target, count); !strings.HasPrefix(now, text) {
		t.Error("the file has another content")
	}
}

func testPreserveRefused(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(tickOptions())
	continues := ticking(lab, t, c)
	url := nodeURL()
	for path, kind := range map[string]func(error) bool{"/none": errdefs.IsFailedPrecondition, "/proc/1": errdefs.IsInvalidArgument, "x": errdefs.IsInvalidArgument} {
		_, err := c.Interface().Checkpoint(lab.Context(), api.CheckpointRequest{ImageURL: url, PreservedPaths: []string{path}})
		refused(t, "a checkpoint with "+path, err, kind)
		if err != nil {
			wantText(t, err.Error(), path)
		}
	}
	if _, err := os.Stat(filepath.Join(nodeCheckpoints(lab), strings.TrimPrefix(url, "node:"))); !os.IsNotExist(err) {
		t.Errorf("something is left of the checkpoint: %v", err)
	}
	wantState(t, lab, c, api.Running)
	continues(c)
}
