//go:build linux

package service

import (
	"fmt"
	"time"

	"github.com/fastmig/fastmig/shim/api"
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
	s.to(api.Standby, "FastFreeze is back")
	if asked {
		s.reason(loss.Cause + " while the service was being ended, as was asked")
	}
	if asked || l == nil && was != api.Exited {
		s.cfg.Recorder.Recovery(loss.Kind, nil, time.Since(loss.At))
		return true
	}
	if !again {
		s.reason(fmt.Sprintf("crash loop: FastFreeze was lost %d times in a row; the last time: %s", s.tries(), loss.Cause))
		s.cfg.Recorder.Recovery(loss.Kind, nil, time.Since(loss.At))
		return true
	}
	// The first time at once: what was lost was healthy.
	if s.tries() > 1 {
		select {
		case <-time.After(wait):
		case <-s.ctx.Done():
			return false
		}
	}
	err = s.bringBack(o, loss)
	s.cfg.Recorder.Recovery(loss.Kind, err, time.Since(loss.At))
	o.finish(err)
	return true
}

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

// bringBack restores the service from its last whole checkpoint, or else starts it
// as its container does.
func (s *Service) bringBack(o *operation, loss Loss) error {
	set := s.settings()
	s.mu.Lock()
	saved := s.saved
	s.mu.Unlock()
	l := launch{cause: "recovered", hooks: set.Hooks, fallback: api.Standby, args: s.args, env: s.extra}
	mode := set.Startup
	if saved != nil {
		mode = api.StartRestore
	}
	if mode == api.StartStandby {
		// It was started by a request, which may be repeated; of its state nothing
		// was saved.
		s.reason(loss.Cause + "; there is no checkpoint to bring the service back from")
		return nil
	}
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
