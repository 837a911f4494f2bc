//go:build linux

package stdio

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"
)

// sink is one place that output goes to. The mutex of its owner guards it.
type sink struct {
	to    io.WriteCloser
	hold  io.Closer // our own reader of a fifo, which keeps it alive while clients come and go
	users int       // pumps that write to it
	path  string
	fifo  bool
}

// done takes a pump off and closes the sink if it was the last one and the
// output is not kept.
func (s *sink) done(keep bool) {
	s.users--
	s.settle(keep)
}

// settle closes a sink that nobody needs any more.
func (s *sink) settle(keep bool) {
	if s == nil || s.to == nil || s.users > 0 || keep {
		return
	}
	s.to.Close()
	if s.hold != nil {
		s.hold.Close()
	}
	s.to, s.hold = nil, nil
}

// openFifo opens a client's fifo for output. It blocks until the client has
// opened it too, or ctx ends.
func openFifo(ctx context.Context, path string) (*sink, error) {
	w, err := fifo.OpenFifo(ctx, path, unix.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open fifo %s for writing: %w", path, err)
	}
	r, err := fifo.OpenFifo(ctx, path, unix.O_RDONLY, 0)
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("open fifo %s for reading: %w", path, err)
	}
	return &sink{to: w, hold: r, path: path, fifo: true}, nil
}

// reopen opens a sink that was closed, for a new life of its process. The client
// may be gone: a fifo is opened for reading as well, which does not wait for it.
func (s *sink) reopen() error {
	if s.to != nil {
		return nil
	}
	if s.fifo {
		w, err := fifo.OpenFifo(context.Background(), s.path, unix.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("open fifo %s again: %w", s.path, err)
		}
		s.to = w
		return nil
	}
	if err := touch(s.path); err != nil {
		return fmt.Errorf("open the output %s again: %w", s.path, err)
	}
	f, err := os.OpenFile(s.path, unix.O_WRONLY|unix.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("open the output %s again: %w", s.path, err)
	}
	s.to = f
	return nil
}

// crew counts goroutines. Unlike a sync.WaitGroup it takes new ones while
// somebody waits.
type crew struct {
	mu   sync.Mutex
	n    int
	idle chan struct{} // closed when there are none; nil while nobody waits
}

func (c *crew) start(f func()) {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	go func() {
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.n--; c.n == 0 && c.idle != nil {
				close(c.idle)
				c.idle = nil
			}
		}()
		f()
	}()
}

// wait blocks until there are none, for a bounded time.
func (c *crew) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return nil
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a process's output was not taken: %w", ctx.Err())
	}
}
