package store

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// Watch asks the place's file system for a sign of life, again and again, while
// somebody who cannot be told to give up writes to File. When it has been silent
// for the Timeout, cancel is called with the reason, Unavailable. Watch returns at
// once; it ends with ctx.
func (st *Staging) Watch(ctx context.Context, cancel context.CancelCauseFunc) {
	watch(ctx, st.folder, st.store.Timeout, fmt.Sprintf("write the checkpoint %s", st.url), cancel)
}

// Watch is the same for those who read from a checkpoint that was opened at u.
func (s *Store) Watch(ctx context.Context, u URL, c *image.Checkpoint, cancel context.CancelCauseFunc) {
	place := c.Pages()
	if place == nil {
		place = c.File()
	}
	watch(ctx, place, s.Timeout, fmt.Sprintf("read the checkpoint %s", u), cancel)
}

func watch(ctx context.Context, place *os.File, timeout time.Duration, step string, cancel context.CancelCauseFunc) {
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	// Of our own: the place may be closed before a hanging question is answered.
	file, err := unix.FcntlInt(place.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		cancel(fmt.Errorf("%s: look after its file system: %w", step, err))
		return
	}
	alive := make(chan struct{})
	go func() {
		// A file system that hangs holds this goroutine until it answers, and no other.
		defer unix.Close(file)
		for {
			var s unix.Statfs_t
			// Unlike the attributes of a file, this is not cached.
			for unix.Fstatfs(file, &s) == unix.EINTR {
			}
			select {
			case alive <- struct{}{}:
			case <-ctx.Done():
				return
			}
			select {
			case <-time.After(timeout / 4):
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		for {
			select {
			case <-alive:
				timer.Reset(timeout)
			case <-timer.C:
				cancel(fmt.Errorf("%s: %w", step, silence(timeout)))
				return
			case <-ctx.Done():
				return
			}
		}
	}()
}
