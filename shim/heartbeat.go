//go:build linux

package shim

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/internal/config"
)

// children tells all heartbeats at once that a child of the shim has changed its
// state: one that was stopped is seen then, and not only by its silence.
var children = sync.OnceValue(func() *broadcast {
	b := &broadcast{ch: make(chan struct{})}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		for range signals {
			b.send()
		}
	}()
	return b
})

// broadcast wakes everybody who waits.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

func (b *broadcast) send() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}

func (b *broadcast) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

// heart looks after the PID 1 of a container: whether it answers.
type heart struct {
	t      *task
	cfg    config.Supervisor
	ctx    context.Context
	stop   context.CancelFunc
	killed atomic.Bool // the present PID 1 was given up
}

func newHeart(t *task, cfg config.Supervisor) *heart {
	h := &heart{t: t, cfg: cfg}
	h.ctx, h.stop = context.WithCancel(context.Background())
	return h
}

// gaveUp says whether PID 1 died because it did not answer.
func (h *heart) gaveUp() bool { return h != nil && h.killed.Swap(false) }

// beat looks after an incarnation until its PID 1 is gone.
func (h *heart) beat(inc *incarnation) {
	go func() {
		tick := time.NewTicker(time.Duration(h.cfg.Heartbeat))
		defer tick.Stop()
		for {
			stopped := children().next()
			select {
			case <-h.ctx.Done():
				return
			case <-inc.engine.Gone():
				return
			case <-stopped:
				if !isStopped(inc.proc.Pid) {
					continue
				}
			case <-tick.C:
			}
			if !h.t.svc.Recoverable() {
				// To end it would end the container: it may be somebody's debugger.
				continue
			}
			switch err := h.look(inc); {
			case err == nil:
			case isStopped(inc.proc.Pid):
				// Somebody stopped it; the service has not noticed yet.
				_ = inc.proc.Signal(unix.SIGCONT)
				h.t.svc.Note("FastFreeze was stopped by a signal and is continued")
			default:
				h.killed.Store(true)
				_ = inc.proc.Signal(unix.SIGKILL)
				return
			}
		}
	}()
}

var errStopped = errors.New("it is stopped")

// look asks PID 1 for a sign of life, unless the container is frozen, and whether it is
// stopped in any case.
func (h *heart) look(inc *incarnation) error {
	// Also while something is done to the container: that would wait for it in vain.
	if isStopped(inc.proc.Pid) {
		return errStopped
	}
	if !h.t.gate.TryAcquire(1) {
		return nil
	}
	defer h.t.gate.Release(1)
	if h.t.now() != StateRunning {
		return nil
	}
	ctx, cancel := context.WithTimeout(h.ctx, time.Duration(h.cfg.HeartbeatTimeout))
	defer cancel()
	err := inc.engine.Ping(ctx)
	if h.ctx.Err() != nil {
		return nil
	}
	select {
	case <-inc.engine.Gone():
		return nil // it is dead, and that is known elsewhere
	default:
		return err
	}
}

// cldStopped is si_code of a child that a signal has stopped; one that a tracer has, a
// thread of ours among them, is told by another (sigaction(2)).
const cldStopped = 5

// isStopped says whether a process is stopped by a signal; of a child of ours, whose
// number cannot be another's.
func isStopped(pid int) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err == nil && info.Signo == int32(unix.SIGCHLD) && info.Code == cldStopped
}
