//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/shim/api"
)

func checkpointCommand() *cli.Command {
	return containerCommand(&cli.Command{
		Name:      "checkpoint",
		Usage:     "write a checkpoint of a service",
		ArgsUsage: "CONTAINER",
		Description: `Freezes the service, writes its checkpoint, and lets it go on. With --stop it ends instead, and
its container goes on living in standby, so that what should happen last can happen there. A
checkpoint exists wholly or not at all; when it fails, the service goes on.

URL is node:NAME, a checkpoint in the node's folder, or file:/PATH in the container's own file
system. Hooks are commands that run in the container, in words as of a shell: quotes and
backslashes, nothing else. A hook before the checkpoint that fails calls it off.

Examples:
   sudo fastmig checkpoint web --image-url node:web
   sudo fastmig checkpoint web --stop --hook-after '/bin/sh -c "drain && sync"'
   sudo fastmig checkpoint web --preserve /var/lib/web --preserve /tmp/work` + naming,
		Flags: operationFlags(
			&cli.StringFlag{Name: "image-url", Usage: "write it to `URL` instead of the container's own"},
			&cli.BoolFlag{Name: "leave-running", Usage: "let the service go on, which is the default", Value: true},
			&cli.BoolFlag{Name: "stop", Usage: "end the service when its checkpoint is whole: --leave-running=false"},
			&cli.StringSliceFlag{Name: "preserve", Usage: "take the files at `PATH` in the container along; may be repeated"},
			&cli.StringFlag{Name: "tcp", Usage: "`WHAT` becomes of established TCP connections: close or keep; otherwise as annotated"},
			hookFlag("hook-before", "before it"),
			hookFlag("hook-after", "when the checkpoint is whole"),
			hookTimeoutFlag(),
		),
		Action: onContainer(false, func(ctx context.Context, cmd *cli.Command, t target) error {
			leave := cmd.Bool("leave-running")
			if cmd.Bool("stop") {
				if cmd.IsSet("leave-running") && leave {
					return usageError{errors.New("--stop and --leave-running exclude each other")}
				}
				leave = false
			}
			if tcp := cmd.String("tcp"); cmd.IsSet("tcp") && tcp != "close" && tcp != "keep" {
				return usageError{fmt.Errorf("--tcp is close or keep, got %q", tcp)}
			}
			before, after, timeout, err := hooks(cmd)
			if err != nil {
				return err
			}
			r := api.CheckpointRequest{ImageURL: cmd.String("image-url"), LeaveRunning: &leave, TCP: cmd.String("tcp"), PreservedPaths: cmd.StringSlice("preserve")}
			if before != nil || after != nil || timeout != "" {
				r.Hooks = &api.Hooks{BeforeCheckpoint: before, AfterCheckpoint: after, Timeout: timeout}
			}
			return perform(ctx, cmd, t, operation{
				name:    "checkpoint",
				request: func(ctx context.Context) (api.Result, error) { return t.Checkpoint(ctx, r) },
				did:     func(r api.Result) string { return "checkpointed" + preposition("to", r.Checkpoint) },
			})
		}),
	})
}

func restoreCommand() *cli.Command {
	return containerCommand(&cli.Command{
		Name:      "restore",
		Usage:     "bring the service of a container in standby back from a checkpoint",
		ArgsUsage: "CONTAINER",
		Description: `Restores the newest whole checkpoint at URL into the container. When that fails, the container stays
in standby. For URLs and hooks, see fastmig checkpoint --help.

Examples:
   sudo fastmig restore web
   sudo fastmig restore web --image-url file:/var/ckpt --hook-after '/bin/announce up'` + naming,
		Flags: operationFlags(
			&cli.StringFlag{Name: "image-url", Usage: "restore it from `URL` instead of the container's own"},
			&cli.BoolFlag{Name: "leave-stopped", Usage: "leave the application stopped, as by SIGSTOP"},
			hookFlag("hook-before", "before it"),
			hookFlag("hook-after", "when the application runs"),
			hookTimeoutFlag(),
		),
		Action: onContainer(false, func(ctx context.Context, cmd *cli.Command, t target) error {
			before, after, timeout, err := hooks(cmd)
			if err != nil {
				return err
			}
			r := api.RestoreRequest{ImageURL: cmd.String("image-url"), LeaveStopped: cmd.Bool("leave-stopped")}
			if before != nil || after != nil || timeout != "" {
				r.Hooks = &api.Hooks{BeforeRestore: before, AfterRestore: after, Timeout: timeout}
			}
			return perform(ctx, cmd, t, operation{
				name:    "restore",
				request: func(ctx context.Context) (api.Result, error) { return t.Restore(ctx, r) },
				did: func(res api.Result) string {
					did := "restored" + preposition("from", res.Checkpoint)
					if r.LeaveStopped {
						did += ", left stopped (SIGCONT to its processes lets them go on),"
					}
					return did
				},
			})
		}),
	})
}

func startCommand() *cli.Command {
	return containerCommand(&cli.Command{
		Name:      "start",
		Usage:     "start the service of a container in standby from scratch",
		ArgsUsage: "CONTAINER [-- COMMAND ARGUMENT...]",
		Description: `Starts the container's own command, or the one given behind --, without looking for a checkpoint.

Examples:
   sudo fastmig start web
   sudo fastmig start web --env LEVEL=debug -- /bin/server --port 80` + naming,
		Flags: operationFlags(
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "a further variable `NAME=VALUE`; may be repeated"},
			hookFlag("hook-after", "when the application runs"),
			hookTimeoutFlag(),
		),
		Action: onContainer(true, func(ctx context.Context, cmd *cli.Command, t target) error {
			for _, e := range cmd.StringSlice("env") {
				if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
					return usageError{fmt.Errorf("--env is NAME=VALUE, got %q", e)}
				}
			}
			_, after, timeout, err := hooks(cmd)
			if err != nil {
				return err
			}
			r := api.StartRequest{Args: cmd.Args().Tail(), Env: cmd.StringSlice("env")}
			if after != nil || timeout != "" {
				r.Hooks = &api.Hooks{AfterRestore: after, Timeout: timeout}
			}
			return perform(ctx, cmd, t, operation{
				name:    "start",
				request: func(ctx context.Context) (api.Result, error) { return t.Start(ctx, r) },
				did:     func(api.Result) string { return "started" },
			})
		}),
	})
}

func stopCommand() *cli.Command {
	return containerCommand(&cli.Command{
		Name:      "stop",
		Usage:     "end a service and leave its container in standby",
		ArgsUsage: "CONTAINER",
		Description: `Sends the signal, waits, and sends SIGKILL when the time is over. The container, its addresses and
its file system stay.

Examples:
   sudo fastmig stop web
   sudo fastmig stop web --signal SIGINT --timeout 1m` + naming,
		Flags: operationFlags(
			&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "`SIGNAL` by name or number; SIGTERM otherwise"},
			&cli.DurationFlag{Name: "timeout", Aliases: []string{"t"}, Usage: "`TIME` until SIGKILL, such as 30s or 1m; 10s otherwise", HideDefault: true},
		),
		Action: onContainer(false, func(ctx context.Context, cmd *cli.Command, t target) error {
			r := api.StopRequest{Signal: cmd.String("signal")}
			if cmd.IsSet("timeout") {
				d := cmd.Duration("timeout")
				if d < 0 {
					return usageError{fmt.Errorf("--timeout is not negative, got %v", d)}
				}
				r.Timeout = d.String()
			}
			return perform(ctx, cmd, t, operation{
				name:    "stop",
				request: func(ctx context.Context) (api.Result, error) { return t.Stop(ctx, r) },
				did:     func(api.Result) string { return "stopped" },
			})
		}),
	})
}

func standbyCommand() *cli.Command {
	return containerCommand(&cli.Command{
		Name:      "standby",
		Usage:     "put a container in standby: its service is ended at once, if it runs",
		ArgsUsage: "CONTAINER",
		Description: `Ends the service by SIGKILL, and calls a start that is being waited for off. It is no error when no
service runs. To let the service end by itself, see fastmig stop.

Example:
   sudo fastmig standby web` + naming,
		Flags: operationFlags(),
		Action: onContainer(false, func(ctx context.Context, cmd *cli.Command, t target) error {
			return perform(ctx, cmd, t, operation{
				name:    "standby",
				request: func(ctx context.Context) (api.Result, error) { return t.Standby(ctx, api.StopRequest{}) },
				did:     func(api.Result) string { return "put in standby" },
			})
		}),
	})
}

// preposition says where a checkpoint went or came from, if one did.
func preposition(word string, c *api.Checkpoint) string {
	if c == nil {
		return ""
	}
	return fmt.Sprintf(" %s %s, %s,", word, c.URL, size(c.Bytes))
}

func hookFlag(name, when string) cli.Flag {
	return &cli.StringFlag{Name: name, Usage: "run `COMMAND` in the container " + when}
}

func hookTimeoutFlag() cli.Flag {
	return &cli.DurationFlag{Name: "hook-timeout", Usage: "`TIME` that each hook has; 30s otherwise", HideDefault: true}
}

// hooks are those of the command line, and their time; empty if it has none.
func hooks(cmd *cli.Command) (before, after []string, timeout string, err error) {
	for _, h := range []struct {
		flag string
		to   *[]string
	}{{"hook-before", &before}, {"hook-after", &after}} {
		if !cmd.IsSet(h.flag) {
			continue
		}
		if *h.to, err = words(cmd.String(h.flag)); err != nil {
			return nil, nil, "", usageError{fmt.Errorf("--%s: %w", h.flag, err)}
		}
	}
	if cmd.IsSet("hook-timeout") {
		d := cmd.Duration("hook-timeout")
		if d <= 0 {
			return nil, nil, "", usageError{fmt.Errorf("--hook-timeout is more than nothing, got %v", d)}
		}
		timeout = d.Round(time.Millisecond).String()
	}
	return before, after, timeout, nil
}
