package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// Staging is a checkpoint in the making, beside its place. Whoever makes it
// holds flock(2) on its folder until it ends. It is for one goroutine.
type Staging struct {
	store  *Store
	url    URL
	place  *place
	name   string   // .NAME.new-RANDOM
	folder *os.File // that folder, locked
	image  *image.Staging

	mu        sync.Mutex
	busy      bool // a Commit is at work, perhaps left behind
	left      bool // the busy one shall clean up
	committed bool
	closed    bool
}

// atStep is what tests have done at each step: they end the process there.
var atStep atomic.Pointer[func(step string)]

// passed is called after each step that a dying writer may have come to.
func passed(step string) {
	if f := atStep.Load(); f != nil {
		(*f)(step)
	}
}

// Stage prepares a checkpoint that shall become the newest of the place u. What
// writers that died left there is removed. It blocks while the file system
// does, at most for the Timeout.
//
// Errors: Unavailable if another checkpoint is being written there or the file
// system does not answer; AlreadyExists if something else is in the place;
// NotFound if the folder that shall hold it is missing.
func (s *Store) Stage(ctx context.Context, u URL) (*Staging, error) {
	return guard(ctx, s.Timeout, u, "prepare a checkpoint at",
		func(ctx context.Context) (*Staging, error) { return s.stage(ctx, u) },
		func(st *Staging) { _ = st.cleanUp() })
}

func (s *Store) stage(ctx context.Context, u URL) (_ *Staging, err error) {
	st := &Staging{store: s, url: u}
	if st.place, err = s.place(u, true); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.cleanUp())
		}
	}()
	unlock, err := st.place.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := st.place.checkTarget(); err != nil {
		return nil, err
	}
	if err := st.place.clear(ctx); err != nil {
		return nil, err
	}
	// A writer may have died before it did this.
	st.place.trim(s.keep())
	passed("clear")
	st.name = st.place.newName()
	if st.image, err = image.StageAt(st.place.parent, st.name); err != nil {
		return nil, err
	}
	passed("stage")
	if st.folder, err = st.image.Folder(); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(st.folder.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("lock %s: %w", st.folder.Name(), err)
	}
	passed("lock")
	return st, nil
}

// File is the folder to dump into. It belongs to the Staging.
func (st *Staging) File() *os.File { return st.image.File() }

// Commit makes the checkpoint whole and the newest of its place, then removes
// those that are one too many. It fills m as image.Staging's Commit does. It
// blocks while the disk is at work, and gives up one that is silent for the
// Timeout.
//
// After an error the place is as it was; only when the disk failed or was given
// up at the very end, the new checkpoint may be in place.
func (st *Staging) Commit(ctx context.Context, m *image.Manifest) error {
	st.mu.Lock()
	if st.closed || st.busy {
		st.mu.Unlock()
		return fmt.Errorf("write the checkpoint %s: its staging folder is closed: %w", st.url, errdefs.ErrFailedPrecondition)
	}
	st.busy = true
	st.mu.Unlock()
	// What is left behind must not write to what the caller reads.
	own := *m
	filled, err := guard(ctx, st.store.Timeout, st.url, "write the checkpoint",
		func(ctx context.Context) (*image.Manifest, error) {
			err := st.commit(ctx, &own)
			st.mu.Lock()
			defer st.mu.Unlock()
			st.busy = false
			if st.committed || st.left {
				err = errors.Join(err, st.cleanUpLocked())
			}
			return &own, err
		}, nil)
	if err != nil {
		return err
	}
	*m = *filled
	return nil
}

// commit, step by step. At every moment, the newest checkpoint that was
// reported, or this one, is the first whole one among NAME, .NAME.previous,
// .NAME.previous-1 and so on.
func (st *Staging) commit(ctx context.Context, m *image.Manifest) error {
	// 1. It is whole, and on the disk, under its own name.
	if err := st.image.Commit(ctx, m); err != nil {
		return err
	}
	passed("whole")
	unlock, err := st.place.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := ctx.Err(); err != nil {
		return err // given up meanwhile
	}
	// 2. The older ones make room, the oldest first.
	if err := st.place.shift(); err != nil {
		return err
	}
	// 3. It takes the name. Where others rename at will, something else may be
	// there now: then nothing is reported.
	if err := st.place.rename(st.name, st.place.name); err != nil {
		return err
	}
	passed("name")
	if same, err := st.place.is(st.place.name, st.folder); err != nil || !same {
		return fmt.Errorf("%s was replaced while it was written: keep others from its folder: %w", st.place.at(st.place.name), errdefs.ErrUnavailable)
	}
	if err := syncFolder(st.place.parent); err != nil {
		return err
	}
	st.committed = true
	passed("sync")
	// 4. Those that are too many go; what cannot go now, the next Stage removes.
	st.place.trim(st.store.keep())
	return nil
}

// Abort removes what the Staging put on the disk. After Commit succeeded, or a
// second time, it does nothing, so that it can be deferred. A Commit that was
// given up does it itself when it ends.
func (st *Staging) Abort() error {
	st.mu.Lock()
	if st.busy {
		st.left = true
		st.mu.Unlock()
		return nil
	}
	if st.closed {
		st.mu.Unlock()
		return nil
	}
	st.busy = true
	st.mu.Unlock()
	_, err := guard(context.Background(), st.store.Timeout, st.url, "remove the unfinished checkpoint at",
		func(context.Context) (struct{}, error) {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.busy = false
			return struct{}{}, st.cleanUpLocked()
		}, nil)
	return err
}

func (st *Staging) cleanUp() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.cleanUpLocked()
}

func (st *Staging) cleanUpLocked() error {
	if st.closed {
		return nil
	}
	st.closed = true
	var err error
	if st.image != nil {
		err = st.image.Abort()
	}
	if st.folder != nil {
		st.folder.Close() // and with it the lock, which would keep RemoveAt out
	}
	if st.image != nil && !st.committed {
		// It may have been whole already.
		if rerr := image.RemoveAt(st.place.parent, st.name); !errdefs.IsNotFound(rerr) {
			err = errors.Join(err, rerr)
		}
	}
	st.place.close()
	return err
}

// lockTime bounds the wait for another writer in the same folder, who holds the
// lock for a few system calls.
const lockTime = 10 * time.Second

// lock keeps other writers out of the parent folder for a moment.
func (p *place) lock(ctx context.Context) (unlock func(), err error) {
	fd := int(p.parent.Fd())
	for begun := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		switch err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return func() { _ = unix.Flock(fd, unix.LOCK_UN) }, nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, fmt.Errorf("lock %s: %w", p.parent.Name(), withKind(err))
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case time.Since(begun) > lockTime:
			return nil, fmt.Errorf("%s is locked by another process: try again when it has ended: %w", p.parent.Name(), errdefs.ErrUnavailable)
		}
	}
}
