//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/shim/api"
)

const (
	// subscribeTimeout is what an operation waits for the subscription to its progress,
	// without which it goes on.
	subscribeTimeout = 300 * time.Millisecond
	// takeBackTimeout is what an interrupted command waits for the shim to take the
	// operation back.
	takeBackTimeout = 30 * time.Second
	takeBackPoll    = 50 * time.Millisecond
)

// operation is something that takes a while.
type operation struct {
	// name of it, as a noun.
	name string
	// request asks the shim for it.
	request func(context.Context) (api.Result, error)
	// did says what was done, as a verb in the past tense.
	did func(api.Result) string
}

// operationFlags are those of each.
func operationFlags(flags ...cli.Flag) []cli.Flag {
	return append(flags,
		namespaceFlag("the container's namespace `NAME`"),
		jsonFlag("print the result as JSON, and an error on standard error"),
		quietFlag())
}

// perform runs an operation, shows how far it is, and says what came of it.
func perform(ctx context.Context, cmd *cli.Command, t target, op operation) error {
	out, progress := cmd.Root().Writer, progressTo(cmd)
	if cmd.Bool("json") {
		progress = io.Discard
	}
	stop := func() []string { return nil }
	if progress != io.Discard {
		stop = watch(ctx, t, newDisplay(progress, op.name+" of "+t.String()))
	}
	r, err := op.request(ctx)
	notes := stop()
	if err != nil && ctx.Err() != nil {
		fmt.Fprintf(progress, "fastmig: the %s of %v is being taken back; interrupt again not to wait for it\n", op.name, t)
		return interrupted(ctx, t, op)
	}
	for _, n := range r.Notes {
		if !slices.Contains(notes, n) {
			notes = append(notes, n)
		}
	}
	for _, n := range notes {
		fmt.Fprintln(progress, "fastmig: warning:", clean(n))
	}
	switch {
	case err != nil:
		return err
	case cmd.Bool("json"):
		return printJSON(out, r)
	case cmd.Bool("quiet"):
		return nil
	}
	_, err = fmt.Fprintf(out, "%v: %s\n", t, clean(summary(op.did(r), r)))
	return err
}

// summary is the result in one sentence.
func summary(did string, r api.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s in %s", did, span(r.Seconds))
	if r.Away > 0 {
		fmt.Fprintf(&b, ", the service was away for %s", span(r.Away))
	}
	switch {
	case r.State == api.Standby:
		b.WriteString("; the container is in standby")
	case r.AppPid > 0:
		fmt.Fprintf(&b, "; the service is %s, pid %d", r.State, r.AppPid)
	default:
		fmt.Fprintf(&b, "; the service is %s", r.State)
	}
	return b.String()
}

// interrupted waits until the shim has taken a cancelled operation back, and says how
// the service is then.
func interrupted(ctx context.Context, t target, op operation) error {
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTimeout)
	defer cancel()
	for {
		s, err := t.Status(wait)
		e := &api.Error{Kind: "cancelled", State: s.State}
		switch {
		case err != nil:
			e.Message = fmt.Sprintf("the %s of %v was cancelled, but how the service is cannot be told: %v", op.name, t, err)
			return e
		case !underWay(s.State):
			e.Message = fmt.Sprintf("the %s of %v was cancelled, the service is %s", op.name, t, s.State)
			return e
		}
		select {
		case <-wait.Done():
			e.Message = fmt.Sprintf("the %s of %v was cancelled, but the service is still %s: `fastmig status %s` tells how it goes on", op.name, t, s.State, t.ID)
			return e
		case <-time.After(takeBackPoll):
		}
	}
}

// underWay says whether an operation is.
func underWay(s api.State) bool {
	switch s {
	case api.Starting, api.Restoring, api.Checkpointing, api.Stopping, api.Recovering:
		return true
	}
	return false
}

// watch shows an operation's progress from now until it is told to stop, when it returns
// the notes that came by. It returns when it is subscribed, or could not be in
// good time: the progress of an operation is no condition for it.
func watch(ctx context.Context, t target, d display) (stop func() []string) {
	ctx, cancel := context.WithCancel(ctx)
	began := time.Now()
	subscribed, done := make(chan struct{}), make(chan struct{})
	var notes []string
	go func() {
		defer close(done)
		events, err := t.Events(ctx, 0)
		close(subscribed)
		if err != nil {
			return // the operation meets the same, and says it
		}
		for e, err := range fresh(events, began) {
			switch {
			case err != nil:
				return
			case e.Progress != nil:
				d.show(*e.Progress)
			case e.Note != "":
				notes = append(notes, e.Note)
			}
		}
	}()
	select {
	case <-subscribed:
	case <-time.After(subscribeTimeout):
	case <-ctx.Done():
	}
	return func() []string {
		cancel()
		<-done
		d.close()
		return notes
	}
}
