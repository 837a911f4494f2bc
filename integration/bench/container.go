package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// program is what a container of the benchmark runs.
type program struct {
	image images.Image
	args  []string
	// processes is how many the application has at least; it is up when they
	// are there.
	processes int
	// ready is what it prints when it is up; empty: nothing.
	ready string
	// hostNetwork joins the network of the node's machine.
	hostNetwork bool
	// annotations go into the spec; the stock shim does not know them.
	annotations map[string]string
}

// shellLoop is the small container: a shell that counts and sleeps.
var shellLoop = program{
	image:     images.Busybox,
	args:      []string{"sh", "-c", "n=0; while :; do n=$((n + 1)); sleep 0.1; done"},
	processes: 1,
}

// container is one of the benchmark's, with its task once there is one.
type container struct {
	containerd.Container
	b       *bench
	program program
	runtime harness.Runtime
	task    containerd.Task
	exited  <-chan containerd.ExitStatus
	output  *harness.Buffer
}

// newContainer makes a container without a task: that is containerd's work
// alone, whatever the runtime.
func (b *bench) newContainer(ctx context.Context, r harness.Runtime, p program) (*container, error) {
	client := b.node.Client()
	image, err := client.GetImage(ctx, p.image.Ref())
	if err != nil {
		return nil, err
	}
	id := harness.NewID(r.String())
	spec := []oci.SpecOpts{oci.WithImageConfig(image), oci.WithProcessArgs(p.args...), oci.WithAnnotations(p.annotations)}
	if p.hostNetwork {
		spec = append(spec, oci.WithHostNamespace(specs.NetworkNamespace))
	}
	c, err := client.NewContainer(ctx, id,
		containerd.WithImage(image),
		containerd.WithNewSnapshot(id, image),
		containerd.WithRuntime(r.Name, nil),
		containerd.WithNewSpec(spec...),
	)
	if err != nil {
		return nil, fmt.Errorf("make container %s: %w", id, err)
	}
	return &container{Container: c, b: b, program: p, runtime: r, output: &harness.Buffer{}}, nil
}

// create makes the task, from the checkpoint in a folder if one is named.
func (c *container) create(ctx context.Context, checkpoint string) (err error) {
	var opts []containerd.NewTaskOpts
	if checkpoint != "" {
		opts = append(opts, containerd.WithRestoreImagePath(checkpoint))
	}
	streams := cio.NewCreator(
		cio.WithStreams(strings.NewReader(""), c.output, io.Discard),
		cio.WithFIFODir(filepath.Join(c.b.node.Dir, "fifo")))
	if c.task, err = c.NewTask(ctx, streams, opts...); err != nil {
		return fmt.Errorf("create the task of %s: %w", c.ID(), err)
	}
	return nil
}

func (c *container) wait(ctx context.Context) (err error) {
	c.exited, err = c.task.Wait(ctx)
	return err
}

func (c *container) start(ctx context.Context) error {
	if err := c.task.Start(ctx); err != nil {
		return fmt.Errorf("start %s: %w", c.ID(), err)
	}
	return nil
}

// exit waits for the task's end, which must be a success.
func (c *container) exit(ctx context.Context) error {
	select {
	case status := <-c.exited:
		if code, _, err := status.Result(); err != nil || code != 0 {
			return fmt.Errorf("%s ended with %d: %w", c.ID(), code, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", c.ID(), ctx.Err())
	}
}

// run starts a container from scratch and returns when its program is up.
func (b *bench) run(ctx context.Context, r harness.Runtime, p program) (_ *container, err error) {
	c, err := b.newContainer(ctx, r, p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.remove(ctx))
		}
	}()
	if err := c.create(ctx, ""); err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, err
	}
	if p.ready != "" {
		if err := c.output.WaitForText(ctx, p.ready); err != nil {
			return nil, err
		}
	}
	return c, c.lives(ctx)
}

// lives waits until all processes of the program are there and none is stopped:
// that a restore has given back what it should. It is not measured.
func (c *container) lives(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return harness.WaitFor(ctx, "the processes of "+c.ID(), func(ctx context.Context) (bool, error) {
		pids, err := c.task.Pids(ctx)
		if err != nil {
			return false, err
		}
		count := 0
		for _, p := range pids {
			switch state, comm := processState(p.Pid); {
			case comm == "fastfreeze" && p.Pid == c.task.Pid():
			case state == "S" || state == "R":
				count++
			}
		}
		return count >= c.program.processes, fmt.Errorf("%d of %d run", count, c.program.processes)
	})
}

// processState reads the state and the command's name of /proc/PID/stat.
func processState(pid uint32) (state, comm string) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(data), "(")
	if i := strings.LastIndex(rest, ") "); i >= 0 && i+2 < len(rest) {
		return rest[i+2 : i+3], rest[:i]
	}
	return "", ""
}

// remove deletes the task, killing it if need be, and the container; what is
// gone already is no error.
func (c *container) remove(ctx context.Context) error {
	return (&harness.Container{Container: c.Container, Task: c.task}).Remove(ctx)
}

// clear removes a folder of the scratch tmpfs.
func (b *bench) clear(dir string) error {
	return b.node.InMachine(func() error { return os.RemoveAll(dir) })
}

// copy copies a folder of the scratch tmpfs.
func (b *bench) copy(to, from string) error {
	return b.node.InMachine(func() error { return os.CopyFS(to, os.DirFS(from)) })
}

// removeByID removes a container that ctr made.
func (b *bench) removeByID(ctx context.Context, id string) error {
	c, err := b.node.Load(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.Remove(ctx)
}
