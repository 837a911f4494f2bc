//go:build linux

package service

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/shim/api"
)

const (
	defaultStopSignal  = unix.SIGTERM
	defaultStopTimeout = 10 * time.Second
	// endTimeout bounds the wait for killed processes to be gone.
	endTimeout = 20 * time.Second
	// tiedGrace is how long PID 1 has to end with the service that it is tied to.
	tiedGrace = time.Second
)

// Stop ends the service by a signal, and by SIGKILL when its time is up. The
// container goes on in standby.
func (s *Service) Stop(ctx context.Context, r api.StopRequest) (api.Result, error) {
	return s.stop(ctx, "stop", r, defaultStopSignal, defaultStopTimeout)
}

// Standby is Stop without delay; a service that does not run is left so.
func (s *Service) Standby(ctx context.Context, r api.StopRequest) (api.Result, error) {
	return s.stop(ctx, "standby", r, unix.SIGKILL, 0)
}

func (s *Service) stop(ctx context.Context, name string, r api.StopRequest, sig unix.Signal, timeout time.Duration) (res api.Result, err error) {
	if sig, err = signalOf(r.Signal, sig); err != nil {
		return res, fmt.Errorf("%s: %w", name, err)
	}
	if timeout, err = durationOf("timeout", r.Timeout, timeout); err != nil {
		return res, fmt.Errorf("%s: %w", name, err)
	}
	o, finish, err := s.begin(ctx, name)
	if err != nil {
		return res, err
	}
	defer func() { finish(&err) }()
	s.cancelRestart()
	s.resetTries()
	switch s.now() {
	case api.Standby:
	case api.Exited:
		s.to(api.Standby, name+" was requested")
	default:
		if err := s.body.Ready(); err != nil {
			return res, fmt.Errorf("%s: %w", name, err)
		}
		if err := s.end(ctx, o, sig, timeout); err != nil {
			return res, err
		}
	}
	s.reason("")
	return o.result(), nil
}

// end brings a running service to its end, and the container into standby. Once the
// service has got its signal there is no way back, whatever becomes of ctx: it may
// be ending.
func (s *Service) end(ctx context.Context, o *operation, sig unix.Signal, timeout time.Duration) error {
	l := s.current()
	if l == nil {
		return fmt.Errorf("%s: %w", o.name, errOver)
	}
	s.to(api.Stopping, o.name+" was requested")
	back := func(err error) error {
		if s.now() == api.Stopping {
			s.to(api.Running, fmt.Sprintf("the %s failed: %v", o.name, err))
		}
		return fmt.Errorf("%s: %w", o.name, err)
	}
	release, err := s.expect(ctx, l)
	if err != nil {
		return back(err)
	}
	if timeout > 0 && sig != unix.SIGKILL {
		if err := s.body.Signal(int(sig)); err != nil && !errdefs.IsNotFound(err) {
			release()
			return back(err)
		}
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case <-l.ended:
		case <-timer.C:
			o.note("the service did not end within %v of %s and was killed", timeout, unix.SignalName(sig))
		case <-s.ctx.Done():
			release()
			return back(s.ctx.Err())
		}
	}
	return s.bury(l, o.name+" was requested", api.Running, release, nil)
}

// errOver is what an operation finds that the container's end has overtaken: that
// one does not wait for operations.
var errOver = fmt.Errorf("the container has ended meanwhile: %w", errdefs.ErrFailedPrecondition)

// expect makes the end of a life one that is asked for: PID 1 survives it. release
// takes that back.
func (s *Service) expect(ctx context.Context, l *life) (release func(), err error) {
	s.mu.Lock()
	tied := l.tied
	s.mu.Unlock()
	if tied {
		if err := s.body.Tie(ctx, false); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	l.expected, l.tied = true, false
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		l.expected, l.tied = false, tied
		s.mu.Unlock()
		select {
		case <-l.ended:
			// It ended by itself meanwhile, and its container stayed.
			s.wait.Go(func() { s.settle(l) })
			return
		default:
		}
		if !tied {
			return
		}
		bounded, cancel := context.WithTimeout(s.ctx, endTimeout)
		defer cancel()
		if err := s.body.Tie(bounded, true); err != nil {
			s.note(fmt.Sprintf("the container will not end with its service: %v", err))
		}
	}, nil
}

// bury kills what is left of a life whose end was expected, and is in standby
// then; after, if it is not nil, is called in the thawed container. Once begun it
// does not stop half-way. The service of a container that the client has paused
// does not run for a moment more. What cannot be killed goes on as before, and
// release takes back that its end is expected; it is called in the thawed container.
func (s *Service) bury(l *life, cause string, before api.State, release, after func()) error {
	ctx, cancel := context.WithTimeout(s.ctx, endTimeout)
	defer cancel()
	failed := s.body.EndService(ctx)
	finish := func() error {
		wait := ctx.Done()
		if failed != nil {
			failed = fmt.Errorf("end the service: %w", failed)
			// It may be gone all the same; what has ended is told at once.
			soon, cancel := context.WithTimeout(s.ctx, tiedGrace)
			defer cancel()
			wait = soon.Done()
		}
		select {
		case <-l.ended:
		case <-wait:
			if failed == nil {
				failed = fmt.Errorf("end the service: its processes are killed, and PID 1 does not say that they are gone: %w", ctx.Err())
			}
			release()
			s.to(before, fmt.Sprintf("the service could not be ended: %v", failed))
			return failed
		}
		if l.lost {
			// PID 1 went with it; whoever watches that one goes on from here.
			return fmt.Errorf("end the service: FastFreeze died meanwhile: %w", errdefs.ErrAborted)
		}
		s.forget(l)
		if failed != nil {
			s.standby(fmt.Sprintf("the service has ended, but not all that it left: %v", failed))
			return failed
		}
		s.to(api.Standby, cause)
		if after != nil {
			after()
		}
		return nil
	}
	if before == api.Paused {
		return s.body.Breathe(ctx, finish)
	}
	return finish()
}

// forget takes a life that has ended off the books.
func (s *Service) forget(l *life) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == l {
		s.life = nil
	}
	s.status.ended = time.Now()
}

func signalOf(text string, otherwise unix.Signal) (unix.Signal, error) {
	if text == "" {
		return otherwise, nil
	}
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("signal %d: 1 to 64 are signals: %w", n, errdefs.ErrInvalidArgument)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(text)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("signal %q: give a name such as SIGTERM, or a number: %w", text, errdefs.ErrInvalidArgument)
}

func durationOf(name, text string, otherwise time.Duration) (time.Duration, error) {
	if text == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%s %q: give a duration such as 10s: %w", name, text, errdefs.ErrInvalidArgument)
	}
	return d, nil
}
