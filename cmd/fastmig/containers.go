//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"

	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/api/client"
)

// sockets are the containers' of this node. Tests have their own.
var sockets = client.Default

const (
	// namespaceEnv is what ctr and nerdctl go by, too.
	namespaceEnv = "CONTAINERD_NAMESPACE"
	// defaultNamespace is ctr's and nerdctl's.
	defaultNamespace = "default"
)

// naming is told in the help of the verbs that take a container.
const naming = `

CONTAINER is an ID as ` + "`fastmig ps`" + ` shows it, or a beginning of one that no other shares. Without -n
its namespace is $` + namespaceEnv + `, else the only one that has it, else "` + defaultNamespace + `".`

func namespaceFlag(usage string) cli.Flag {
	return &cli.StringFlag{Name: "namespace", Aliases: []string{"n"}, Usage: usage}
}

func jsonFlag(usage string) cli.Flag { return &cli.BoolFlag{Name: "json", Usage: usage} }

// containerCommand completes a command that speaks to the shims of containers: ids
// can be completed, and with --json errors are JSON as well.
func containerCommand(cmd *cli.Command) *cli.Command {
	cmd.Category = "containers"
	cmd.ShellComplete = completeContainers
	cmd.DisableSliceFlagSeparator = true // a comma is part of a variable or a command
	action := cmd.Action
	cmd.Action = func(ctx context.Context, cmd *cli.Command) error {
		err := action(ctx, cmd)
		var usage usageError
		if err == nil || errors.Is(err, errSaid) || errors.As(err, &usage) || !cmd.Bool("json") {
			return err
		}
		var e *api.Error
		if !errors.As(err, &e) {
			e, _ = api.NewError(err, "")
		}
		return errors.Join(printJSON(cmd.Root().ErrWriter, e), errSaid)
	}
	return cmd
}

// target is the container that a verb is about.
type target struct {
	client.Name
	*client.Client
}

// onContainer makes an action of one on the container that the first argument names.
// Further arguments are for verbs that take them.
func onContainer(further bool, do func(ctx context.Context, cmd *cli.Command, t target) error) cli.ActionFunc {
	return func(ctx context.Context, cmd *cli.Command) error {
		switch n := cmd.Args().Len(); {
		case n == 0 || cmd.Args().First() == "":
			return usageError{fmt.Errorf("%s needs a container: `fastmig ps` lists them", cmd.Name)}
		case n > 1 && !further:
			return usageError{fmt.Errorf("%s takes one container, got %q after it", cmd.Name, cmd.Args().Get(1))}
		}
		name, err := find(cmd.String("namespace"), cmd.Args().First())
		if err != nil {
			return err
		}
		return do(ctx, cmd, target{name, sockets.Dial(name.Namespace, name.ID)})
	}
}

// find says which container is meant.
func find(namespace, id string) (client.Name, error) {
	if namespace == "" {
		namespace = os.Getenv(namespaceEnv)
	}
	all, err := sockets.Names(namespace)
	if err != nil {
		return client.Name{}, err
	}
	var whole, begins []client.Name
	for _, n := range all {
		if n.ID == id {
			whole = append(whole, n)
		}
		if strings.HasPrefix(n.ID, id) {
			begins = append(begins, n)
		}
	}
	switch {
	case len(whole) == 1:
		return whole[0], nil
	case len(whole) > 1: // of one namespace each
		for _, n := range whole {
			if n.Namespace == defaultNamespace {
				return n, nil
			}
		}
		return client.Name{}, fmt.Errorf("%q is in several namespaces (%s): say which with --namespace: %w", id, join(whole), errdefs.ErrInvalidArgument)
	case len(begins) == 1:
		return begins[0], nil
	case len(begins) > 1:
		return client.Name{}, fmt.Errorf("several containers begin with %q (%s): say more of the id, or the --namespace: %w", id, join(begins), errdefs.ErrInvalidArgument)
	case namespace == "":
		namespace = defaultNamespace // its client's errors say that it is not there
	}
	return client.Name{Namespace: namespace, ID: id}, nil
}

// join lists some names.
func join(names []client.Name) string {
	const most = 5
	var b strings.Builder
	for i, n := range names {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(names)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(n.String())
	}
	return b.String()
}

// completeContainers prints the ids that may come next, as TOKEN:DESCRIPTION, the flags when
// one is begun, and the namespaces behind --namespace.
func completeContainers(ctx context.Context, cmd *cli.Command) {
	args := cmd.Args().Slice()
	last := ""
	if len(args) > 0 {
		last = args[len(args)-1]
	}
	out := cmd.Root().Writer
	if last == "-n" || last == "--namespace" {
		names, _ := sockets.Names("") // a completion has no place for an error
		seen := make(map[string]bool)
		for _, n := range names {
			if !seen[n.Namespace] {
				fmt.Fprintln(out, n.Namespace)
				seen[n.Namespace] = true
			}
		}
		return
	}
	if strings.HasPrefix(last, "-") {
		cli.DefaultCompleteWithFlags(ctx, cmd)
		return
	}
	if len(args) > 0 || cmd.ArgsUsage == "" {
		return // no verb takes a second container
	}
	namespace := cmd.String("namespace")
	if namespace == "" {
		namespace = os.Getenv(namespaceEnv)
	}
	names, _ := sockets.Names(namespace)
	for _, n := range names {
		fmt.Fprintf(out, "%s:in namespace %s\n", n.ID, n.Namespace)
	}
}

// printJSON writes a value in the way that all of --json has.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
