// Package harness runs real containerds, with the real tools around them, for
// tests, benchmarks and the demo: each on a private machine (see machine) and
// in a temporary folder, and leaves nothing behind.
package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/internal/checkout"
	"github.com/fastmig/fastmig/integration/internal/peers"
)

// Options says how a node is made. The zero value is a node with FastMig's
// shim installed beside the stock one.
type Options struct {
	// Runtime is what Run, Ctr and Nerdctl use; Default if it is zero.
	Runtime Runtime
	// Beside puts the node onto another node's machine: the same /run,
	// /var/lib and network, as two containerds on one host have.
	Beside *Node
	// Toolkit is FASTMIG_ROOT for containerd and its shims, by default the
	// variable's value in this process.
	Toolkit string
	// Env holds further variables for containerd and its shims.
	Env []string
	// Plugins are further lines of the [plugins] table of containerd's
	// config, as TOML. With CRI they may configure it.
	Plugins string
	// CRI leaves containerd's Kubernetes interface on.
	CRI bool
	// Config is the node's /etc/fastmig/config.toml; "": none. See WriteConfig.
	Config string
	// Progress gets lines about long steps, such as building containerd.
	Progress io.Writer
}

// Node is one running containerd with its folder and its tools.
type Node struct {
	// Dir holds everything of the node. It is removed by Stop.
	Dir string
	// Address is containerd's socket.
	Address string
	// Namespace is the containerd namespace of this node, unlike any other
	// node's, and with it the top cgroup of its containers.
	Namespace string
	// Runtime is what containers run under unless they say otherwise.
	Runtime Runtime
	// CNI is the folder of the CNI plugins.
	CNI string

	id       string
	machine  *machine
	owned    bool // the machine goes with this node
	path     string
	env      []string
	daemon   *exec.Cmd
	exited   chan struct{}
	client   *containerd.Client
	progress io.Writer
}

// Start builds what is missing, starts a containerd and waits until it serves.
// The caller calls Stop. Leftovers of nodes whose process is gone are removed
// first.
func Start(ctx context.Context, opts Options) (n *Node, err error) {
	if opts.Runtime == (Runtime{}) {
		opts.Runtime = Default()
	}
	if opts.Toolkit == "" {
		opts.Toolkit = os.Getenv("FASTMIG_ROOT")
	}
	set, err := peers.Build(ctx, opts.Progress)
	if err != nil {
		return nil, err
	}
	root, err := checkout.Root()
	if err != nil {
		return nil, err
	}
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("remove what earlier, killed runs left: %w", err)
	}
	dir, err := newDir()
	if err != nil {
		return nil, err
	}
	n = &Node{
		Dir:       dir,
		id:        filepath.Base(dir),
		Address:   filepath.Join(dir, "c.sock"),
		Namespace: namespacePrefix + filepath.Base(dir),
		Runtime:   opts.Runtime,
		CNI:       set.CNI,
		progress:  opts.Progress,
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Stop())
			n = nil
		}
	}()
	if opts.Beside != nil {
		n.machine = opts.Beside.machine
	} else {
		n.owned = true
		if n.machine, err = newMachine(filepath.Join(dir, "varlib")); err != nil {
			return n, fmt.Errorf("make the node's machine: %w", err)
		}
	}
	bin := filepath.Join(root, "bin")
	n.path = strings.Join([]string{filepath.Join(dir, "bin"), set.Path(), bin, filepath.Join(opts.Toolkit, "bin"),
		"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, ":")
	n.env = append([]string{
		"PATH=" + n.path,
		"HOME=" + filepath.Join(dir, "home"),
		"NERDCTL_TOML=" + filepath.Join(dir, "nerdctl.toml"),
		nodeVariable + "=" + n.id,
		// containerd unpacks checkpoints here and leaves them; the machine's
		// /var/lib is the node's own.
		"XDG_RUNTIME_DIR=/var/lib",
	}, opts.Env...)
	if opts.Toolkit != "" {
		n.env = append(n.env, "FASTMIG_ROOT="+opts.Toolkit)
	}
	if opts.Runtime.inPlace {
		if err := os.Symlink(filepath.Join(bin, "containerd-shim-fastmig-v2"), filepath.Join(dir, "bin", "containerd-shim-runc-v2")); err != nil {
			return n, err
		}
	}
	if err := os.WriteFile(n.configFile(), []byte(n.config(opts)), 0o644); err != nil {
		return n, err
	}
	if err := n.writeNetwork(); err != nil {
		return n, err
	}
	if opts.Config != "" {
		if err := n.WriteConfig(opts.Config); err != nil {
			return n, err
		}
	}
	return n, n.StartDaemon(ctx)
}

func (n *Node) configFile() string { return filepath.Join(n.Dir, "config.toml") }
func (n *Node) logFile() string    { return filepath.Join(n.Dir, "containerd.log") }

// StartDaemon starts containerd after StopDaemon and waits until it serves.
func (n *Node) StartDaemon(ctx context.Context) error {
	exe, err := lookPath("containerd", n.path)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(exe, "--config", n.configFile())
	cmd.Env = n.env
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own keeps a Ctrl-C at the terminal from reaching it
	// before Stop has done its work.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.machine.start(cmd); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	n.daemon, n.exited = cmd, exited

	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = WaitFor(ctx, "containerd to serve", func(ctx context.Context) (bool, error) {
		select {
		case <-exited:
			return false, Final(errors.New("containerd ended"))
		default:
		}
		if n.client == nil {
			c, err := containerd.New(n.Address, containerd.WithDefaultNamespace(n.Namespace), containerd.WithTimeout(5*time.Second))
			if err != nil {
				return false, err
			}
			n.client = c
		}
		return n.client.IsServing(ctx)
	})
	if err != nil {
		return fmt.Errorf("start containerd: %w; the end of its log:\n%s", err, n.LogTail(30))
	}
	return nil
}

// StopDaemon ends containerd and leaves shims and containers running.
func (n *Node) StopDaemon(ctx context.Context) error { return n.endDaemon(ctx, unix.SIGTERM) }

// KillDaemon is StopDaemon by SIGKILL.
func (n *Node) KillDaemon(ctx context.Context) error { return n.endDaemon(ctx, unix.SIGKILL) }

func (n *Node) endDaemon(ctx context.Context, sig syscall.Signal) error {
	if n.daemon == nil {
		return nil
	}
	if err := n.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end containerd: %w", err)
	}
	select {
	case <-n.exited:
		n.daemon = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end containerd: %w", ctx.Err())
	}
}

// Client is a client of this node's containerd in the node's namespace. It
// reconnects by itself after a restart of the daemon; Stop closes it.
func (n *Node) Client() *containerd.Client { return n.client }

// DaemonPid is containerd's process id, 0 while it is stopped.
func (n *Node) DaemonPid() int {
	if n.daemon == nil {
		return 0
	}
	return n.daemon.Process.Pid
}

// Toolpath is the PATH that containerd and its shims have.
func (n *Node) Toolpath() string { return n.path }

// InMachine calls f on a thread inside the node's network and mount
// namespaces, so that it sees the node's /run and can reach published ports.
func (n *Node) InMachine(f func() error) error { return n.machine.do(f) }

// LogTail returns the last lines of containerd's log.
func (n *Node) LogTail(lines int) string {
	data, err := os.ReadFile(n.logFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Stop kills all that the node runs and removes every trace of it. It may be
// called on a node that failed to start, and twice.
func (n *Node) Stop() error {
	if n.client != nil {
		_ = n.client.Close()
		n.client = nil
	}
	if n.machine != nil && n.owned {
		n.machine.close()
	}
	n.machine = nil
	err := destroy(n.Dir)
	if n.daemon != nil {
		<-n.exited
		n.daemon = nil
	}
	return err
}
