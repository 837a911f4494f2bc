//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/runtime/node"
	"github.com/fastmig/fastmig/runtime/toolkit"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "say what this node can do, and what to do about what it cannot",
		Description: `Prints one line for each thing that matters, then a verdict for run, checkpoint and restore:
yes, limited (it works, with the exceptions that are named) or no. It changes nothing.
Exits with 1 when a verdict is no.

Examples:
   sudo fastmig check
   sudo fastmig check --json | jq .verdicts`,
		Flags: []cli.Flag{
			rootFlag(),
			&cli.BoolFlag{Name: "json", Usage: "print the report as JSON; its names are stable"},
		},
		Action: withoutArguments(func(ctx context.Context, cmd *cli.Command) error {
			report, err := node.Inspect(ctx, nodeOptions(cmd.String("root")))
			if err != nil {
				return err
			}
			out := cmd.Root().Writer
			if cmd.Bool("json") {
				enc := json.NewEncoder(out)
				enc.SetIndent("", "  ")
				err = enc.Encode(report)
			} else {
				err = report.Print(out)
			}
			if err == nil && !report.OK() {
				err = errSaid
			}
			return err
		}),
	}
}

// nodeOptions tells the probe about the node's configuration and the toolkit at root.
func nodeOptions(root string) node.Options {
	opts := node.Options{Configuration: configuration(config.Path)}
	tk, err := toolkit.LocateAt(root)
	if err != nil {
		opts.Toolkit = node.Finding{Status: node.No, Detail: err.Error()}
		return opts
	}
	opts.Criu = tk.RunHost
	m, err := tk.Verify()
	if err != nil {
		// Containers start with it, but it is not what was tried out here.
		opts.Toolkit = node.Finding{Status: node.Limited, Detail: err.Error()}
		return opts
	}
	opts.Toolkit = node.Finding{Status: node.Yes, Detail: fmt.Sprintf("%s, CRIU %s (%s)", tk.Root(), m.Criu.Version, m.Criu.Source)}
	return opts
}

// configuration says whether the shim can read the node's configuration.
func configuration(path string) node.Finding {
	c, err := config.Load(path)
	if err != nil {
		return node.Finding{Status: node.No, Detail: err.Error()}
	}
	source := path
	if _, err := os.Lstat(path); err != nil {
		source = "no " + path + ", the defaults hold"
	}
	return node.Finding{Status: node.Yes, Detail: fmt.Sprintf("%s; checkpoints in %s", source, c.Checkpoints)}
}
