//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
)

// launch is one start of the application.
type launch struct {
	cause string
	// url of the checkpoint to restore, or image if that is open already; both nil:
	// from scratch.
	url   *store.URL
	image *Image
	// fresh allows a start from scratch where there is no checkpoint, damaged one
	// where there is no fit one.
	fresh, damaged bool

	args, env    []string
	leaveStopped bool
	hooks        Hooks
	// fallback is the state after a failure.
	fallback api.State
}

func (l *launch) restores() bool { return l.url != nil || l.image != nil }

// Boot is the start of the service with its container, whose operation lock the
// caller holds. image is a checkpoint that the client named; it is given up
// here. The other way to a checkpoint is the startup mode.
func (s *Service) Boot(ctx context.Context, image *Image) (err error) {
	set := s.settings()
	mode, cause := set.Startup, "the container starts"
	l := launch{image: image, hooks: set.Hooks, fallback: api.Standby}
	if written, ok := s.startupFile(); ok && image == nil {
		mode, cause = written, "the container starts, as the startup option file says"
	}
	// A container whose start failed may be started again.
	s.periodic.Do(func() { s.wait.Go(s.periodically) })
	s.setInterval(set.Interval)
	switch {
	case image != nil:
		cause = "the container starts from a checkpoint"
	case mode == api.StartStandby:
		return nil
	case mode == api.StartRestore:
		u, err := s.url("")
		if err != nil {
			return err
		}
		l.url = &u
	}
	l.cause = cause
	o := s.operation("start")
	if l.restores() {
		o.name = "restore"
	}
	defer func() { o.finish(err) }()
	return s.launch(ctx, o, l)
}

// Start runs the application from scratch.
func (s *Service) Start(ctx context.Context, r api.StartRequest) (res api.Result, err error) {
	hooks, err := s.settings().Hooks.with(r.Hooks)
	if err != nil {
		return res, err
	}
	for _, v := range r.Env {
		if !validEnv(v) {
			return res, fmt.Errorf("start: env %q: K=V is needed: %w", v, errdefs.ErrInvalidArgument)
		}
	}
	return s.request(ctx, "start", launch{cause: "start was requested", args: r.Args, env: r.Env, hooks: hooks})
}

// Restore brings the application back from a checkpoint.
func (s *Service) Restore(ctx context.Context, r api.RestoreRequest) (res api.Result, err error) {
	hooks, err := s.settings().Hooks.with(r.Hooks)
	if err != nil {
		return res, err
	}
	u, err := s.url(r.ImageURL)
	if err != nil {
		return res, fmt.Errorf("restore: %w", err)
	}
	return s.request(ctx, "restore", launch{cause: "restore was requested", url: &u, leaveStopped: r.LeaveStopped, hooks: hooks})
}

func (s *Service) request(ctx context.Context, name string, l launch) (res api.Result, err error) {
	o, finish, err := s.begin(ctx, name)
	if err != nil {
		return res, err
	}
	defer func() { finish(&err) }()
	if err := s.body.Ready(); err != nil {
		return res, fmt.Errorf("%s: %w", name, err)
	}
	// A checkpoint that is not there changes nothing, nor does what is none.
	if l.url != nil && !l.fresh {
		if _, err := s.body.Stat(ctx, *l.url); errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
			return res, fmt.Errorf("restore %s: %w", l.url, err)
		}
	}
	s.cancelRestart()
	s.resetTries()
	l.fallback = api.Standby
	if err := s.launch(ctx, o, l); err != nil {
		return res, err
	}
	if o.saved == nil {
		// Of what was begun anew here there is no checkpoint yet.
		s.mu.Lock()
		s.saved = nil
		s.mu.Unlock()
	}
	return o.result(), nil
}

// launch is the protocol of a start:
//  1. the checkpoint, if there is one, is found and verified;
//  2. the hook before a restore may veto it;
//  3. the application is run; a CRIU that was killed is given a second try;
//  4. the hook for a running application is run, and a failure of it reported.
//
// When 1 to 3 fail, no application runs.
func (s *Service) launch(ctx context.Context, o *operation, l launch) (err error) {
	if l.restores() {
		s.to(api.Restoring, l.cause)
	} else {
		s.to(api.Starting, l.cause)
	}
	defer func() {
		if err == nil {
			return
		}
		s.reason(err.Error())
		if s.now() == api.Restoring || s.now() == api.Starting {
			s.to(l.fallback, fmt.Sprintf("the %s failed: %v", o.name, err))
		}
	}()
	image, err := s.image(ctx, o, l)
	if err != nil {
		return err
	}
	if image != nil {
		defer image.Close()
		if err := s.hook(ctx, o, l.hooks, beforeRestore); err != nil {
			return err
		}
	}
	set := s.settings()
	began := time.Now()
	run := Launch{
		Image: image, Args: l.args, Env: s.env(l.env), Tied: set.tied(),
		KeepTCP: set.KeepTCP, LeaveStopped: l.leaveStopped, Progress: o.progress,
	}
	if len(l.args) == 0 {
		run.Args = nil
	}
	if len(l.args) == 0 && len(l.env) == 0 {
		run.Env = nil
	}
	running, err := s.body.Launch(ctx, run)
	if image != nil && errors.Is(err, errdefs.ErrAborted) && ctx.Err() == nil {
		o.note("the restore was interrupted and is tried once more: %v", err)
		running, err = s.body.Launch(ctx, run)
	}
	if err != nil {
		return err
	}
	if image == nil {
		s.args, s.extra = l.args, l.env
	}
	s.begun(running, set.tied(), image, began)
	o.away = time.Since(o.began)
	if image != nil {
		o.saved, o.bytes = &image.Info, image.Info.Bytes
	}
	s.to(api.Running, l.cause)
	s.report(ctx, o, l.hooks, afterRestore)
	return nil
}

// image opens the checkpoint that a launch is from; nil: it is from scratch.
func (s *Service) image(ctx context.Context, o *operation, l launch) (*Image, error) {
	if l.image != nil || l.url == nil {
		return l.image, nil
	}
	o.progress("verify", 0, 0)
	image, err := s.body.Open(ctx, *l.url)
	switch {
	case err == nil:
	case l.fresh && errdefs.IsNotFound(err):
		o.note("there is no checkpoint at %s: the service starts from scratch", l.url)
		return nil, nil
	case l.damaged && (errdefs.IsDataLoss(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err)):
		o.note("the checkpoint at %s cannot be restored, the service starts from scratch: %v", l.url, err)
		return nil, nil
	default:
		return nil, fmt.Errorf("restore %s: %w", l.url, err)
	}
	if image.Note != "" {
		o.note("%s", image.Note)
		s.reason(image.Note)
	}
	return &image, nil
}

// begun notes a life, and follows it.
func (s *Service) begun(r Running, tied bool, image *Image, began time.Time) {
	l := &life{pid: r.Pid, began: began, ended: make(chan struct{}), tied: tied}
	s.mu.Lock()
	s.life = l
	s.status.starts++
	s.status.began, s.status.next = time.Now(), time.Time{}
	if image == nil || image.Note == "" {
		s.status.reason = ""
	}
	if image != nil && image.Info.URL != "" {
		info := image.Info
		s.saved = &info
	}
	s.mu.Unlock()
	s.wait.Go(func() { s.follow(l, r.Exit) })
}

// env is the container's environment with variables added or replaced.
func (s *Service) env(more []string) []string {
	return mergeEnv(s.cfg.Env, more)
}
