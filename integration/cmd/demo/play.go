package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
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
	steps []step
}

type step struct {
	name     string
	at, took time.Duration
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
	if err := client.waitFor(ctx, 100); err != nil {
		return err
	}

	if err := d.ctr(ctx, "container", "checkpoint", "--image", "--rw", "--task", source, checkpoint); err != nil {
		return err
	}
	// The server serves on until its container is deleted. What the client
	// counts after the checkpoint is not in it, so it stops now, and the
	// number that comes back may be lower than the last it saw.
	last := client.stop()
	if err := d.step("ctr task kill, ctr container delete", func() error {
		return redis.Remove(ctx)
	}); err != nil {
		return err
	}

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
	client = startCounting(ctx, redis)
	if err := client.waitFor(ctx, counter+100); err != nil {
		return err
	}
	now := client.stop()
	d.report(runID, counter, last, now)
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
	err := f()
	s := step{name, begin.Sub(d.begin), time.Since(begin)}
	d.steps = append(d.steps, s)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(d.out, "%7.2f s  %6.0f ms  %s\n", s.at.Seconds(), float64(s.took.Microseconds())/1000, s.name)
	return nil
}

func (d *demo) report(runID string, counter, last, now int) {
	fmt.Fprintf(d.out, `
the same server answers (run id %.8s...), all %d keys are as they were written
the counting client: %d in the checkpoint, %d when the first container was deleted, %d now
`, runID, d.keys, counter, last, now)
}

// counting is a client that increments a key of the server as fast as it can.
type counting struct {
	cancel context.CancelFunc
	done   chan error
	redis  *harness.Container
	output *harness.Buffer
}

func startCounting(ctx context.Context, redis *harness.Container) *counting {
	ctx, cancel := context.WithCancel(ctx)
	c := &counting{cancel: cancel, done: make(chan error, 1), redis: redis, output: &harness.Buffer{}}
	go func() {
		// -r -1 repeats the command for ever, -i waits between.
		c.done <- redis.ExecTo(ctx, c.output, "redis-cli", "-r", "-1", "-i", "0.002", "INCR", "counter")
	}()
	return c
}

// last is the last whole number that the client has seen.
func (c *counting) last() int {
	lines := strings.Split(c.output.String(), "\n")
	if len(lines) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(lines[len(lines)-2]))
	return n
}

func (c *counting) waitFor(ctx context.Context, count int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return harness.WaitFor(ctx, fmt.Sprintf("the client to count to %d", count), func(context.Context) (bool, error) {
		select {
		case err := <-c.done:
			return false, harness.Final(errors.Join(errors.New("the client ended"), err))
		default:
		}
		return c.last() >= count, fmt.Errorf("it is at %d", c.last())
	})
}

// stop ends the client and returns the last number it has seen.
func (c *counting) stop() int {
	c.cancel()
	<-c.done
	return c.last()
}
