package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/shim/api"
)

// nodeURL is where the small service's checkpoint is; fileURL is in the
// container's own file system.
const (
	nodeURL = "node:bench"
	fileURL = "file:/checkpoint"
)

// warm measures how long a service takes to be back in a container that waits for
// it, beside the stock shim's way to the same end: a new container.
func (b *bench) warm(ctx context.Context) error {
	b.results.section("Warm restore of a small service (httpd) in a standby container; stock: ctr container restore --live")
	var (
		returned = b.results.row("request → answer (stock: whole command)", "ms").goal("FastMig ≤ 30 ms, ≤ 0.125×")
		answered = b.results.row("request → the service answers", "ms").goal("FastMig ≤ 30 ms, ≤ 0.125×")
		away     = b.results.row("  as the shim sees it", "ms")
		again    = b.results.row("the same container again: request → answer", "ms")
		life     = b.results.row("  request → the service answers", "ms")
		file     = b.results.row("checkpoint at file:/path: request → answer", "ms")
		fileLife = b.results.row("  request → the service answers", "ms")
	)
	a := b.httpAsker(serviceAddress)
	ref, err := b.checkpoints(ctx, a)
	if err != nil {
		return err
	}
	return b.alternate(ctx, "warm and cold restore", b.cfg.serviceRounds(), func(ctx context.Context, r harness.Runtime) (_ values, err error) {
		if err := a.silent(); err != nil {
			return nil, err
		}
		if !r.IsFastMig() {
			return b.cold(ctx, a, ref, returned, answered)
		}
		c, err := b.run(ctx, r, smallService.waiting())
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, c.remove(ctx)) }()
		v := values{}
		if err := c.restoreWarm(ctx, a, nodeURL, v, returned, answered); err != nil {
			return nil, err
		}
		if err := c.standby(ctx); err != nil {
			return nil, err
		}
		if err := c.restoreWarm(ctx, a, nodeURL, v, again, life); err != nil {
			return nil, err
		}
		// Into its own file system.
		var result api.Result
		if err := b.call(ctx, c.ID(), "/v1/checkpoint", api.CheckpointRequest{ImageURL: fileURL}, &result); err != nil {
			return nil, err
		}
		if err := c.standby(ctx); err != nil {
			return nil, err
		}
		if err := c.restoreWarm(ctx, a, fileURL, v, file, fileLife); err != nil {
			return nil, err
		}
		if err := c.standby(ctx); err != nil {
			return nil, err
		}
		if err := rest(ctx); err != nil {
			return nil, err
		}
		if err := b.call(ctx, c.ID(), "/v1/restore", api.RestoreRequest{ImageURL: nodeURL}, &result); err != nil {
			return nil, err
		}
		v[away] = result.Away * 1000
		return v, nil
	})
}

// waiting is standby, with nothing to wait for in run.
func (p program) waiting() program {
	p = p.standby()
	p.processes = 0
	return p
}

// checkpoints makes one of the small service at nodeURL under FastMig, and an
// image under the stock shim, whose reference is returned.
func (b *bench) checkpoints(ctx context.Context, a asker) (ref string, err error) {
	ref = "fastmig.test/bench:" + harness.NewID("warm")
	return ref, both(func(r harness.Runtime) (err error) {
		c, err := b.run(ctx, r, smallService)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.remove(ctx)) }()
		if err := a.awaited(ctx); err != nil {
			return err
		}
		if r.IsFastMig() {
			var result api.Result
			return b.call(ctx, c.ID(), "/v1/checkpoint", api.CheckpointRequest{ImageURL: nodeURL}, &result)
		}
		_, err = b.node.Ctr(ctx, "container", "checkpoint", "--task", c.ID(), ref)
		return err
	})
}

// awaited waits until the service answers.
func (a asker) awaited(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err := a.first(ctx)
	return err
}

// cold restores into a new container by ctr.
func (b *bench) cold(ctx context.Context, a asker, ref string, whole, answered *row) (_ values, err error) {
	id := harness.NewID("cold")
	defer func() { err = errors.Join(err, b.removeByID(context.WithoutCancel(ctx), id)) }()
	if err := rest(ctx); err != nil {
		return nil, err
	}
	command, life, err := a.timed(ctx, func() error {
		_, err := b.node.Ctr(ctx, "container", "restore", "--live", id, ref)
		return err
	})
	if err != nil {
		return nil, err
	}
	return values{whole: milliseconds(command), answered: milliseconds(life)}, nil
}

// restoreWarm brings the service back by the interface that FastMig's daemon
// published.
func (c *container) restoreWarm(ctx context.Context, a asker, url string, v values, returned, answered *row) error {
	if err := rest(ctx); err != nil {
		return err
	}
	request, life, err := a.timed(ctx, func() error {
		return c.b.call(ctx, c.ID(), "/run", api.Run{ImageURL: url}, nil)
	})
	if err != nil {
		return err
	}
	v[returned], v[answered] = milliseconds(request), milliseconds(life)
	return nil
}

// standby ends the service and leaves the container.
func (c *container) standby(ctx context.Context) error {
	var result api.Result
	return c.b.call(ctx, c.ID(), "/v1/standby", api.StopRequest{}, &result)
}

// operations measures the other requests of the interface, and what comes nearest
// to them under the stock shim.
func (b *bench) operations(ctx context.Context) error {
	b.results.section("Operations on the small service, request → answer; stock: the Task API's nearest (folder on tmpfs; create + start; kill + delete)")
	var (
		leave   = b.results.row("/checkpoint, leave_running", "ms")
		pause   = b.results.row("  the service stood still", "ms")
		leaving = b.results.row("/checkpoint, into standby", "ms")
		stop    = b.results.row("/v1/standby", "ms")
		start   = b.results.row("/v1/start", "ms")
		first   = b.results.row("  request → the service answers", "ms")
	)
	a := b.httpAsker(serviceAddress)
	dir := filepath.Join(b.scratch, "operations")
	return b.alternate(ctx, "operations", b.cfg.serviceRounds(), func(ctx context.Context, r harness.Runtime) (_ values, err error) {
		v := values{}
		if !r.IsFastMig() {
			return v, b.stockOperations(ctx, a, dir, v, leave, stop, start, first)
		}
		c, err := b.run(ctx, r, smallService.waiting())
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, c.remove(ctx)) }()
		ask := func(path string, request any, took *row) error {
			if err := rest(ctx); err != nil {
				return err
			}
			begin := time.Now()
			err := b.call(ctx, c.ID(), path, request, nil)
			v.took(took, begin)
			return err
		}
		begun := func() error {
			if err := rest(ctx); err != nil {
				return err
			}
			answer, life, err := a.timed(ctx, func() error { return b.call(ctx, c.ID(), "/v1/start", api.StartRequest{}, nil) })
			v[start], v[first] = milliseconds(answer), milliseconds(life)
			return err
		}
		var result api.Result
		return v, inOrder(
			begun,
			func() error {
				return ask("/checkpoint", api.CheckpointRun{LeaveRunning: true, ImageURL: nodeURL}, leave)
			},
			func() error { return a.awaited(ctx) },
			func() error {
				return b.call(ctx, c.ID(), "/v1/checkpoint", api.CheckpointRequest{ImageURL: nodeURL}, &result)
			},
			func() error { v[pause] = result.Away * 1000; return nil },
			func() error { return ask("/checkpoint", api.CheckpointRun{ImageURL: nodeURL}, leaving) },
			a.silent,
			begun,
			func() error { return ask("/v1/standby", api.StopRequest{}, stop) },
			a.silent,
		)
	})
}

// stockOperations are those of the stock shim.
func (b *bench) stockOperations(ctx context.Context, a asker, dir string, v values, leave, stop, start, first *row) (err error) {
	c, err := b.newContainer(ctx, harness.Stock, smallService)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.remove(ctx), b.clear(dir)) }()
	answer, life, err := a.timed(ctx, func() error {
		return inOrder(func() error { return c.create(ctx, "") }, func() error { return c.start(ctx) })
	})
	if err != nil {
		return err
	}
	v[start], v[first] = milliseconds(answer), milliseconds(life)
	if v[leave], err = c.checkpoint(ctx, dir); err != nil {
		return err
	}
	if err := a.awaited(ctx); err != nil {
		return err
	}
	begin := time.Now()
	if err := c.remove(ctx); err != nil {
		return err
	}
	v.took(stop, begin)
	if err := a.silent(); err != nil {
		return fmt.Errorf("after the container was removed: %w", err)
	}
	return nil
}

// inOrder calls one after the other, until one fails.
func inOrder(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
