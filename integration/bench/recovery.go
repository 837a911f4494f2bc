package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
	"github.com/fastmig/fastmig/shim/api"
)

// recoveryKeys of 1 KiB each are the 100 MiB of the redis-server that is lost.
const recoveryKeys = 100 << 10

// redisURL is where its checkpoint is.
const redisURL = "node:redis"

var redisServer = program{
	image: images.Redis,
	args: []string{"redis-server", "--save", "", "--appendonly", "no", "--dir", "/var/lib/redis",
		"--protected-mode", "no", "--enable-debug-command", "yes"},
	processes: 1,
	annotations: map[string]string{
		"io.fastmig.image-url": redisURL, "io.fastmig.supervise": "always", "io.fastmig.on-exit": "default",
	},
}

// recovery measures how long a client is without a redis-server whose container's
// PID 1 was killed. The stock shim brings nothing back: there a watcher that loses
// no moment deletes the container and restores its checkpoint.
func (b *bench) recovery(ctx context.Context) error {
	b.results.section("PID 1 of a redis-server with 100 MiB is killed: time without service; stock: delete and ctr container restore at once")
	var (
		gap  = b.results.row("longest gap between two answers to a client", "ms")
		seen = b.results.row("  from the signal to the service's return, by the shim", "ms")
	)
	if err := b.node.Import(ctx, images.Redis); err != nil {
		return err
	}
	c, err := b.run(ctx, harness.FastMig, redisServer)
	if err != nil {
		return err
	}
	defer func() { _ = c.remove(ctx) }() // what stays is removed with the node
	in, file, err := inNetwork(c.task.Pid())
	if err != nil {
		return err
	}
	defer file.Close()
	client := redisClient{asker{in: in, address: "127.0.0.1:6379", request: "PING\r\n", answer: "+PONG"}}
	if err := client.fill(ctx); err != nil {
		return err
	}
	var result api.Result
	if err := b.call(ctx, c.ID(), "/v1/checkpoint", api.CheckpointRequest{}, &result); err != nil {
		return err
	}
	stock := program{image: redisServer.image, args: append(redisServer.args[:len(redisServer.args):len(redisServer.args)],
		"--port", "6380"), processes: 1, hostNetwork: true}
	other := redisClient{asker{in: b.node.InMachine, address: "127.0.0.1:6380", request: "PING\r\n", answer: "+PONG"}}
	ref, lost, err := b.stockRedis(ctx, stock, other)
	if err != nil {
		return err
	}
	defer func() { _ = b.removeByID(context.WithoutCancel(ctx), lost) }()
	return b.alternate(ctx, "recovery", b.cfg.memoryRounds, func(ctx context.Context, r harness.Runtime) (values, error) {
		if !r.IsFastMig() {
			took, next, err := b.restoreRedis(ctx, other, lost, ref)
			if err != nil {
				return nil, err
			}
			lost = next
			return values{gap: took}, nil
		}
		// A loss soon after another is waited out for longer and longer; what was
		// asked for begins anew.
		err := inOrder(
			func() error { return c.standby(ctx) },
			func() error { return b.call(ctx, c.ID(), "/v1/restore", api.RestoreRequest{}, nil) },
			func() error { return client.awaited(ctx) },
			func() error { return rest(ctx) })
		if err != nil {
			return nil, err
		}
		begin := time.Now()
		took, err := client.gap(ctx, func() error {
			begin = time.Now()
			return c.killFirst(ctx)
		})
		if err != nil {
			return nil, err
		}
		back, err := c.recovered(ctx, begin)
		if err != nil {
			return nil, err
		}
		return values{gap: took, seen: milliseconds(back.Sub(begin))}, client.full()
	})
}

// killFirst kills the container's PID 1, which is not the one that the task had
// at its start any more.
func (c *container) killFirst(ctx context.Context) error {
	status, err := c.b.node.Interface(c.ID()).Status(ctx)
	if err != nil {
		return err
	}
	return unix.Kill(status.InitPid, unix.SIGKILL)
}

// recovered says when the service ran again after the moment.
func (c *container) recovered(ctx context.Context, after time.Time) (time.Time, error) {
	status, err := c.b.node.Interface(c.ID()).Status(ctx)
	if err != nil {
		return time.Time{}, err
	}
	for _, t := range status.History {
		if t.To == api.Running && t.At.After(after) {
			return t.At, nil
		}
	}
	return time.Time{}, fmt.Errorf("the service of %s did not come back: it is %s (%s)", c.ID(), status.State, status.Reason)
}

// stockRedis makes a redis-server under the stock shim and an image of it.
func (b *bench) stockRedis(ctx context.Context, p program, client redisClient) (ref, id string, err error) {
	c, err := b.run(ctx, harness.Stock, p)
	if err != nil {
		return "", "", err
	}
	if err := client.fill(ctx); err != nil {
		return "", c.ID(), err
	}
	ref = "fastmig.test/bench:" + harness.NewID("redis")
	_, err = b.node.Ctr(ctx, "container", "checkpoint", "--task", c.ID(), ref)
	return ref, c.ID(), err
}

// restoreRedis kills a container and puts another in its place.
func (b *bench) restoreRedis(ctx context.Context, client redisClient, id, ref string) (took float64, next string, err error) {
	c, err := b.node.Load(ctx, id)
	if err != nil {
		return 0, "", err
	}
	next = harness.NewID("redis")
	took, err = client.gap(ctx, func() error {
		if err := unix.Kill(int(c.Task.Pid()), unix.SIGKILL); err != nil {
			return err
		}
		if _, err := c.WaitExit(ctx); err != nil {
			return err
		}
		if err := c.Remove(ctx); err != nil {
			return err
		}
		_, err := b.node.Ctr(ctx, "container", "restore", "--live", next, ref)
		return err
	})
	if err != nil {
		return 0, "", err
	}
	return took, next, client.full()
}

// redisClient asks a redis-server.
type redisClient struct{ asker }

// fill writes the keys.
func (c redisClient) fill(ctx context.Context) error {
	if err := c.awaited(ctx); err != nil {
		return err
	}
	fill := c.asker
	fill.request, fill.answer = fmt.Sprintf("DEBUG POPULATE %d key 1024\r\n", recoveryKeys), "+OK"
	if err := fill.in(func() error { return fill.within(20 * time.Second) }); err != nil {
		return fmt.Errorf("fill the redis-server: %w", err)
	}
	return c.full()
}

// full says whether all keys are there.
func (c redisClient) full() error {
	size := c.asker
	size.request, size.answer = "DBSIZE\r\n", fmt.Sprintf(":%d\r\n", recoveryKeys)
	if err := size.in(size.once); err != nil {
		return fmt.Errorf("count the keys: %w", err)
	}
	return nil
}

// gap calls f while a client asks all the time, on one connection for as long as
// it lasts, and returns the milliseconds of the longest time between two answers.
func (c redisClient) gap(ctx context.Context, f func() error) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var (
		watch  sync.WaitGroup
		g      gaps
		lost   error
		enough = make(chan struct{})
	)
	watch.Go(func() { lost = c.in(func() error { return c.ask(ctx, &g, enough) }) })
	err := inOrder(
		func() error { return g.await(ctx, func(breaks, answers int) bool { return answers >= fewAnswers }) },
		f,
		func() error {
			return g.await(ctx, func(breaks, answers int) bool { return breaks > 0 && answers >= fewAnswers })
		})
	close(enough)
	watch.Wait()
	return milliseconds(g.longest), errors.Join(err, lost)
}

// fewAnswers show that a service serves.
const fewAnswers = 5

// gaps are between answers that a client gets.
type gaps struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
	// answers came since the last of the breaks.
	answers, breaks int
}

func (g *gaps) answered(at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.last.IsZero() {
		g.longest = max(g.longest, at.Sub(g.last))
	}
	g.last = at
	g.answers++
}

// broken notes that the connection was lost.
func (g *gaps) broken() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers = 0
	g.breaks++
}

func (g *gaps) await(ctx context.Context, enough func(breaks, answers int) bool) error {
	return harness.WaitFor(ctx, "the redis-server to answer", func(context.Context) (bool, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		return enough(g.breaks, g.answers), fmt.Errorf("%d answers after %d lost connections", g.answers, g.breaks)
	})
}

// ask asks until enough is closed.
func (c redisClient) ask(ctx context.Context, g *gaps, enough <-chan struct{}) error {
	var conn net.Conn
	defer func() {
		if conn != nil {
			conn.Close()
		}
	}()
	answer := make([]byte, len("+PONG\r\n"))
	for {
		select {
		case <-enough:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the redis-server does not answer: %w", ctx.Err())
		default:
		}
		if conn == nil {
			var err error
			if conn, err = net.DialTimeout("tcp", c.address, time.Second); err != nil {
				conn = nil
				time.Sleep(askEvery)
				continue
			}
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, err := conn.Write([]byte(c.request))
		if err == nil {
			_, err = conn.Read(answer)
		}
		if err != nil || !strings.HasPrefix(string(answer), c.answer) {
			conn.Close()
			conn = nil
			g.broken()
			continue
		}
		g.answered(time.Now())
		time.Sleep(askEvery)
	}
}
