//go:build linux

package service

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/policy"
)

// restoreFailed is FastFreeze's exit status of a restore that failed.
const restoreFailed = 171

// follow waits for the end of a life.
func (s *Service) follow(l *life, exit <-chan int) {
	status, ok := <-exit
	s.mu.Lock()
	l.status, l.lost = status, !ok
	s.mu.Unlock()
	close(l.ended)
	if ok {
		s.settle(l)
	}
}

// settle acts on the end of a life, unless somebody asked for it.
func (s *Service) settle(l *life) {
	release, err := s.body.Acquire(s.ctx)
	if err != nil {
		// The container has ended.
		s.mu.Lock()
		s.status.exit = &l.status
		s.mu.Unlock()
		return
	}
	defer release()
	s.mu.Lock()
	asked, tied := l.expected || s.life != l, l.tied
	s.mu.Unlock()
	if asked {
		return
	}
	s.exited(l, tied)
	switch {
	case tied:
		// PID 1 ends with it, unless it was told otherwise just then: by an operation
		// that did not come to its end.
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(tiedGrace):
		}
	case !s.isEnding():
		return
	}
	if err := s.endContainer(); err != nil {
		s.failed("exit", err)
		if s.now() == api.Exited {
			s.standby(fmt.Sprintf("the container should have ended with its service: %v", err))
		}
	}
}

// endContainer kills the container. From here on a PID 1 that dies is not brought
// back; whoever sees it die does not wait for the operation under way.
func (s *Service) endContainer() error {
	s.mu.Lock()
	s.giveUp()
	s.mu.Unlock()
	// Not s.ctx: that ends with the container.
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	err := s.body.EndContainer(ctx)
	if err != nil {
		s.mu.Lock()
		s.lives, s.giveUp = context.WithCancel(s.ctx)
		s.mu.Unlock()
	}
	return err
}

// exited is what follows when the application has ended by itself.
func (s *Service) exited(l *life, tied bool) {
	s.forget(l)
	s.mu.Lock()
	status := l.status
	s.status.exit = &status
	s.mu.Unlock()
	how := describeExit(status)
	oom := s.body.OOMKilled()
	if oom {
		how += ", and its container had run out of memory"
	}
	if tied {
		// PID 1 ends with it.
		s.to(api.Exited, how+"; the container ends with it")
		return
	}
	s.to(api.Exited, how)
	if s.isEnding() {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, endTimeout)
	defer cancel()
	if err := s.body.EndService(ctx); err != nil {
		s.failed("exit", err)
		s.standby(fmt.Sprintf("what the service left could not be ended: %v", err))
		return
	}
	s.next(s.event("exit", status, how, oom, time.Since(l.began)), time.Since(l.began))
}

func describeExit(status int) string {
	if sig := unix.Signal(status - 128); status > 128 && unix.SignalName(sig) != "" {
		return fmt.Sprintf("the service was ended by %s", unix.SignalName(sig))
	}
	return fmt.Sprintf("the service ended with status %d", status)
}

func (s *Service) event(kind string, status int, reason string, oom bool, ran time.Duration) policy.Event {
	e := policy.Event{
		Event: kind, ID: s.cfg.ID, Namespace: s.cfg.Namespace, ExitStatus: status, OOMKilled: oom,
		Reason: reason, Restarts: s.tries(), RanSeconds: ran.Seconds(), At: time.Now(),
	}
	if status > 128 {
		e.Signal = unix.SignalName(unix.Signal(status - 128))
	}
	if u, ok := s.source(); ok {
		e.Image = u.String()
		_, err := s.body.Stat(s.ctx, u)
		e.Checkpoint = err == nil
	}
	return e
}

// source is where the service would be restored from.
func (s *Service) source() (store.URL, bool) {
	s.mu.Lock()
	text := s.set.ImageURL
	if s.saved != nil {
		text = s.saved.URL
	}
	s.mu.Unlock()
	if text == "" {
		return store.URL{}, false
	}
	u, err := store.Parse(text)
	return u, err == nil
}

// next decides what follows an exit or a failed start, and does it: at once if it
// is standby, else after a while that grows with each time.
func (s *Service) next(e policy.Event, ran time.Duration) {
	mode, why := s.decide(e)
	s.writeStartup(mode)
	if mode == api.StartStandby {
		s.standby(fmt.Sprintf("%s; standby: %s", e.Reason, why))
		return
	}
	wait, ok := s.nextTry(ran)
	if !ok {
		s.writeStartup(api.StartStandby)
		s.standby(fmt.Sprintf("crash loop: started %d times in a row and never healthy for %v; the last time: %s", s.tries(),
			time.Duration(s.cfg.Node.Supervisor.Healthy), e.Reason))
		return
	}
	s.schedule(wait, mode, why, e)
}

// schedule lets an exited service wait for its next start.
func (s *Service) schedule(wait time.Duration, mode policy.Mode, why string, e policy.Event) {
	s.mu.Lock()
	s.status.next = time.Now().Add(wait)
	s.status.reason = fmt.Sprintf("%s; next: %s (%s)", e.Reason, mode, why)
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(s.ctx)
	p := &pending{cancel}
	s.restart = p
	s.wait.Go(func() {
		defer cancel()
		for s.again(ctx, p, wait, mode, e) {
			wait = time.Second
		}
	})
}

// pending is a start that an exited service waits for.
type pending struct{ cancel context.CancelFunc }

// again starts an exited service after a while, if nothing else has happened to it
// since. It is true if that is to be tried again later.
func (s *Service) again(ctx context.Context, p *pending, wait time.Duration, mode policy.Mode, e policy.Event) (later bool) {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
	}
	release, err := s.body.Acquire(ctx)
	if err != nil {
		return false
	}
	defer release()
	if s.restart != p || s.now() != api.Exited {
		return false
	}
	if s.body.Ready() != nil {
		return true // the client has paused the container: after it
	}
	s.restart = nil
	if written, ok := s.startupFile(); ok {
		mode = written
	}
	switch mode {
	case api.StartStandby:
		s.standby("the startup option file says so")
		return false
	case api.StartRestore:
		u, ok := s.source()
		if ok {
			s.relaunch(launch{cause: "restarted from its checkpoint", url: &u, fresh: true}, e)
			return false
		}
	}
	s.relaunch(launch{cause: "restarted from scratch"}, e)
	return false
}

// relaunch is a start that nobody waits for: when it fails, that is decided on as
// an exit is.
func (s *Service) relaunch(l launch, e policy.Event) {
	l.hooks, l.fallback = s.settings().Hooks, api.Exited
	l.args, l.env = s.args, s.extra
	o := s.operation("start")
	if l.restores() {
		o.name = "restore"
	}
	err := s.launch(s.ctx, o, l)
	o.finish(err)
	if err == nil || s.now() != api.Exited {
		return
	}
	failed := s.event("start_failed", restoreFailed, err.Error(), false, 0)
	failed.OOMKilled = e.OOMKilled
	s.next(failed, 0)
}

// decide asks the container's logic what follows.
func (s *Service) decide(e policy.Event) (mode policy.Mode, why string) {
	set := s.settings()
	switch set.OnExit {
	case OnExitDefault:
		return policy.Default(e), "the default logic"
	case OnExitTied:
		// Only a lost FastFreeze comes here.
		if set.Startup == api.StartRestore && e.Event == "start_failed" {
			return api.StartStandby, e.Reason
		}
		return set.Startup, "as the container starts"
	}
	decider, err := policy.NewDecider(s.cfg.Node.Deciders, set.OnExit)
	if err == nil {
		mode, err = decider.Decide(s.ctx, e)
	}
	if err != nil {
		s.failed("decide", err)
		return api.StartStandby, fmt.Sprintf("the decider failed: %v", err)
	}
	return mode, "decided by " + set.OnExit
}

func (s *Service) standby(why string) {
	s.mu.Lock()
	s.status.reason, s.status.next = why, time.Time{}
	s.mu.Unlock()
	s.to(api.Standby, why)
}

// cancelRestart gives up a start that an exited service waits for. The caller holds
// the operation lock.
func (s *Service) cancelRestart() {
	if s.restart != nil {
		s.restart.cancel()
		s.restart = nil
	}
	s.mu.Lock()
	s.status.next = time.Time{}
	s.mu.Unlock()
}

// modes are the characters of the startup option file, as FastMig's daemon
// published it.
var modes = map[string]policy.Mode{"0": api.StartScratch, "1": api.StartRestore, "2": api.StartStandby}

// startupFile reads the mode of the next start, if one is written.
func (s *Service) startupFile() (policy.Mode, bool) {
	if s.cfg.StartupFile == "" {
		return "", false
	}
	text, err := os.ReadFile(s.cfg.StartupFile)
	if err != nil {
		return "", false
	}
	mode, ok := modes[strings.TrimSpace(string(text))]
	if !ok {
		s.note(fmt.Sprintf("the startup option file %s is passed over: 0 (scratch), 1 (restore) or 2 (standby) is wanted", s.cfg.StartupFile))
	}
	return mode, ok
}

// writeStartup leaves the decided mode where an operator finds it and may change
// it before it is acted on.
func (s *Service) writeStartup(mode policy.Mode) {
	if s.cfg.StartupFile == "" {
		return
	}
	for text, m := range modes {
		if m != mode {
			continue
		}
		tmp := filepath.Join(filepath.Dir(s.cfg.StartupFile), "."+filepath.Base(s.cfg.StartupFile))
		err := os.WriteFile(tmp, []byte(text+"\n"), 0o600)
		if err == nil {
			err = os.Rename(tmp, s.cfg.StartupFile)
		}
		if err != nil {
			s.note(fmt.Sprintf("write the startup option file: %v", err))
		}
	}
}

func (s *Service) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

// nextTry is how long the next start waits; not ok: it is one too many.
func (s *Service) nextTry(ran time.Duration) (wait time.Duration, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.backoff.Next(ran)
}

func (s *Service) tries() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.backoff.Restarts()
}

func (s *Service) resetTries() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backoff.Reset()
}
