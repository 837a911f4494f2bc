//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/runtime/toolkit"
)

const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // 128 + SIGINT, as shells have it
)

// usageError is a wrong command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// errSaid ends a verb that has printed why it failed.
var errSaid = errors.New("")

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.Run(ctx, args)
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "fastmig: %v\nSee `fastmig --help`.\n", err)
		return exitUsage
	case ctx.Err() != nil:
		if !errors.Is(err, errSaid) {
			fmt.Fprintln(stderr, "fastmig: interrupted:", cleanLines(err.Error()))
		}
		return exitInterrupted
	case !errors.Is(err, errSaid):
		fmt.Fprintln(stderr, "fastmig:", cleanLines(err.Error()))
	}
	return exitFailed
}

func newApp(stdout, stderr io.Writer) *cli.Command {
	app := &cli.Command{
		Name:  "fastmig",
		Usage: "containers whose service can be checkpointed, restored and moved while they stay",
		Description: `A node needs two things: the shim, and the toolkit that this command installs. A container under the
shim has two lives: its own, which is containerd's affair, and its service's, which is this command's.

Examples:
   fastmig check               what can this node do, and what is in the way?
   sudo fastmig install        lay out the toolkit (` + toolkit.DefaultRoot + `)
   ctr run --runtime io.containerd.fastmig.v2 IMAGE NAME
   sudo fastmig ps             what runs?
   sudo fastmig checkpoint NAME --image-url node:NAME
   sudo fastmig restore NAME --image-url node:NAME

` + toolkit.RootEnv + ` names another folder for the toolkit, for this command and for the shim.
Shell completion: source <(fastmig completion bash), also zsh, fish, pwsh.

Exit codes: 0 done, 1 failed or (check) a verdict is no, 2 wrong usage, 130 interrupted.`,
		Version:               version(),
		EnableShellCompletion: true,
		Suggest:               true,
		Writer:                stdout,
		ErrWriter:             stderr,
		ExitErrHandler:        func(context.Context, *cli.Command, error) {}, // run decides
		ConfigureShellCompletionCommand: func(c *cli.Command) {
			c.Hidden = false
		},
		Commands: []*cli.Command{
			installCommand(), uninstallCommand(), checkCommand(), versionCommand(),
			psCommand(), statusCommand(), eventsCommand(),
			checkpointCommand(), restoreCommand(), startCommand(), stopCommand(), standbyCommand(),
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if name := cmd.Args().First(); name != "" {
				return usageError{fmt.Errorf("there is no command %q", name)}
			}
			return cli.ShowRootCommandHelp(cmd)
		},
	}
	for _, cmd := range append(app.Commands, app) {
		cmd.OnUsageError = func(_ context.Context, _ *cli.Command, err error, _ bool) error { return usageError{err} }
	}
	return app
}

// withoutArguments refuses what stands behind the flags of a verb that takes nothing there.
func withoutArguments(action cli.ActionFunc) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		if first := cmd.Args().First(); first != "" {
			return usageError{fmt.Errorf("%s takes no argument, got %q", cmd.Name, first)}
		}
		return action(ctx, cmd)
	}
}

// rootFlag is the same for all verbs that deal with the toolkit.
func rootFlag() cli.Flag {
	return &cli.StringFlag{
		Name: "root", Usage: "the toolkit's `DIR`", Value: toolkit.DefaultRoot, Sources: cli.EnvVars(toolkit.RootEnv),
		TakesFile: true,
	}
}

func quietFlag() cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print errors only"}
}

// progressTo is where a verb's steps are told: on standard error, unless quiet.
func progressTo(cmd *cli.Command) io.Writer {
	if cmd.Bool("quiet") {
		return io.Discard
	}
	if w := cmd.Root().ErrWriter; w != nil {
		return w
	}
	return os.Stderr
}
