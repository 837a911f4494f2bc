package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// RunOptions describes a container.
type RunOptions struct {
	// ID is made up if empty.
	ID string
	// Image is a reference that the node knows (see Node.Import).
	Image string
	// Args are the command; empty means the image's own.
	Args []string
	Env  []string
	// Terminal gives the process a terminal.
	Terminal bool
	// HostNetwork joins the network of the node's machine.
	HostNetwork bool
	// Annotations go into the OCI spec.
	Annotations map[string]string
	// Spec holds further changes to the OCI spec.
	Spec []oci.SpecOpts
	// Runtime is the node's if zero.
	Runtime Runtime
	// RuntimeOptions is the shim's options message; none if nil.
	RuntimeOptions any
	// IO replaces the pipes behind Container.Stdin and Container.Output.
	IO cio.Creator
	// Snapshot replaces the making of the container's root file system.
	Snapshot func(id string, image containerd.Image) containerd.NewContainerOpts
	// Task holds further options of the task's creation.
	Task []containerd.NewTaskOpts
}

// Container is a container of the harness with its task.
type Container struct {
	containerd.Container
	Task containerd.Task
	// Output collects standard output and standard error.
	Output *Buffer
	// Stdin is the task's standard input.
	Stdin io.WriteCloser

	node   *Node
	exited <-chan containerd.ExitStatus
}

var lastID atomic.Int64

// NewID makes up a container's name that this process did not use before.
func NewID(prefix string) string { return fmt.Sprintf("%s-%d", prefix, lastID.Add(1)) }

// Run creates and starts a container.
func (n *Node) Run(ctx context.Context, opts RunOptions) (*Container, error) {
	c, err := n.Create(ctx, opts)
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx); err != nil {
		return nil, errors.Join(err, c.Remove(ctx))
	}
	return c, nil
}

// Create creates a container and its task, ready for Start.
func (n *Node) Create(ctx context.Context, opts RunOptions) (*Container, error) {
	if opts.ID == "" {
		opts.ID = NewID("c")
	}
	if opts.Runtime == (Runtime{}) {
		opts.Runtime = n.Runtime
	}
	image, err := n.client.GetImage(ctx, opts.Image)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", opts.ID, err)
	}
	spec := []oci.SpecOpts{oci.WithImageConfigArgs(image, opts.Args), oci.WithEnv(opts.Env), oci.WithAnnotations(opts.Annotations)}
	if len(opts.Args) > 0 {
		// The arguments are the whole command, the image's entrypoint is not
		// put before them.
		spec = append(spec, oci.WithProcessArgs(opts.Args...))
	}
	if opts.Terminal {
		spec = append(spec, oci.WithTTY)
	}
	if opts.HostNetwork {
		spec = append(spec, oci.WithHostNamespace(specs.NetworkNamespace))
	}
	snapshot := containerd.WithNewSnapshot(opts.ID, image)
	if opts.Snapshot != nil {
		snapshot = opts.Snapshot(opts.ID, image)
	}
	container, err := n.client.NewContainer(ctx, opts.ID,
		containerd.WithImage(image),
		snapshot,
		containerd.WithRuntime(opts.Runtime.Name, opts.RuntimeOptions),
		containerd.WithNewSpec(append(spec, opts.Spec...)...),
	)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", opts.ID, err)
	}
	return n.newTask(ctx, container, opts.Terminal, opts.IO, opts.Task)
}

func (n *Node) newTask(ctx context.Context, container containerd.Container, terminal bool, creator cio.Creator, opts []containerd.NewTaskOpts) (_ *Container, err error) {
	c := &Container{Container: container, node: n, Output: &Buffer{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Remove(ctx))
		}
	}()
	if creator == nil {
		stdin, w := io.Pipe()
		c.Stdin = w
		ioOpts := []cio.Opt{cio.WithStreams(stdin, c.Output, c.Output), cio.WithFIFODir(n.fifoDir())}
		if terminal {
			ioOpts = append(ioOpts, cio.WithTerminal)
		}
		creator = cio.NewCreator(ioOpts...)
	}
	c.Task, err = container.NewTask(ctx, creator, opts...)
	if err != nil {
		return nil, fmt.Errorf("create the task of %s: %w", container.ID(), err)
	}
	c.exited, err = c.Task.Wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("wait for %s: %w", container.ID(), err)
	}
	return c, nil
}

// Start starts the created task.
func (c *Container) Start(ctx context.Context) error {
	if err := c.Task.Start(ctx); err != nil {
		return fmt.Errorf("start %s: %w", c.ID(), err)
	}
	return nil
}

// WaitExit waits for the task's end and returns its exit code. It can be
// called once.
func (c *Container) WaitExit(ctx context.Context) (uint32, error) {
	select {
	case status := <-c.exited:
		code, _, err := status.Result()
		return code, err
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for the end of %s: %w; its output:\n%s", c.ID(), ctx.Err(), c.Output)
	}
}

// Exec runs a command in the container and returns what it printed. A command
// that fails is an error that holds its output.
func (c *Container) Exec(ctx context.Context, args ...string) (string, error) {
	return c.ExecInput(ctx, nil, args...)
}

// ExecInput is Exec with standard input.
func (c *Container) ExecInput(ctx context.Context, input []byte, args ...string) (string, error) {
	spec, err := c.Spec(ctx)
	if err != nil {
		return "", err
	}
	process := *spec.Process
	process.Args = args
	process.Terminal = false
	var stdout, stderr Buffer
	var stdin io.Reader
	if input != nil {
		stdin = bytes.NewReader(input)
	}
	p, err := c.Task.Exec(ctx, NewID("exec"), &process,
		cio.NewCreator(cio.WithStreams(stdin, &stdout, &stderr), cio.WithFIFODir(c.node.fifoDir())))
	if err != nil {
		return "", fmt.Errorf("exec %q in %s: %w", args, c.ID(), err)
	}
	code, err := runProcess(ctx, p, input != nil)
	if err != nil {
		return "", fmt.Errorf("exec %q in %s: %w", args, c.ID(), err)
	}
	if code != 0 {
		return stdout.String(), fmt.Errorf("exec %q in %s: exit code %d: %s%s", args, c.ID(), code, &stdout, &stderr)
	}
	return stdout.String(), nil
}

func runProcess(ctx context.Context, p containerd.Process, input bool) (code uint32, err error) {
	defer func() {
		_, derr := p.Delete(context.WithoutCancel(ctx), containerd.WithProcessKill)
		if derr != nil && !errdefs.IsNotFound(derr) {
			err = errors.Join(err, derr)
		}
	}()
	exited, err := p.Wait(ctx)
	if err != nil {
		return 0, err
	}
	if err := p.Start(ctx); err != nil {
		return 0, err
	}
	if input {
		// The end of input reaches the process when all of it was read.
		if err := p.CloseIO(ctx, containerd.WithStdinCloser); err != nil {
			return 0, err
		}
	}
	select {
	case status := <-exited:
		p.IO().Wait()
		return status.ExitCode(), status.Error()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Checkpoint makes the image ref of the container: its processes, its
// read-write layer and its configuration. With exit the container's task ends
// with it, otherwise it goes on.
func (c *Container) Checkpoint(ctx context.Context, ref string, exit bool) (err error) {
	opts := []containerd.CheckpointOpts{
		containerd.WithCheckpointImage, containerd.WithCheckpointRuntime, containerd.WithCheckpointRW,
	}
	if exit {
		opts = append(opts, containerd.WithCheckpointTaskExit)
	}
	opts = append(opts, containerd.WithCheckpointTask)
	if err := c.Task.Pause(ctx); err != nil {
		return fmt.Errorf("checkpoint %s: pause: %w", c.ID(), err)
	}
	defer func() {
		if exit && err == nil {
			return
		}
		if rerr := c.Task.Resume(context.WithoutCancel(ctx)); rerr != nil {
			err = errors.Join(err, fmt.Errorf("checkpoint %s: resume: %w", c.ID(), rerr))
		}
	}()
	if _, err := c.Container.Checkpoint(ctx, ref, opts...); err != nil {
		return fmt.Errorf("checkpoint %s: %w", c.ID(), err)
	}
	return nil
}

// RestoreOptions says how a container comes back from a checkpoint image.
type RestoreOptions struct {
	// ID is made up if empty.
	ID string
	// Ref is the checkpoint's image.
	Ref string
	// IO replaces the pipes behind Container.Stdin and Container.Output.
	IO cio.Creator
	// SameCgroup keeps the source's cgroup path, as `ctr container restore`
	// does. Otherwise the container gets one of its own.
	SameCgroup bool
	// Annotations are set in the restored OCI spec.
	Annotations map[string]string
}

// Restore creates and starts a container from a checkpoint.
func (n *Node) Restore(ctx context.Context, opts RestoreOptions) (*Container, error) {
	if opts.ID == "" {
		opts.ID = NewID("r")
	}
	checkpoint, err := n.client.GetImage(ctx, opts.Ref)
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", opts.ID, err)
	}
	container, err := n.client.Restore(ctx, opts.ID, checkpoint,
		containerd.WithRestoreImage, containerd.WithRestoreSpec, containerd.WithRestoreRuntime, containerd.WithRestoreRW)
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", opts.ID, err)
	}
	terminal := false
	err = container.Update(ctx, func(_ context.Context, _ *containerd.Client, c *containers.Container) error {
		var spec specs.Spec
		if err := typeurl.UnmarshalTo(c.Spec, &spec); err != nil {
			return err
		}
		terminal = spec.Process != nil && spec.Process.Terminal
		if !opts.SameCgroup {
			spec.Linux.CgroupsPath = filepath.Join("/", n.Namespace, opts.ID)
		}
		for k, v := range opts.Annotations {
			if spec.Annotations == nil {
				spec.Annotations = map[string]string{}
			}
			spec.Annotations[k] = v
		}
		c.Spec, err = typeurl.MarshalAny(&spec)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("restore %s: change its spec: %w", opts.ID, err)
	}
	c, err := n.newTask(ctx, container, terminal, opts.IO, []containerd.NewTaskOpts{containerd.WithTaskCheckpoint(checkpoint)})
	if err != nil {
		return nil, err
	}
	if err := c.Start(ctx); err != nil {
		return nil, errors.Join(err, c.Remove(ctx))
	}
	return c, nil
}

// Load makes a Container of one that ctr or nerdctl made. Its Output and Stdin
// are not connected.
func (n *Node) Load(ctx context.Context, id string) (*Container, error) {
	container, err := n.client.LoadContainer(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", id, err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", id, err)
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", id, err)
	}
	return &Container{Container: container, Task: task, Output: &Buffer{}, node: n, exited: exited}, nil
}

// Remove kills the task, if it runs, and deletes it, the container and its
// snapshot. What is already gone is no error, and a cancelled ctx does not
// stop it.
func (c *Container) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if c.Stdin != nil {
		c.Stdin.Close()
	}
	if c.Task != nil {
		_ = c.Task.Resume(ctx) // a paused task cannot die on cgroup v1
		if _, err := c.Task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove %s: %w", c.ID(), err)
		}
	}
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove %s: %w", c.ID(), err)
	}
	return nil
}

// RuncOptions is the options message of the stock shim, which FastMig's takes
// too.
type RuncOptions = options.Options

// Buffer is a bytes.Buffer that may be read while it is written.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// WaitForText waits until the buffer holds the text.
func (b *Buffer) WaitForText(ctx context.Context, text string) error {
	return WaitFor(ctx, fmt.Sprintf("the output %q", text), func(context.Context) (bool, error) {
		s := b.String()
		return strings.Contains(s, text), fmt.Errorf("so far: %q", s)
	})
}
