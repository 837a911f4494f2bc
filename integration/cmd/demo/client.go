package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
)

const (
	redisAddress = "127.0.0.1:6379"
	countPause   = 2 * time.Millisecond
)

// counting is a client of the server: it increments a key over one connection,
// and over a new one when that breaks.
type counting struct {
	count  atomic.Int64 // the server's last answer
	cancel context.CancelFunc
	done   chan struct{}
}

func startCounting(ctx context.Context, redis *harness.Container) *counting {
	ctx, cancel := context.WithCancel(ctx)
	c := &counting{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for ctx.Err() == nil {
			conn, err := redis.Dial(ctx, "tcp", redisAddress)
			if err == nil {
				c.increment(ctx, conn)
			}
			pause(ctx)
		}
	}()
	return c
}

// increment counts until the connection breaks or ctx ends.
func (c *counting) increment(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	answers := bufio.NewReader(conn)
	for {
		if _, err := fmt.Fprint(conn, "INCR counter\r\n"); err != nil {
			return
		}
		answer, err := answers.ReadString('\n')
		if err != nil {
			return
		}
		// An integer reply is a colon and the number (Redis protocol).
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(answer, ":")), 10, 64)
		if err != nil {
			return
		}
		c.count.Store(n)
		pause(ctx)
	}
}

func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(countPause):
	}
}

func (c *counting) waitFor(ctx context.Context, count int64) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return harness.WaitFor(ctx, fmt.Sprintf("the client to count to %d", count), func(context.Context) (bool, error) {
		return c.count.Load() >= count, fmt.Errorf("it is at %d", c.count.Load())
	})
}

// stop ends the client and returns the last number it has seen. It may be
// called twice.
func (c *counting) stop() int64 {
	c.cancel()
	<-c.done
	return c.count.Load()
}
