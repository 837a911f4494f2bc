package harness

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ctr runs the real ctr against the node, in its namespace, and returns what
// it printed to standard output. The error holds what it printed to standard
// error. Arguments of `run` that a private node needs are added.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return n.tool(ctx, nil, "ctr", n.ctrArgs(args)...)
}

func (n *Node) ctrArgs(args []string) []string {
	if len(args) > 0 && args[0] == "run" {
		args = append([]string{"run", "--runtime", n.Runtime.Name, "--fifo-dir", n.fifoDir()}, args[1:]...)
	}
	return append([]string{"--address", n.Address, "--namespace", n.Namespace}, args...)
}

// Nerdctl runs the real nerdctl against the node as Ctr does. The network is
// the node's own (see Network).
func (n *Node) Nerdctl(ctx context.Context, args ...string) (string, error) {
	return n.tool(ctx, nil, "nerdctl", n.nerdctlArgs(args)...)
}

func (n *Node) nerdctlArgs(args []string) []string {
	if len(args) > 0 && (args[0] == "run" || args[0] == "create") {
		args = append([]string{args[0], "--runtime", n.Runtime.Name, "--pull", "never"}, args[1:]...)
	}
	return append([]string{
		"--address", n.Address, "--namespace", n.Namespace,
		"--data-root", filepath.Join(n.Dir, "nerdctl"),
		"--cni-path", n.CNI, "--cni-netconfpath", filepath.Join(n.Dir, "cni"),
		"--cgroup-manager", "cgroupfs", "--snapshotter", "overlayfs",
	}, args...)
}

// Tool runs any program of the node's PATH on the node's machine.
func (n *Node) Tool(ctx context.Context, name string, args ...string) (string, error) {
	return n.tool(ctx, nil, name, args...)
}

// Command prepares ctr or nerdctl (with the arguments that Ctr and Nerdctl
// add) or another program of the node's PATH, for callers that wire its input
// and output themselves. StartCommand starts it.
func (n *Node) Command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	switch name {
	case "ctr":
		args = n.ctrArgs(args)
	case "nerdctl":
		args = n.nerdctlArgs(args)
	}
	return n.command(ctx, name, args...)
}

// StartCommand starts a command of Command on the node's machine.
func (n *Node) StartCommand(cmd *exec.Cmd) error { return n.machine.start(cmd) }

func (n *Node) command(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	exe, err := lookPath(name, n.path)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Env = n.env
	// nerdctl starts processes that keep its output open after it has ended.
	cmd.WaitDelay = 5 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	return cmd, nil
}

func (n *Node) tool(ctx context.Context, stdin []byte, name string, args ...string) (string, error) {
	cmd, err := n.command(ctx, name, args...)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := n.machine.start(cmd); err != nil {
		return "", fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return stdout.String(), &ToolError{Tool: name, Args: args, Stderr: strings.TrimSpace(stderr.String()), Err: err}
	}
	return stdout.String(), nil
}

// ToolError is the failure of a program that the harness ran.
type ToolError struct {
	Tool   string
	Args   []string
	Stderr string
	Err    error
}

func (e *ToolError) Error() string {
	return fmt.Sprintf("%s %s: %v: %s", e.Tool, strings.Join(e.Args, " "), e.Err, e.Stderr)
}

func (e *ToolError) Unwrap() error { return e.Err }
