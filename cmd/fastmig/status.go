//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/shim/api"
)

func statusCommand() *cli.Command {
	return containerCommand(&cli.Command{
		Name:      "status",
		Usage:     "tell a service's state, its checkpoint, its last error and its history",
		ArgsUsage: "CONTAINER",
		Description: `Tells the service's state and the container's, which have lives of their own, and how the service
came to be where it is.

Examples:
   sudo fastmig status web
   sudo fastmig status web --history 100
   sudo fastmig status web --json | jq -r .state` + naming,
		Flags: []cli.Flag{
			namespaceFlag("the container's namespace `NAME`"),
			&cli.IntFlag{Name: "history", Usage: "print the last `N` transitions of the service", Value: 10},
			jsonFlag("print it as JSON, with the whole history; its names are stable"),
		},
		Action: onContainer(false, func(ctx context.Context, cmd *cli.Command, t target) error {
			history := cmd.Int("history")
			if history < 0 {
				return usageError{fmt.Errorf("--history is a number of transitions, got %d", history)}
			}
			s, err := t.Status(ctx)
			if err != nil {
				return err
			}
			if cmd.Bool("json") {
				return printJSON(cmd.Root().Writer, s)
			}
			return printStatus(cmd.Root().Writer, s, history)
		}),
	})
}

func printStatus(out io.Writer, s api.Status, history int) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); text != "" {
			fmt.Fprintf(w, "%s:\t%s\n", name, clean(text))
		}
	}
	line("container", "%s/%s, %s", s.Namespace, s.ID, s.Container)
	line("service", "%s since %s (%s)", s.State, stamp(s.Since), age(now().Sub(s.Since)))
	line("reason", "%s", s.Reason)
	line("application", "%s", pids(s))
	line("lives", "%s", lives(s))
	if s.ExitStatus != nil {
		line("last exit", "%s", exit(*s.ExitStatus))
	}
	if s.NextStart != nil {
		line("next start", "%s", stamp(*s.NextStart))
	}
	line("settings", "startup %s, on-exit %s, supervise %s", s.Startup, s.OnExit, s.Supervise)
	line("image url", "%s", s.ImageURL)
	if c := s.Checkpoint; c != nil {
		line("checkpoint", "%s, %s, %s (%s ago), sha256 %s", c.URL, size(c.Bytes), stamp(c.CreatedAt), age(now().Sub(c.CreatedAt)), c.Digest)
	}
	if f := s.LastError; f != nil {
		line("last error", "%s at %s: %s", f.Operation, stamp(f.At), f.Error.Message)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printHistory(out, s.History, history)
}

// pids of the application and of PID 1, as the host sees them.
func pids(s api.Status) string {
	var parts []string
	if s.AppPid > 0 {
		parts = append(parts, fmt.Sprintf("pid %d", s.AppPid))
	} else {
		parts = append(parts, "none runs")
	}
	if s.InitPid > 0 {
		parts = append(parts, fmt.Sprintf("the container's PID 1 is pid %d", s.InitPid))
	}
	return strings.Join(parts, "; ")
}

func lives(s api.Status) string {
	text := fmt.Sprintf("%d (restarts %d, recoveries %d)", s.Starts, s.Restarts, s.Recoveries)
	if s.StartedAt != nil {
		text += ", started " + stamp(*s.StartedAt)
	}
	if s.EndedAt != nil {
		text += ", the last ended " + stamp(*s.EndedAt)
	}
	return text
}

// exit says what an exit status means.
func exit(status int) string {
	if status > 128 && status < 128+65 {
		return fmt.Sprintf("%d (signal %d)", status, status-128)
	}
	return fmt.Sprint(status)
}

// printHistory writes the last transitions of a service, oldest first.
func printHistory(out io.Writer, history []api.Transition, most int) error {
	if len(history) == 0 || most == 0 {
		return nil
	}
	earlier := max(0, len(history)-most)
	fmt.Fprintln(out, "history:")
	if earlier > 0 {
		fmt.Fprintf(out, "  (%d earlier)\n", earlier)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, t := range history[earlier:] {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", stamp(t.At), clean(arrow(t)), clean(t.Cause))
	}
	return w.Flush()
}

func arrow(t api.Transition) string {
	if t.From == "" {
		return string(t.To)
	}
	return fmt.Sprintf("%s -> %s", t.From, t.To)
}
