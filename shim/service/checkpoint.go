//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/runtime/preserve"
	"github.com/fastmig/fastmig/shim/api"
)

// ending says what ends after a checkpoint.
type ending int

const (
	endNothing ending = iota
	endService
	endContainer
)

// checkpoint is one checkpoint of the service.
type checkpoint struct {
	cause string
	dump  Dump
	end   ending
	hooks Hooks
}

// Checkpoint writes the service's state to where the request says.
func (s *Service) Checkpoint(ctx context.Context, r api.CheckpointRequest) (res api.Result, err error) {
	hooks, err := s.settings().Hooks.with(r.Hooks)
	if err != nil {
		return res, err
	}
	c := checkpoint{cause: "checkpoint was requested", hooks: hooks}
	if c.dump.URL, err = s.url(r.ImageURL); err != nil {
		return res, fmt.Errorf("checkpoint: %w", err)
	}
	switch r.TCP {
	case "", "close":
	case "keep":
		c.dump.KeepTCP = true
	default:
		return res, fmt.Errorf("checkpoint: tcp %q: known values are close and keep: %w", r.TCP, errdefs.ErrInvalidArgument)
	}
	if c.dump.Preserve, err = preserve.Paths(r.PreservedPaths); err != nil {
		return res, fmt.Errorf("checkpoint: %w", err)
	}
	if r.LeaveRunning != nil && !*r.LeaveRunning {
		c.end = endService
	}
	o, finish, err := s.begin(ctx, "checkpoint")
	if err != nil {
		return res, err
	}
	defer func() { finish(&err) }()
	if err := s.body.Ready(); err != nil {
		return res, fmt.Errorf("checkpoint: %w", err)
	}
	if err := s.save(ctx, o, c); err != nil {
		return res, err
	}
	return o.result(), nil
}

// CheckpointTask is the checkpoint that containerd asks for, into a folder of its
// own. With exit the container ends if it is tied to its service.
func (s *Service) CheckpointTask(ctx context.Context, d Dump, exit bool) (err error) {
	o, finish, err := s.begin(ctx, "checkpoint")
	if err != nil {
		return err
	}
	defer func() { finish(&err) }()
	set := s.settings()
	c := checkpoint{cause: "containerd asked for a checkpoint", dump: d, hooks: set.Hooks}
	switch {
	case exit && set.tied():
		c.end = endContainer
	case exit:
		c.end = endService
	}
	return s.save(ctx, o, c)
}

// save is the protocol of a checkpoint:
//  1. the hook before it may veto it;
//  2. nothing of the container runs (the client has paused it, or we freeze it);
//  3. the application is dumped, always leaving it as it is, and the checkpoint is
//     made whole, synced and reported;
//  4. only then is a service that is to end ended, and what waits in the container
//     thawed;
//  5. the hook after it is run, and a failure of it reported.
//
// When 1 to 3 fail, the place of the checkpoint is as it was and the service goes
// on, paused if it was.
func (s *Service) save(ctx context.Context, o *operation, c checkpoint) (err error) {
	before := s.now()
	paused := before == api.Paused
	hook := func() error { return s.hook(ctx, o, c.hooks, beforeCheckpoint) }
	if len(c.hooks.BeforeCheckpoint) > 0 && paused {
		err = s.body.Breathe(ctx, hook)
	} else {
		err = hook()
	}
	if err == nil {
		c.dump.Preserve, err = s.preserves(c.dump.Preserve)
	}
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	l := s.current()
	if l == nil {
		return fmt.Errorf("checkpoint: %w", errOver)
	}
	var release func()
	keep := func() {
		if release != nil {
			s.whileThawed(paused, release)
		}
	}
	if c.end == endService || c.end == endContainer && len(c.hooks.AfterCheckpoint) > 0 {
		// PID 1 must hear it before it is frozen.
		hear := func() error {
			heard, err := s.expect(ctx, l)
			if err == nil {
				release = heard
			}
			return err
		}
		if paused {
			err = s.body.Breathe(ctx, hear)
		} else {
			err = hear()
		}
		if err != nil {
			keep()
			return fmt.Errorf("checkpoint: %w", err)
		}
	}

	o.progress("freeze", 0, 0)
	frozen := time.Now()
	s.to(api.Checkpointing, c.cause)
	thaw, err := s.body.Freeze(ctx)
	if err != nil {
		s.to(before, fmt.Sprintf("the checkpoint failed: %v", err))
		keep()
		return fmt.Errorf("checkpoint: freeze the container: %w", err)
	}
	set := s.settings()
	c.dump.KeepTCP = c.dump.KeepTCP || set.KeepTCP
	c.dump.Progress = o.progress
	c.dump.Note = func(text string) { o.note("%s", text) }
	saved, err := s.body.Dump(ctx, c.dump)
	if err != nil {
		if terr := thaw(); terr != nil {
			err = errors.Join(err, fmt.Errorf("thaw the container: %w", terr))
		}
		o.away = time.Since(frozen)
		s.to(before, fmt.Sprintf("the checkpoint failed: %v", err))
		keep()
		return err
	}
	o.saved, o.bytes = &saved, saved.Bytes
	if saved.URL != "" {
		s.mu.Lock()
		s.saved = &saved
		s.mu.Unlock()
	}
	if c.end == endNothing {
		return s.goOn(ctx, o, c, before, frozen, thaw)
	}
	if err := s.endSaved(ctx, o, c, l, before, release); err != nil {
		if s.now() == api.Checkpointing {
			if terr := thaw(); terr != nil {
				err = errors.Join(err, fmt.Errorf("thaw the container: %w", terr))
			}
			s.to(before, fmt.Sprintf("the checkpoint is saved, but its service could not be ended: %v", err))
		}
		return fmt.Errorf("the checkpoint is saved, but its service could not be ended: %w", err)
	}
	return nil
}

// preserves adds the run's paths to those of a checkpoint, and looks for them while
// nothing is frozen yet.
func (s *Service) preserves(more []string) ([]string, error) {
	s.mu.Lock()
	all := append(slices.Clone(s.preserved), more...)
	s.mu.Unlock()
	all, err := preserve.Paths(all)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all, s.body.CheckPreserved(all)
}

// whileThawed does what PID 1 must hear, also in a container that the client has
// paused. It is for the way back from a failure: it does not end with a request.
func (s *Service) whileThawed(paused bool, f func()) {
	if !paused {
		f()
		return
	}
	err := s.body.Breathe(s.ctx, func() error { f(); return nil })
	if err != nil {
		s.note(fmt.Sprintf("the checkpoint failed, and so did the way back: %v", err))
	}
}

// goOn lets a service run on after its checkpoint.
func (s *Service) goOn(ctx context.Context, o *operation, c checkpoint, before api.State, frozen time.Time, thaw func() error) error {
	err := thaw()
	o.away = time.Since(frozen)
	s.to(before, "the checkpoint is saved")
	if err != nil {
		return fmt.Errorf("the checkpoint is saved, but the container could not be thawed: %w", err)
	}
	if before == api.Paused && len(c.hooks.AfterCheckpoint) > 0 {
		s.afterResume = &hookRun{afterCheckpoint, c.hooks}
		return nil
	}
	s.report(ctx, o, c.hooks, afterCheckpoint)
	return nil
}

// endSaved ends a frozen service, whose processes do not run any more, and with it
// the container if it is to end. The hook after the checkpoint finds the service
// gone and the container alive.
func (s *Service) endSaved(ctx context.Context, o *operation, c checkpoint, l *life, before api.State, release func()) error {
	if c.end == endContainer && len(c.hooks.AfterCheckpoint) == 0 {
		// SIGKILL thaws the container, and its pid namespace dies with PID 1.
		return s.endContainer()
	}
	s.to(api.Stopping, "the checkpoint is saved")
	err := s.bury(l, "the checkpoint is saved and the service ended", before, release, func() {
		s.report(ctx, o, c.hooks, afterCheckpoint)
	})
	if err != nil {
		return err
	}
	if c.end == endContainer {
		return s.endContainer()
	}
	return nil
}

// periodically writes a checkpoint every interval, for as long as the container
// lives. One that fails costs only itself.
func (s *Service) periodically() {
	var tick <-chan time.Time
	var interval time.Duration
	for {
		select {
		case <-s.ctx.Done():
			return
		case interval = <-s.interval:
			tick = nil
			if interval > 0 {
				tick = time.After(interval)
			}
		case <-tick:
			tick = time.After(interval)
			s.checkpointNow()
		}
	}
}

func (s *Service) checkpointNow() {
	if s.now() != api.Running || s.body.Ready() != nil {
		return
	}
	_, err := s.Checkpoint(s.ctx, api.CheckpointRequest{})
	if err != nil && s.ctx.Err() == nil {
		s.note(fmt.Sprintf("the periodic checkpoint failed: %v", err))
	}
}

// setInterval takes effect at once; it never waits.
func (s *Service) setInterval(d time.Duration) {
	for {
		select {
		case s.interval <- d:
			return
		default:
		}
		select {
		case <-s.interval: // one that was not taken yet
		default:
		}
	}
}
