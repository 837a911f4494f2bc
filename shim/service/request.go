//go:build linux

package service

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/kballard/go-shellquote"

	"github.com/fastmig/fastmig/runtime/preserve"
	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
)

// Run is POST /run as FastMig's daemon published it: the application is restored
// if its checkpoint exists, else started from scratch. network says that the
// request came by the container's own network.
func (s *Service) Run(ctx context.Context, r api.Run, network bool) (res api.Result, err error) {
	if err := unsupported(r.PassphraseFile); err != nil {
		return res, fmt.Errorf("run: %w", err)
	}
	paths, err := preserve.Paths(list(r.PreservedPaths))
	if err != nil {
		return res, fmt.Errorf("run: %w", err)
	}
	l := launch{cause: "run was requested", fresh: true, damaged: r.AllowBadImage, leaveStopped: r.LeaveStopped, env: r.Envs}
	if l.args, err = Words("app_args", r.AppArgs); err != nil {
		return res, fmt.Errorf("run: %w", err)
	}
	ready, err := Words("on_app_ready", r.OnAppReady)
	if err != nil {
		return res, fmt.Errorf("run: %w", err)
	}
	l.hooks = s.settings().Hooks
	if len(ready) > 0 {
		l.hooks.AfterRestore = ready
	}
	for _, v := range r.Envs {
		if !validEnv(v) {
			return res, fmt.Errorf("run: envs: %q: K=V is needed: %w", v, errdefs.ErrInvalidArgument)
		}
	}
	var u store.URL
	if r.ImageURL != "" || s.settings().ImageURL != "" {
		if u, err = s.published(r.ImageURL, network); err != nil {
			return res, fmt.Errorf("run: %w", err)
		}
		if !r.NoRestore {
			l.url = &u
		}
	}
	name := "start"
	if l.url != nil {
		name = "restore"
	}
	if res, err = s.request(ctx, name, l); err != nil {
		return res, err
	}
	s.mu.Lock()
	s.preserved = paths
	s.mu.Unlock()
	if u.Scheme != "" {
		// What is saved later goes there, unless it says otherwise.
		s.mu.Lock()
		s.set.ImageURL = u.String()
		s.mu.Unlock()
	}
	return res, nil
}

// CheckpointRun is POST /checkpoint as FastMig's daemon published it.
func (s *Service) CheckpointRun(ctx context.Context, r api.CheckpointRun, network bool) (res api.Result, err error) {
	if err := unsupported(r.PassphraseFile); err != nil {
		return res, fmt.Errorf("checkpoint: %w", err)
	}
	u, err := s.published(r.ImageURL, network)
	if err != nil {
		return res, fmt.Errorf("checkpoint: %w", err)
	}
	return s.Checkpoint(ctx, api.CheckpointRequest{ImageURL: u.String(), LeaveRunning: &r.LeaveRunning, PreservedPaths: list(r.PreservedPaths)})
}

// published reads an image URL of a published request. By the container's network
// only its own files and its own checkpoints can be named: the node's others are
// none of its business.
func (s *Service) published(asked string, network bool) (store.URL, error) {
	u, err := s.url(asked)
	if err != nil {
		return u, err
	}
	if network && u.Scheme != "file" && u.String() != s.cfg.Settings.ImageURL {
		return u, fmt.Errorf("image_url %s: over the container's network only file: URLs and the container's own io.fastmig.image-url may be named: %w", u, errdefs.ErrPermissionDenied)
	}
	return u, nil
}

// unsupported refuses what a checkpoint does not have; to take it silently would
// promise it.
func unsupported(passphrase string) error {
	if passphrase != "" {
		return fmt.Errorf("passphrase_file: checkpoints are not encrypted: leave it out, and put the checkpoint onto an encrypted file system: %w", errdefs.ErrNotImplemented)
	}
	return nil
}

// list splits paths between colons.
func list(paths string) []string {
	return slices.DeleteFunc(strings.Split(paths, ":"), func(p string) bool { return p == "" })
}

// Words splits a command as a shell would, without expanding anything.
func Words(name, text string) ([]string, error) {
	list, err := shellquote.Split(text)
	if err != nil {
		return nil, fmt.Errorf("%s %q: it is not a list of shell words: %w: %w", name, text, err, errdefs.ErrInvalidArgument)
	}
	return list, nil
}

func validEnv(v string) bool { return strings.Index(v, "=") > 0 && !strings.ContainsRune(v, 0) }

// mergeEnv adds variables, the later of one name counting.
func mergeEnv(base, more []string) []string {
	out := append([]string{}, base...)
next:
	for _, v := range more {
		name, _, _ := strings.Cut(v, "=")
		for i, old := range out {
			if strings.HasPrefix(old, name+"=") {
				out[i] = v
				continue next
			}
		}
		out = append(out, v)
	}
	return out
}

// Paused and Resumed are told by whoever pauses the container for a client, and
// holds the operation lock.
func (s *Service) Paused() {
	if s.now() == api.Running {
		s.to(api.Paused, "the container is paused")
	}
}

// Resumed is the counterpart of Paused.
func (s *Service) Resumed() {
	if s.now() == api.Paused {
		s.to(api.Running, "the container is resumed")
	}
	if r := s.afterResume; r != nil {
		s.wait.Go(func() { s.resumed(r) })
	}
}

// resumed runs the hook that waited for it, if the container is not paused again.
func (s *Service) resumed(r *hookRun) {
	release, err := s.body.Acquire(s.ctx)
	if err != nil {
		return
	}
	defer release()
	if s.afterResume == r && s.body.Ready() == nil {
		s.afterResume = nil
		s.report(s.ctx, s.operation("checkpoint"), r.hooks, r.kind)
	}
}

// Update changes the settings, by a client of containerd; a startup mode that is
// among them is acted on: restore and scratch start a service in standby, standby
// ends one that runs. The caller does not hold the operation lock.
func (s *Service) Update(ctx context.Context, set Settings, startup bool) error {
	s.mu.Lock()
	before := s.set
	s.set = set
	s.mu.Unlock()
	if set.Interval != before.Interval {
		s.setInterval(set.Interval)
	}
	if err := s.retie(ctx, before, set); err != nil {
		s.restoreSettings(before)
		return err
	}
	if !startup || set.Startup != api.StartStandby && before.Startup == set.Startup && before.ImageURL == set.ImageURL && s.now() == api.Running {
		// A client may send all annotations with every update.
		return nil
	}
	var err error
	switch set.Startup {
	case api.StartRestore:
		_, err = s.Restore(ctx, api.RestoreRequest{})
	case api.StartScratch:
		_, err = s.Start(ctx, api.StartRequest{})
	case api.StartStandby:
		_, err = s.Standby(ctx, api.StopRequest{})
	}
	if err != nil {
		// Bad input changes nothing.
		s.restoreSettings(before)
	}
	return err
}

func (s *Service) restoreSettings(before Settings) {
	s.mu.Lock()
	s.set = before
	s.mu.Unlock()
	s.setInterval(before.Interval)
}

// retie lets a service that runs, and its container, go by another io.fastmig.on-exit.
func (s *Service) retie(ctx context.Context, before, now Settings) error {
	if before.tied() == now.tied() {
		return nil
	}
	release, err := s.body.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	l := s.current()
	if l == nil {
		return nil
	}
	tie := func() error { return s.body.Tie(ctx, now.tied()) }
	if s.now() == api.Paused {
		err = s.body.Breathe(ctx, tie)
	} else {
		err = tie()
	}
	if err != nil {
		return fmt.Errorf("update: %w", err)
	}
	s.mu.Lock()
	l.tied = now.tied()
	s.mu.Unlock()
	return nil
}
