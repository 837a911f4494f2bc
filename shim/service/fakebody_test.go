//go:build linux

package service

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
)

var _ Body = (*fake)(nil)

func (f *fake) Acquire(ctx context.Context) (func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("wait for the operation under way: %w", err)
	}
	select {
	case f.lock <- struct{}{}:
		return func() { <-f.lock }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the operation under way: %w", ctx.Err())
	}
}

func (f *fake) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || f.paused {
		return fmt.Errorf("serve: the container is paused or has ended: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (f *fake) Launch(ctx context.Context, l Launch) (Running, error) {
	f.mu.Lock()
	two, stuck := f.app != nil, f.frozen || f.paused
	f.mu.Unlock()
	if two {
		f.problem("two instances")
	}
	if stuck {
		f.problem("launched into a frozen container")
	}
	x := f.faultExit("Launch")
	if err := f.work(ctx, "Launch", true); err != nil {
		return Running{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if isClosed(f.gone) {
		return Running{}, fmt.Errorf("launch: %w", errGone)
	}
	f.apps++
	a := &app{pid: 1000 + f.apps, tied: l.Tied, launch: l, exit: make(chan int, 1)}
	if l.Image != nil {
		a.count = int(l.Image.Info.Bytes)
	}
	f.app = a
	if x != nil {
		go f.exitApp(*x)
	}
	return Running{Pid: a.pid, Exit: a.exit}, nil
}

// faultExit takes an armed exit out: what is launched ends at once.
func (f *fake) faultExit(call string) *int {
	x := f.fault(call)
	if x.kind == "exit" {
		return &x.status
	}
	if x.kind != "" {
		f.mu.Lock()
		f.faults = append([]fault{x}, f.faults...)
		f.mu.Unlock()
	}
	return nil
}

// unanswered blocks as PID 1 does in a frozen container.
func (f *fake) unanswered(ctx context.Context) error {
	f.mu.Lock()
	stuck := f.frozen || f.paused
	gone := f.gone
	f.mu.Unlock()
	if !stuck {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-gone:
		return errGone
	case <-time.After(hangLimit):
		return context.DeadlineExceeded
	}
}

func (f *fake) Tie(ctx context.Context, tied bool) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := f.unanswered(ctx); err != nil {
		return fmt.Errorf("tie: %w", err)
	}
	if err := f.work(ctx, "Tie", true); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.app != nil {
		f.app.tied = tied
	}
	return nil
}

func (f *fake) Freeze(ctx context.Context) (func() error, error) {
	if err := f.work(ctx, "Freeze", false); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.frozen = true
	return func() error {
		f.mu.Lock()
		f.frozen = false
		f.mu.Unlock()
		f.thawed()
		if f.fault("thaw").kind != "" {
			return fmt.Errorf("thaw: it was to fail")
		}
		return nil
	}, nil
}

func (f *fake) Breathe(ctx context.Context, do func() error) error {
	f.mu.Lock()
	if !f.paused {
		f.problems = append(f.problems, "Breathe in a container that is not paused")
	}
	// Like the real one it thaws what Freeze has stopped, too.
	frozen := f.frozen
	f.paused, f.frozen = false, false
	f.mu.Unlock()
	f.thawed()
	err := do()
	f.mu.Lock()
	f.paused, f.frozen = !f.ended, frozen && f.frozen
	f.mu.Unlock()
	if err == nil && f.fault("Breathe").kind != "" {
		err = fmt.Errorf("freeze the container again: it was to fail")
	}
	return err
}

func (f *fake) CheckPreserved(paths []string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen {
		f.problems = append(f.problems, "preserved paths are looked for in a frozen container")
	}
	for _, p := range paths {
		if strings.HasPrefix(p, "/missing") {
			return fmt.Errorf("%s is not there: %w", p, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

func (f *fake) Dump(ctx context.Context, d Dump) (api.Checkpoint, error) {
	f.mu.Lock()
	if !f.frozen {
		f.problems = append(f.problems, "dump of what is not frozen")
	}
	f.mu.Unlock()
	f.mu.Lock()
	f.preserved = d.Preserve
	f.mu.Unlock()
	d.Progress("dump", 0, 100)
	if err := f.work(ctx, "Dump", true); err != nil {
		return api.Checkpoint{}, err
	}
	d.Progress("dump", 100, 100)
	f.mu.Lock()
	a := f.app
	if a != nil {
		a.count++
	}
	f.mu.Unlock()
	if a == nil {
		return api.Checkpoint{}, fmt.Errorf("dump: the application is gone: %w", errdefs.ErrNotFound)
	}
	if d.Stage != nil {
		_, err := d.Stage()
		return api.Checkpoint{Bytes: int64(a.count)}, err
	}
	if d.URL.Scheme == "" {
		return api.Checkpoint{}, errNoStage
	}
	f.put(d.URL.String(), a.count, false)
	return kept{count: a.count, digest: fmt.Sprintf("%s#%d", d.URL, a.count)}.info(d.URL), nil
}

func (f *fake) Open(ctx context.Context, u store.URL) (Image, error) {
	if err := f.work(ctx, "Open", false); err != nil {
		return Image{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	place := f.places[u.String()]
	if len(place) == 0 {
		return Image{}, fmt.Errorf("%s: %w", u, errdefs.ErrNotFound)
	}
	for i := len(place) - 1; i >= 0; i-- {
		if place[i].broken {
			continue
		}
		f.images++
		image := Image{Info: place[i].info(u), Close: func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.images--
		}}
		if i < len(place)-1 {
			image.Note = "the newest checkpoint is damaged, the one before is used"
		}
		return image, nil
	}
	return Image{}, fmt.Errorf("%s: damaged: %w", u, errdefs.ErrDataLoss)
}

func (f *fake) Stat(ctx context.Context, u store.URL) (api.Checkpoint, error) {
	if err := f.work(ctx, "Stat", false); err != nil {
		return api.Checkpoint{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	place := f.places[u.String()]
	if len(place) == 0 {
		return api.Checkpoint{}, fmt.Errorf("%s: %w", u, errdefs.ErrNotFound)
	}
	return place[len(place)-1].info(u), nil
}

func (f *fake) Signal(sig int) error {
	f.mu.Lock()
	a := f.app
	if a != nil {
		a.signals = append(a.signals, sig)
	}
	f.mu.Unlock()
	switch {
	case a == nil:
		return fmt.Errorf("signal: %w", errdefs.ErrNotFound)
	case f.fault("Signal").kind != "":
		return fmt.Errorf("signal: it was to fail")
	case !a.ignores:
		go func() {
			time.Sleep(3 * time.Millisecond)
			if f.current() == a {
				f.exitApp(128 + sig)
			}
		}()
	}
	return nil
}

func (f *fake) EndService(ctx context.Context) error {
	err := f.work(ctx, "EndService", true)
	f.mu.Lock()
	f.frozen = false
	f.mu.Unlock()
	if err == nil {
		f.exitApp(137)
	}
	f.thawed()
	return err
}

func (f *fake) EndContainer(ctx context.Context) error {
	if err := f.work(ctx, "EndContainer", false); err != nil {
		return err
	}
	f.killContainer()
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// killContainer is SIGKILL by a client.
func (f *fake) killContainer() {
	f.mu.Lock()
	f.ending = true
	f.mu.Unlock()
	f.loseInit(true)
}

func (f *fake) Exec(ctx context.Context, args, env []string) (string, error) {
	if err := f.unanswered(ctx); err != nil {
		return "", err
	}
	if err := f.work(ctx, "Exec", true); err != nil {
		return "half a line", err
	}
	f.mu.Lock()
	f.execs = append(f.execs, args[0])
	gone := f.gone
	f.mu.Unlock()
	switch args[0] {
	case "fail":
		return "no, thanks\n", fmt.Errorf("it ended with status 1")
	case "hang":
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-gone:
			return "", errGone
		}
	}
	return "", nil
}

func (f *fake) Renew(ctx context.Context) error {
	err := f.work(ctx, "Renew", false)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !isClosed(f.gone) {
		f.problems = append(f.problems, "a new PID 1 beside a living one")
	}
	if err != nil {
		return err
	}
	if f.ending {
		return fmt.Errorf("the container is being ended: %w", errdefs.ErrFailedPrecondition)
	}
	f.gone = make(chan struct{})
	f.paused = false
	return nil
}

func (f *fake) OOMKilled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	was := f.oom
	f.oom = false
	return was
}

func (f *fake) Describe(st *api.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st.Container, st.InitPid = "running", 1
	if f.ended {
		st.Container, st.InitPid = "stopped", 0
	}
}
