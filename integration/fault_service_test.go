package integration_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// The service under test: a shell that shows "LIFE COUNT" as the target of a link
// in a folder of the host's, and does what it finds in a file there. LIFE is drawn
// at its start, so it tells a service that was started anew from one that went on
// or was restored; a count that falls, or another process, tells the latter two apart.
const faultScript = `read -r life </proc/sys/kernel/random/uuid; n=0
while :; do n=$((n+1)); ln -sfn "$life $n" /state/tick; [ -e /state/order ] && . /state/order; sleep 0.01; done`

// Orders to the service. One is done once: the file goes first.
const (
	orderExit   = "rm /state/order; exit 3"
	orderExit0  = "rm /state/order; exit 0"
	orderExit7  = "rm /state/order; exit 7"
	orderMemory = "rm /state/order; s=0123456789abcdef; while :; do s=$s$s; done"
)

// outcome is what became of a service, as its own state shows it.
type outcome string

const (
	wentOn      outcome = "went on"
	wasRestored outcome = "restored"
	fromScratch outcome = "from scratch"
	inStandby   outcome = "standby"
	hasEnded    outcome = "ended"
)

// sight is one look at the service's state.
type sight struct {
	at    time.Time
	life  string
	count int
}

// subject is a container with the service under test, and an observer of it.
type subject struct {
	t     *testing.T
	lab   *harness.Lab
	c     *harness.Container
	api   *harness.Interface
	url   string
	state string // the folder that the service shows itself in
	shim  int
	hung  int // the PID 1 that hangInit hung

	mu    sync.Mutex
	seen  []sight
	exits int
	root  int             // the service's process at the last mark, 0: none
	saved *api.Checkpoint // the last that was reported whole
	lost  bool            // and it was damaged since
	dir   string          // the node's folder of checkpoints, if it is an own one
}

// subjectOptions says how a subject's container is made.
type subjectOptions struct {
	annotations map[string]string
	spec        []oci.SpecOpts
	change      func(*harness.RunOptions)
}

// newSubject runs a container with the service. Its checkpoints go to a place of
// its own, by the default logic of exits, unless the annotations say otherwise.
func newSubject(t *testing.T, lab *harness.Lab, opts subjectOptions) *subject {
	t.Helper()
	s := &subject{t: t, lab: lab, state: t.TempDir()}
	check(t, os.Chmod(s.state, 0o777))
	id := harness.NewID("subject")
	run := harness.RunOptions{
		ID: id, Image: images.Busybox.Ref(), Args: []string{"sh", "-c", faultScript},
		Annotations: map[string]string{"io.fastmig.image-url": "node:" + id, "io.fastmig.on-exit": "default"},
		Spec: append(slices.Clone(opts.spec), oci.WithMounts([]specs.Mount{
			{Destination: "/state", Type: "bind", Source: s.state, Options: []string{"rbind", "rw"}},
		})),
	}
	for k, v := range opts.annotations {
		if v == "" {
			delete(run.Annotations, k)
			continue
		}
		run.Annotations[k] = v
	}
	if opts.change != nil {
		opts.change(&run)
	}
	s.url = run.Annotations["io.fastmig.image-url"]
	s.c = lab.MustRun(run)
	s.follow(s.c)
	return s
}

// follow observes the service in a container.
func (s *subject) follow(c *harness.Container) {
	s.t.Helper()
	s.c, s.api, s.shim = c, c.Interface(), shimOf(s.lab, s.t, c)
	ctx, stop := context.WithCancel(s.lab.Context())
	var wait sync.WaitGroup
	s.t.Cleanup(func() { stop(); wait.Wait() })
	events, errs := s.lab.Client().Subscribe(ctx, `topic=="/tasks/exit"`)
	wait.Go(func() {
		for {
			select {
			case e := <-events:
				v, err := typeurl.UnmarshalAny(e.Event)
				if exit, ok := v.(*eventstypes.TaskExit); err == nil && ok && exit.ContainerID == c.ID() && exit.ID == c.ID() {
					s.mu.Lock()
					s.exits++
					s.t.Logf("containerd was told that the task has ended, with status %d", exit.ExitStatus)
					s.mu.Unlock()
				}
			case <-errs:
				return // containerd was stopped, or the test has ended
			}
		}
	})
	wait.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			s.look()
			<-tick.C
		}
	})
}

// look notes the service's state if it has changed.
func (s *subject) look() {
	text, err := os.Readlink(filepath.Join(s.state, "tick"))
	if err != nil {
		return
	}
	now := sight{at: time.Now()}
	if _, err := fmt.Sscan(text, &now.life, &now.count); err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.seen); n == 0 || s.seen[n-1].life != now.life || s.seen[n-1].count != now.count {
		s.seen = append(s.seen, now)
	}
}

// mark is a moment in what is seen.
func (s *subject) mark() int {
	root, _ := s.appPid()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.root = root
	return max(0, len(s.seen)-1)
}

func (s *subject) since(mark int) []sight {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen[min(mark, len(s.seen)):])
}

func (s *subject) exited() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exits
}

// lives are how often the service was another than before, by starting anew and by
// being set back.
func lives(seen []sight) (anew, back int) {
	for i := 1; i < len(seen); i++ {
		switch {
		case seen[i].life != seen[i-1].life:
			anew++
		case seen[i].count < seen[i-1].count:
			back++
		}
	}
	return anew, back
}

// away is the longest time between two signs of life.
func away(seen []sight) (longest time.Duration) {
	for i := 1; i < len(seen); i++ {
		longest = max(longest, seen[i].at.Sub(seen[i-1].at))
	}
	return longest
}

// happened tells what became of the service since a mark, as soon as that can be
// told; until then an error says what is seen.
func (s *subject) happened(ctx context.Context, mark int) (outcome, error) {
	if s.exited() > 0 {
		return hasEnded, nil
	}
	seen := s.since(mark)
	roots := s.roots()
	if len(roots) == 0 {
		st, err := s.api.Status(ctx)
		if err != nil || st.State != api.Standby {
			return "", fmt.Errorf("no service runs; the shim says %s, %v", st.State, err)
		}
		return inStandby, nil
	}
	anew, back := lives(seen)
	// It serves if it has counted on since it was last another.
	steady := 0
	for i := len(seen) - 1; i > 0 && seen[i].life == seen[i-1].life && seen[i].count > seen[i-1].count; i-- {
		steady++
	}
	switch {
	case len(roots) != 1:
		return "", fmt.Errorf("%d services run: %v", len(roots), roots)
	case steady < 4:
		return "", fmt.Errorf("a service runs, and counts %d times", steady)
	case anew > 0:
		return fromScratch, nil
	case back > 0 || roots[0] != s.root:
		// A restored process is another one on the host. If its checkpoint is of the very
		// moment, its count did not fall.
		return wasRestored, nil
	}
	return wentOn, nil
}

// roots are the services' processes whose parent is none.
func (s *subject) roots() []int {
	pids := s.pids()
	mine := map[int]bool{}
	for _, pid := range pids {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(line), "read -r life") && strings.HasPrefix(string(line), "sh\x00") {
			mine[pid] = true
		}
	}
	var roots []int
	for pid := range mine {
		if parent := parentOf(pid); parent >= 0 && !mine[parent] {
			roots = append(roots, pid)
		}
	}
	slices.Sort(roots)
	return roots
}

// parentOf is -1 for one that is gone, or dead.
func parentOf(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || strings.Contains(string(data), ") Z ") || strings.Contains(string(data), ") X ") {
		return -1
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	var state string
	parent := 0
	_, _ = fmt.Sscan(rest, &state, &parent)
	return parent
}

// pids of the container's processes, found without the shim: by their cgroup.
func (s *subject) pids() []int {
	top := filepath.Join("/sys/fs/cgroup/freezer", s.lab.Namespace, s.c.ID())
	if _, err := os.Stat("/sys/fs/cgroup/freezer"); err != nil {
		top = filepath.Join("/sys/fs/cgroup", s.lab.Namespace, s.c.ID())
	}
	var pids []int
	_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, word := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// becomes waits for what is to become of the service since a mark, and that it
// stays so for a moment.
func (s *subject) becomes(mark int, want ...outcome) (got outcome, err error) {
	ctx, cancel := context.WithTimeout(s.lab.Context(), 20*time.Second)
	defer cancel()
	err = harness.WaitFor(ctx, fmt.Sprintf("the service to be %q", want), func(ctx context.Context) (bool, error) {
		got, err = s.happened(ctx, mark)
		if err != nil {
			return false, err
		}
		return slices.Contains(want, got), fmt.Errorf("it is %q", got)
	})
	return got, err
}

// order has the service do something.
func (s *subject) order(text string) error {
	tmp := filepath.Join(s.state, "next")
	if err := os.WriteFile(tmp, []byte(text+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(s.state, "order"))
}

// counts waits until the service has counted on from now.
func (s *subject) counts() error {
	mark := s.mark()
	ctx, cancel := context.WithTimeout(s.lab.Context(), 20*time.Second)
	defer cancel()
	return harness.WaitFor(ctx, "the service to count", func(context.Context) (bool, error) {
		seen := s.since(mark)
		return len(seen) > 4, fmt.Errorf("%d changes", len(seen))
	})
}

// checkpoint has a checkpoint made, and the service count on after it.
func (s *subject) checkpoint() error {
	r, err := s.api.Checkpoint(s.lab.Context(), api.CheckpointRequest{})
	if err != nil {
		return err
	}
	s.saved = r.Checkpoint
	return s.counts()
}

// initPid is PID 1's on the host.
func (s *subject) initPid() (int, error) {
	st, err := s.api.Status(s.lab.Context())
	if err == nil && st.InitPid == 0 {
		err = fmt.Errorf("there is no PID 1; the service is %s: %w", st.State, errdefs.ErrNotFound)
	}
	return st.InitPid, err
}

// appPid is the service's on the host.
func (s *subject) appPid() (int, error) {
	roots := s.roots()
	if len(roots) != 1 {
		return 0, fmt.Errorf("%d services run", len(roots))
	}
	return roots[0], nil
}

// sound checks what holds after everything: containerd has the task running, at most
// one service runs, nothing is frozen and execs work.
func (s *subject) sound() error {
	ctx, cancel := context.WithTimeout(s.lab.Context(), 20*time.Second)
	defer cancel()
	st, err := s.c.Task.Status(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("the task's status: %w", err)
	case st.Status != containerd.Running:
		return fmt.Errorf("the task is %s", st.Status)
	case s.exited() > 0:
		return fmt.Errorf("containerd was told %d times that the task has ended", s.exited())
	}
	err = harness.WaitFor(ctx, "nothing to be frozen, and no second service", func(context.Context) (bool, error) {
		for _, pid := range s.pids() {
			if state, err := cgroupFile(uint32(pid), "freezer", "freezer.state", "cgroup.freeze"); err == nil && state != "THAWED" && state != "0" {
				return false, fmt.Errorf("process %d is %s", pid, state)
			}
		}
		roots := s.roots()
		return len(roots) <= 1, fmt.Errorf("services: %v", roots)
	})
	if err != nil {
		return err
	}
	// A lost FastFreeze may be on its way back.
	return harness.WaitFor(ctx, "an exec to work", func(context.Context) (bool, error) {
		_, err := s.c.Exec(ctx, "true")
		return err == nil, err
	})
}
