package integration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/integration/workloads"
	"github.com/fastmig/fastmig/shim/api"
)

// TestRecovery kills FastFreeze and looks whether the container is still the one
// that it was.
func TestRecovery(t *testing.T) {
	lab := harness.New(t, harness.Options{Config: faultConfig(faultNode{})})
	lab.MustImport(images.Busybox, images.Redis, images.GoScratch)
	for _, test := range []labTest{
		{"the container stays", testContainerStays},
		{"the log goes on", testLogGoesOn},
		{"a terminal", testRecoverTerminal},
		{"a user namespace", testRecoverUserNamespace},
		{"a published port", testPublishedPort},
		{"redis keeps its keys", testRedisRecovers},
		{"supervise", testSupervise},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, lab.For(t)) })
	}
}

// crash kills PID 1 and waits until the service is what it is to be.
func (s *subject) crash(want outcome) {
	s.t.Helper()
	pid, err := s.initPid()
	check(s.t, err)
	mark := s.mark()
	check(s.t, unix.Kill(pid, unix.SIGKILL))
	_, err = s.becomes(mark, want)
	check(s.t, err)
}

// facts are what must not change with PID 1.
func (s *subject) facts() string {
	s.t.Helper()
	ctx := s.lab.Context()
	var b strings.Builder
	for _, command := range []string{"cat /kept; hostname; ip addr show; ls -l /proc/self/ns/net /proc/self/ns/uts | sed 's/.*-> //'"} {
		out, err := s.c.Exec(ctx, "sh", "-c", command)
		check(s.t, err)
		b.WriteString(out)
	}
	pid, err := s.appPid()
	check(s.t, err)
	for _, c := range [][3]string{{"memory", "memory.limit_in_bytes", "memory.max"}, {"pids", "pids.max", "pids.max"}} {
		limit, err := cgroupFile(uint32(pid), c[0], c[1], c[2])
		check(s.t, err)
		fmt.Fprintf(&b, "%s %s\n", c[0], limit)
	}
	return b.String()
}

func testContainerStays(t *testing.T, lab *harness.Lab) {
	s := newSubject(t, lab, subjectOptions{spec: []oci.SpecOpts{
		oci.WithMemoryLimit(64 << 20), oci.WithPidsLimit(77), oci.WithHostname("kept-name"),
	}})
	check(t, s.ready())
	lab.MustExec(s.c, "sh", "-c", "echo written > /kept")
	lab.MustExec(s.c, "ip", "link", "set", "lo", "up")
	before := s.facts()
	for range 3 {
		check(t, s.checkpoint())
		s.crash(wasRestored)
		check(t, s.sound())
		if after := s.facts(); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
	}
	st, err := s.api.Status(lab.Context())
	check(t, err)
	equal(t, "the count of recoveries", st.Recoveries, 3)
	equal(t, "its id", st.ID, s.c.ID())
}

func testLogGoesOn(t *testing.T, lab *harness.Lab) {
	s := newSubject(t, lab, subjectOptions{change: func(r *harness.RunOptions) {
		r.Args = []string{"sh", "-c", "echo life begins\n" + strings.Replace(faultScript, "n=$((n+1));", "n=$((n+1)); [ $((n%20)) = 0 ] && echo count $n;", 1)}
	}})
	check(t, s.ready())
	s.crash(wasRestored)
	said := len(s.c.Output.String())
	lab.WaitFor("the restored service to be heard", func(context.Context) (bool, error) {
		text := s.c.Output.String()
		return strings.Contains(text[said:], "count "), fmt.Errorf("%q", text)
	})
	// A life from scratch is heard in the same place.
	check(t, s.order(orderExit))
	lab.WaitFor("the second life to be heard", func(context.Context) (bool, error) {
		text := s.c.Output.String()
		return strings.Count(text, "life begins") == 2, fmt.Errorf("%q", text)
	})
}

func testRecoverTerminal(t *testing.T, lab *harness.Lab) {
	s := newSubject(t, lab, subjectOptions{change: func(r *harness.RunOptions) {
		r.Terminal = true
		r.Args = []string{"sh", "-c", strings.Replace(faultScript, "n=$((n+1));", "n=$((n+1)); [ $((n%20)) = 0 ] && echo count $n;", 1)}
	}})
	check(t, s.ready())
	s.crash(wasRestored)
	said := len(s.c.Output.String())
	lab.WaitFor("the terminal to show the restored service", func(context.Context) (bool, error) {
		text := s.c.Output.String()
		return strings.Contains(text[said:], "count "), fmt.Errorf("%q", text)
	})
	check(t, s.sound())
}

func testRecoverUserNamespace(t *testing.T, lab *harness.Lab) {
	// Without a checkpoint: the service begins anew.
	s := newSubject(t, lab, subjectOptions{
		annotations: map[string]string{"io.fastmig.supervise": "always"},
		change:      func(r *harness.RunOptions) { *r = mapped(*r) },
	})
	check(t, s.counts())
	s.crash(fromScratch)
	check(t, s.sound())
}

// testPublishedPort has nerdctl publish a port, which serves again after PID 1 was
// killed.
func testPublishedPort(t *testing.T, lab *harness.Lab) {
	const name, port = "published", "17090"
	removeByNerdctl(lab, t, name)
	lab.MustNerdctl("run", "-d", "--name", name, "--env", "GODEBUG=multipathtcp=0", "-p", "127.0.0.1:"+port+":7000",
		"--annotation", "io.fastmig.image-url=node:"+name, images.GoScratch.Ref())
	equal(t, "the answer", request(t, lab, port, "PUT k kept"), "OK")
	address := inspect(t, lab, name).NetworkSettings.IPAddress
	id := strings.TrimSpace(lab.MustNerdctl("inspect", "--format", "{{.ID}}", name))
	front := lab.Interface(id)
	_, err := front.Checkpoint(lab.Context(), api.CheckpointRequest{})
	check(t, err)
	equal(t, "the answer", request(t, lab, port, "PUT later lost"), "OK")
	st, err := front.Status(lab.Context())
	check(t, err)
	check(t, unix.Kill(st.InitPid, unix.SIGKILL))
	lab.WaitFor("the service to be recovered", func(ctx context.Context) (bool, error) {
		st, err := front.Status(ctx)
		return err == nil && st.Recoveries == 1 && st.State == api.Running, errors.Join(err, fmt.Errorf("it is %s %s", st.State, st.Reason))
	})
	equal(t, "what it kept", request(t, lab, port, "GET k"), "kept")
	equal(t, "what came after the checkpoint", request(t, lab, port, "GET later"), "")
	equal(t, "the address", inspect(t, lab, name).NetworkSettings.IPAddress, address)
	if !inspect(t, lab, name).State.Running {
		t.Error("nerdctl says that it does not run")
	}
}

// testRedisRecovers kills FastFreeze under a server with data, and verifies each key.
func testRedisRecovers(t *testing.T, lab *harness.Lab) {
	const keys = 5000
	ctx := lab.Context()
	c := lab.MustRun(harness.RunOptions{Image: images.Redis.Ref(), Annotations: map[string]string{"io.fastmig.image-url": "node:redis-recovers"}})
	lab.WaitFor("redis to serve", func(ctx context.Context) (bool, error) {
		_, err := workloads.RedisCounter(ctx, c)
		return err == nil, err
	})
	var fill bytes.Buffer
	for i := range keys {
		fmt.Fprintf(&fill, "SET recovered:%d value-%d\n", i, i*7)
	}
	_, err := c.ExecInput(ctx, fill.Bytes(), "redis-cli")
	check(t, err)
	_, err = c.Interface().Checkpoint(ctx, api.CheckpointRequest{})
	check(t, err)
	st, err := c.Interface().Status(ctx)
	check(t, err)
	check(t, unix.Kill(st.InitPid, unix.SIGKILL))
	lab.WaitFor("redis to be recovered", func(ctx context.Context) (bool, error) {
		st, err := c.Interface().Status(ctx)
		return err == nil && st.Recoveries == 1 && st.State == api.Running, errors.Join(err, fmt.Errorf("it is %s %s", st.State, st.Reason))
	})
	var ask bytes.Buffer
	for i := range keys {
		fmt.Fprintf(&ask, "GET recovered:%d\n", i)
	}
	out, err := c.ExecInput(ctx, ask.Bytes(), "redis-cli")
	check(t, err)
	got := strings.Fields(out)
	if len(got) != keys {
		t.Fatalf("%d keys, not %d", len(got), keys)
	}
	for i, v := range got {
		if want := fmt.Sprintf("value-%d", i*7); v != want {
			t.Fatalf("key %d is %q, not %q", i, v, want)
		}
	}
}

// testSupervise: the table of io.fastmig.supervise.
func testSupervise(t *testing.T, lab *harness.Lab) {
	for _, c := range []struct {
		supervise, onExit string
		saved             bool
		want              outcome
	}{
		{"never", "tied", true, hasEnded},
		{"never", "default", true, hasEnded},
		{"auto", "tied", false, hasEnded},
		{"auto", "tied", true, wasRestored},
		{"auto", "default", false, fromScratch},
		{"auto", "default", true, wasRestored},
		{"always", "tied", false, fromScratch},
		{"always", "tied", true, wasRestored},
	} {
		t.Run(fmt.Sprintf("%s, %s, checkpoint %v", c.supervise, c.onExit, c.saved), func(t *testing.T) {
			lab := lab.For(t)
			s := newSubject(t, lab, subjectOptions{annotations: map[string]string{
				"io.fastmig.supervise": c.supervise, "io.fastmig.on-exit": c.onExit,
			}})
			check(t, s.counts())
			if c.saved {
				check(t, s.checkpoint())
			}
			s.crash(c.want)
			if c.want == hasEnded {
				equal(t, "the exit code", exitOf(t, lab, s.c), 137)
				return
			}
			check(t, s.sound())
		})
	}
	t.Run("tied and out of memory", func(t *testing.T) {
		lab := lab.For(t)
		s := newSubject(t, lab, subjectOptions{
			annotations: map[string]string{"io.fastmig.on-exit": "tied"},
			spec:        []oci.SpecOpts{oci.WithMemoryLimit(48 << 20)},
		})
		check(t, s.counts())
		check(t, s.checkpoint())
		check(t, s.order(orderMemory))
		equal(t, "the exit code", exitOf(t, lab, s.c), 137)
	})
}
