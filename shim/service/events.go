//go:build linux

package service

import (
	"context"
	"sync"
	"time"

	"github.com/fastmig/fastmig/shim/api"
)

const (
	// eventsKept bounds those that a late listener still gets.
	eventsKept = 256
	// listenerQueue bounds what a slow listener may lag behind; it then misses
	// progress, which the numbers of the events show.
	listenerQueue = 64
)

// hub hands the events of a service to whoever listens. It never waits for a
// listener.
type hub struct {
	mu        sync.Mutex
	seq       uint64
	kept      []api.Event
	listeners map[chan api.Event]struct{}
	closed    bool
}

func newHub() *hub { return &hub{listeners: make(map[chan api.Event]struct{})} }

func (h *hub) send(e api.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.seq++
	e.Seq = h.seq
	if e.At.IsZero() {
		e.At = time.Now()
	}
	if len(h.kept) == eventsKept {
		copy(h.kept, h.kept[1:])
		h.kept = h.kept[:eventsKept-1]
	}
	h.kept = append(h.kept, e)
	for l := range h.listeners {
		select {
		case l <- e:
		default:
		}
	}
}

// listen gives those after a number that are still known, and then what comes.
// The channel is closed when ctx or the container ends.
func (h *hub) listen(ctx context.Context, after uint64) <-chan api.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	l := make(chan api.Event, eventsKept+listenerQueue)
	if after > h.seq {
		after = 0 // a number of another life of the shim
	}
	for _, e := range h.kept {
		if e.Seq > after {
			l <- e
		}
	}
	if h.closed {
		close(l)
		return l
	}
	h.listeners[l] = struct{}{}
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if _, there := h.listeners[l]; there {
			delete(h.listeners, l)
			close(l)
		}
	})
	return l
}

func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for l := range h.listeners {
		delete(h.listeners, l)
		close(l)
	}
}
