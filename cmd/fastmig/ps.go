//go:build linux

package main

import (
	"context"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/api/client"
)

// now is the time that ages are counted to.
var now = time.Now

func psCommand() *cli.Command {
	return containerCommand(&cli.Command{
		Name:  "ps",
		Usage: "list the containers under FastMig and how their services are",
		Description: `Lists the containers of all namespaces, each with its own state (CONTAINER) and its service's
(SERVICE), the application's PID, how long the service is in its state (SINCE), its last whole
checkpoint with its age, and the reason if there is more to say. A shim that does not answer is
listed with the reason.

Examples:
   sudo fastmig ps
   sudo fastmig ps -n k8s.io
   sudo fastmig ps --json | jq -r '.[] | select(.state == "standby") | .id'`,
		Flags: []cli.Flag{
			namespaceFlag("only those of the namespace `NAME`"),
			jsonFlag("print an array of what status --json prints"),
		},
		Action: withoutArguments(func(ctx context.Context, cmd *cli.Command) error {
			listed, err := sockets.List(ctx, cmd.String("namespace"))
			if err != nil {
				return err
			}
			if cmd.Bool("json") {
				if listed == nil {
					listed = []client.Listed{} // an array in any case
				}
				return printJSON(cmd.Root().Writer, listed)
			}
			w := tabwriter.NewWriter(cmd.Root().Writer, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAMESPACE\tID\tCONTAINER\tSERVICE\tPID\tSINCE\tCHECKPOINT\tREASON")
			for _, l := range listed {
				fmt.Fprintf(w, "%s\t%s\t%s\n", clean(l.Namespace), clean(l.ID), row(l))
			}
			return w.Flush()
		}),
	})
}

// row is what stands behind a container's name.
func row(l client.Listed) string {
	if l.Error != nil {
		return "-\t-\t-\t-\t-\t" + clean(l.Error.Message)
	}
	pid := "-"
	if l.AppPid > 0 {
		pid = strconv.Itoa(l.AppPid)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%s", dash(clean(l.Container)), dash(clean(string(l.State))), pid,
		age(now().Sub(l.Since)), dash(checkpoint(l.Checkpoint)), dash(clean(l.Reason)))
}

// checkpoint names one, with its age.
func checkpoint(c *api.Checkpoint) string {
	if c == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s ago)", clean(c.URL), age(now().Sub(c.CreatedAt)))
}
