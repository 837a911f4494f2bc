package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// TestPublished sends the bodies that clients of the published daemon send.
func TestPublished(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	c := lab.MustRun(standby(tickOptions()))
	lab.MustExec(c, "mkdir", "/images")
	run := func(noRestore bool) string {
		return fmt.Sprintf(`{"app_args":%s,"image_url":"file:/images/one","on_app_ready":"true","passphrase_file":"","preserved_paths":"",
			"no_restore":%v,"allow_bad_image":false,"leave_stopped":false,"verbose":0,"envs":["A=1","B=two words"]}`,
			quoted("sh -c '"+strings.ReplaceAll(tickScript, "'", `'\''`)+"'"), noRestore)
	}
	plain := func(what string, a harness.Answer, want int, texts ...string) {
		t.Helper()
		wantText(t, done(t, what, a, want), texts...)
		equal(t, "the type of the answer", a.Header.Get("Content-Type"), "text/plain; charset=utf-8")
	}
	plain("run", post(t, lab, c, "/run", run(false)), 200, "from scratch")
	continues := ticking(lab, t, c)
	for _, budget := range []string{"low", "medium", "high"} {
		plain("checkpoint", post(t, lab, c, "/checkpoint", fmt.Sprintf(`{"leave_running":true,"image_url":"file:/images/one","preserved_paths":"",
			"num_shards":4,"cpu_budget":%q,"passphrase_file":"","verbose":1,"envs":[]}`, budget)), 200, "file:/images/one")
		continues(c)
	}
	plain("checkpoint", post(t, lab, c, "/checkpoint", `{"leave_running":false,"image_url":"file:/images/one","num_shards":1,"cpu_budget":"medium","envs":["A=1"]}`), 200, "has ended")
	wantState(t, lab, c, api.Standby)
	plain("run", post(t, lab, c, "/run", run(false)), 200, "restored from file:/images/one")
	continues(c)
	plain("run on a running service", post(t, lab, c, "/run", run(false)), 400, "running")
	continues(c)
	plain("standby", post(t, lab, c, "/checkpoint", `{}`), 200)
	plain("checkpoint in standby", post(t, lab, c, "/checkpoint", `{}`), 400, "standby")
	plain("run", post(t, lab, c, "/run", run(true)), 200, "from scratch")
}

// input is a request that is to be refused.
type input struct {
	name, method, path, body string
	status                   int
	text                     []string
	// tried: it is found out while it is being done, which the history tells.
	tried bool
}

var badInput = []input{
	{"unknown path", "GET", "/v2/status", "", 404, nil, false},
	{"wrong method", "GET", "/run", "", 405, []string{"POST"}, false},
	{"wrong method of the status", "DELETE", "/v1/status", "", 405, []string{"GET"}, false},
	{"not JSON", "POST", "/run", `image_url=file:/x`, 400, []string{"JSON"}, false},
	{"an array", "POST", "/v1/restore", `[]`, 400, []string{"array"}, false},
	{"two objects", "POST", "/v1/restore", `{}{}`, 400, nil, false},
	{"unknown field", "POST", "/run", `{"image":"file:/x"}`, 400, []string{`"image"`}, false},
	{"unknown field", "POST", "/checkpoint", `{"leave-running":true}`, 400, []string{`"leave-running"`}, false},
	{"unknown field", "POST", "/v1/checkpoint", `{"hooks":{"after":["x"]}}`, 400, []string{`hooks.after`}, false},
	{"field of another case", "POST", "/v1/restore", `{"Image_URL":"file:/x"}`, 400, []string{"Image_URL"}, false},
	{"field twice", "POST", "/v1/restore", `{"image_url":"file:/x","image_url":"file:/y"}`, 400, []string{"twice"}, false},
	{"wrong type", "POST", "/run", `{"no_restore":"yes"}`, 400, []string{"no_restore"}, false},
	{"wrong type", "POST", "/run", `{"envs":"A=1"}`, 400, []string{"envs"}, false},
	{"wrong type", "POST", "/checkpoint", `{"num_shards":1.5}`, 400, []string{"num_shards"}, false},
	{"wrong type", "POST", "/v1/start", `{"args":"sh"}`, 400, []string{"args"}, false},
	{"wrong type", "POST", "/v1/stop", `{"timeout":5}`, 400, []string{"timeout"}, false},
	{"wrong value", "POST", "/checkpoint", `{"num_shards":0}`, 400, []string{"num_shards"}, false},
	{"wrong value", "POST", "/checkpoint", `{"cpu_budget":"all"}`, 400, []string{"cpu_budget"}, false},
	{"wrong value", "POST", "/v1/checkpoint", `{"tcp":"maybe"}`, 400, []string{"tcp"}, false},
	{"wrong value", "POST", "/v1/checkpoint", `{"hooks":{"timeout":"soon"}}`, 400, []string{"timeout"}, false},
	{"no name in a variable", "POST", "/run", `{"envs":["=x"]}`, 400, []string{"envs"}, false},
	{"open quote", "POST", "/run", `{"app_args":"sh -c 'x"}`, 400, []string{"app_args"}, false},
	{"open quote", "POST", "/run", `{"on_app_ready":"\"x"}`, 400, []string{"on_app_ready"}, false},
	{"encryption", "POST", "/run", `{"passphrase_file":"/key"}`, 400, []string{"passphrase_file"}, false},
	{"NUL", "POST", "/v1/checkpoint", `{"image_url":"file:/a\u0000b"}`, 400, []string{"NUL"}, false},
	{"no image", "POST", "/v1/checkpoint", `{}`, 400, []string{"image"}, false},
	{"no image", "POST", "/v1/restore", `{}`, 400, []string{"image"}, false},
	{"unknown scheme", "POST", "/v1/checkpoint", `{"image_url":"s3://bucket/x"}`, 400, []string{"s3"}, false},
	{"no scheme", "POST", "/checkpoint", `{"image_url":"/ckpt"}`, 400, []string{"/ckpt"}, false},
	{"relative path", "POST", "/v1/checkpoint", `{"image_url":"file:ckpt"}`, 400, nil, false},
	{"way up", "POST", "/v1/checkpoint", `{"image_url":"file:/a/../../etc/x"}`, 400, []string{".."}, false},
	{"way up on the node", "POST", "/v1/checkpoint", `{"image_url":"node:../x"}`, 400, nil, false},
	{"folders on the node", "POST", "/v1/restore", `{"image_url":"node:a/b"}`, 400, nil, false},
	{"the node's folder itself", "POST", "/v1/restore", `{"image_url":"node:."}`, 400, nil, false},
	{"unknown signal", "POST", "/v1/stop", `{"signal":"SIGNONE"}`, 400, []string{"SIGNONE"}, false},
	{"negative time", "POST", "/v1/stop", `{"timeout":"-1s"}`, 400, []string{"timeout"}, false},
	{"body of a GET", "GET", "/v1/status", `{}`, 400, []string{"body"}, false},
	{"number of an event", "GET", "/v1/events?after=x", "", 400, []string{"after"}, false},
	{"much", "POST", "/run", `{"app_args":"` + strings.Repeat("x", 1<<20) + `"}`, 400, []string{"1048576"}, false},
	{"much space", "POST", "/v1/restore", strings.Repeat(" ", 3<<20), 413, []string{"1048576"}, false},
}

// TestBadInput sends what must be refused to a running service and to one in standby:
// the error names what is wrong, and nothing changes.
func TestBadInput(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	running := lab.MustRun(tickOptions())
	continues := ticking(lab, t, running)
	for what, c := range map[string]*harness.Container{"running": running, "standby": lab.MustRun(standby(tickOptions()))} {
		t.Run(what, func(t *testing.T) {
			lab := lab.For(t)
			for _, in := range badInput {
				refuses(t, lab, c, in)
			}
		})
	}
	continues(running)
	if names := folderNames(t, nodeCheckpoints(lab)); len(names) > 0 {
		t.Errorf("the node's folder of checkpoints has %v", names)
	}
	for _, id := range []string{"nobody", "../" + lab.Namespace + "/" + running.ID(), ""} {
		_, err := lab.Interface(id).Status(lab.Context())
		if id == "nobody" {
			var e *api.Error
			if !errors.As(err, &e) || e.Kind != "not_found" {
				t.Errorf("the status of a container that there is not: %v", err)
			}
		}
	}
}

// refuses checks that a request is refused as it says and changes nothing.
func refuses(t *testing.T, lab *harness.Lab, c *harness.Container, in input) {
	t.Helper()
	before := serviceOf(t, lab, c)
	a, err := c.Interface().Do(lab.Context(), in.method, in.path, in.body)
	what := fmt.Sprintf("%s: %s %s %.60s", in.name, in.method, in.path, in.body)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if a.Status != in.status {
		t.Errorf("%s: the answer is %d, not %d: %s", what, a.Status, in.status, a.Text)
	}
	for _, text := range in.text {
		if !strings.Contains(a.Text, text) {
			t.Errorf("%s: %q is not in the answer %q", what, text, a.Text)
		}
	}
	if strings.HasPrefix(in.path, "/v1/") {
		var e api.Error
		if err := json.Unmarshal([]byte(a.Text), &e); err != nil || e.Kind == "" || e.Message == "" {
			t.Errorf("%s: the answer is no typed error: %q", what, a.Text)
		}
	}
	after := serviceOf(t, lab, c)
	after.LastError, before.LastError = nil, nil
	if in.tried {
		after.History, after.Since = before.History, before.Since
	}
	if !reflect.DeepEqual(before, after) {
		t.Errorf("%s: the status went from\n%+v to\n%+v", what, before, after)
	}
}

// TestWrongMoment asks for what the service's state does not allow.
func TestWrongMoment(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	url := nodeURL()
	image := `{"image_url":` + quoted(url) + `}`
	running := lab.MustRun(tickOptions())
	continues := ticking(lab, t, running)
	saveTo(t, lab, running, url, true)
	paused := lab.MustRun(tickOptions())
	continuesPaused := ticking(lab, t, paused)
	check(t, paused.Task.Pause(lab.Context()))
	t.Cleanup(func() { _ = paused.Task.Resume(context.WithoutCancel(lab.Context())) })
	pausedStandby := lab.MustRun(standby(tickOptions()))
	check(t, pausedStandby.Task.Pause(lab.Context()))
	containers := map[string]*harness.Container{
		"running": running, "paused": paused, "paused in standby": pausedStandby,
		"standby": lab.MustRun(standby(tickOptions())), "created": lab.MustCreate(tickOptions()),
	}
	for _, w := range []struct {
		container string
		in        input
	}{
		{"running", input{"run", "POST", "/run", image, 400, []string{"running", "standby"}, false}},
		{"running", input{"restore", "POST", "/v1/restore", image, 409, []string{"running", "standby"}, false}},
		{"running", input{"start", "POST", "/v1/start", `{}`, 409, []string{"running"}, false}},
		{"standby", input{"checkpoint", "POST", "/checkpoint", image, 400, []string{"standby", "running"}, false}},
		{"standby", input{"checkpoint", "POST", "/v1/checkpoint", image, 409, []string{"standby"}, false}},
		{"standby", input{"stop", "POST", "/v1/stop", ``, 409, []string{"standby"}, false}},
		{"standby", input{"restore of nothing", "POST", "/v1/restore", `{"image_url":"node:nothing"}`, 404, []string{"node:nothing"}, false}},
		{"standby", input{"restore of nothing", "POST", "/v1/restore", `{"image_url":"file:/no/such/folder"}`, 404, []string{"/no/such"}, false}},
		{"standby", input{"restore of what is none", "POST", "/v1/restore", `{"image_url":"file:/etc"}`, 400, []string{"file:/etc"}, false}},
		{"paused", input{"checkpoint", "POST", "/v1/checkpoint", image, 409, []string{"paused"}, false}},
		{"paused", input{"run", "POST", "/run", image, 400, []string{"paused"}, false}},
		{"paused", input{"stop", "POST", "/v1/stop", ``, 409, []string{"paused"}, false}},
		{"paused in standby", input{"run", "POST", "/run", image, 400, []string{"paused"}, false}},
		{"paused in standby", input{"restore", "POST", "/v1/restore", image, 409, []string{"paused"}, false}},
		{"created", input{"run", "POST", "/run", image, 400, []string{"created"}, false}},
		{"created", input{"restore", "POST", "/v1/restore", image, 409, []string{"created"}, false}},
		{"created", input{"checkpoint", "POST", "/v1/checkpoint", image, 409, nil, false}},
		{"created", input{"start", "POST", "/v1/start", ``, 409, []string{"created"}, false}},
	} {
		w.in.name = w.container + ": " + w.in.name
		refuses(t, lab, containers[w.container], w.in)
	}
	continues(running)
	check(t, paused.Task.Resume(lab.Context()))
	continuesPaused(paused)
	created := containers["created"]
	check(t, created.Start(lab.Context()))
	tickSeen(lab, t, created, 0)
	check(t, pausedStandby.Task.Resume(lab.Context()))
	restoreFrom(t, lab, pausedStandby, url)
	continues(pausedStandby)
}

// Two requests at once: one is served, the other one too, or it is refused because of the
// first; and all that was reported whole can be restored.
func TestTwoAtOnce(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	c := lab.MustRun(crowd())
	continues := ticking(lab, t, c)
	watch, err := c.Interface().Watch(lab.Context())
	check(t, err)
	url := nodeURL()
	var wait sync.WaitGroup
	results := make(chan error, 3)
	save := func() {
		_, err := c.Interface().Checkpoint(lab.Context(), api.CheckpointRequest{ImageURL: url})
		results <- err
	}
	wait.Go(save)
	wait.Go(save)
	_, err = watch.WaitEvent(lab.Context(), "a checkpoint to be under way", func(e api.Event) bool {
		return e.Transition != nil && e.Transition.To == api.Checkpointing
	})
	check(t, err)
	_, late := c.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: url})
	refused(t, "a restore during a checkpoint", late, nil)
	wait.Wait()
	close(results)
	served := 0
	for err := range results {
		var e *api.Error
		switch {
		case err == nil:
			served++
		case !errors.As(err, &e) || e.Kind != "failed_precondition" || !strings.Contains(e.Message, "checkpointing"):
			t.Errorf("the other one was refused with %v", err)
		}
	}
	if served == 0 {
		t.Error("none was served")
	}
	continues(c)
	_, err = c.Interface().Standby(lab.Context(), api.StopRequest{})
	check(t, err)
	// Two restores: one life.
	var ok int
	var mu sync.Mutex
	for range 2 {
		wait.Go(func() {
			if _, err := c.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: url}); err == nil {
				mu.Lock()
				ok++
				mu.Unlock()
			}
		})
	}
	wait.Wait()
	equal(t, "the restores that were served", ok, 1)
	equal(t, "the lives", wantState(t, lab, c, api.Running).Starts, 2)
	continues(c)
}

// TestLinks lets a container's own links lead out of it: its checkpoints stay inside, and
// nothing of the node is touched.
func TestLinks(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	c := lab.MustRun(tickOptions())
	continues := ticking(lab, t, c)
	outside := t.TempDir()
	lab.MustExec(c, "sh", "-c", `mkdir -p /in/side && ln -s "$0" /absolute && ln -s "../../../../../../../../..$0" /in/relative &&
		ln -s /etc /ckpt && ln -s /proc/1/root /magic && ln -s /proc/self/cwd/in /cwd`, outside)
	etc := lab.MustExec(c, "ls", "-la", "/etc")
	for _, in := range []input{
		{"no such folder in the container", "POST", "/v1/checkpoint", `{"image_url":"file:/absolute/ckpt"}`, 404, []string{"/absolute"}, true},
		{"no such folder in the container", "POST", "/v1/checkpoint", `{"image_url":"file:/in/relative/ckpt"}`, 404, []string{"/in/relative"}, true},
	} {
		refuses(t, lab, c, in)
	}
	for _, path := range []string{"/ckpt", "/magic/ckpt", "/cwd/ckpt", "/proc/ckpt", "/dev/null", "/sys/ckpt"} {
		a := post(t, lab, c, "/v1/checkpoint", `{"image_url":`+quoted("file:"+path)+`}`)
		if a.Status < 400 {
			t.Errorf("a checkpoint to %s: %d %s", path, a.Status, a.Text)
		}
		wantText(t, a.Text, path[:4])
		continues(c)
	}
	equal(t, "the container's /etc", lab.MustExec(c, "ls", "-la", "/etc"), etc)
	if names := folderNames(t, outside); len(names) > 0 {
		t.Errorf("outside there is %v", names)
	}
	// With the same path inside, that is where they lead.
	lab.MustExec(c, "mkdir", "-p", outside)
	saveTo(t, lab, c, "file:/absolute/ckpt", true)
	saveTo(t, lab, c, "file:/in/relative/other", false)
	lab.MustExec(c, "test", "-d", outside+"/ckpt", "-a", "-d", outside+"/other")
	if names := folderNames(t, outside); len(names) > 0 {
		t.Errorf("outside there is %v", names)
	}
	// A link in the place of a checkpoint is not followed, whatever it leads to.
	lab.MustExec(c, "ln", "-s", outside+"/other", "/link")
	refuses(t, lab, c, input{"a link", "POST", "/v1/restore", `{"image_url":"file:/link"}`, 400, []string{"/link", "link"}, false})
	restoreFrom(t, lab, c, "file:"+filepath.Join(outside, "other"))
	continues(c)
	if _, err := os.Stat(filepath.Join(outside, "other")); err == nil {
		t.Error("it was outside")
	}
}
