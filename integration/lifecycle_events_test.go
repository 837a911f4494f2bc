package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	eventstypes "github.com/containerd/containerd/api/events"
	tasks "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestEvents compares the events of a container, their contents and their
// order with those that the stock shim publishes for the same doings.
func TestEvents(t *testing.T) {
	var tests []labTest
	for _, s := range scenarios {
		tests = append(tests, labTest{s.name, func(t *testing.T, lab *harness.Lab) {
			opts := s.opts
			if !lab.Runtime.IsFastMig() {
				if s.race {
					return
				}
				opts = grouped(t, lab, opts)
			}
			got := s.events(t, lab, opts)
			for _, topic := range s.topics {
				if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, topic+" ") }) {
					t.Errorf("no event %s in:\n%s", topic, strings.Join(got, "\n"))
				}
			}
			if s.race {
				return
			}
			// A stock shim that ends with its container may lose the last
			// events, so it gets another container to live for.
			want := s.events(t, lab, grouped(t, lab, asStock(t, lab, s.opts)))
			if diff := diffLines(got, want); diff != "" {
				t.Errorf("the events differ from the stock shim's (+ ours, - stock):\n%s", diff)
			}
		}})
	}
	runSuite(t, []images.Image{images.Busybox}, tests)
}

// scenario is a container's life, told by its events.
type scenario struct {
	name string
	opts harness.RunOptions
	run  func(t *testing.T, lab *harness.Lab, c *harness.Container)
	// topics must be among the events.
	topics []string
	// unordered are topics whose place among the others is left to chance.
	unordered []string
	// race says that the stock shim deletes before it has noticed the exit,
	// and publishes what it happens to know; there is nothing to compare with.
	race bool
}

var scenarios = []scenario{
	{
		name: "a life",
		opts: sleeper(),
		run: func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			ctx := lab.Context()
			check(t, c.Start(ctx))
			e := startExec(t, lab, c, execOptions{args: []string{"sh", "-c", "exit 3"}})
			equal(t, "the exec's exit code", e.exit(t, lab), 3)
			_, err := e.Delete(ctx)
			check(t, err)
			check(t, c.Task.Pause(ctx))
			check(t, c.Task.Resume(ctx))
			startExec(t, lab, c, execOptions{args: []string{"sleep", "100000"}})
			check(t, c.Task.Kill(ctx, unix.SIGKILL))
			equal(t, "the exit code", exitOf(t, lab, c), 137)
		},
		topics: []string{
			"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
			"/tasks/paused", "/tasks/resumed", "/tasks/delete",
		},
	},
	{
		name: "an exit code",
		opts: script("exit 3"),
		run: func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			check(t, c.Start(lab.Context()))
			equal(t, "the exit code", exitOf(t, lab, c), 3)
		},
	},
	{
		name: "a terminal",
		opts: func() harness.RunOptions { o := script("exit 3"); o.Terminal = true; return o }(),
		run: func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			check(t, c.Start(lab.Context()))
			equal(t, "the exit code", exitOf(t, lab, c), 3)
		},
	},
	{
		name:   "never started",
		opts:   sleeper(),
		run:    func(*testing.T, *harness.Lab, *harness.Container) {},
		topics: []string{"/tasks/create", "/tasks/exit", "/tasks/delete"},
		race:   true,
	},
	{
		name: "an exec that is never started",
		opts: sleeper(),
		run: func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			check(t, c.Start(lab.Context()))
			e := addExec(t, lab, c, execOptions{args: []string{"true"}})
			_, err := lab.Client().TaskService().DeleteProcess(lab.Context(), deleteProcess(c.ID(), e.ID()))
			check(t, err)
			check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
			equal(t, "the exit code", exitOf(t, lab, c), 137)
		},
	},
	{
		name: "an exec that cannot start",
		opts: sleeper(),
		run: func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			check(t, c.Start(lab.Context()))
			e := addExec(t, lab, c, execOptions{args: []string{"nosuchprogram"}})
			refused(t, "the start", e.Start(lab.Context()), nil)
			_, err := e.Delete(lab.Context())
			check(t, err)
			check(t, c.Task.Kill(lab.Context(), unix.SIGKILL))
			equal(t, "the exit code", exitOf(t, lab, c), 137)
		},
	},
	{
		name: "out of memory",
		opts: func() harness.RunOptions {
			o := script("exec tail /dev/zero")
			o.Spec = []oci.SpecOpts{oci.WithMemoryLimit(24 << 20)}
			return o
		}(),
		run: func(t *testing.T, lab *harness.Lab, c *harness.Container) {
			check(t, c.Start(lab.Context()))
			equal(t, "the exit code", exitOf(t, lab, c), 137)
		},
		topics:    []string{"/tasks/oom"},
		unordered: []string{"/tasks/oom"},
	},
}

// events runs the scenario and tells its events, a line each, with all that
// differs from run to run replaced.
func (s scenario) events(t *testing.T, lab *harness.Lab, opts harness.RunOptions) []string {
	t.Helper()
	r := record(t, lab)
	c := lab.MustCreate(opts)
	s.run(t, lab, c)
	if t.Failed() {
		t.FailNow()
	}
	before := s.unordered
	if !s.race {
		// The stock shim lets a Delete overtake the exit.
		before = append(slices.Clone(before), "/tasks/exit")
	}
	for _, topic := range before {
		r.waitFor(lab, c.ID(), topic)
	}
	_, err := lab.Client().TaskService().Delete(lab.Context(), &tasks.DeleteTaskRequest{ContainerID: c.ID()})
	check(t, err)
	r.waitFor(lab, c.ID(), "/tasks/delete")
	lines := r.lines(t, lab, c.ID())
	var ordered, rest []string
	for _, l := range lines {
		topic, _, _ := strings.Cut(l, " ")
		if slices.Contains(s.unordered, topic) {
			rest = append(rest, l)
		} else {
			ordered = append(ordered, l)
		}
	}
	// How often the kernel tells of an OOM is its affair.
	slices.Sort(rest)
	return append(ordered, slices.Compact(rest)...)
}

// groupLabel puts containers into one shim.
const groupLabel = "io.containerd.runc.v2.group"

// grouped puts the container into a shim that another one keeps alive.
func grouped(t *testing.T, lab *harness.Lab, opts harness.RunOptions) harness.RunOptions {
	t.Helper()
	keeper := sleeper()
	keeper.Runtime, keeper.Task = opts.Runtime, opts.Task
	keeper.Annotations = map[string]string{groupLabel: harness.NewID("group")}
	lab.MustRun(keeper)
	opts.Annotations = keeper.Annotations
	return opts
}

// recorder keeps the node's events.
type recorder struct {
	mu   sync.Mutex
	list []*events.Envelope
}

// record begins to record; it returns when no event can be missed any more.
func record(t *testing.T, lab *harness.Lab) *recorder {
	t.Helper()
	ctx, cancel := context.WithCancel(lab.Context())
	t.Cleanup(cancel)
	r := &recorder{}
	stream, errs := lab.Client().Subscribe(ctx)
	go func() {
		for {
			select {
			case e := <-stream:
				r.mu.Lock()
				r.list = append(r.list, e)
				r.mu.Unlock()
			case <-errs:
				return
			}
		}
	}()
	// The subscription comes into force some time after the call.
	probe := &eventstypes.ContainerDelete{ID: harness.NewID("probe")}
	lab.WaitFor("the subscription to events", func(ctx context.Context) (bool, error) {
		if err := lab.Client().EventService().Publish(ctx, "/tests/probe", probe); err != nil {
			return false, err
		}
		return len(r.of(probe.ID)) > 0, nil
	})
	return r
}

// of are the events that mention the container.
func (r *recorder) of(id string) []*events.Envelope {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*events.Envelope
	for _, e := range r.list {
		v, err := typeurl.UnmarshalAny(e.Event)
		if err != nil {
			continue
		}
		switch v := v.(type) {
		case interface{ GetContainerID() string }:
			if v.GetContainerID() == id {
				list = append(list, e)
			}
		case interface{ GetID() string }:
			if v.GetID() == id && e.Topic == "/tests/probe" {
				list = append(list, e)
			}
		}
	}
	return list
}

func (r *recorder) waitFor(lab *harness.Lab, id, topic string) {
	lab.WaitFor("the event "+topic, func(context.Context) (bool, error) {
		for _, e := range r.of(id) {
			v, err := typeurl.UnmarshalAny(e.Event)
			// Execs exit too, under their own id.
			exit, ok := v.(*eventstypes.TaskExit)
			if err == nil && e.Topic == topic && (!ok || exit.ID == id) {
				return true, nil
			}
		}
		return false, fmt.Errorf("%d others came", len(r.of(id)))
	})
}

// Parts of events that differ from run to run.
var (
	snapshotNumber = regexp.MustCompile(`snapshots/\d+/`)
	fifoNumber     = regexp.MustCompile(`/fifo/\d+/`)
	execNumber     = regexp.MustCompile(`exec-\d+`)
)

func (r *recorder) lines(t *testing.T, lab *harness.Lab, id string) []string {
	t.Helper()
	var lines []string
	names := map[float64]string{0: "none"}
	for _, e := range r.of(id) {
		equal(t, e.Topic+": the namespace", e.Namespace, lab.Namespace)
		v, err := typeurl.UnmarshalAny(e.Event)
		check(t, err)
		fields := asMap(t, v)
		if pid, ok := fields["pid"].(float64); ok {
			// Which process it is, not its number.
			if names[pid] == "" {
				names[pid] = fmt.Sprintf("process %d", len(names))
			}
			fields["pid"] = names[pid]
		}
		if at, ok := fields["exited_at"].(map[string]any); ok {
			fields["exited_at"] = "a time"
			if at["seconds"].(float64) < 1e9 {
				fields["exited_at"] = at
			}
		}
		var text strings.Builder
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			data, err := json.Marshal(fields[name])
			check(t, err)
			fmt.Fprintf(&text, " %s=%s", name, data)
		}
		line := strings.ReplaceAll(text.String(), `"`+id+`"`, "ID")
		line = strings.ReplaceAll(line, "/"+id, "/ID")
		line = snapshotNumber.ReplaceAllString(line, "snapshots/N/")
		line = fifoNumber.ReplaceAllString(line, "/fifo/N/")
		line = execNumber.ReplaceAllString(line, "EXEC")
		lines = append(lines, e.Topic+line)
	}
	return lines
}
