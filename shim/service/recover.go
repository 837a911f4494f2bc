//go:build linux

package service

import (
	"fmt"
	"time"

	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/policy"
)

// Loss is how FastFreeze's PID 1 was lost.
type Loss struct {
	// Kind in one word, Cause in a sentence.
	Kind, Cause string
	// At is when it was noticed.
	At time.Time
}

// Lost is called when PID 1 has died without being asked to. It blocks until there
// is a new one, and the service is back or its container in standby; it is false if
// the container is to end as it would without a supervisor.
func (s *Service) Lost(loss Loss) bool {
	s.mu.Lock()
	lives := s.lives
	s.mu.Unlock()
	release, err := s.body.Acquire(lives)
	if err != nil {
		return false
	}
	defer release()
	oom := s.body.OOMKilled()
	was := s.now()
	l := s.current()
	if why := s.leaves(l, was, oom); why != "" {
		s.note(fmt.Sprintf("%s; it is not brought back: %s", loss.Cause, why))
		return false
	}
	// Without a service, it is how long PID 1 was well.
	ran := time.Since(s.Status().Since)
	asked := false
	if l != nil {
		ran = time.Since(l.began)
		s.mu.Lock()
		asked = l.expected
		s.mu.Unlock()
		s.forget(l)
	}
	wait, again := s.nextTry(ran)
	if !again && was == api.Standby {
		s.note("FastFreeze is lost again and again: the container ends")
		return false
	}
	s.cancelRestart()
	s.afterResume = nil
	s.to(api.Recovering, loss.Cause)
	o := s.operation("recover")
	o.began = loss.At
	o.progress("renew", 0, 0)
	if err := s.body.Renew(s.ctx); err != nil {
		s.cfg.Recorder.Recovery(loss.Kind, err, time.Since(loss.At))
		o.finish(fmt.Errorf("recover: make a new PID 1: %w", err))
		return false
	}
	s.mu.Lock()
	s.status.recoveries++
	s.mu.Unlock()
	told := func(err error) {
		s.cfg.Recorder.Recovery(loss.Kind, err, time.Since(loss.At))
		o.finish(err)
	}
	const back = "FastFreeze is back"
	mode := s.bringsBack()
	switch {
	case asked:
		s.to(api.Standby, back)
		s.reason(loss.Cause + " while the service was being ended, as was asked")
		told(nil)
	case l == nil && was != api.Exited:
		s.to(api.Standby, back)
		told(nil)
	case !again:
		s.to(api.Standby, back)
		s.reason(fmt.Sprintf("crash loop: FastFreeze was lost %d times in a row; the last time: %s", s.tries(), loss.Cause))
		told(nil)
	case mode == api.StartStandby:
		// It was started by a request, which may be repeated; of its state nothing
		// was saved.
		s.to(api.Standby, back)
		s.reason(loss.Cause + "; there is no checkpoint to bring the service back from")
		told(nil)
	case s.tries() > 1:
		s.to(api.Exited, back)
		e := s.event("start_failed", restoreFailed, loss.Cause, oom, ran)
		s.schedule(wait, mode, "it is being brought back", e)
		told(nil)
	default:
		// The first time at once: what was lost was healthy.
		s.to(api.Standby, back)
		told(s.bringBack(o, mode))
	}
	return true
}

// bringsBack is how a service that was lost with FastFreeze starts again: from its last
// whole checkpoint, or else as its container does.
func (s *Service) bringsBack() policy.Mode {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.saved != nil {
		return api.StartRestore
	}
	return s.set.Startup
}

// Recoverable says whether a FastFreeze that is lost now is brought back.
func (s *Service) Recoverable() bool { return s.leaves(s.current(), s.now(), false) == "" }

// leaves says why a lost FastFreeze is not brought back; "": it is.
func (s *Service) leaves(l *life, was api.State, oom bool) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	// What is to end is not tied any more.
	tied := l != nil && s.set.tied() && !l.expected
	switch {
	case s.ending:
		return "a client ends the container"
	case was == api.Exited && s.set.tied():
		return "the container was about to end with its service"
	case s.set.Supervise == SuperviseNever:
		return "io.fastmig.supervise is never"
	case s.set.Supervise == SuperviseAlways:
		return ""
	case tied && oom:
		return "the container ran out of its own memory"
	case tied && s.saved == nil:
		return "the container is tied to its service, of which there is no checkpoint"
	}
	return ""
}

// bringBack starts the service; when a restore fails, its logic decides.
func (s *Service) bringBack(o *operation, mode policy.Mode) error {
	set := s.settings()
	l := launch{cause: "recovered", hooks: set.Hooks, fallback: api.Standby, args: s.args, env: s.extra}
	if u, ok := s.source(); ok && mode == api.StartRestore {
		l.url = &u
	}
	err := s.launch(s.ctx, o, l)
	if err == nil || s.now() != api.Standby {
		return err
	}
	e := s.event("start_failed", restoreFailed, err.Error(), false, 0)
	mode, why := s.decide(e)
	if mode == api.StartScratch {
		o.note("the service is not restored but started from scratch (%s): %v", why, err)
		return s.launch(s.ctx, o, launch{cause: "recovered, from scratch", hooks: set.Hooks, fallback: api.Standby, args: s.args, env: s.extra})
	}
	return err
}
