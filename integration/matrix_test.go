package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/workloads"
)

// TestMatrix checkpoints and restores every workload and prints a table.
func TestMatrix(t *testing.T) {
	lab := harness.New(t, harness.Options{})
	var rows []*matrixRow
	// Deferred, so that the table is there when a row ends the test.
	defer func() { printMatrix(lab.Runtime, rows) }()
	for _, w := range workloads.All {
		row := &matrixRow{name: w.Name, result: "not run"}
		rows = append(rows, row)
		t.Run(strings.ReplaceAll(w.Name, " ", "-"), func(t *testing.T) {
			lab := lab.For(t)
			lab.MustImport(w.Image)
			run := row.run
			if w.Impossible != "" {
				run = row.runImpossible
			}
			if err := run(lab, w); err != nil {
				row.result, row.reason = "FAIL", err.Error()
				t.Fatal(err)
			}
		})
	}
}

// matrixRow is one line of the table. The times are those of the whole
// operation as a client sees it.
type matrixRow struct {
	name                string
	checkpoint, restore time.Duration
	result, reason      string
}

// run is the protocol of a row: the service outlives a checkpoint, ends with
// another, and goes on in a container of another name; there it can be
// checkpointed and restored once more.
func (r *matrixRow) run(lab *harness.Lab, w workloads.Workload) error {
	ctx := lab.Context()
	source, check, err := r.start(lab, w)
	if err != nil {
		return err
	}
	name := strings.Trim(strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' {
			return c
		}
		return -1
	}, strings.ToLower(w.Name)), "-")
	refs := []string{"fastmig.test/" + name + ":running", "fastmig.test/" + name + ":ended", "fastmig.test/" + name + ":again"}

	begin := time.Now()
	if err := source.Checkpoint(ctx, refs[0], false); err != nil {
		return err
	}
	r.checkpoint = time.Since(begin)
	if err := check(ctx, source); err != nil {
		return fmt.Errorf("after a checkpoint that leaves it running: %w", err)
	}
	moved, err := r.move(ctx, lab, source, refs[1])
	if err != nil {
		return err
	}
	if err := check(ctx, moved); err != nil {
		return fmt.Errorf("after the restore: %w", err)
	}
	again, err := r.move(ctx, lab, moved, refs[2])
	if err != nil {
		return fmt.Errorf("the second time: %w", err)
	}
	if err := check(ctx, again); err != nil {
		return fmt.Errorf("after the second restore: %w", err)
	}
	r.result = "ok"
	return nil
}

// runImpossible is the protocol of a row that CRIU cannot do: the checkpoint
// fails and tells why, and the service goes on.
func (r *matrixRow) runImpossible(lab *harness.Lab, w workloads.Workload) error {
	source, check, err := r.start(lab, w)
	if err != nil {
		return err
	}
	err = source.Checkpoint(lab.Context(), "fastmig.test/impossible:1", true)
	if err == nil {
		return errors.New("the checkpoint succeeded: the row is no longer impossible")
	}
	if told := err.Error() + lab.CRIUErrors(source.ID()); !strings.Contains(told, w.Impossible) {
		return fmt.Errorf("%w: nothing about %q in it", err, w.Impossible)
	}
	if lab.Runtime.IsFastMig() && !strings.Contains(err.Error(), w.Impossible) {
		return fmt.Errorf("the cause %q is in CRIU's log only: %w", w.Impossible, err)
	}
	if err := check(lab.Context(), source); err != nil {
		return fmt.Errorf("after the failed checkpoint: %w", err)
	}
	r.result, r.reason = "red", "CRIU: "+w.Impossible+"; the service goes on"
	return nil
}

func (r *matrixRow) start(lab *harness.Lab, w workloads.Workload) (*harness.Container, workloads.Check, error) {
	opts := w.Options()
	// The stock shim restores an empty network namespace, without so much as
	// the loopback device; what lies outside the container survives.
	opts.HostNetwork = lab.Runtime == harness.Stock
	source := lab.MustRun(opts)
	check, err := w.Fill(lab.Context(), source)
	if err != nil {
		return nil, nil, fmt.Errorf("put state in: %w", err)
	}
	return source, check, nil
}

// move ends the container with a checkpoint and restores it under a new name.
func (r *matrixRow) move(ctx context.Context, lab *harness.Lab, c *harness.Container, ref string) (*harness.Container, error) {
	if err := c.Checkpoint(ctx, ref, true); err != nil {
		return nil, err
	}
	if _, err := c.WaitExit(ctx); err != nil {
		return nil, fmt.Errorf("after a checkpoint that ends it: %w", err)
	}
	if err := c.Remove(ctx); err != nil {
		return nil, err
	}
	begin := time.Now()
	restored, err := lab.Restore(ctx, harness.RestoreOptions{Ref: ref})
	if err != nil {
		return nil, errors.Join(err, fmt.Errorf("the checkpoint is %s", ref))
	}
	if r.restore == 0 {
		r.restore = time.Since(begin)
	}
	lab.RemoveAtEnd(restored)
	return restored, nil
}

func printMatrix(runtime harness.Runtime, rows []*matrixRow) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nworkload\tcheckpoint ms\trestore ms\tresult (%s)\treason\n", runtime)
	for _, r := range rows {
		reason, _, _ := strings.Cut(r.reason, "\n")
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", r.name, r.checkpoint.Milliseconds(), r.restore.Milliseconds(), r.result, reason)
	}
	w.Flush()
}
