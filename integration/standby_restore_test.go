package integration_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/integration/workloads"
	"github.com/fastmig/fastmig/shim/api"
)

// TestStandby is about containers without a service, and how one comes into them.
func TestStandby(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox}, []labTest{
		{"absent", testAbsent},
		{"warm restore", testWarmRestore},
		{"file in its own root", testOwnFile},
		{"startup restore", testStartupRestore},
		{"startup restore of nothing", testStartupNothing},
	})
}

// A container in standby is a running task in which programs can be run, and nothing
// else runs.
func testAbsent(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(standby(tickOptions()))
	s := wantState(t, lab, c, api.Standby)
	if s.AppPid != 0 || s.Starts != 0 || s.Container != "running" || s.Startup != api.StartStandby {
		t.Errorf("its status is %+v", s)
	}
	pids, err := c.Task.Pids(lab.Context())
	check(t, err)
	if len(pids) != 1 || pids[0].Pid != c.Task.Pid() {
		t.Errorf("there run %v, not only the first process %d", pids, c.Task.Pid())
	}
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", c.Task.Pid()))
	check(t, err)
	got := lab.MustExec(c, "readlink", "/proc/self/ns/pid")
	equal(t, "the pid namespace of an exec", strings.TrimSpace(got), want)
	if out := lab.MustExec(c, "ls", "/"); strings.Contains(out, "tick") {
		t.Errorf("the service has run: %s", out)
	}
	// It is ended as any other is.
	check(t, c.Task.Kill(lab.Context(), 9))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
}

// A program that was exec'ed in standby lives through a restore, and the restored
// service is where it belongs.
func testWarmRestore(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(tickOptions())
	continues := ticking(lab, t, source)
	url := nodeURL()
	saveTo(t, lab, source, url, true)
	continues(source)

	target := lab.MustRun(standby(tickOptions()))
	beside := startExec(t, lab, target, execOptions{args: []string{"sh", "-c",
		`trap 'echo done; exit 7' TERM; n=0; while :; do n=$((n+1)); echo "beside $n"; sleep 0.02; done`}})
	waitText(t, lab, beside.output, "beside 1\n")
	init := target.Task.Pid()
	r := restoreFrom(t, lab, target, url)
	continues(target)
	s := wantState(t, lab, target, api.Running)
	equal(t, "the application", s.AppPid, r.AppPid)
	equal(t, "the first process", s.InitPid, int(init))
	equal(t, "the application's pid", hostPid(t, lab, target, 1000), s.AppPid)
	sameNamespaces(t, s.AppPid, s.InitPid)
	for _, child := range below(s.AppPid) {
		sameCgroup(t, lab, child, s.InitPid)
	}
	went(t, s, api.Restoring, api.Running)

	now := strings.Count(beside.output.String(), "\n")
	waitText(t, lab, beside.output, fmt.Sprintf("beside %d\n", now+5))
	check(t, beside.Kill(lab.Context(), 15))
	equal(t, "the exit code of the program beside", beside.exit(t, lab), 7)
	continues(source) // both run
}

// sameCgroup checks a process's cgroups, unless it ends meanwhile: then it is in none.
func sameCgroup(t *testing.T, lab *harness.Lab, pid, other int) {
	t.Helper()
	want, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", other))
	check(t, err)
	lab.WaitFor(fmt.Sprintf("%d to be in the cgroups of %d, or gone", pid, other), func(context.Context) (bool, error) {
		got, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		return err != nil || string(got) == string(want), fmt.Errorf("it is in %s", got)
	})
}

// A checkpoint in the container's own root comes and goes with the published requests.
func testOwnFile(t *testing.T, lab *harness.Lab) {
	c := lab.MustRun(tickOptions())
	continues := ticking(lab, t, c)
	text := done(t, "checkpoint", post(t, lab, c, "/checkpoint", `{"image_url":"file:/ckpt"}`), 200)
	wantText(t, text, "file:/ckpt")
	wantState(t, lab, c, api.Standby)
	lab.MustExec(c, "test", "-d", "/ckpt")
	out, err := lab.Tool(lab.Context(), "curl", "-sS", "--unix-socket", api.SocketPath(lab.Namespace, c.ID()),
		"-d", `{"image_url":"file:/ckpt"}`, "-w", "%{http_code}", "http://localhost/run")
	check(t, err)
	wantText(t, out, "restored from file:/ckpt", "200")
	continues(c)
	wantState(t, lab, c, api.Running)
}

// startup=restore is a cold restore by an annotation.
func testStartupRestore(t *testing.T, lab *harness.Lab) {
	source := lab.MustRun(tickOptions())
	continues := ticking(lab, t, source)
	url := nodeURL()
	saveTo(t, lab, source, url, false)
	c := lab.MustRun(annotated(tickOptions(), "startup", api.StartRestore, "image-url", url))
	continues(c)
	s := wantState(t, lab, c, api.Running)
	equal(t, "the checkpoint that it came from", s.Checkpoint != nil && s.Checkpoint.URL == url, true)
	went(t, s, api.Restoring, api.Running)
}

// A checkpoint that is not there is an error of the start, and no container is left.
func testStartupNothing(t *testing.T, lab *harness.Lab) {
	c := lab.MustCreate(annotated(tickOptions(), "startup", api.StartRestore, "image-url", "node:nothing"))
	err := c.Start(lab.Context())
	refused(t, "the start", err, nil)
	if err != nil {
		wantText(t, err.Error(), "node:nothing")
	}
	mustRemove(lab, t, c)
}

// TestRestoreWays brings one checkpoint into containers in standby in each way that
// there is, with the tools that there are.
func TestRestoreWays(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(tickOptions())
	continues := ticking(lab, t, source)
	url := nodeURL()
	saveTo(t, lab, source, url, true)
	volume := t.TempDir()
	onVolume := func(o *harness.RunOptions) {
		o.Spec = append(o.Spec, oci.WithMounts([]specs.Mount{{Type: "bind", Source: volume, Destination: "/vol", Options: []string{"rbind", "rw"}}}))
	}
	opts := tickOptions()
	onVolume(&opts)
	other := lab.MustRun(opts)
	continuesOther := ticking(lab, t, other)
	saveTo(t, lab, other, "file:/vol/ckpt", false)

	socket := func(c *harness.Container) string { return api.SocketPath(lab.Namespace, c.ID()) }
	ways := []struct {
		name      string
		change    func(*harness.RunOptions)
		continues func(*harness.Container)
		restore   func(t *testing.T, lab *harness.Lab, c *harness.Container)
	}{
		{"curl to run", nil, continues, func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			out, err := lab.Tool(lab.Context(), "curl", "-sS", "-f", "--unix-socket", socket(c), "-d", `{"image_url":`+quoted(url)+`}`, "http://localhost/run")
			check(t, err)
			wantText(t, out, "restored from "+url)
		}},
		{"v1 restore", nil, continues, func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			restoreFrom(t, lab, c, url)
		}},
		{"command line", nil, continues, func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			out, err := lab.Tool(lab.Context(), "fastmig", "restore", c.ID(), "--image-url", url)
			check(t, err)
			wantText(t, out, "restored from "+url)
		}},
		{"annotated image, run without one", func(o *harness.RunOptions) { *o = annotated(*o, "image-url", url) }, continues,
			func(t *testing.T, lab *harness.Lab, c *harness.Container) {
				done(t, "run", post(t, lab, c, "/run", `{}`), 200)
			}},
		{"task update", nil, continues, func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			check(t, c.Task.Update(lab.Context(), containerd.WithAnnotations(map[string]string{
				"io.fastmig.startup": api.StartRestore, "io.fastmig.image-url": url,
			})))
		}},
		{"volume", onVolume, continuesOther, func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			done(t, "run", post(t, lab, c, "/run", `{"image_url":"file:/vol/ckpt"}`), 200)
		}},
	}
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			lab := lab.For(t)
			opts := standby(tickOptions())
			if w.change != nil {
				w.change(&opts)
			}
			c := lab.MustRun(opts)
			w.restore(t, lab, c)
			w.continues(c)
			wantState(t, lab, c, api.Running)
		})
	}
	t.Run("ctr", func(t *testing.T) {
		lab := lab.For(t)
		lab.MustCtr(append([]string{"run", "-d", "--annotation", "io.fastmig.startup=standby", "--annotation", "io.fastmig.image-url=" + url,
			images.Busybox.Ref(), "by-ctr"}, tickArgs...)...)
		c := load(lab, t, "by-ctr")
		wantState(t, lab, c, api.Standby)
		lab.MustCtr("task", "exec", "--exec-id", "e1", "by-ctr", "true")
		done(t, "run", post(t, lab, c, "/run", ``), 200)
		continues(c)
	})
	t.Run("nerdctl", func(t *testing.T) {
		lab := lab.For(t)
		run := func(name string, more ...string) *harness.Container {
			args := append([]string{"run", "-d", "--name", name}, more...)
			id := strings.TrimSpace(lab.MustNerdctl(append(append(args, images.Busybox.Ref()), tickArgs...)...))
			removeByNerdctl(lab, t, name)
			return load(lab, t, id)
		}
		url := nodeURL()
		from := run("from-nerdctl")
		continues := ticking(lab, t, from)
		saveTo(t, lab, from, url, false)
		c := run("by-nerdctl", "--annotation", "io.fastmig.startup=standby", "--annotation", "io.fastmig.image-url="+url)
		wantState(t, lab, c, api.Standby)
		lab.MustNerdctl("exec", "by-nerdctl", "true")
		done(t, "run", post(t, lab, c, "/run", `{}`), 200)
		continues(c)
	})
	continues(source)
}

// TestStandbyRounds lets services go and come back, again and again, in one container and
// from one to another.
func TestStandbyRounds(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox, images.Redis)
	t.Run("one container", func(t *testing.T) {
		lab := lab.For(t)
		c := lab.MustRun(annotated(tickOptions(), "image-url", nodeURL()))
		continues := ticking(lab, t, c)
		for range 4 {
			saveTo(t, lab, c, serviceOf(t, lab, c).ImageURL, false)
			wantState(t, lab, c, api.Standby)
			pids, err := c.Task.Pids(lab.Context())
			check(t, err)
			equal(t, "the number of processes in standby", len(pids), 1)
			restoreFrom(t, lab, c, serviceOf(t, lab, c).ImageURL)
			continues(c)
		}
		equal(t, "the lives", serviceOf(t, lab, c).Starts, 5)
		// Only the newest and the one before are kept.
		name := strings.TrimPrefix(serviceOf(t, lab, c).ImageURL, "node:")
		found, err := filepath.Glob(filepath.Join(nodeCheckpoints(lab), "*"+name+"*"))
		check(t, err)
		hidden, err := filepath.Glob(filepath.Join(nodeCheckpoints(lab), ".*"+name+"*"))
		check(t, err)
		all := map[string]bool{}
		for _, f := range append(found, hidden...) {
			all[filepath.Base(f)] = true
		}
		if len(all) != 2 {
			t.Errorf("of the checkpoint there are %v", all)
		}
	})
	t.Run("redis between two", func(t *testing.T) {
		lab := lab.For(t)
		const keys = 2000
		opts := harness.RunOptions{Image: images.Redis.Ref()}
		containers := []*harness.Container{lab.MustRun(opts), lab.MustRun(standby(opts))}
		run, err := workloads.FillRedis(lab.Context(), containers[0], keys)
		check(t, err)
		for i := range 4 {
			url := nodeURL()
			from, to := containers[i%2], containers[(i+1)%2]
			saveTo(t, lab, from, url, false)
			wantState(t, lab, from, api.Standby)
			restoreFrom(t, lab, to, url)
			check(t, workloads.CheckRedis(lab.Context(), to, run, keys))
			_, err := to.Exec(lab.Context(), "redis-cli", "INCR", "counter")
			check(t, err)
		}
		n, err := workloads.RedisCounter(lab.Context(), containers[0])
		check(t, err)
		equal(t, "the counter", n, 4)
	})
}

// Programs that are run again and again while a restore is under way all succeed, and so
// does the restore.
func TestExecsDuringRestore(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.Busybox)
	source := lab.MustRun(crowd())
	continues := ticking(lab, t, source)
	url := nodeURL()
	saveTo(t, lab, source, url, false)
	target := lab.MustRun(standby(crowd()))
	before := make(chan error, 1) // the first program has ended
	stop, result := make(chan struct{}), make(chan error, 1)
	ctx := lab.Context()
	go func() {
		for i := 0; ; i++ {
			out, err := target.Exec(ctx, "echo", "here")
			if err == nil && out != "here\n" {
				err = fmt.Errorf("it says %q", out)
			}
			if i == 0 {
				before <- err
			}
			select {
			case <-stop:
				result <- err
				return
			default:
			}
			if err != nil {
				result <- fmt.Errorf("program %d: %w", i, err)
				return
			}
		}
	}()
	check(t, <-before)
	_, err := target.Interface().Restore(ctx, api.RestoreRequest{ImageURL: url})
	close(stop)
	if rerr := <-result; rerr != nil {
		t.Error(rerr)
	}
	check(t, err)
	continues(target)
}
