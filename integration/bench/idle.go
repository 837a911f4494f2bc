package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// idleContainers is how many of each runtime are watched, at the same time.
const idleContainers = 3

// watched are the processes that an idle container costs besides its own.
type watched struct {
	shim int
	// first is PID 1 if that is not the application; else 0.
	first int
}

// idle measures what containers cost that do nothing.
func (b *bench) idle(ctx context.Context) error {
	b.results.section(fmt.Sprintf("Idle container: what its shim and, under FastMig, its PID 1 take; %d of each, watched for %v", idleContainers, b.cfg.idle))
	rows := idleRows{
		private:      b.results.row("private memory, shim + PID 1", "KiB"),
		pss:          b.results.row("proportional memory (Pss), shim + PID 1", "KiB"),
		shimPrivate:  b.results.row("  private, shim", "KiB"),
		shimDirty:    b.results.row("  private and dirty, shim", "KiB"),
		shimPss:      b.results.row("  Pss, shim", "KiB"),
		firstPrivate: b.results.row("  private, PID 1", "KiB").goal("FastMig ≤ 3072 KiB"),
		firstDirty:   b.results.row("  private and dirty, PID 1", "KiB"),
		cpu:          b.results.row("CPU time a minute, shim + PID 1", "ms"),
		switches:     b.results.row("context switches a minute, shim + PID 1", "times"),
		firstCPU:     b.results.row("  CPU time a minute, PID 1", "ms"),
		firstSwitch:  b.results.row("  context switches a minute, PID 1", "times"),
	}
	fmt.Fprintf(b.progress, "idle: watching for %v ...", b.cfg.idle)
	sleeper := program{image: images.Busybox, args: []string{"sleep", "1000000"}, processes: 1}
	var all []*container
	defer func() {
		for _, c := range all {
			_ = c.remove(ctx) // what stays is removed with the node
		}
	}()
	targets := map[*container]watched{}
	for range idleContainers {
		err := both(func(r harness.Runtime) error {
			c, err := b.run(ctx, r, sleeper)
			if err != nil {
				return err
			}
			all = append(all, c)
			targets[c], err = c.watched()
			return err
		})
		if err != nil {
			return err
		}
	}
	before := map[*container]map[int]usage{}
	begin := time.Now()
	for _, c := range all {
		var err error
		if before[c], err = targets[c].usage(); err != nil {
			return err
		}
	}
	timer := time.NewTimer(b.cfg.idle)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	minutes := time.Since(begin).Minutes()
	for _, c := range all {
		after, err := targets[c].usage()
		if err != nil {
			return err
		}
		if err := rows.add(c.runtime, targets[c], before[c], after, minutes); err != nil {
			return err
		}
	}
	fmt.Fprintln(b.progress, " done")
	return nil
}

// watched finds the container's shim and PID 1.
func (c *container) watched() (watched, error) {
	var w watched
	for _, p := range c.b.node.Shims() {
		if strings.Contains(p.Args+" ", " -id "+c.ID()+" ") {
			w.shim = p.Pid
		}
	}
	if w.shim == 0 {
		return w, fmt.Errorf("no shim of %s among %v", c.ID(), c.b.node.Shims())
	}
	if _, comm := processState(c.task.Pid()); comm == "fastfreeze" {
		w.first = int(c.task.Pid())
	}
	if c.runtime.IsFastMig() != (w.first != 0) {
		return w, fmt.Errorf("the first process of %s is not what its runtime would run", c.ID())
	}
	return w, nil
}

func (w watched) pids() []int {
	if w.first == 0 {
		return []int{w.shim}
	}
	return []int{w.shim, w.first}
}

// usage is what a process has used since its start.
type usage struct {
	cpu      time.Duration
	switches int
}

func (w watched) usage() (map[int]usage, error) {
	all := map[int]usage{}
	for _, pid := range w.pids() {
		u, err := usageOf(pid)
		if err != nil {
			return nil, err
		}
		all[pid] = u
	}
	return all, nil
}

func usageOf(pid int) (usage, error) {
	var u usage
	// The process's CPU clock (clock_getcpuclockid(3)), exact to the
	// nanosecond; /proc/PID/stat counts in hundredths of a second.
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &at); err != nil {
		return u, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	u.cpu = time.Duration(at.Nano())
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return u, err
	}
	for _, path := range threads {
		for _, key := range []string{"voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"} {
			text, err := lineOf(path, key)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				break // a thread that has ended meanwhile
			}
			if err != nil {
				return u, err
			}
			n, err := strconv.Atoi(text)
			if err != nil {
				return u, fmt.Errorf("read %s: %w", path, err)
			}
			u.switches += n
		}
	}
	return u, nil
}

// footprint is a process's memory in KiB (proc_pid_smaps_rollup(5)).
type footprint struct {
	private, dirty, pss float64
}

func footprintOf(pid int) (footprint, error) {
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	values := map[string]float64{}
	for _, key := range []string{"Private_Clean", "Private_Dirty", "Pss"} {
		text, err := lineOf(path, key)
		if err != nil {
			return footprint{}, err
		}
		if values[key], err = strconv.ParseFloat(strings.TrimSuffix(text, " kB"), 64); err != nil {
			return footprint{}, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return footprint{values["Private_Clean"] + values["Private_Dirty"], values["Private_Dirty"], values["Pss"]}, nil
}

type idleRows struct {
	private, pss                    *row
	shimPrivate, shimDirty, shimPss *row
	firstPrivate, firstDirty        *row
	cpu, switches                   *row
	firstCPU, firstSwitch           *row
}

// add takes one container's values.
func (rows idleRows) add(r harness.Runtime, w watched, before, after map[int]usage, minutes float64) error {
	shim, err := footprintOf(w.shim)
	if err != nil {
		return err
	}
	var first footprint
	if w.first != 0 {
		if first, err = footprintOf(w.first); err != nil {
			return err
		}
		rows.firstPrivate.add(r, first.private)
		rows.firstDirty.add(r, first.dirty)
	}
	rows.private.add(r, shim.private+first.private)
	rows.pss.add(r, shim.pss+first.pss)
	rows.shimPrivate.add(r, shim.private)
	rows.shimDirty.add(r, shim.dirty)
	rows.shimPss.add(r, shim.pss)
	var cpu, switches float64
	for _, pid := range w.pids() {
		c := (after[pid].cpu - before[pid].cpu).Seconds() * 1000 / minutes
		s := float64(after[pid].switches-before[pid].switches) / minutes
		cpu, switches = cpu+c, switches+s
		if pid == w.first {
			rows.firstCPU.add(r, c)
			rows.firstSwitch.add(r, s)
		}
	}
	rows.cpu.add(r, cpu)
	rows.switches.add(r, switches)
	return nil
}
