package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// Opened is a whole checkpoint.
type Opened struct {
	*image.Checkpoint
	// Note says why newer ones were passed over; "" if this is the newest.
	Note string
}

// Info tells about a checkpoint what its manifest says.
type Info struct {
	CreatedAt time.Time
	Bytes     int64  // the size of all its files
	Digest    string // of its manifest, and so of all of it: "sha256:HEX"
}

// Open returns the newest whole checkpoint of the place u, every byte of it
// verified. Of a file: URL all but the page files are copied to where the
// container cannot write: what was verified is what is restored. While it is
// open, no writer removes it. It blocks for as long as reading takes, and gives
// up a place that is silent for the Timeout.
//
// Errors: NotFound if there is none; if none is whole, the newest's, as
// image.Open and Verify give them; Unavailable if the place does not answer;
// ResourceExhausted if the copy finds no room.
func (s *Store) Open(ctx context.Context, u URL) (*Opened, error) {
	return guard(ctx, s.Timeout, u, "open the checkpoint",
		func(ctx context.Context) (*Opened, error) { return s.open(ctx, u) },
		func(o *Opened) { _ = o.Close() })
}

func (s *Store) open(ctx context.Context, u URL) (o *Opened, err error) {
	p, err := s.place(u, false)
	if err != nil {
		return nil, err
	}
	defer p.close()
	o = new(Opened)
	o.Note, err = p.newest(ctx, func(name string) (err error) {
		o.Checkpoint, err = s.openWhole(ctx, p, name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Stat tells about the newest checkpoint of the place u that has a sound
// manifest. It reads nothing else.
//
// Errors: as Open.
func (s *Store) Stat(ctx context.Context, u URL) (Info, error) {
	return guard(ctx, s.Timeout, u, "look at the checkpoint",
		func(ctx context.Context) (Info, error) { return s.stat(ctx, u) }, nil)
}

func (s *Store) stat(ctx context.Context, u URL) (info Info, err error) {
	p, err := s.place(u, false)
	if err != nil {
		return info, err
	}
	defer p.close()
	_, err = p.newest(ctx, func(name string) error {
		c, err := image.OpenAt(p.parent, name)
		if err != nil {
			return err
		}
		info = Info{CreatedAt: c.Manifest.CreatedAt, Digest: "sha256:" + c.Manifest.Digest}
		for _, f := range c.Manifest.Files {
			info.Bytes += f.Size
		}
		return c.Close()
	})
	return info, err
}

// newest calls try with the names of the place's checkpoints, the newest first,
// until it takes one. The note says which were passed over.
func (p *place) newest(ctx context.Context, try func(name string) error) (note string, err error) {
	// A writer may be moving them between two looks.
	for range 3 {
		older, _, err := p.names()
		if err != nil {
			return "", fmt.Errorf("read folder %s: %w", p.parent.Name(), err)
		}
		names := []string{p.name}
		for _, i := range older {
			names = append(names, p.previous(i))
		}
		var (
			first error
			notes []string
		)
		for _, name := range names {
			err := try(name)
			switch {
			case err == nil:
				return strings.Join(notes, "; "), nil
			case ctx.Err() != nil, errdefs.IsResourceExhausted(err):
				return "", err // nothing is wrong with the checkpoint
			case errors.Is(err, unix.ENOENT):
				notes = append(notes, p.at(name)+" is missing")
				continue
			}
			if first == nil {
				first = err
			}
			notes = append(notes, fmt.Sprintf("%s was passed over: %v", p.at(name), err))
		}
		if first != nil {
			return "", first
		}
	}
	return "", fmt.Errorf("there is no checkpoint: take one first: %w", errdefs.ErrNotFound)
}

// shareTime is how long a checkpoint that a writer still holds is waited for.
const shareTime = time.Second

// openWhole opens and verifies one checkpoint.
func (s *Store) openWhole(ctx context.Context, p *place, name string) (*image.Checkpoint, error) {
	c, err := p.share(ctx, name)
	if err != nil {
		return nil, err
	}
	whole := c
	if p.foreign {
		whole, err = s.isolate(ctx, c)
	} else if err = c.Verify(ctx); err == nil {
		c.Trust() // only root writes there
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return whole, nil
}

// share opens a checkpoint and takes a shared lock on it, which writers heed
// before they remove it. One that is refused for long is used without.
func (p *place) share(ctx context.Context, name string) (*image.Checkpoint, error) {
	for begun := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		c, err := image.OpenAt(p.parent, name)
		if err != nil {
			return nil, err
		}
		locked := unix.Flock(int(c.File().Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil
		same, _ := p.is(name, c.File())
		if locked && same || ctx.Err() != nil || time.Since(begun) > shareTime {
			return c, nil
		}
		c.Close()
	}
}
