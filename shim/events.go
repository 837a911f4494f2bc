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
	queue    chan any
	shutdown shutdown.Service
}

func newForwarder(ctx context.Context, publisher cshim.Publisher, sd shutdown.Service) *forwarder {
	f := &forwarder{queue: make(chan any, 128), shutdown: sd}
	go f.run(context.WithoutCancel(ctx), publisher)
	return f
}

func (f *forwarder) send(event any) {
	select {
	case f.queue <- event:
	case <-f.shutdown.Done():
	}
}

func (f *forwarder) run(ctx context.Context, publisher cshim.Publisher) {
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
		case <-f.shutdown.Done():
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
