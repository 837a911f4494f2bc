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
	"sync/atomic"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/runtime/container"
	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/service"
	"github.com/fastmig/fastmig/shim/stdio"
)

const (
	// readyTimeout bounds the wait for PID 1 of a new container.
	readyTimeout = 20 * time.Second
	// killTimeout bounds the wait for a killed container to be gone.
	killTimeout = 20 * time.Second
)

// task is one container of this shim: its life. That of the application in it is
// the service's.
type task struct {
	machine

	id, ns, bundle string
	rootfs         string
	spec           *specs.Spec
	opts           *options.Options
	settings       Settings
	consoles       *stdio.Consoles

	// operation is held by whoever changes the task: start, pause, resume,
	// checkpoint, update, delete, and the service's. Of capacity one.
	operation chan struct{}

	// gate is held whole while the container is frozen or being restored, in
	// part while a process is being put into it.
	gate *semaphore.Weighted
	// thawed undoes the present Freeze; guarded by operation.
	thawed func() error
	// restores says that the task starts from a checkpoint, and image which:
	// guarded by operation.
	restores bool
	image    *service.Image

	inc    atomic.Pointer[incarnation]
	svc    *service.Service // nil for a plain container
	store  *store.Store
	node   *config.Config
	heart  *heart // nil for one that is not supervised
	web    *web
	ending atomic.Bool   // the container is being ended on request
	plain  *plainRestore // of a plain container that starts from a checkpoint
	init   *process
	wiring *wiring // of the first PID 1, until its ends are released
	cgroup any     // the cgroup's metrics, of one of containerd/cgroups' types

	mu       sync.Mutex
	execs    map[string]*process
	reserved map[string]struct{}
	dead     bool // no more execs: init has ended
	oomKills uint64
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
		id: r.ID, ns: ns, bundle: r.Bundle, spec: spec,
		opts: opts, settings: settings, consoles: consoles,
		operation: make(chan struct{}, 1),
		gate:      semaphore.NewWeighted(wholeGate),
		init:      newProcess("", stdio.Addresses{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}),
		execs:     make(map[string]*process),
		reserved:  make(map[string]struct{}),
	}
	node, err := config.Load(config.Path)
	if err != nil {
		return nil, err
	}
	if err := settings.check(node); err != nil {
		return nil, err
	}
	if err := writeOptions(r.Bundle, opts); err != nil {
		return nil, err
	}

	checkpoint := r.Checkpoint
	if checkpoint == "" {
		checkpoint = opts.CriuImagePath
	}
	t.restores = checkpoint != ""
	if err := t.planRestore(ctx, checkpoint, r.ParentCheckpoint); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && t.image != nil {
			t.image.Checkpoint.Close()
		}
	}()

	if err := t.mountRootfs(r); err != nil {
		return nil, err
	}
	if err := t.build(ctx); err != nil {
		t.demolish(ctx)
		return nil, err
	}
	if err := t.serve(node); err != nil {
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
func (t *task) build(ctx context.Context) error {
	source := ""
	if t.image != nil && t.image.Manifest.ContainerID != t.id {
		source = t.image.Manifest.ContainerID
	}
	c, err := container.Create(container.Config{
		Root:          stateRoot(t.opts, t.ns),
		ID:            t.id,
		Bundle:        t.bundle,
		Spec:          t.spec,
		Source:        source,
		SystemdCgroup: t.opts.SystemdCgroup,
		NoPivotRoot:   t.opts.NoPivotRoot,
		NoNewKeyring:  t.opts.NoNewKeyring,
	})
	if err != nil {
		return fmt.Errorf("OCI runtime create failed: %w", err)
	}
	inc := &incarnation{c: c}
	t.inc.Store(inc)
	return t.first(ctx, inc)
}

func (t *task) owner() stdio.Owner {
	return stdio.Owner{UID: int(t.opts.IoUid), GID: int(t.opts.IoGid)}
}

// demolish takes down a container that never came to life; its first process may
// still run.
func (t *task) demolish(ctx context.Context) error {
	return errors.Join(t.takeDown(), t.dismantle(ctx))
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
	t.retire(ctx)
	if inc := t.inc.Load(); inc != nil {
		if inc.engine != nil {
			inc.engine.Close()
		}
		if err := inc.c.Destroy(); err != nil {
			errs = append(errs, fmt.Errorf("failed to delete task: %w", err))
		}
	}
	if t.image != nil {
		t.image.Checkpoint.Close()
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
	inc := t.inc.Load()
	switch {
	case t.plain != nil:
		return t.restorePlain(ctx)
	case inc.engine == nil:
		if err := inc.c.Release(); err != nil {
			return fmt.Errorf("OCI runtime start failed: %w", err)
		}
		return nil
	case t.restores && t.image == nil:
		return fmt.Errorf("start %s: its checkpoint was given up: delete the task and create it anew: %w", t.id, errdefs.ErrFailedPrecondition)
	}
	if inc.c.HasStartHooks() {
		if err := t.awaken(ctx, inc); err != nil {
			return err
		}
	}
	if err := t.svc.Boot(ctx, t.image); err != nil {
		return err
	}
	if t.image != nil {
		t.image.Checkpoint.Close()
		t.image = nil
	}
	if t.heart != nil {
		t.heart.beat(inc)
	}
	return nil
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
	if err := t.freeze(ctx, StatePausing); err != nil {
		t.to(StateRunning)
		return fmt.Errorf("freeze the container: %w", err)
	}
	t.to(StatePaused)
	if t.svc != nil {
		t.svc.Paused()
	}
	return nil
}

// freeze moves on to a state in which no process is started any more, and
// freezes the container.
func (t *task) freeze(ctx context.Context, next State) error {
	if err := t.gate.Acquire(ctx, wholeGate); err != nil {
		return fmt.Errorf("wait for processes that are being put into the container: %w", err)
	}
	defer t.gate.Release(wholeGate)
	t.to(next)
	return t.container().Pause()
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
	if err := t.container().Resume(); err != nil {
		return fmt.Errorf("thaw the container: %w", err)
	}
	t.to(StateRunning)
	if t.svc != nil {
		t.svc.Resumed()
	}
	return nil
}

// update changes the container's limits, and by annotations how its service is
// run, or whether.
func (t *task) update(ctx context.Context, r *specs.LinuxResources, decoder Decoder, annotations map[string]string) error {
	if r != nil {
		if err := t.limit(ctx, r); err != nil {
			return err
		}
	}
	set, changed, err := decoder.Update(t.current(), annotations)
	_, startup := annotations[AnnotationStartup]
	if err != nil || len(changed) == 0 && (!startup || t.svc == nil) {
		return err
	}
	if t.svc == nil {
		return fmt.Errorf("annotation %s: the container runs without FastFreeze: %w", changed[0], errdefs.ErrFailedPrecondition)
	}
	if err := set.check(t.node); err != nil {
		return err
	}
	return t.svc.Update(ctx, set.Settings, startup)
}

func (t *task) limit(ctx context.Context, r *specs.LinuxResources) error {
	release, err := t.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := t.allow("update"); err != nil {
		return err
	}
	return t.container().Update(r)
}

// kill needs no operation lock: it is how a user gets out of one that hangs.
func (t *task) kill(ctx context.Context, sig unix.Signal, all bool) error {
	if err := t.allow("kill"); err != nil {
		return err
	}
	engine := t.engine()
	if t.svc != nil && (sig == unix.SIGTERM || sig == unix.SIGQUIT) {
		t.svc.Ending(ctx)
	}
	switch {
	case t.init.pid() == 0:
		// A plain container that waits for its restore has no process yet.
		return fmt.Errorf("process not created: %w", errdefs.ErrFailedPrecondition)
	case sig == unix.SIGKILL:
		t.ending.Store(true)
		err := t.container().Signal(sig)
		if errdefs.IsNotFound(err) && t.svc != nil && t.svc.Recovering() {
			return nil // the next PID 1 will not live
		}
		return err
	case all && engine != nil:
		return t.container().SignalAll(sig, t.init.pid())
	case all:
		return t.container().SignalAll(sig)
	case engine != nil && engine.AppPid() != 0:
		return engine.Signal(sig)
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
			t.ending.Store(true)
			if err := t.container().Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
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
