package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/runtime/image"
)

// leaveTime is how long work gets to end by itself after its context did.
const leaveTime = 2 * time.Second

// guard runs work in a goroutine of its own and waits for it. When the place
// has been silent for the timeout, or work does not end after its context, it
// is left behind: a file system that does not answer holds a thread, and must
// not hold the caller. Should work return then, undo gets its result.
func guard[T any](ctx context.Context, timeout time.Duration, u URL, step string, work func(context.Context) (T, error), undo func(T)) (T, error) {
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	var last atomic.Int64
	begun := time.Now()
	bounded, cancel := context.WithCancel(image.WithPulse(ctx, func() {
		last.Store(int64(time.Since(begun)))
		passed("pulse")
	}))
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := work(bounded)
		done <- result{value, err}
	}()
	leave := func(err error) (T, error) {
		cancel()
		go func() {
			if r := <-done; r.err == nil && undo != nil {
				undo(r.value)
			}
		}()
		var none T
		return none, err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	ended := ctx.Done()
	for {
		select {
		case r := <-done:
			cancel()
			if r.err != nil {
				return r.value, fmt.Errorf("%s %s: %w", step, u, r.err)
			}
			return r.value, nil
		case <-ended:
			ended = nil
			timeout = leaveTime
			last.Store(int64(time.Since(begun)))
			timer.Reset(timeout)
		case <-timer.C:
			if ctx.Err() != nil {
				return leave(fmt.Errorf("%s %s: %w", step, u, context.Cause(ctx)))
			}
			silent := time.Since(begun) - time.Duration(last.Load())
			if silent < timeout {
				timer.Reset(timeout - silent)
				continue
			}
			return leave(fmt.Errorf("%s %s: %w", step, u, silence(timeout)))
		}
	}
}

// errSilent marks the error of a place that does not answer.
var errSilent = errors.New("its file system does not answer")

func silence(timeout time.Duration) error {
	return fmt.Errorf("%w, nothing was read or written for %s: see whether the network or the server behind it is down, or use another place: %w",
		errSilent, timeout, errdefs.ErrUnavailable)
}
