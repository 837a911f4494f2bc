//go:build linux

package stdio

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// loggerStartTimeout bounds the wait for a logging program that is started anew.
const loggerStartTimeout = 30 * time.Second

// Keep leaves the outputs (fifos, files, the logging program) open from now on
// when a pipe ends, for the process's next life, and stdin as well. A logging
// program is kept only if the child's ends are still here (CloseChild).
func (s *Streams) Keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.keep = true
	if s.input != nil {
		s.input.setKeep()
	}
	if n := len(s.loggers); n > 0 {
		s.loggers[n-1].hold()
	}
}

// KeepLogger is Keep for a logging program alone: whatever ends, it reads on until the
// container ends. Some, such as nerdctl's, do not end at the end of their input, and
// cannot be started a second time beside that.
func (s *Streams) KeepLogger() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.loggers); n > 0 && !s.closed {
		s.loggers[n-1].hold()
	}
}

// End takes Keep back: there will be no other life, and the client is to see
// the end of the output as soon as all of it has been taken. To be called when
// the container has ended, before its client waits for its output's end.
func (s *Streams) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep = false
	s.out.settle(false)
	s.err.settle(false)
	for _, l := range s.loggers {
		l.letGo()
	}
}

// Renew makes new pipes for the process's next life, copied from and to where
// those of the former one were, and keeps the outputs from now on. The child's
// ends are in Stdin, Stdout and Stderr until CloseChild. It does not wait for the
// client; a logging program that has ended is started again, which takes 30 s at
// most. After Close it is an errdefs.ErrFailedPrecondition.
func (s *Streams) Renew(owner Owner) (err error) {
	s.Keep()
	s.CloseChild()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("renew a process's stdio: it was given up already: %w", errdefs.ErrFailedPrecondition)
	}
	defer func() {
		if err != nil {
			for _, f := range []**os.File{&s.Stdin, &s.Stdout, &s.Stderr} {
				if *f != nil {
					(*f).Close()
				}
				*f = nil
			}
		}
	}()
	if s.addr.Stdin != "" {
		if err := s.renewStdin(owner); err != nil {
			return err
		}
	}
	if s.logURL != nil {
		return s.renewLogger()
	}
	for _, o := range []struct {
		to    *sink
		child **os.File
	}{{s.out, &s.Stdout}, {s.err, &s.Stderr}} {
		if o.to == nil {
			continue
		}
		if err := o.to.reopen(); err != nil {
			return err
		}
		child, ours, err := pipe(owner, true)
		if err != nil {
			return err
		}
		*o.child = child
		s.pumpLocked(context.Background(), o.to, ours)
	}
	return nil
}

func (s *Streams) renewStdin(owner Owner) error {
	child, ours, err := pipe(owner, false)
	if err != nil {
		return err
	}
	s.Stdin = child
	ok, eof := false, false
	if s.input != nil {
		var old receiver
		if old, ok, eof = s.input.renew(pipeEnd{ours}); old != nil {
			// A write that waits for the former process ends with this.
			old.Close()
		}
	}
	switch {
	case ok:
		return nil
	case eof:
		return ours.Close()
	}
	if err := s.feed(ours); err != nil {
		ours.Close()
		return err
	}
	return nil
}

func (s *Streams) renewLogger() error {
	l := s.loggers[len(s.loggers)-1]
	out, errs, err := l.again()
	if err == nil && out == nil {
		// It has seen the end of its input, or has ended by itself.
		ctx, cancel := context.WithTimeout(context.Background(), loggerStartTimeout)
		defer cancel()
		l.letGo()
		if l, err = startLogger(ctx, s.logURL, s.ns, s.id); err == nil {
			s.loggers = append(s.loggers, l)
			l.hold()
			out, errs = l.stdout, l.stderr
		}
	}
	if err != nil {
		return fmt.Errorf("renew a process's stdio: %w", err)
	}
	s.Stdout, s.Stderr = out, errs
	return nil
}
