//go:build linux

package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/runtime/toolkit"
)

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:  "uninstall",
		Usage: "remove what install has laid out, and nothing else",
		Description: `Containers that run would lose the CRIU that checkpoints them, so it refuses while there are any,
unless forced.

Example:
   sudo fastmig uninstall`,
		Flags: []cli.Flag{
			rootFlag(),
			&cli.BoolFlag{Name: "force", Usage: "remove it even while containers run with it"},
			quietFlag(),
		},
		Action: withoutArguments(func(ctx context.Context, cmd *cli.Command) error {
			root := cmd.String("root")
			if err := toolkit.Uninstall(ctx, toolkit.UninstallOptions{Root: root, Force: cmd.Bool("force")}); err != nil {
				return err
			}
			fmt.Fprintf(progressTo(cmd), "toolkit: removed from %s\n", root)
			return nil
		}),
	}
}
