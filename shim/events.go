//go:build linux

package shim

import (
	"context"

	"github.com/containerd/containerd/v2/core/runtime"
	cshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/log"
)

// forwarder publishes events in the order in which they were sent, without
// making the sender wait for containerd.
type forwarder struct {
	queue   chan any
	closing chan struct{} // closed when the shim is asked to end
	done    chan struct{} // closed when all has been published
}

func newForwarder(ctx context.Context, publisher cshim.Publisher, sd shutdown.Service) *forwarder {
	f := &forwarder{queue: make(chan any, 128), closing: make(chan struct{}), done: make(chan struct{})}
	go f.run(context.WithoutCancel(ctx), publisher)
	// The shim ends when its callbacks are done: what was sent before, such as
	// the delete of its last container, is published first.
	sd.RegisterCallback(func(ctx context.Context) error {
		close(f.closing)
		select {
		case <-f.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return f
}

func (f *forwarder) send(event any) {
	select {
	case f.queue <- event:
	case <-f.closing:
	}
}

func (f *forwarder) run(ctx context.Context, publisher cshim.Publisher) {
	defer close(f.done)
	defer publisher.Close()
	publish := func(e any) {
		if err := publisher.Publish(ctx, runtime.GetTopic(e), e); err != nil {
			log.G(ctx).WithError(err).Error("post event")
		}
	}
	for {
		select {
		case e := <-f.queue:
			publish(e)
		case <-f.closing:
			for {
				select {
				case e := <-f.queue:
					publish(e)
				default:
					return
				}
			}
		}
	}
}
