package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/integration/workloads"
)

// TestIsolation checks that what a restore brings back is confined to its own
// container.
func TestIsolation(t *testing.T) {
	runSuite(t, []images.Image{images.Busybox, images.Shell, images.Python}, []labTest{
		{"tree beside its source", testIsolationBeside},
		{"threads after their source", testIsolationThreads},
		{"out of memory", testRestoredOOM},
		{"pids limit", testRestoredPids},
		{"memory is charged", testRestoredMemory},
	})
}

// members are the threads of all processes that are in the pid namespace of
// the container's first process, as /proc sees them: whatever a cgroup says.
// What ends meanwhile is left out.
func members(t *testing.T, c *harness.Container) (tids, pids []string) {
	t.Helper()
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", c.Task.Pid()))
	check(t, err)
	entries, err := os.ReadDir("/proc")
	check(t, err)
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns/pid")); err != nil || ns != namespace {
			continue
		}
		threads, err := os.ReadDir(filepath.Join("/proc", e.Name(), "task"))
		if err != nil {
			continue
		}
		pids = append(pids, e.Name())
		for _, thread := range threads {
			tids = append(tids, filepath.Join(e.Name(), "task", thread.Name()))
		}
	}
	return tids, pids
}

// confined checks the cgroups and namespaces of all that runs in the container
// and returns how many processes and threads there are.
func confined(t *testing.T, lab *harness.Lab, c *harness.Container, source string) (processes, threads int) {
	t.Helper()
	first := fmt.Sprint(c.Task.Pid())
	// An exec that has just ended may show for a moment.
	var tids, pids []string
	lab.WaitFor("the cgroup to hold what the pid namespace does", func(ctx context.Context) (bool, error) {
		tids, pids = members(t, c)
		inGroup, err := c.Task.Pids(ctx)
		if err != nil {
			return false, err
		}
		var listed []string
		for _, p := range inGroup {
			listed = append(listed, fmt.Sprint(p.Pid))
		}
		slices.Sort(listed)
		slices.Sort(pids)
		diff := diffLines(listed, pids)
		return diff == "", fmt.Errorf("they differ (+ cgroup, - namespace):\n%s", diff)
	})
	for _, tid := range tids {
		data, err := os.ReadFile(filepath.Join("/proc", tid, "cgroup"))
		if errors.Is(err, os.ErrNotExist) {
			continue // a thread that has ended
		}
		check(t, err)
		for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
			parts := strings.SplitN(line, ":", 3)
			// The hierarchies that no controller or nobody's manager uses
			// have everything in their root, the container too.
			if parts[2] == "/" && rootHierarchy(t, first, parts[0]) {
				continue
			}
			if want := "/" + lab.Namespace + "/" + c.ID(); parts[2] != want {
				t.Errorf("thread %s is in the cgroup %s, not %s", tid, line, want)
			}
			if source != "" && strings.Contains(parts[2], source) {
				t.Errorf("thread %s is in a cgroup of its source: %s", tid, line)
			}
		}
		for _, kind := range []string{"pid", "mnt", "net", "ipc", "uts", "cgroup", "user"} {
			got, err := os.Readlink(filepath.Join("/proc", tid, "ns", kind))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			check(t, err)
			want, err := os.Readlink(filepath.Join("/proc", first, "ns", kind))
			check(t, err)
			host, err := os.Readlink(filepath.Join("/proc/self/ns", kind))
			check(t, err)
			if got != want {
				t.Errorf("thread %s is in %s, not in the container's %s", tid, got, want)
			}
			// A container has no cgroup or user namespace of its own unless
			// its spec says so.
			if got == host && kind != "user" && kind != "cgroup" {
				t.Errorf("thread %s is in the host's %s", tid, got)
			}
		}
	}
	return len(pids), len(tids)
}

// rootHierarchy says whether the container's first process is in the root of
// the hierarchy too.
func rootHierarchy(t *testing.T, pid, hierarchy string) bool {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	check(t, err)
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		if parts := strings.SplitN(line, ":", 3); parts[0] == hierarchy {
			return parts[2] == "/"
		}
	}
	return false
}

// workload is the row of the matrix of that name.
func workload(t *testing.T, name string) workloads.Workload {
	t.Helper()
	for _, w := range workloads.All {
		if w.Name == name {
			return w
		}
	}
	t.Fatalf("no workload %q", name)
	return workloads.Workload{}
}

// The source runs on beside the restored one: neither is in the other's.
func testIsolationBeside(t *testing.T, lab *harness.Lab) {
	w := workload(t, "tree of 16 processes")
	source := lab.MustRun(w.Options())
	proof, err := w.Fill(lab.Context(), source)
	check(t, err)
	before, _ := confined(t, lab, source, "")
	check(t, source.Checkpoint(lab.Context(), "fastmig.test/isolation:tree", false))
	restored := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/isolation:tree"})
	check(t, proof(lab.Context(), restored))
	processes, _ := confined(t, lab, restored, source.ID())
	equal(t, "the number of restored processes", processes, before)
	now, _ := confined(t, lab, source, restored.ID())
	equal(t, "the number of the source's processes", now, before)
	check(t, proof(lab.Context(), source))

	// What the restored one starts later is confined too.
	e := startExec(t, lab, restored, execOptions{args: []string{"sleep", "100000"}})
	processes, _ = confined(t, lab, restored, source.ID())
	equal(t, "the number of processes with an exec", processes, before+1)
	check(t, e.Kill(lab.Context(), unix.SIGKILL))

	check(t, restored.Task.Kill(lab.Context(), unix.SIGKILL))
	equal(t, "the exit code of the restored one", exitOf(t, lab, restored), 137)
	check(t, proof(lab.Context(), source))
}

func testIsolationThreads(t *testing.T, lab *harness.Lab) {
	w := workload(t, "Python with threads")
	source := lab.MustRun(w.Options())
	proof, err := w.Fill(lab.Context(), source)
	check(t, err)
	_, before := confined(t, lab, source, "")
	var folders []string
	for _, controller := range []string{"memory", "pids", "freezer"} {
		folders = append(folders, filepath.Join("/sys/fs/cgroup", controller, lab.Namespace, source.ID()))
	}
	check(t, source.Checkpoint(lab.Context(), "fastmig.test/isolation:threads", true))
	exitOf(t, lab, source)
	check(t, source.Remove(lab.Context()))
	restored := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/isolation:threads"})
	check(t, proof(lab.Context(), restored))
	_, threads := confined(t, lab, restored, source.ID())
	if threads < 3 {
		t.Errorf("only %d threads were restored, of %d", threads, before)
	}
	for _, folder := range folders {
		if _, err := os.Stat(folder); err == nil {
			t.Errorf("the source's cgroup %s is still there", folder)
		}
	}
}

// restoredWithLimits brings a shell script through a checkpoint.
func restoredWithLimits(t *testing.T, lab *harness.Lab, text string, limits ...oci.SpecOpts) *harness.Container {
	t.Helper()
	opts := script(text)
	opts.Spec = limits
	source := lab.MustRun(opts)
	waitText(t, lab, source.Output, "ready")
	ref := "fastmig.test/isolation:" + source.ID()
	check(t, source.Checkpoint(lab.Context(), ref, true))
	exitOf(t, lab, source)
	check(t, source.Remove(lab.Context()))
	return lab.MustRestore(harness.RestoreOptions{Ref: ref})
}

func testRestoredOOM(t *testing.T, lab *harness.Lab) {
	r := record(t, lab)
	c := restoredWithLimits(t, lab, "trap 'exec tail /dev/zero' USR1; echo ready; while :; do sleep 0.05; done", oci.WithMemoryLimit(32<<20))
	limit, err := cgroupFile(c.Task.Pid(), "memory", "memory.limit_in_bytes", "memory.max")
	check(t, err)
	equal(t, "the memory limit", limit, fmt.Sprint(32<<20))
	check(t, c.Task.Kill(lab.Context(), unix.SIGUSR1))
	equal(t, "the exit code", exitOf(t, lab, c), 137)
	r.waitFor(lab, c.ID(), "/tasks/oom")
}

func testRestoredPids(t *testing.T, lab *harness.Lab) {
	c := restoredWithLimits(t, lab, "trap 'for i in $(seq 40); do sleep 100000 & done; echo all started' USR1; echo ready; while :; do sleep 0.05; done",
		func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
			limit := int64(20)
			s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit}
			return nil
		})
	check(t, c.Task.Kill(lab.Context(), unix.SIGUSR1))
	waitText(t, lab, c.Output, "can't fork")
	pids, err := c.Task.Pids(lab.Context())
	check(t, err)
	if len(pids) > 20 {
		t.Errorf("%d processes in a container that may have 20", len(pids))
	}
	if strings.Contains(c.Output.String(), "all started") {
		t.Error("all processes could be started")
	}
}

// What the restored application uses counts as the destination's.
func testRestoredMemory(t *testing.T, lab *harness.Lab) {
	const size = 64 << 20
	opts := harness.RunOptions{
		Image: images.Python.Ref(),
		Args:  []string{"python3", "-c", fmt.Sprintf("import os,time\nb=os.urandom(%d)\nprint('ready',flush=True)\nwhile True: time.sleep(1)", size)},
	}
	source := lab.MustRun(opts)
	waitText(t, lab, source.Output, "ready")
	check(t, source.Checkpoint(lab.Context(), "fastmig.test/isolation:memory", false))
	c := lab.MustRestore(harness.RestoreOptions{Ref: "fastmig.test/isolation:memory"})
	lab.WaitFor("the memory to be charged", func(context.Context) (bool, error) {
		text, err := cgroupFile(c.Task.Pid(), "memory", "memory.stat", "memory.stat")
		if err != nil {
			return false, err
		}
		for _, line := range strings.Split(text, "\n") {
			name, value, _ := strings.Cut(line, " ")
			// Anonymous memory on v1 and v2.
			if n, err := strconv.Atoi(value); err == nil && (name == "rss" || name == "anon") {
				return n >= size, fmt.Errorf("%s is %d", name, n)
			}
		}
		return false, errors.New("no anonymous memory in memory.stat")
	})
}
