//go:build linux

package shim

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/container"
	"github.com/fastmig/fastmig/shim/stdio"
)

// consoleTimeout bounds the wait for a new terminal and for the client to open
// its fifos.
const consoleTimeout = 30 * time.Second

// process is the first process of a container, or one exec'ed into it.
type process struct {
	id   string // "" for the first
	addr stdio.Addresses
	spec *specs.Process // of an exec

	// announce is held while the event of the start is on its way, so that
	// the exit's comes after it.
	announce sync.Mutex

	mu       sync.Mutex
	proc     *container.Process
	streams  *stdio.Streams
	terminal *stdio.Terminal
	started  bool
	exited   time.Time
	status   int
	done     chan struct{}
}

func newProcess(id string, addr stdio.Addresses) *process {
	return &process{id: id, addr: addr, done: make(chan struct{})}
}

// wiring is what stands between a process that is being started and its
// client.
type wiring struct {
	p       *process
	io      container.Stdio
	streams *stdio.Streams
	socket  *stdio.ConsoleSocket
}

// wire makes the process's stdio; to be joined with connect once it runs, or
// given up with abandon.
func (p *process) wire(ctx context.Context, ns, containerID string, owner stdio.Owner) (*wiring, error) {
	w := &wiring{p: p}
	if p.addr.Terminal {
		s, err := stdio.NewConsoleSocket()
		if err != nil {
			return nil, err
		}
		w.socket = s
		w.io.Console = s.Child
		return w, nil
	}
	id := containerID
	if p.id != "" {
		id = p.id
	}
	s, err := stdio.Open(ctx, ns, id, p.addr, owner)
	if err != nil {
		return nil, err
	}
	w.streams = s
	w.io = container.Stdio{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr}
	return w, nil
}

// connect joins the running process to its client. The child's ends stay open
// here until release.
func (w *wiring) connect(ctx context.Context, consoles *stdio.Consoles, ns, containerID string) error {
	ctx, cancel := context.WithTimeout(ctx, consoleTimeout)
	defer cancel()
	if w.socket != nil {
		w.socket.CloseChild()
		master, err := w.socket.Receive(consoleTimeout)
		if err != nil {
			return err
		}
		id := containerID
		if w.p.id != "" {
			id = w.p.id
		}
		t, err := consoles.Attach(ctx, master, ns, id, w.p.addr)
		if err != nil {
			return fmt.Errorf("failed to start console copy: %w", err)
		}
		w.p.mu.Lock()
		w.p.terminal = t
		w.p.mu.Unlock()
		return nil
	}
	if err := w.streams.Copy(ctx); err != nil {
		return fmt.Errorf("failed to start io pipe copy: %w", err)
	}
	w.p.mu.Lock()
	w.p.streams = w.streams
	w.p.mu.Unlock()
	return nil
}

// release gives up our hold of the process's ends.
func (w *wiring) release() {
	if w.socket != nil {
		w.socket.Close()
	}
	if w.streams != nil {
		w.streams.CloseChild()
	}
}

// abandon takes everything back.
func (w *wiring) abandon() {
	w.release()
	if w.streams != nil {
		w.streams.Close()
	}
	w.p.mu.Lock()
	t := w.p.terminal
	w.p.mu.Unlock()
	if t != nil {
		t.Close()
	}
}

// run notes that the process is there.
func (p *process) run(proc *container.Process) {
	p.mu.Lock()
	p.proc = proc
	p.started = true
	p.mu.Unlock()
}

// pid as the host sees it; 0 before there is one.
func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil {
		return 0
	}
	return p.proc.Pid
}

// exit notes the process's end, once.
func (p *process) exit(status int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.exited.IsZero() {
		return
	}
	p.status = status
	p.exited = time.Now()
	if p.terminal != nil {
		p.terminal.Shutdown()
	}
	if p.streams != nil {
		p.streams.End()
	}
	close(p.done)
}

func (p *process) exitStatus() (int, time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status, p.exited
}

// wait blocks until the process has ended or ctx has.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signal reaches the process itself.
func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.proc == nil:
		return fmt.Errorf("process not created: %w", errdefs.ErrFailedPrecondition)
	case !p.exited.IsZero():
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	return p.proc.Signal(sig)
}

func (p *process) resize(width, height uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal == nil {
		return nil
	}
	return p.terminal.Resize(uint16(width), uint16(height))
}

func (p *process) closeStdin() error {
	p.mu.Lock()
	streams, terminal := p.streams, p.terminal
	p.mu.Unlock()
	switch {
	case streams != nil:
		return streams.CloseStdin()
	case terminal != nil:
		return terminal.CloseStdin()
	}
	return nil
}

// close takes the rest of the process's output and gives its stdio up.
func (p *process) close(ctx context.Context) {
	p.mu.Lock()
	streams, terminal := p.streams, p.terminal
	p.mu.Unlock()
	drain := func(f func(context.Context) error) {
		if err := f(ctx); err != nil {
			log.G(ctx).WithError(err).WithField("exec", p.id).Error("drain a process's output")
		}
	}
	if streams != nil {
		drain(streams.Drain)
		streams.Close()
	}
	if terminal != nil {
		drain(terminal.Drain)
		terminal.Close()
	}
}
