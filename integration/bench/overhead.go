package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// hogMiB is what the memory hog holds.
const hogMiB = 128

// memoryHog fills a block of memory, and waits for a reader that never reads.
var memoryHog = program{
	image:     images.Busybox,
	args:      []string{"sh", "-c", fmt.Sprintf("dd if=/dev/zero bs=%dM 2>/dev/null | sleep 1000000", hogMiB)},
	processes: 3,
}

// overhead measures what a running container and one in standby take.
func (b *bench) overhead(ctx context.Context) error {
	watch := max(b.cfg.idle/4, time.Second)
	b.results.section(fmt.Sprintf("Container with a memory hog of %d MiB, and one in standby: what they take; watched for %v", hogMiB, watch))
	running := hogRows{
		group:  b.results.row("running: memory of the cgroup, without file cache", "MiB"),
		inside: b.results.row("  Pss of its processes, with PID 1", "MiB"),
		all:    b.results.row("  Pss with its shim", "MiB"),
		cpu:    b.results.row("  CPU time a minute, with the shim", "ms"),
	}
	standby := hogRows{
		group:  b.results.row("standby: memory of the cgroup, without file cache", "MiB"),
		inside: b.results.row("  Pss of its processes, with PID 1", "MiB"),
		all:    b.results.row("  Pss with its shim", "MiB"),
		cpu:    b.results.row("  CPU time a minute, with the shim", "ms"),
	}
	fmt.Fprintf(b.progress, "overhead: watching for %v ...", watch)
	type one struct {
		c      *container
		rows   hogRows
		target watched
		before map[int]usage
	}
	var all []*one
	defer func() {
		for _, o := range all {
			_ = o.c.remove(ctx) // what stays is removed with the node
		}
	}()
	add := func(r harness.Runtime, p program, rows hogRows) error {
		c, err := b.run(ctx, r, p)
		if err != nil {
			return err
		}
		o := &one{c: c, rows: rows}
		all = append(all, o)
		o.target, err = c.watched()
		return err
	}
	for range idleContainers {
		err := both(func(r harness.Runtime) error { return add(r, memoryHog, running) })
		if err == nil {
			err = add(harness.FastMig, memoryHog.waiting(), standby)
		}
		if err != nil {
			return err
		}
	}
	for _, o := range all {
		if o.rows == running {
			if err := o.c.filled(ctx); err != nil {
				return err
			}
		}
	}
	// What the starts left to do is not counted.
	if err := rest(ctx); err != nil {
		return err
	}
	begin := time.Now()
	for _, o := range all {
		var err error
		if o.before, err = usageAll(ctx, o.c, o.target); err != nil {
			return err
		}
	}
	select {
	case <-time.After(watch):
	case <-ctx.Done():
		return ctx.Err()
	}
	minutes := time.Since(begin).Minutes()
	for _, o := range all {
		after, err := usageAll(ctx, o.c, o.target)
		if err != nil {
			return err
		}
		if err := o.rows.add(ctx, o.c, o.target, o.before, after, minutes); err != nil {
			return err
		}
	}
	fmt.Fprintln(b.progress, " done")
	return nil
}

type hogRows struct{ group, inside, all, cpu *row }

// processesOf are the container's, and its shim.
func processesOf(ctx context.Context, c *container, w watched) (inside []int, shim int, err error) {
	pids, err := c.task.Pids(ctx)
	if err != nil {
		return nil, 0, err
	}
	for _, p := range pids {
		inside = append(inside, int(p.Pid))
	}
	return inside, w.shim, nil
}

// usageAll is what all of them have used.
func usageAll(ctx context.Context, c *container, w watched) (map[int]usage, error) {
	inside, shim, err := processesOf(ctx, c, w)
	if err != nil {
		return nil, err
	}
	all := map[int]usage{}
	for _, pid := range append(inside, shim) {
		if all[pid], err = usageOf(pid); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// add takes one container's values.
func (rows hogRows) add(ctx context.Context, c *container, w watched, before, after map[int]usage, minutes float64) error {
	inside, shim, err := processesOf(ctx, c, w)
	if err != nil {
		return err
	}
	var pss, cpu float64
	for _, pid := range inside {
		f, err := footprintOf(pid)
		if err != nil {
			return err
		}
		pss += f.pss / 1024
	}
	f, err := footprintOf(shim)
	if err != nil {
		return err
	}
	for pid, u := range after {
		cpu += milliseconds(u.cpu-before[pid].cpu) / minutes
	}
	group, err := groupMemory(c.task.Pid())
	if err != nil {
		return err
	}
	rows.group.add(c.runtime, group)
	rows.inside.add(c.runtime, pss)
	rows.all.add(c.runtime, pss+f.pss/1024)
	rows.cpu.add(c.runtime, cpu)
	return nil
}

// groupMemory is what a process's cgroup is charged for, in MiB, without the file
// cache that the kernel can take back at once.
func groupMemory(pid uint32) (float64, error) {
	used, err := cgroupFile(pid, "memory", "memory.usage_in_bytes", "memory.current")
	if err != nil {
		return 0, err
	}
	stat, err := cgroupFile(pid, "memory", "memory.stat", "memory.stat")
	if err != nil {
		return 0, err
	}
	bytes, err := strconv.ParseFloat(strings.TrimSpace(used), 64)
	if err != nil {
		return 0, fmt.Errorf("read the memory of a cgroup: %w", err)
	}
	cache, err := inactiveFile(stat)
	return (bytes - cache) / (1 << 20), err
}

// inactiveFile reads the file cache of a cgroup's memory.stat, in bytes: with that
// of the groups below it if that is there.
func inactiveFile(stat string) (float64, error) {
	own, total := 0.0, -1.0
	for line := range strings.Lines(stat) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if name != "inactive_file" && name != "total_inactive_file" {
			continue
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, fmt.Errorf("read a cgroup's memory.stat: %w", err)
		}
		if name == "inactive_file" {
			own = value
		} else {
			total = value
		}
	}
	return max(own, total), nil
}

// filled waits until the hog holds its memory.
func (c *container) filled(ctx context.Context) error {
	return harness.WaitFor(ctx, "the memory hog", func(context.Context) (bool, error) {
		used, err := groupMemory(c.task.Pid())
		return err == nil && used >= hogMiB, fmt.Errorf("%.0f MiB so far: %w", used, err)
	})
}
