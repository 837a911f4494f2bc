package harness

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollInterval is short, because tests wait for things that take milliseconds,
// and long enough to leave the machine to them.
const pollInterval = 10 * time.Millisecond

// WaitFor polls cond until it says true or ctx ends. An error that comes with
// false is told when the time is up; only a Final one ends the wait. what
// completes the sentence "waited for ...".
func WaitFor(ctx context.Context, what string, cond func(context.Context) (bool, error)) error {
	begin := time.Now()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var last error
	for {
		ok, err := cond(ctx)
		switch {
		case ok:
			return nil
		case errors.As(err, new(final)):
			return fmt.Errorf("waited for %s: %w", what, err)
		case err != nil && (ctx.Err() == nil || last == nil):
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %.1f s for %s: %w", time.Since(begin).Seconds(), what, errors.Join(ctx.Err(), last))
		case <-tick.C:
		}
	}
}

type final struct{ error }

func (f final) Unwrap() error { return f.error }

// Final marks an error that ends WaitFor at once.
func Final(err error) error { return final{err} }
