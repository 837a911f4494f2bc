package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/shim/api"
)

// standby makes a container's service absent until it is asked for.
func standby(opts harness.RunOptions) harness.RunOptions {
	return annotated(opts, "startup", api.StartStandby)
}

// annotated adds annotations of ours, in pairs of a name without our prefix and a value.
func annotated(opts harness.RunOptions, pairs ...string) harness.RunOptions {
	all := map[string]string{}
	for k, v := range opts.Annotations {
		all[k] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		all["io.fastmig."+pairs[i]] = pairs[i+1]
	}
	opts.Annotations = all
	return opts
}

// nodeURL makes up a checkpoint's name that nobody else uses on the node.
func nodeURL() string { return "node:" + harness.NewID("ckpt") }

// serviceOf is how the container's service is.
func serviceOf(t *testing.T, lab *harness.Lab, c *harness.Container) api.Status {
	t.Helper()
	s, err := c.Interface().Status(lab.Context())
	check(t, err)
	return s
}

// waitState waits until the service is in one of the states.
func waitState(t *testing.T, lab *harness.Lab, c *harness.Container, states ...api.State) api.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(lab.Context(), time.Minute)
	defer cancel()
	s, err := c.Interface().WaitState(ctx, states...)
	check(t, err)
	return s
}

// wantState checks what the service is, and that containerd sees a running task.
func wantState(t *testing.T, lab *harness.Lab, c *harness.Container, want api.State) api.Status {
	t.Helper()
	s := serviceOf(t, lab, c)
	if s.State != want {
		t.Fatalf("%s is %s (%s), not %s", c.ID(), s.State, s.Reason, want)
	}
	wantStatus(lab, t, c, containerd.Running)
	equal(t, "the first process of "+c.ID(), s.InitPid, int(c.Task.Pid()))
	return s
}

// saveTo writes a checkpoint by the typed client.
func saveTo(t *testing.T, lab *harness.Lab, c *harness.Container, url string, leave bool) api.Result {
	t.Helper()
	r, err := c.Interface().Checkpoint(lab.Context(), api.CheckpointRequest{ImageURL: url, LeaveRunning: &leave})
	check(t, err)
	if r.Checkpoint == nil || r.Checkpoint.URL != url || r.Checkpoint.Bytes == 0 || len(r.Checkpoint.Digest) != 64 {
		t.Fatalf("the result of a checkpoint to %s tells of %+v", url, r.Checkpoint)
	}
	if leave && (r.Away <= 0 || r.Away > r.Seconds) {
		t.Errorf("the checkpoint took %v s, and the service was away for %v s", r.Seconds, r.Away)
	}
	return r
}

// restoreFrom restores by the typed client.
func restoreFrom(t *testing.T, lab *harness.Lab, c *harness.Container, url string) api.Result {
	t.Helper()
	r, err := c.Interface().Restore(lab.Context(), api.RestoreRequest{ImageURL: url})
	check(t, err)
	if r.State != api.Running || r.AppPid == 0 || r.Checkpoint == nil || r.Checkpoint.URL != url {
		t.Fatalf("the result of a restore of %s is %+v", url, r)
	}
	return r
}

// post sends a request by the container's socket as it is.
func post(t *testing.T, lab *harness.Lab, c *harness.Container, path, body string) harness.Answer {
	t.Helper()
	a, err := c.Interface().Do(lab.Context(), "POST", path, body)
	check(t, err)
	return a
}

// done checks an answer's status, and gives its text.
func done(t *testing.T, what string, a harness.Answer, want int) string {
	t.Helper()
	if a.Status != want {
		t.Fatalf("%s: the answer is %d, not %d: %s", what, a.Status, want, a.Text)
	}
	return a.Text
}

// quoted is a string in JSON.
func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings can be encoded
	}
	return string(b)
}

// hostPid is the host's pid of the process that has the number in the container's pid
// namespace; 0: there is none.
func hostPid(t *testing.T, lab *harness.Lab, c *harness.Container, pid int) int {
	t.Helper()
	pids, err := c.Task.Pids(lab.Context())
	check(t, err)
	for _, p := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
		if err != nil {
			continue // it has just ended
		}
		for _, line := range strings.Split(string(data), "\n") {
			words := strings.Fields(line)
			if len(words) > 1 && words[0] == "NSpid:" && words[len(words)-1] == strconv.Itoa(pid) {
				return int(p.Pid)
			}
		}
	}
	return 0
}

// sameNamespaces checks that a process is in the namespaces and cgroups of another one.
func sameNamespaces(t *testing.T, pid, other int) {
	t.Helper()
	for _, ns := range []string{"pid", "mnt", "net", "ipc", "uts", "cgroup", "user"} {
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		check(t, err)
		want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", other, ns))
		check(t, err)
		equal(t, "the namespace of the application", got, want)
	}
	got, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	check(t, err)
	want, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", other))
	check(t, err)
	equal(t, "the application's cgroups", string(got), string(want))
}

// nodeCheckpoints is the folder of the node's checkpoints.
func nodeCheckpoints(lab *harness.Lab) string {
	return filepath.Join(lab.Dir, "varlib", "fastmig", "checkpoints")
}

// causes are those of the transitions that a service has gone through.
func causes(s api.Status) []string {
	var all []string
	for _, h := range s.History {
		all = append(all, fmt.Sprintf("%s -> %s: %s", h.From, h.To, h.Cause))
	}
	return all
}

// went checks the states that a service has come into, in order.
func went(t *testing.T, s api.Status, want ...api.State) {
	t.Helper()
	var got []api.State
	for _, h := range s.History {
		got = append(got, h.To)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the service went through %v, not %v:\n%s", got, want, strings.Join(causes(s), "\n"))
	}
}
