package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/runtime/toolkit"
)

// sections are run in this order.
var sections = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"lifecycle", (*bench).lifecycle},
	{"ctr", (*bench).byCtr},
	{"share", (*bench).share},
	{"tree", (*bench).tree},
	{"memory", (*bench).memory},
	{"warm", (*bench).warm},
	{"operations", (*bench).operations},
	{"ports", (*bench).ports},
	{"recovery", (*bench).recovery},
	{"overhead", (*bench).overhead},
	{"load", (*bench).load},
	{"idle", (*bench).idle},
}

// runtimes are the two that are compared.
var runtimes = []harness.Runtime{harness.FastMig, harness.Stock}

// roundTimeout bounds one round of one runtime, so that a hang names itself.
const roundTimeout = 5 * time.Minute

// warmUp is how many rounds go before the measured ones: the first finds files
// that are not in memory yet, and CRIU's probe of the kernel not made.
const warmUp = 1

type bench struct {
	cfg      config
	node     *harness.Node
	results  *results
	progress io.Writer
	// scratch is a folder on the tmpfs of the node's machine; it is seen there
	// only, and gone with it.
	scratch string
}

// run is the benchmark from top to bottom.
func run(ctx context.Context, cfg config, out, progress io.Writer) (err error) {
	machine, err := describeMachine()
	if err != nil {
		return err
	}
	fmt.Fprintln(progress, "preparing (the first time takes some minutes) ...")
	// The stock shim finds its CRIU on the PATH, in the toolkit: both use the same.
	node, err := harness.Start(ctx, harness.Options{
		Runtime: harness.FastMig, Toolkit: toolkit.RootFromEnv(), Progress: progress,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	if err := machine.addVersions(ctx, node); err != nil {
		return err
	}
	b := &bench{
		cfg: cfg, node: node, progress: progress, scratch: "/run/bench",
		results: &results{Machine: machine, Rounds: cfg.rounds},
	}
	if err := node.Import(ctx, images.Busybox, images.Python); err != nil {
		return err
	}
	if err := node.InMachine(func() error { return os.Mkdir(b.scratch, 0o700) }); err != nil {
		return err
	}
	for _, s := range sections {
		if !slices.Contains(cfg.sections, s.name) {
			continue
		}
		if err := s.run(b, ctx); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("stopped in the section %s: %w", s.name, ctx.Err())
			}
			return fmt.Errorf("section %s: %w; the end of containerd's log:\n%s", s.name, err, node.LogTail(20))
		}
	}
	b.results.finish()
	b.results.table(out)
	if cfg.out == "" {
		return nil
	}
	if err := b.results.write(cfg.out); err != nil {
		return err
	}
	fmt.Fprintf(progress, "written: %s\n", filepath.Join(cfg.out, "latest.{json,md}"))
	return nil
}

// values are what one round measured, by the row that they belong to.
type values map[*row]float64

// took notes the milliseconds since begin, and returns the time.
func (v values) took(r *row, begin time.Time) time.Time {
	now := time.Now()
	v[r] = now.Sub(begin).Seconds() * 1000
	return now
}

// alternate calls one for each runtime in each round, in the order A B B A, and
// takes the values that it returns.
func (b *bench) alternate(ctx context.Context, title string, rounds int, one func(context.Context, harness.Runtime) (values, error)) error {
	begin := time.Now()
	fmt.Fprintf(b.progress, "%s: %d rounds ...", title, rounds)
	for round := range warmUp + rounds {
		order := slices.Clone(runtimes)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, r := range order {
			v, err := b.round(ctx, r, one)
			if err != nil {
				fmt.Fprintln(b.progress)
				return fmt.Errorf("%s, %s, round %d: %w", title, r, round, err)
			}
			if round < warmUp {
				continue
			}
			for row, value := range v {
				row.add(r, value)
			}
		}
		if round >= warmUp && round%10 == 0 {
			fmt.Fprintf(b.progress, " %d", round)
		}
	}
	fmt.Fprintf(b.progress, " done in %.0f s\n", time.Since(begin).Seconds())
	return nil
}

func (b *bench) round(ctx context.Context, r harness.Runtime, one func(context.Context, harness.Runtime) (values, error)) (values, error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	return one(ctx, r)
}

// both calls f for each runtime.
func both(f func(harness.Runtime) error) error {
	for _, r := range runtimes {
		if err := f(r); err != nil {
			return fmt.Errorf("%s: %w", r, err)
		}
	}
	return nil
}
