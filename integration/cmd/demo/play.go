package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/integration/workloads"
)

const (
	source     = "redis-1"
	target     = "redis-2"
	checkpoint = "fastmig.test/redis:checkpoint"
)

type demo struct {
	node  *harness.Node
	keys  int
	out   io.Writer
	begin time.Time
}

// play is the demo from top to bottom.
func (d *demo) play(ctx context.Context) error {
	if err := d.node.Import(ctx, images.Redis); err != nil {
		return err
	}
	fmt.Fprintln(d.out)
	d.begin = time.Now()

	err := d.ctr(ctx, "run", append(d.network(), "--detach", images.Redis.Ref(), source)...)
	if err != nil {
		return err
	}
	redis, err := d.node.Load(ctx, source)
	if err != nil {
		return err
	}
	var runID string
	if err := d.step(fmt.Sprintf("write %d keys", d.keys), func() (err error) {
		runID, err = workloads.FillRedis(ctx, redis, d.keys)
		return err
	}); err != nil {
		return err
	}
	client := startCounting(ctx, redis)
	defer client.stop()
	if err := client.waitFor(ctx, 100); err != nil {
		return err
	}
	if d.node.Runtime == harness.Stock {
		client.stop() // the stock shim refuses a container with a connection
	}
	before := client.count.Load()

	if err := d.ctr(ctx, "container", "checkpoint", "--image", "--rw", "--task", source, checkpoint); err != nil {
		return err
	}
	// The server serves on until its container is deleted; what is counted
	// between the checkpoint and then is lost.
	if err := d.step("delete "+source, func() error { return redis.Remove(ctx) }); err != nil {
		return err
	}
	last := client.stop()

	if err := d.ctr(ctx, "container", "restore", "--rw", "--live", target, checkpoint); err != nil {
		return err
	}
	if redis, err = d.node.Load(ctx, target); err != nil {
		return err
	}
	if err := d.step(fmt.Sprintf("verify %d keys", d.keys), func() error {
		return workloads.CheckRedis(ctx, redis, runID, d.keys)
	}); err != nil {
		return err
	}
	counter, err := workloads.RedisCounter(ctx, redis)
	if err != nil {
		return err
	}
	if int64(counter) < before || int64(counter) > last {
		return fmt.Errorf("the counter came back as %d: it was %d before the checkpoint and %d at the end", counter, before, last)
	}
	client = startCounting(ctx, redis)
	defer client.stop()
	if err := client.waitFor(ctx, int64(counter)+100); err != nil {
		return err
	}
	d.report(runID, counter, last, client.stop())
	return nil
}

// network is what ctr run is told of the network: the stock shim does not
// restore a private one, not even its loopback device.
func (d *demo) network() []string {
	if d.node.Runtime == harness.Stock {
		return []string{"--net-host"}
	}
	return nil
}

// ctr runs ctr as a step and shows the command.
func (d *demo) ctr(ctx context.Context, verb string, args ...string) error {
	shown := append([]string{"ctr", verb}, args...)
	if verb == "run" {
		shown = append([]string{"ctr", verb, "--runtime", d.node.Runtime.Name}, args...)
	}
	return d.step(strings.Join(shown, " "), func() error {
		_, err := d.node.Ctr(ctx, append([]string{verb}, args...)...)
		return err
	})
}

func (d *demo) step(name string, f func() error) error {
	begin := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(d.out, "%7.2f s  +%4d ms  %s\n", begin.Sub(d.begin).Seconds(), time.Since(begin).Milliseconds(), name)
	return nil
}

func (d *demo) report(runID string, counter int, last, now int64) {
	fmt.Fprintf(d.out, `
the same server answers (run id %.8s...), all %d keys are as they were written
the counting client: %d in the checkpoint, %d when the first container was deleted, %d now
`, runID, d.keys, counter, last, now)
}
