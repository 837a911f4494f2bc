//go:build linux

package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/containerd/fifo"
	"golang.org/x/sys/unix"
)

// receiver is a process's end of its input.
type receiver interface {
	io.WriteCloser
	gone() bool // nobody will read what is written, although writing works
}

// pipeEnd is a receiver whose write fails when nobody reads.
type pipeEnd struct{ *os.File }

func (pipeEnd) gone() bool { return false }

// input carries what the client writes to the process of the moment. What was
// read when there is none, one buffer at most, waits for the next.
type input struct {
	from    io.ReadCloser
	release func() error // lets go of our own writer of the client's fifo

	mu       sync.Mutex
	more     sync.Cond // of mu: one of the following has changed
	to       receiver
	dead     receiver // to, once that does not read any more
	keep     bool     // wait for another life rather than end with this one
	released bool
	closed   bool
	over     bool // run has returned
	eof      bool // because the client's writers were gone
}

// openInput opens the client's stdin fifo, held open by a writer of our own
// until CloseStdin, so that a client which comes and goes does not end it.
func openInput(path string, to receiver, keep bool) (*input, error) {
	from, err := fifo.OpenFifo(context.Background(), path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open stdin %s: %w", path, err)
	}
	hold, err := fifo.OpenFifo(context.Background(), path, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		from.Close()
		return nil, fmt.Errorf("failed to open stdin fifo %s: %w", path, err)
	}
	in := &input{from: from, release: sync.OnceValue(hold.Close), to: to, keep: keep}
	in.more.L = &in.mu
	return in, nil
}

// run copies until the client's writers or, if it is not kept, the process is
// gone; then it closes both ends.
func (in *input) run() {
	eof := in.copy()
	in.mu.Lock()
	in.over, in.eof = true, eof
	to := in.to
	in.mu.Unlock()
	to.Close()
	in.from.Close()
}

func (in *input) copy() (eof bool) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := in.from.Read(*buf)
		for rest := (*buf)[:n]; len(rest) > 0; {
			to := in.target()
			if to == nil {
				return false
			}
			n, err := to.Write(rest)
			rest = rest[n:]
			if err != nil && !in.lost(to) {
				return false
			}
		}
		if err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}

// target waits until there is somebody to write to; nil after close.
func (in *input) target() receiver {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.keep && !in.closed && (in.to == in.dead || in.to.gone()) {
		in.more.Wait()
	}
	if in.closed {
		return nil
	}
	return in.to
}

// lost notes that a process does not read any more, and says whether to wait
// for the next one.
func (in *input) lost(to receiver) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed || !in.keep {
		return false
	}
	in.dead = to
	return true
}

// renew gives the input to another process, and the caller the end of the former
// one, if there is one, to close. If that is not possible (not ok), either the
// client has closed its end for good, which the process is to see (eof), or the
// input has to be opened again.
func (in *input) renew(to receiver) (old receiver, ok, eof bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.over || in.closed {
		return nil, false, in.eof || in.released
	}
	old = in.to
	in.to, in.keep = to, true
	in.more.Broadcast()
	return old, true, false
}

func (in *input) setKeep() {
	in.mu.Lock()
	in.keep = true
	in.mu.Unlock()
}

// closeHold lets the process see the end of its input once the client's
// writers are gone.
func (in *input) closeHold() error {
	in.mu.Lock()
	in.released = true
	in.mu.Unlock()
	return in.release()
}

// close ends the copying. Idempotent.
func (in *input) close() {
	in.release()
	in.mu.Lock()
	in.closed = true
	to := in.to
	in.more.Broadcast()
	in.mu.Unlock()
	to.Close()
	in.from.Close()
}
