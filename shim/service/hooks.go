//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
)

// Hooks are commands that run in the container around an operation.
type Hooks struct {
	BeforeCheckpoint, AfterCheckpoint []string
	BeforeRestore, AfterRestore       []string
	// Timeout of each; 0: the node's.
	Timeout time.Duration
}

// hookKind is one of them. Those before an operation veto it, those after it are
// only reported.
type hookKind string

const (
	beforeCheckpoint hookKind = "before-checkpoint"
	afterCheckpoint  hookKind = "after-checkpoint"
	beforeRestore    hookKind = "before-restore"
	afterRestore     hookKind = "after-restore"
)

func (h Hooks) of(kind hookKind) []string {
	switch kind {
	case beforeCheckpoint:
		return h.BeforeCheckpoint
	case afterCheckpoint:
		return h.AfterCheckpoint
	case beforeRestore:
		return h.BeforeRestore
	default:
		return h.AfterRestore
	}
}

// with replaces the hooks that a request brings.
func (h Hooks) with(r *api.Hooks) (Hooks, error) {
	if r == nil {
		return h, nil
	}
	for _, x := range []struct {
		to   *[]string
		from []string
	}{
		{&h.BeforeCheckpoint, r.BeforeCheckpoint},
		{&h.AfterCheckpoint, r.AfterCheckpoint},
		{&h.BeforeRestore, r.BeforeRestore},
		{&h.AfterRestore, r.AfterRestore},
	} {
		if len(x.from) == 0 {
			continue
		}
		if x.from[0] == "" {
			return h, fmt.Errorf("hooks: a command is empty: %w", errdefs.ErrInvalidArgument)
		}
		*x.to = x.from
	}
	d, err := durationOf("hooks.timeout", r.Timeout, h.Timeout)
	if err == nil && r.Timeout != "" && d == 0 {
		err = fmt.Errorf("hooks.timeout %q: it must be more than 0: %w", r.Timeout, errdefs.ErrInvalidArgument)
	}
	h.Timeout = d
	return h, err
}

// hookRun is a hook that is to be run.
type hookRun struct {
	kind  hookKind
	hooks Hooks
}

// hook runs one, if there is one, and gives back why it failed.
func (s *Service) hook(ctx context.Context, o *operation, h Hooks, kind hookKind) error {
	args := h.of(kind)
	if len(args) == 0 {
		return nil
	}
	o.progress("hook", 0, 0)
	timeout := h.Timeout
	if timeout == 0 {
		timeout = time.Duration(s.cfg.Node.HookTimeout)
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	output, err := s.body.Exec(bounded, args, s.cfg.Env)
	if err == nil {
		return nil
	}
	var kindOf error = errdefs.ErrFailedPrecondition
	if ctx.Err() == nil && errors.Is(bounded.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("it did not end within %v and was killed: correct it, or give it more time with io.fastmig.hook.timeout", timeout)
		kindOf = errdefs.ErrAborted
	}
	if output = strings.TrimSpace(output); output != "" {
		output = fmt.Sprintf(" [it said: %s]", output)
	}
	return fmt.Errorf("the hook %s (%s): %w%s: %w", kind, strings.Join(args, " "), err, output, kindOf)
}

// report runs a hook whose failure changes nothing.
func (s *Service) report(ctx context.Context, o *operation, h Hooks, kind hookKind) {
	if err := s.hook(ctx, o, h, kind); err != nil {
		o.note("%v", err)
		s.failed(string(kind), err)
	}
}
