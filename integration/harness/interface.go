package harness

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/api/client"
)

// Interface is a container's FastMig interface by its socket on the node's machine:
// the typed client, and Do for requests that no client would send.
type Interface struct {
	*client.Client
	// Path of the socket, as this process can reach it.
	Path string
	raw  http.Client
}

// Interface of the container.
func (c *Container) Interface() *Interface { return c.node.Interface(c.ID()) }

// Interface of the container with this id, which need not exist: then the calls say so.
func (n *Node) Interface(id string) *Interface {
	path := n.HostPath(api.SocketPath(n.Namespace, id))
	return &Interface{
		Client: client.New(path),
		Path:   path,
		raw: http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			},
			DisableKeepAlives: true,
		}},
	}
}

// HostPath is a path of the node's machine under its /run or /var/lib, as this process
// can reach it, until the node stops.
func (n *Node) HostPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "/run/"); ok && n.machine != nil {
		// The descriptor leads there from any mount namespace, and is short.
		return fmt.Sprintf("/proc/self/fd/%d/%s", n.machine.run.Fd(), rest)
	}
	if rest, ok := strings.CutPrefix(path, "/var/lib/"); ok {
		return filepath.Join(n.Dir, "varlib", rest)
	}
	return path
}

// Answer is one of the interface.
type Answer struct {
	Status int
	Header http.Header
	Text   string
}

// Do sends a request as it is and returns the answer, whatever its status.
func (i *Interface) Do(ctx context.Context, method, path, body string) (Answer, error) {
	return do(ctx, &i.raw, method, "http://fastmig"+path, body)
}

// DoTCP is Do by a TCP port in the container's network namespace, from inside it.
func (c *Container) DoTCP(ctx context.Context, port int, method, path, body string) (Answer, error) {
	address := fmt.Sprintf("127.0.0.1:%d", port)
	h := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.Dial(ctx, "tcp", address)
		},
		DisableKeepAlives: true,
	}}
	return do(ctx, &h, method, "http://"+address+path, body)
}

// DoTCP is Do by a TCP address, from the node's machine.
func (n *Node) DoTCP(ctx context.Context, address, method, path, body string) (Answer, error) {
	h := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return n.Dial(ctx, "tcp", address)
		},
		DisableKeepAlives: true,
	}}
	return do(ctx, &h, method, "http://"+address+path, body)
}

func do(ctx context.Context, h *http.Client, method, url, body string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, string(text)}, err
}

// Watch is a subscription to a container's events, all of which it keeps.
type Watch struct {
	mu     sync.Mutex
	events []api.Event
	err    error
	done   chan struct{}
}

// Watch subscribes to the container's events from the oldest on that the shim still
// knows, until ctx ends or the container does.
func (i *Interface) Watch(ctx context.Context) (*Watch, error) {
	seq, err := i.Events(ctx, 0)
	if err != nil {
		return nil, err
	}
	w := &Watch{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for e, err := range seq {
			w.mu.Lock()
			if err != nil {
				w.err = err
			} else {
				w.events = append(w.events, e)
			}
			w.mu.Unlock()
		}
	}()
	return w, nil
}

// Events that have come so far.
func (w *Watch) Events() []api.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// Done is closed when the subscription has ended; Err says why, nil: cleanly.
func (w *Watch) Done() <-chan struct{} { return w.done }

// Err of the subscription's end.
func (w *Watch) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// States are those that the service came into, in order.
func (w *Watch) States() []api.State {
	var states []api.State
	for _, e := range w.Events() {
		if e.Transition != nil {
			states = append(states, e.Transition.To)
		}
	}
	return states
}

// WaitEvent waits for an event and returns it.
func (w *Watch) WaitEvent(ctx context.Context, what string, is func(api.Event) bool) (api.Event, error) {
	var found api.Event
	err := WaitFor(ctx, what, func(context.Context) (bool, error) {
		events := w.Events()
		if i := slices.IndexFunc(events, is); i >= 0 {
			found = events[i]
			return true, nil
		}
		return false, fmt.Errorf("%d events so far", len(events))
	})
	return found, err
}

// WaitState waits until the service is in one of the states.
func (i *Interface) WaitState(ctx context.Context, states ...api.State) (api.Status, error) {
	var s api.Status
	err := WaitFor(ctx, fmt.Sprintf("the service to be %v", states), func(ctx context.Context) (bool, error) {
		var err error
		if s, err = i.Client.Status(ctx); err != nil {
			return false, err
		}
		return slices.Contains(states, s.State), fmt.Errorf("it is %s (%s)", s.State, s.Reason)
	})
	return s, err
}
