package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// lifecycle measures a container that does nothing, from its creation to its
// deletion.
func (b *bench) lifecycle(ctx context.Context) error {
	b.results.section("Container that runs /bin/true")
	var (
		total  = b.results.row("create + start + exit + delete", "ms").goal("≤ 1.0×")
		create = b.results.row("  create", "ms")
		start  = b.results.row("  start", "ms")
		exit   = b.results.row("  exit", "ms")
		del    = b.results.row("  delete", "ms")
		ctr    = b.results.row("ctr run --rm, whole command", "ms").goal("≤ 1.0×")
	)
	p := program{image: images.Busybox, args: []string{"/bin/true"}}
	err := b.alternate(ctx, "lifecycle by the client", b.cfg.rounds, func(ctx context.Context, r harness.Runtime) (_ values, err error) {
		c, err := b.newContainer(ctx, r, p)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, c.remove(ctx)) }()
		v := values{}
		begin := time.Now()
		if err := c.create(ctx, ""); err != nil {
			return nil, err
		}
		at := v.took(create, begin)
		if err := c.wait(ctx); err != nil {
			return nil, err
		}
		if err := c.start(ctx); err != nil {
			return nil, err
		}
		at = v.took(start, at)
		if err := c.exit(ctx); err != nil {
			return nil, err
		}
		at = v.took(exit, at)
		if _, err := c.task.Delete(ctx); err != nil {
			return nil, err
		}
		v.took(del, at)
		v.took(total, begin)
		return v, nil
	})
	if err != nil {
		return err
	}
	return b.alternate(ctx, "ctr run --rm", b.cfg.rounds, func(ctx context.Context, r harness.Runtime) (values, error) {
		v, begin := values{}, time.Now()
		// The later --runtime counts.
		_, err := b.node.Ctr(ctx, "run", "--runtime", r.Name, "--rm", images.Busybox.Ref(), harness.NewID("ctr"), "/bin/true")
		v.took(ctr, begin)
		return v, err
	})
}

// byCtr measures ctr's commands as a user sees them.
func (b *bench) byCtr(ctx context.Context) error {
	b.results.section("Small container (a shell loop), whole commands")
	checkpoint := b.results.row("ctr container checkpoint --task", "ms").goal("≤ 0.5×")
	restore := b.results.row("ctr container restore --live", "ms").goal("≤ 0.5×")

	sources := map[harness.Runtime]*container{}
	refs := map[harness.Runtime]string{}
	err := both(func(r harness.Runtime) (err error) {
		sources[r], err = b.run(ctx, r, shellLoop)
		return err
	})
	if err != nil {
		return err
	}
	err = b.alternate(ctx, "ctr container checkpoint", b.cfg.rounds, func(ctx context.Context, r harness.Runtime) (values, error) {
		if refs[r] != "" {
			if _, err := b.node.Ctr(ctx, "images", "rm", "--sync", refs[r]); err != nil {
				return nil, err
			}
		}
		refs[r] = "fastmig.test/bench:" + harness.NewID(r.String())
		v, begin := values{}, time.Now()
		_, err := b.node.Ctr(ctx, "container", "checkpoint", "--task", sources[r].ID(), refs[r])
		v.took(checkpoint, begin)
		return v, err
	})
	if err != nil {
		return err
	}
	// The restored container is in the source's cgroup under the stock shim.
	if err := both(func(r harness.Runtime) error { return sources[r].remove(ctx) }); err != nil {
		return err
	}
	return b.alternate(ctx, "ctr container restore", b.cfg.rounds, func(ctx context.Context, r harness.Runtime) (_ values, err error) {
		id := harness.NewID("ctr")
		defer func() { err = errors.Join(err, b.removeByID(context.WithoutCancel(ctx), id)) }()
		v, begin := values{}, time.Now()
		if _, err := b.node.Ctr(ctx, "container", "restore", "--live", id, refs[r]); err != nil {
			return nil, err
		}
		v.took(restore, begin)
		loaded, err := b.node.Load(ctx, id)
		if err != nil {
			return nil, err
		}
		c := &container{Container: loaded.Container, b: b, program: shellLoop, runtime: r, task: loaded.Task}
		return v, c.lives(ctx)
	})
}

// share measures the shim's part of a checkpoint and a restore of the small
// container.
func (b *bench) share(ctx context.Context) error {
	b.results.section("Small container, the shim's own share (Task API, paused task, folder on tmpfs)")
	rows := shareRows{
		checkpoint: b.results.row("Checkpoint called → returned", "ms").goal("FastMig ≤ 60 ms"),
		start:      b.results.row("Start called → application runs (restore)", "ms").goal("FastMig ≤ 40 ms"),
		late:       b.results.row("  the same, 0.2 s after Create", "ms"),
		create:     b.results.row("Create called → returned (restore)", "ms"),
		whole:      b.results.row("Create + Start (restore)", "ms"),
	}
	return b.roundTrip(ctx, "share", shellLoop, rows, b.cfg.rounds)
}

// tree measures how the restore grows with the number of processes.
func (b *bench) tree(ctx context.Context) error {
	b.results.section("Restore of a tree of processes (Task API)")
	scripts := []struct {
		processes int
		script    string
	}{
		{1, "exec sleep 1000000"},
		{4, "sleep 1000000 & sleep 1000000 & sleep 1000000 & wait"},
		// This one, 3 children, and 4 of each.
		{16, "for i in 1 2 3; do sh -c 'for j in 1 2 3 4; do sleep 1000000 & done; wait' & done; wait"},
	}
	var all []shareRows
	for _, s := range scripts {
		p := program{image: images.Busybox, args: []string{"sh", "-c", s.script}, processes: s.processes}
		name := "1 process"
		if s.processes > 1 {
			name = fmt.Sprintf("%d processes", s.processes)
		}
		rows := shareRows{
			start: b.results.row(name+", Start", "ms"),
			whole: b.results.row(name+", Create + Start", "ms"),
		}
		if err := b.roundTrip(ctx, "tree of "+name, p, rows, b.cfg.rounds); err != nil {
			return err
		}
		all = append(all, rows)
	}
	first, last := all[0], all[len(all)-1]
	b.results.row("16 processes to 1, Start", "×").goal("FastMig ≤ 2×").quotient(last.start, first.start)
	b.results.row("16 processes to 1, Create + Start", "×").quotient(last.whole, first.whole)
	return nil
}

// memory measures how both operations grow with the memory.
func (b *bench) memory(ctx context.Context) error {
	b.results.section("Touched, random memory (Task API, paused task, folder on tmpfs)")
	for _, size := range b.cfg.memory {
		p := program{
			image: images.Python, processes: 1, ready: "ready",
			args: []string{"python3", "-c", fmt.Sprintf(
				"import os, time\nb = os.urandom(%d << 20)\nprint('ready', flush=True)\nwhile True: time.sleep(1000)", size)},
		}
		name := fmt.Sprintf("%d MiB", size)
		rows := shareRows{
			checkpoint: b.results.row(name+", Checkpoint", "ms"),
			start:      b.results.row(name+", Start (restore)", "ms"),
			whole:      b.results.row(name+", Create + Start (restore)", "ms"),
		}
		if err := b.roundTrip(ctx, "memory of "+name, p, rows, b.cfg.memoryRounds); err != nil {
			return err
		}
	}
	return nil
}

// shareRows take the values of a round trip; nil ones take none.
type shareRows struct {
	checkpoint, create, start, whole *row
	// late is start for a container that has been waiting: the kernel's lock
	// for moves between cgroups is quick again only for a moment after a move,
	// and Create has made some.
	late *row
	// wait is between Create and Start.
	wait time.Duration
}

// lateWait is longer than that moment.
const lateWait = 200 * time.Millisecond

// roundTrip checkpoints a running container again and again, and then restores
// the last checkpoint again and again.
func (b *bench) roundTrip(ctx context.Context, title string, p program, rows shareRows, rounds int) error {
	sources := map[harness.Runtime]*container{}
	dirs := map[harness.Runtime]string{}
	err := both(func(r harness.Runtime) (err error) {
		dirs[r] = filepath.Join(b.scratch, r.String())
		sources[r], err = b.run(ctx, r, p)
		return err
	})
	if err != nil {
		return err
	}
	checkpoints := rounds
	if rows.checkpoint == nil {
		checkpoints = 1 // only to have one
	}
	err = b.alternate(ctx, title+", checkpoint", checkpoints, func(ctx context.Context, r harness.Runtime) (values, error) {
		if err := b.clear(dirs[r]); err != nil {
			return nil, err
		}
		took, err := sources[r].checkpoint(ctx, dirs[r])
		if err != nil || rows.checkpoint == nil {
			return nil, err
		}
		return values{rows.checkpoint: took}, sources[r].lives(ctx)
	})
	if err != nil {
		return err
	}
	if err := both(func(r harness.Runtime) error { return sources[r].remove(ctx) }); err != nil {
		return err
	}
	restore := func(title string, rows shareRows) error {
		return b.alternate(ctx, title, rounds, func(ctx context.Context, r harness.Runtime) (values, error) {
			return b.restoreOnce(ctx, r, p, dirs[r], rows)
		})
	}
	if err := restore(title+", restore", rows); err != nil {
		return err
	}
	if rows.late != nil {
		if err := restore(title+", late restore", shareRows{start: rows.late, wait: lateWait}); err != nil {
			return err
		}
	}
	return both(func(r harness.Runtime) error { return b.clear(dirs[r]) })
}

// restoreOnce restores the checkpoint into a container of its own.
func (b *bench) restoreOnce(ctx context.Context, r harness.Runtime, p program, checkpoint string, rows shareRows) (_ values, err error) {
	// CRIU writes statistics into the folder that it restores from. Each
	// round has a copy of its own, as each user of a checkpoint would.
	dir := checkpoint + "-copy"
	if err := b.copy(dir, checkpoint); err != nil {
		return nil, err
	}
	c, err := b.newContainer(ctx, r, p)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.remove(ctx), b.clear(dir)) }()
	return c.restore(ctx, dir, rows)
}

// checkpoint calls the Task API alone, without what containerd's client does
// around it, and returns the milliseconds of the call. The task is paused
// before and runs on afterwards.
func (c *container) checkpoint(ctx context.Context, dir string) (took float64, err error) {
	opts, err := typeurl.MarshalAnyToProto(&options.CheckpointOptions{ImagePath: dir})
	if err != nil {
		return 0, err
	}
	if err := c.task.Pause(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.task.Resume(context.WithoutCancel(ctx))) }()
	begin := time.Now()
	if _, err := c.b.node.Client().TaskService().Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerID: c.ID(), Options: opts}); err != nil {
		return 0, fmt.Errorf("checkpoint %s: %w", c.ID(), err)
	}
	return time.Since(begin).Seconds() * 1000, nil
}

// restore makes the task of a new container from the checkpoint and starts it.
func (c *container) restore(ctx context.Context, dir string, rows shareRows) (values, error) {
	begin := time.Now()
	if err := c.create(ctx, dir); err != nil {
		return nil, err
	}
	create := time.Since(begin)
	select {
	case <-time.After(rows.wait):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	begin = time.Now()
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	start := time.Since(begin)
	v := values{}
	for _, m := range []struct {
		row  *row
		took time.Duration
	}{{rows.create, create}, {rows.start, start}, {rows.whole, create + start}} {
		if m.row != nil {
			v[m.row] = m.took.Seconds() * 1000
		}
	}
	return v, c.lives(ctx)
}
