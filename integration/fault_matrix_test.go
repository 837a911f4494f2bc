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
	"text/tabwriter"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
)

// phase is when a fault comes.
type phase int

const (
	inOperation phase = iota
	inCheckpoint
	inRestore
)

func (p phase) String() string { return [...]string{"normal operation", "checkpoint", "restore"}[p] }

// verdict says whether the operation under way may fail.
type verdict int

const (
	mayFail verdict = iota
	mustFail
	mustSucceed
)

// fault is a row of the matrix.
type fault struct {
	name string
	// paper is what the FastMig paper reports of it.
	paper string
	opts  subjectOptions
	// setup prepares the node for the row, before the container is made; undo is
	// called after it.
	setup func(t *testing.T, lab *harness.Lab) (undo func())
	cells map[phase]cell
	// ends: the container ends with the fault.
	ends bool
}

// cell is a fault in a phase.
type cell struct {
	inject func(s *subject) error
	// first: before the operation begins. Otherwise it is when CRIU is at work.
	first bool
	// hooks of the operation's request.
	hooks *api.Hooks
	op    verdict
	// text is in the operation's error, or its notes.
	text string
	want []outcome
	// heal takes the fault away.
	heal func(s *subject) error
	// lossy: the newest checkpoint is not whole any more.
	lossy bool
	// useless: the newest checkpoint is of no use.
	useless bool
	// slow: it is run once, however often the others are.
	slow bool
}

// finding is one run of a cell.
type finding struct {
	what outcome
	away time.Duration
}

// runs is how often each cell is run: FASTMIG_FAULT_RUNS, or a few times.
func runs(t *testing.T) int {
	text := os.Getenv("FASTMIG_FAULT_RUNS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("FASTMIG_FAULT_RUNS=%s: a number of at least 1 is needed", text)
	}
	return n
}

// TestFaults injects each fault in each phase, again and again, and looks at what
// becomes of the service. With -v it prints the table.
func TestFaults(t *testing.T) {
	lab := harness.New(t, harness.Options{Config: faultConfig(faultNode{})})
	lab.MustImport(images.Busybox)
	n := runs(t)
	found := map[string]map[phase][]finding{}
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			lab := lab.For(t)
			if f.setup != nil {
				t.Cleanup(f.setup(t, lab))
			} else {
				check(t, lab.WriteConfig(faultConfig(faultNode{})))
			}
			found[f.name] = map[phase][]finding{}
			for _, p := range []phase{inOperation, inCheckpoint, inRestore} {
				c, ok := f.cells[p]
				if !ok {
					continue
				}
				t.Run(p.String(), func(t *testing.T) { found[f.name][p] = runCell(t, lab.For(t), f, p, c, n) })
			}
		})
	}
	t.Logf("each cell %d times; what became of the service, and the median of the time it was away:\n%s", n, faultTable(found))
}

func runCell(t *testing.T, lab *harness.Lab, f fault, p phase, c cell, n int) (all []finding) {
	t.Helper()
	var s *subject
	if c.slow {
		n = 1
	}
	for i := range n {
		if s == nil || f.ends {
			s = newSubject(t, lab, f.opts)
			// Twice: there is a checkpoint before the newest.
			if err := errors.Join(s.ready(), s.ready()); err != nil {
				t.Fatalf("run %d: make the service ready: %v", i, err)
			}
		}
		found, err := s.suffer(p, c)
		for tries := 0; errors.Is(err, errMissed) && tries < 10; tries++ {
			if err = s.ready(); err == nil {
				found, err = s.suffer(p, c)
			}
		}
		if err != nil {
			st, serr := s.api.Status(lab.Context())
			t.Fatalf("run %d: %v\nstatus: %v %s\n%s%s", i, err, serr, st.Reason, historyText(st), s.notes())
		}
		all = append(all, found)
		if f.ends {
			if err := s.afterlife(); err != nil {
				t.Fatalf("run %d: after the end of the container: %v", i, err)
			}
			continue
		}
		// The next operations work.
		err = s.ready()
		if err == nil && c.lossy {
			err = s.ready() // now the one before is whole, too
		}
		if err != nil {
			st, _ := s.api.Status(lab.Context())
			t.Fatalf("run %d: after it: %v\n%s", i, err, historyText(st))
		}
	}
	return all
}

func historyText(st api.Status) string {
	var b strings.Builder
	for _, h := range st.History[max(0, len(st.History)-12):] {
		fmt.Fprintf(&b, "  %s %s -> %s: %s\n", h.At.Format("05.000"), h.From, h.To, h.Cause)
	}
	return b.String()
}

// notes are what the shim still knows to tell of what happened.
func (s *subject) notes() string {
	ctx, cancel := context.WithTimeout(s.lab.Context(), time.Second)
	defer cancel()
	w, err := s.api.Watch(ctx)
	if err != nil {
		return ""
	}
	<-w.Done()
	var b strings.Builder
	for _, e := range w.Events() {
		if e.Note != "" {
			fmt.Fprintf(&b, "  %s note: %s\n", e.At.Format("05.000"), e.Note)
		}
	}
	return b.String()
}

// ready has the service run, with a whole checkpoint behind it.
func (s *subject) ready() error {
	ctx := s.lab.Context()
	st, err := s.api.Status(ctx)
	if err != nil {
		return err
	}
	if st.State == api.Standby {
		if s.lost {
			_, err = s.api.Start(ctx, api.StartRequest{})
		} else {
			_, err = s.api.Restore(ctx, api.RestoreRequest{})
		}
		if err != nil {
			return fmt.Errorf("bring the service back: %w", err)
		}
	}
	s.lost = false
	if err := s.counts(); err != nil {
		return err
	}
	if err := s.checkpoint(); err != nil {
		return fmt.Errorf("a checkpoint: %w", err)
	}
	return nil
}

// errMissed: the fault came too late to be one.
var errMissed = errors.New("the operation was over before the fault came")

// suffer lives through a fault once.
func (s *subject) suffer(p phase, c cell) (found finding, err error) {
	healed := c.heal == nil
	defer func() {
		if !healed {
			err = errors.Join(err, c.heal(s))
		}
	}()
	ctx, cancel := context.WithTimeout(s.lab.Context(), time.Minute)
	defer cancel()
	if p == inRestore {
		if _, err := s.api.Standby(ctx, api.StopRequest{}); err != nil {
			return finding{}, err
		}
	}
	mark, began := s.mark(), time.Now()
	if p == inOperation || c.first {
		if err := c.inject(s); err != nil {
			return finding{}, fmt.Errorf("inject the fault: %w", err)
		}
	}
	if p != inOperation {
		if err := s.operate(ctx, p, c); err != nil {
			return finding{}, err
		}
	}
	got, err := s.becomes(mark, c.want...)
	if err != nil {
		return finding{}, err
	}
	seen := s.since(mark)
	if p == inRestore && len(seen) > 0 {
		seen[0].at = began
	}
	found = finding{got, away(seen)}
	if !healed {
		healed = true
		if err := c.heal(s); err != nil {
			return found, fmt.Errorf("take the fault away: %w", err)
		}
	}
	if got != hasEnded {
		if err := s.sound(); err != nil {
			return found, err
		}
		// Nothing more happens by itself.
		if again, err := s.becomes(mark, c.want...); err != nil || again != got {
			return found, fmt.Errorf("it was %q and became %q, %v", got, again, err)
		}
	}
	s.lost = c.lossy || c.useless
	if got == hasEnded {
		return found, nil // what its shim left half-written goes with the next checkpoint
	}
	return found, s.stored(c.lossy)
}

// operate carries out the phase's operation, with the fault in the middle.
func (s *subject) operate(ctx context.Context, p phase, c cell) error {
	var r api.Result
	result := make(chan error, 1)
	go func() {
		var err error
		if p == inCheckpoint {
			r, err = s.api.Checkpoint(ctx, api.CheckpointRequest{Hooks: c.hooks})
		} else {
			r, err = s.api.Restore(ctx, api.RestoreRequest{Hooks: c.hooks})
		}
		result <- err
	}()
	if !c.first {
		over := func() bool { return len(result) > 0 }
		for !s.atWork(p) && !over() {
			time.Sleep(time.Millisecond)
		}
		if over() {
			return errors.Join(errMissed, <-result)
		}
		if err := c.inject(s); err != nil {
			return fmt.Errorf("inject the fault: %w", err)
		}
	}
	err := <-result
	switch {
	case err == nil && c.op == mustFail:
		return fmt.Errorf("the %v succeeded", p)
	case err != nil && c.op == mustSucceed:
		return fmt.Errorf("the %v failed: %w", p, err)
	}
	if err == nil && p == inCheckpoint {
		s.saved = r.Checkpoint
	}
	if said := fmt.Sprint(err, r.Notes); !strings.Contains(said, c.text) {
		return fmt.Errorf("%q is not in what the %v said: %s", c.text, p, said)
	}
	return nil
}

// atWork says whether CRIU dumps, or has processes that it restores.
func (s *subject) atWork(p phase) bool {
	criu := criuOf(s.shim)
	return criu != 0 && (p == inCheckpoint || len(s.pids()) > 1)
}

// stored checks that the last checkpoint which was reported whole is there, and
// nothing half-written.
func (s *subject) stored(lossy bool) error {
	dir := s.lab.HostPath(faultCheckpoints)
	if s.dir != "" {
		dir = s.dir
	}
	ctx, cancel := context.WithTimeout(s.lab.Context(), 20*time.Second)
	defer cancel()
	err := harness.WaitFor(ctx, "no half-written checkpoint", func(context.Context) (bool, error) {
		left, err := filepath.Glob(filepath.Join(dir, "."+strings.TrimPrefix(s.url, "node:")+".*"))
		left = slices.DeleteFunc(left, func(name string) bool { return strings.Contains(name, ".previous") })
		return err == nil && len(left) == 0, fmt.Errorf("%v, %v", left, err)
	})
	if err != nil || lossy || s.saved == nil {
		return err
	}
	opened, err := (&store.Store{Node: dir}).Open(ctx, store.URL{Scheme: store.SchemeNode, Path: strings.TrimPrefix(s.url, "node:")})
	if err != nil {
		return fmt.Errorf("the checkpoint that was reported whole: %w", err)
	}
	defer opened.Close()
	if opened.Manifest.Digest != s.saved.Digest {
		return fmt.Errorf("the checkpoint is another than the one reported last, %s instead of %s", opened.Manifest.Digest, s.saved.Digest)
	}
	return nil
}

// faultTable is the matrix with its findings.
func faultTable(found map[string]map[phase][]finding) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprintln(w, " fault\t normal operation\t during a checkpoint\t during a restore\t the paper")
	fmt.Fprintln(w, " ---\t ---\t ---\t ---\t ---")
	for _, f := range faults() {
		fmt.Fprintf(w, " %s\t", f.name)
		for _, p := range []phase{inOperation, inCheckpoint, inRestore} {
			fmt.Fprintf(w, " %s\t", cellText(found[f.name][p]))
		}
		fmt.Fprintf(w, " %s\n", f.paper)
	}
	w.Flush()
	return b.String()
}

func cellText(all []finding) string {
	if len(all) == 0 {
		return "–"
	}
	by := map[outcome][]time.Duration{}
	for _, f := range all {
		by[f.what] = append(by[f.what], f.away)
	}
	var parts []string
	for _, o := range []outcome{wentOn, wasRestored, fromScratch, inStandby, hasEnded} {
		d := by[o]
		if len(d) == 0 {
			continue
		}
		slices.Sort(d)
		text := fmt.Sprintf("%s %d/%d", o, len(d), len(all))
		if o != inStandby && o != hasEnded {
			text += fmt.Sprintf(", %v", d[len(d)/2].Round(time.Millisecond))
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, "; ")
}
