//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/api/client"
)

// discover is how often containers are looked for that are new.
const discover = 500 * time.Millisecond

func eventsCommand() *cli.Command {
	return containerCommand(&cli.Command{
		Name:      "events",
		Usage:     "follow what happens to one service, or to all",
		ArgsUsage: "[CONTAINER]",
		Description: `Prints a line for each event from now on: the time, NAMESPACE/ID, the kind (state, progress, note) and
what it was. It goes on until it is interrupted; about one container, until that ends. Without a
container, those that come later are followed too.

Examples:
   sudo fastmig events
   sudo fastmig events web --since 0
   sudo fastmig events --json | jq 'select(.kind == "state") | .transition.to'` + naming,
		Flags: []cli.Flag{
			namespaceFlag("the container's namespace `NAME`; without a container, only those of the namespace"),
			&cli.Uint64Flag{Name: "since", Usage: "begin with those after number `N` (\"seq\" with --json) that are still known; 0: all of them", HideDefault: true},
			jsonFlag("print one JSON object a line"),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			f := &follower{out: cmd.Root().Writer, json: cmd.Bool("json"), since: cmd.Uint64("since"), began: time.Now()}
			if cmd.IsSet("since") {
				f.began = time.Time{}
			}
			var err error
			if cmd.Args().Present() {
				err = onContainer(false, func(ctx context.Context, _ *cli.Command, t target) error {
					return f.one(ctx, t, f.since, f.began)
				})(ctx, cmd)
			} else {
				err = f.all(ctx, cmd.String("namespace"))
			}
			if ctx.Err() != nil {
				return errSaid // it is how this command ends
			}
			return err
		},
	})
}

// fresh leaves away the events that were before a time and are only still known. After
// the first that is not, all are: the clock may be set.
func fresh(events iter.Seq2[api.Event, error], began time.Time) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		begun := false
		for e, err := range events {
			begun = begun || err != nil || !e.At.Before(began)
			if begun && !yield(e, err) {
				return
			}
		}
	}
}

// follower prints events.
type follower struct {
	out   io.Writer
	json  bool
	since uint64
	began time.Time
	mu    sync.Mutex // guards out
}

// one prints the events of a container, until it or ctx ends.
func (f *follower) one(ctx context.Context, t target, after uint64, began time.Time) error {
	events, err := t.Events(ctx, after)
	if err != nil {
		return err
	}
	for e, err := range fresh(events, began) {
		if err == nil {
			err = f.print(t.Name, e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// socketID tells a container's socket from that of a later one with the same name.
type socketID struct {
	inode uint64
	since syscall.Timespec
}

// all prints the events of all containers, also of those that come later, until ctx ends
// or it cannot print.
func (f *follower) all(ctx context.Context, namespace string) error {
	ctx, fail := context.WithCancelCause(ctx)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer fail(nil)
	known := make(map[client.Name]socketID)
	for first := true; ; first = false {
		names, err := sockets.Names(namespace)
		if err != nil {
			return err
		}
		before := known
		known = make(map[client.Name]socketID, len(names))
		for _, n := range names {
			id, ok := identify(sockets.Path(n))
			if !ok {
				continue // gone meanwhile
			}
			known[n] = id
			if before[n] == id {
				continue
			}
			after, began := f.since, f.began
			if !first {
				after, began = 0, time.Time{} // it is new, and so are all its events
			}
			wait.Go(func() {
				err := f.one(ctx, target{n, sockets.Dial(n.Namespace, n.ID)}, after, began)
				var unprinted *printError
				if errors.As(err, &unprinted) {
					fail(err)
				}
				// Else it is the container's end, or a shim that is gone.
			})
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(discover):
		}
	}
}

func identify(path string) (socketID, bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return socketID{}, false
	}
	s := info.Sys().(*syscall.Stat_t)
	return socketID{s.Ino, s.Ctim}, true
}

// printError is that of the output, in contrast to a container's.
type printError struct{ error }

func (e *printError) Unwrap() error { return e.error }

func (f *follower) print(n client.Name, e api.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if f.json {
		err = json.NewEncoder(f.out).Encode(struct {
			Namespace string `json:"namespace"`
			ID        string `json:"id"`
			api.Event
		}{n.Namespace, n.ID, e})
	} else {
		_, err = fmt.Fprintf(f.out, "%s %s %s %s\n", stamp(e.At), clean(n.String()), clean(e.Kind), clean(happened(e)))
	}
	if err != nil {
		return &printError{fmt.Errorf("print an event: %w", err)}
	}
	return nil
}

// happened says what an event tells.
func happened(e api.Event) string {
	switch {
	case e.Transition != nil:
		text := arrow(*e.Transition)
		if e.Transition.Cause != "" {
			text += ": " + e.Transition.Cause
		}
		return text
	case e.Progress != nil:
		p := e.Progress
		text := p.Operation + " " + p.Step
		if p.Percent >= 0 {
			text += fmt.Sprintf(" %d%%", p.Percent)
		}
		if p.Total > 0 {
			text += fmt.Sprintf(" %s of %s", size(p.Bytes), size(p.Total))
		} else if p.Bytes > 0 {
			text += " " + size(p.Bytes)
		}
		return text
	}
	return e.Note
}
