//go:build linux

package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/container"
	"github.com/fastmig/fastmig/runtime/fastfreeze"
	"github.com/fastmig/fastmig/shim/stdio"
)

const (
	// readyTimeout bounds the wait for PID 1 of a new container.
	readyTimeout = 20 * time.Second
	// killTimeout bounds the wait for a killed container to be gone.
	killTimeout = 20 * time.Second
)

// task is one container of this shim: its life, and that of what runs in it.
type task struct {
	machine

	id, ns, bundle string
	rootfs         string
	opts           *options.Options
	settings       Settings
	consoles       *stdio.Consoles

	// operation is held by whoever changes the task: start, pause, resume,
	// checkpoint, update, delete. Of capacity one.
	operation chan struct{}

	// freezing is held for writing while the container is being frozen, for
	// reading while a process is being put into it.
	freezing sync.RWMutex
	// restores says that the task starts from a checkpoint.
	restores bool

	c      *container.Container
	engine *fastfreeze.Engine // nil for a plain container
	plain  *plainRestore      // of a plain container that starts from a checkpoint
	init   *process
	wiring *wiring // of init, until its ends are released
	cgroup any     // the cgroup's metrics, of one of containerd/cgroups' types

	mu       sync.Mutex
	execs    map[string]*process
	reserved map[string]struct{}
	dead     bool // no more execs: init has ended
	running  sync.WaitGroup
}

// acquire takes the operation lock or gives up with ctx.
func (t *task) acquire(ctx context.Context) (release func(), err error) {
	select {
	case t.operation <- struct{}{}:
		return func() { <-t.operation }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("another operation on task %s is under way: %w", t.id, ctx.Err())
	}
}

// newTask builds the container of a Create request in full, up to its PID 1.
// Whatever it made is taken back when it fails.
func newTask(ctx context.Context, ns string, decoder Decoder, consoles *stdio.Consoles, r *taskapi.CreateTaskRequest) (_ *task, err error) {
	opts, err := decoder.Options(r.Options)
	if err != nil {
		return nil, err
	}
	if opts.BinaryName != "" {
		// No runtime binary is used; one that is named and not there is
		// still the mistake that it is under the stock shim.
		if _, err := exec.LookPath(opts.BinaryName); err != nil {
			return nil, fmt.Errorf("runtime binary of the options: %w", err)
		}
	}
	spec, err := readSpec(r.Bundle)
	if err != nil {
		return nil, err
	}
	settings, err := decoder.Settings(spec)
	if err != nil {
		return nil, err
	}
	t := &task{
		id: r.ID, ns: ns, bundle: r.Bundle,
		opts: opts, settings: settings, consoles: consoles,
		operation: make(chan struct{}, 1),
		init:      newProcess("", stdio.Addresses{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}),
		execs:     make(map[string]*process),
		reserved:  make(map[string]struct{}),
	}
	if err := writeOptions(r.Bundle, opts); err != nil {
		return nil, err
	}

	checkpoint := r.Checkpoint
	if checkpoint == "" {
		checkpoint = opts.CriuImagePath
	}
	t.restores = checkpoint != ""
	restore, err := t.planRestore(ctx, checkpoint, r.ParentCheckpoint)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && restore != nil {
			restore.Close()
		}
	}()

	if err := t.mountRootfs(r); err != nil {
		return nil, err
	}
	if err := t.build(ctx, spec, restore); err != nil {
		t.demolish(ctx)
		return nil, err
	}
	return t, nil
}

func (t *task) mountRootfs(r *taskapi.CreateTaskRequest) error {
	if len(r.Rootfs) == 0 {
		return nil
	}
	t.rootfs = filepath.Join(t.bundle, "rootfs")
	if err := os.Mkdir(t.rootfs, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var mounts []mount.Mount
	for _, m := range r.Rootfs {
		mounts = append(mounts, mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if err := mount.All(mounts, t.rootfs); err != nil {
		t.unmountRootfs()
		return fmt.Errorf("failed to mount rootfs component: %w", err)
	}
	return nil
}

func (t *task) unmountRootfs() error {
	if t.rootfs == "" {
		return nil
	}
	return mount.UnmountRecursive(t.rootfs, 0)
}

// build makes the container and its PID 1.
func (t *task) build(ctx context.Context, spec *specs.Spec, restore *fastfreeze.Checkpoint) error {
	source := ""
	if restore != nil && restore.Manifest.ContainerID != t.id {
		source = restore.Manifest.ContainerID
	}
	c, err := container.Create(container.Config{
		Root:          stateRoot(t.opts, t.ns),
		ID:            t.id,
		Bundle:        t.bundle,
		Spec:          spec,
		Source:        source,
		SystemdCgroup: t.opts.SystemdCgroup,
		NoPivotRoot:   t.opts.NoPivotRoot,
		NoNewKeyring:  t.opts.NoNewKeyring,
	})
	if err != nil {
		return fmt.Errorf("OCI runtime create failed: %w", err)
	}
	t.c = c

	if t.wiring, err = t.init.wire(ctx, t.ns, t.id, t.owner()); err != nil {
		return fmt.Errorf("failed to create init process I/O: %w", err)
	}
	if t.plain != nil {
		return t.plain.prepare(spec, t.wiring)
	}

	var args []string
	var extra []*os.File
	if t.settings.Mode == ModeFastFreeze {
		t.engine, err = fastfreeze.New(fastfreeze.Config{
			ID:            t.id,
			Namespace:     t.ns,
			Bundle:        t.bundle,
			Image:         spec.Annotations["io.kubernetes.cri.image-name"],
			Args:          spec.Process.Args,
			Terminal:      t.init.addr.Terminal,
			KeepTCP:       t.settings.TCP == TCPKeep,
			OwnPids:       c.OwnPidNamespace(),
			OwnIPC:        fastfreeze.OwnIPC(spec),
			Tmpfs:         fastfreeze.OwnTmpfs(spec),
			Checkpoint:    restore,
			CriuWorkPath:  t.opts.CriuWorkPath,
			CgroupFolders: c.CgroupPaths,
		})
		if err != nil {
			return err
		}
		args, extra = t.engine.Args(), t.engine.Files()
	}
	proc, err := container.NewProcess(spec.Process, true, t.wiring.io, args, extra...)
	if err != nil {
		return err
	}
	if err := c.Start(proc); err != nil {
		return fmt.Errorf("OCI runtime create failed: %w", err)
	}
	t.init.run(proc)
	t.cgroup = loadCgroup(ctx, proc.Pid)
	if err := t.wiring.connect(ctx, t.consoles, t.ns, t.id); err != nil {
		return err
	}
	if err := writePid(t.bundle, proc.Pid); err != nil {
		return err
	}
	t.wiring.release()
	if t.engine == nil {
		return nil
	}
	if err := t.engine.Spawned(proc.Pid); err != nil {
		return err
	}
	// startContainer hooks are run by what Release lets go on, so they put
	// PID 1 off until Start.
	if c.HasStartHooks() {
		return nil
	}
	return t.awaken(ctx)
}

// awaken lets PID 1 run, and waits until it is ready for an application.
func (t *task) awaken(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := t.c.Release(); err != nil {
		return fmt.Errorf("OCI runtime create failed: %w", err)
	}
	if err := t.engine.Ready(ctx); err != nil {
		return fmt.Errorf("OCI runtime create failed: unable to start container process: %w", err)
	}
	return nil
}

func (t *task) owner() stdio.Owner {
	return stdio.Owner{UID: int(t.opts.IoUid), GID: int(t.opts.IoGid)}
}

// demolish takes down a container that never came to life or whose task is
// being deleted; its first process may still run.
func (t *task) demolish(ctx context.Context) error {
	var errs []error
	if t.init.pid() > 0 {
		select {
		case <-t.init.done:
		default:
			if err := t.c.Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, err)
			}
			status, err := t.init.proc.Wait()
			if err != nil {
				errs = append(errs, err)
			}
			t.init.exit(status)
		}
	}
	errs = append(errs, t.dismantle(ctx))
	return errors.Join(errs...)
}

// dismantle gives up all that an ended container held.
func (t *task) dismantle(ctx context.Context) error {
	var errs []error
	if t.wiring != nil {
		t.wiring.release()
	}
	t.init.close(ctx)
	if t.wiring != nil {
		t.wiring.abandon()
	}
	if t.engine != nil {
		t.engine.Close()
	}
	if t.c != nil {
		if err := t.c.Destroy(); err != nil {
			errs = append(errs, fmt.Errorf("failed to delete task: %w", err))
		}
	}
	if err := t.unmountRootfs(); err != nil {
		log.G(ctx).WithError(err).Warn("failed to cleanup rootfs mount")
		errs = append(errs, fmt.Errorf("failed rootfs umount: %w", err))
	}
	return errors.Join(errs...)
}

// start sets the application going: from scratch or from the checkpoint that
// the task was created with. announce is called once it runs, before its exit
// can become known.
func (t *task) start(ctx context.Context, announce func(pid int)) error {
	release, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := t.allow("start"); err != nil {
		return err
	}
	t.to(StateStarting)
	t.init.announce.Lock()
	defer t.init.announce.Unlock()
	if err := t.launch(ctx); err != nil {
		t.to(StateCreated)
		return err
	}
	t.wiring.release()
	t.to(StateRunning)
	announce(t.init.pid())
	return nil
}

func (t *task) launch(ctx context.Context) error {
	switch {
	case t.plain != nil:
		return t.restorePlain(ctx)
	case t.engine == nil:
		if err := t.c.Release(); err != nil {
			return fmt.Errorf("OCI runtime start failed: %w", err)
		}
		return nil
	}
	if t.c.HasStartHooks() {
		if err := t.awaken(ctx); err != nil {
			return err
		}
	}
	return t.engine.Launch(ctx)
}

func (t *task) pause(ctx context.Context) error {
	release, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := t.allow("pause"); err != nil {
		return err
	}
	if err := t.freeze(StatePausing); err != nil {
		t.to(StateRunning)
		return fmt.Errorf("freeze the container: %w", err)
	}
	t.to(StatePaused)
	return nil
}

// freeze moves on to a state in which no process is started any more, and
// freezes the container.
func (t *task) freeze(next State) error {
	t.freezing.Lock()
	defer t.freezing.Unlock()
	t.to(next)
	return t.c.Pause()
}

func (t *task) resume(ctx context.Context) error {
	release, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := t.allow("resume"); err != nil {
		return err
	}
	if err := t.c.Resume(); err != nil {
		return fmt.Errorf("thaw the container: %w", err)
	}
	t.to(StateRunning)
	return nil
}

func (t *task) update(ctx context.Context, r *specs.LinuxResources) error {
	release, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := t.allow("update"); err != nil {
		return err
	}
	return t.c.Update(r)
}

// kill needs no operation lock: it is how a user gets out of one that hangs.
func (t *task) kill(ctx context.Context, sig unix.Signal, all bool) error {
	if err := t.allow("kill"); err != nil {
		return err
	}
	switch {
	case t.init.pid() == 0:
		// A plain container that waits for its restore has no process yet.
		return fmt.Errorf("process not created: %w", errdefs.ErrFailedPrecondition)
	case sig == unix.SIGKILL:
		return t.c.Signal(sig)
	case all && t.engine != nil:
		return t.c.SignalAll(sig, t.init.pid())
	case all:
		return t.c.SignalAll(sig)
	case t.engine != nil && t.engine.Launched():
		return t.engine.Signal(sig)
	default:
		return t.init.signal(sig)
	}
}

// delete removes the container; its init must have ended or never started.
func (t *task) delete(ctx context.Context) error {
	release, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := t.allow("delete"); err != nil {
		return err
	}
	if t.now() == StateCreated {
		if t.init.pid() == 0 {
			t.init.exit(0)
			t.to(StateStopped)
		} else {
			if err := t.c.Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
			wait, cancel := context.WithTimeout(ctx, killTimeout)
			defer cancel()
			if err := t.init.wait(wait); err != nil {
				return fmt.Errorf("the container's first process does not end: %w", err)
			}
		}
	}
	if err := t.dismantle(ctx); err != nil {
		return err
	}
	t.to(StateDeleted)
	return nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the container's spec: %w", err)
	}
	defer f.Close()
	var spec specs.Spec
	if err := json.NewDecoder(f).Decode(&spec); err != nil {
		return nil, fmt.Errorf("read the container's spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}
