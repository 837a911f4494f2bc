package integration_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// kernelObjects are what testdata/objects can hold. What CRIU cannot dump says
// so; the message must name it.
var kernelObjects = []struct{ name, impossible string }{
	{"threads", ""}, {"children", ""}, {"zombie", ""}, {"stopped-child", ""},
	{"pipe", ""}, {"unix-stream-pair", ""}, {"unix-dgram-pair", ""}, {"unix-seqpacket-pair", ""},
	{"unix-listener-path", ""}, {"unix-listener-abstract", ""},
	{"tcp-listener", ""}, {"tcp6-listener", ""}, {"udp", ""}, {"tcp-connection", ""},
	{"timerfd", ""}, {"setitimer", ""}, {"posix-timer", ""}, {"clocks", ""},
	{"epoll", ""}, {"eventfd", ""}, {"signalfd", ""}, {"pending-signals", ""}, {"inotify", "fsnotify"},
	{"memfd", ""}, {"shared-anonymous", ""}, {"mapped-private", ""}, {"mapped-shared", ""}, {"mlock", ""},
	{"sysv-shm", ""}, {"sysv-sem", ""}, {"sysv-msg", ""},
	{"flock", ""}, {"fcntl-lock", ""}, {"deleted-file", ""}, {"deleted-10MiB", ""}, {"append-log", ""}, {"cwd", ""},
	{"umask-nice-rlimits", ""}, {"robust-futex", ""}, {"own-seccomp", ""}, {"name", ""}, {"sub-reaper", ""},
	{"posix-mq", "/objects open as descriptor 3"}, {"io_uring", "io_uring"}, {"userfaultfd", "userfaultfd"}, {"vsock", "address family number 40"},
}

// TestObjects checkpoints and restores a process for each kind of kernel
// object, and asks the source and the restored one whether it is still there.
func TestObjects(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.GoScratch)
	program := buildObjects(t, lab)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "\nkernel object\tresult\treason\n")
	defer table.Flush()
	for _, o := range kernelObjects {
		ran, reason := false, "not run to its end"
		t.Run(o.name, func(t *testing.T) {
			ran = true
			lab := lab.For(t)
			source := lab.MustRun(objectOptions(program, o.name))
			if err := source.Output.WaitForText(lab.Context(), "\n"); err != nil {
				t.Fatal(err)
			}
			ask(t, lab, source, "check")
			// One that hangs costs its own row only.
			ctx, cancel := context.WithTimeout(lab.Context(), 30*time.Second)
			defer cancel()
			err := source.Checkpoint(ctx, "fastmig.test/objects:"+o.name, false)
			if o.impossible != "" {
				reason = refusal(t, err, o.impossible)
				wantStatus(lab, t, source, containerd.Running)
				ask(t, lab, source, "check")
				return
			}
			if err != nil {
				reason, _, _ = strings.Cut(err.Error(), "\n")
				t.Fatal(err)
			}
			ask(t, lab, source, "check")
			restored := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/objects:" + o.name})
			ask(t, lab, restored, "restored")
			ask(t, lab, source, "check")
			reason = ""
		})
		result := "ok"
		switch {
		case !ran:
			continue
		case o.impossible != "":
			result = "CRIU cannot"
		case reason != "":
			result = "FAIL"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\n", o.name, result, reason)
	}
}

// The clocks of a service go on without a jump on a machine that has another
// uptime: the destination's time namespace stands for one.
func TestClocksOnOtherUptime(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	lab.MustImport(images.GoScratch)
	opts := objectOptions(buildObjects(t, lab), "clocks")
	source := lab.MustRun(opts)
	if err := source.Output.WaitForText(lab.Context(), "ready\n"); err != nil {
		t.Fatal(err)
	}
	ask(t, lab, source, "check")
	checkpoint, err := source.Task.Checkpoint(lab.Context())
	must(t, err)
	for _, offset := range []int64{100_000, 10} {
		opts.Task = []containerd.NewTaskOpts{containerd.WithTaskCheckpoint(checkpoint)}
		opts.Spec = append(opts.Spec[:1:1], oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.TimeNamespace}),
			func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
				s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: offset}, "boottime": {Secs: 2 * offset}}
				return nil
			})
		ask(t, lab, lab.MustRun(opts), "restored")
	}
	ask(t, lab, source, "check")
}

func buildObjects(t *testing.T, lab *harness.Lab) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "objects")
	build := exec.CommandContext(lab.Context(), "go", "build", "-o", program, "./testdata/objects")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

func objectOptions(program, object string) harness.RunOptions {
	return harness.RunOptions{
		Image: images.GoScratch.Ref(),
		Args:  []string{"/objects", object},
		Env:   []string{"GODEBUG=multipathtcp=0"},
		Spec: []oci.SpecOpts{oci.WithMounts([]specs.Mount{{
			Type: "bind", Source: program, Destination: "/objects", Options: []string{"rbind", "ro"},
		}})},
	}
}

// ask has the process check its object.
func ask(t *testing.T, lab *harness.Lab, c *harness.Container, verb string) {
	t.Helper()
	number := harness.NewID("q")
	say(t, lab, c, verb+" "+number, " "+number)
	if out := c.Output.String(); !strings.Contains(out, "ok "+number+"\n") {
		t.Fatalf("%s: %s", c.ID(), out)
	}
}

// refusal checks that a message tells which process has what, and returns it.
func refusal(t *testing.T, err error, what string) string {
	t.Helper()
	if err == nil {
		t.Fatal("it was checkpointed: it is no longer impossible")
	}
	wantText(t, strings.ToLower(err.Error()), "process 1000", what)
	message, _, _ := strings.Cut(err.Error(), " [")
	return message
}
