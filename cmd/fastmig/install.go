//go:build linux

package main

import (
	"context"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/runtime/toolkit"
)

func installCommand() *cli.Command {
	return &cli.Command{
		Name:  "install",
		Usage: "lay out the toolkit: fastfreeze, and a CRIU that works on this kernel",
		Description: `Copies the static fastfreeze that lies beside this command, and CRIU with its own libraries and
loader. CRIU is the host's if ` + "`criu check`" + ` passes with it; else, on Debian and distributions made from
it, a package is fetched and unpacked (nothing on the host is installed or upgraded).

It is all or nothing, can be repeated, and does nothing when all is in place. Containers that run
keep what they have.

Examples:
   sudo fastmig install
   sudo fastmig install --criu /usr/local/sbin/criu     # a CRIU of your own
   sudo fastmig install --root /srv/fastmig --quiet`,
		Flags: []cli.Flag{
			rootFlag(),
			&cli.StringFlag{Name: "criu", Usage: "take CRIU from `PATH` and from nowhere else", TakesFile: true},
			&cli.StringFlag{Name: "fastfreeze", Usage: "take fastfreeze from `PATH` instead of beside this command", TakesFile: true},
			quietFlag(),
		},
		Action: withoutArguments(func(ctx context.Context, cmd *cli.Command) error {
			_, err := toolkit.Install(ctx, toolkit.InstallOptions{
				Root:           cmd.String("root"),
				CriuFrom:       cmd.String("criu"),
				FastfreezePath: cmd.String("fastfreeze"),
				Progress:       progressTo(cmd),
			})
			return err
		}),
	}
}
