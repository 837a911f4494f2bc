//go:build linux

package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/container"
	"github.com/fastmig/fastmig/runtime/fastfreeze"
	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/service"
	"github.com/fastmig/fastmig/shim/stdio"
)

// incarnation is one PID 1 of a container. A container has more than one only when
// FastFreeze died and was brought back.
type incarnation struct {
	c      *container.Container
	engine *fastfreeze.Engine // nil for a plain container
	proc   *container.Process
	pins   *container.Pins // what outlives PID 1
}

func (t *task) container() *container.Container {
	if inc := t.inc.Load(); inc != nil {
		return inc.c
	}
	return nil
}

// engine is nil for a plain container.
func (t *task) engine() *fastfreeze.Engine {
	if inc := t.inc.Load(); inc != nil {
		return inc.engine
	}
	return nil
}

// first makes the container's first PID 1.
func (t *task) first(ctx context.Context, inc *incarnation) (err error) {
	if t.wiring, err = t.init.wire(ctx, t.ns, t.id, t.owner()); err != nil {
		return fmt.Errorf("failed to create init process I/O: %w", err)
	}
	if t.plain != nil {
		return t.plain.prepare(t.spec, t.wiring)
	}
	if err := t.spawn(inc, t.wiring.io); err != nil {
		return err
	}
	t.init.run(inc.proc)
	t.cgroup = loadCgroup(ctx, inc.proc.Pid)
	if err := t.wiring.connect(ctx, t.consoles, t.ns, t.id); err != nil {
		return err
	}
	switch {
	case !t.settings.asStock():
		t.init.keepOutputs()
	case inc.engine != nil && t.init.streams != nil:
		t.init.streams.KeepLogger()
	}
	if err := writePid(t.bundle, inc.proc.Pid); err != nil {
		return err
	}
	t.wiring.release()
	if inc.engine == nil {
		return nil
	}
	if err := t.settle(inc); err != nil {
		return err
	}
	if inc.pins, err = inc.c.Pin(inc.proc.Pid); err != nil {
		return fmt.Errorf("hold the container's namespaces: %w", err)
	}
	// startContainer hooks are run by what Release lets go on, so they put
	// PID 1 off until Start.
	if inc.c.HasStartHooks() {
		return nil
	}
	return t.awaken(ctx, inc)
}

// spawn makes the process of PID 1.
func (t *task) spawn(inc *incarnation, io container.Stdio) (err error) {
	var args []string
	var extra []*os.File
	if t.settings.Mode == ModeFastFreeze {
		inc.engine, err = fastfreeze.New(fastfreeze.Config{
			ID:            t.id,
			Namespace:     t.ns,
			Bundle:        t.bundle,
			Image:         t.spec.Annotations["io.kubernetes.cri.image-name"],
			Args:          t.spec.Process.Args,
			Env:           t.spec.Process.Env,
			Terminal:      t.init.addr.Terminal,
			OwnPids:       inc.c.OwnPidNamespace(),
			OwnIPC:        fastfreeze.OwnIPC(t.spec),
			Tmpfs:         fastfreeze.OwnTmpfs(t.spec),
			CgroupFolders: inc.c.CgroupPaths,
		})
		if err != nil {
			return err
		}
		args, extra = inc.engine.Args(), inc.engine.Files()
	}
	proc, err := container.NewProcess(t.spec.Process, true, io, args, extra...)
	if err != nil {
		return err
	}
	if err := inc.c.Start(proc); err != nil {
		return fmt.Errorf("OCI runtime create failed: %w", err)
	}
	inc.proc = proc
	return nil
}

// settle tells the engine about its PID 1.
func (t *task) settle(inc *incarnation) error { return inc.engine.Spawned(inc.proc.Pid) }

// awaken lets PID 1 run, and waits until it is ready for an application. A
// container that starts without one may have no program to start.
func (t *task) awaken(ctx context.Context, inc *incarnation) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := inc.c.Release(); err != nil {
		return fmt.Errorf("OCI runtime create failed: %w", err)
	}
	err := inc.engine.Ready(ctx)
	if t.expectsRestore() {
		if errdefs.IsNotFound(err) {
			err = nil
		}
		if err == nil {
			// Where nothing can be restored, that is said when it is asked for.
			if perr := inc.engine.Prepare(ctx); t.restores {
				err = perr
			}
		}
	}
	if err != nil {
		return fmt.Errorf("OCI runtime create failed: unable to start container process: %w", err)
	}
	return nil
}

// expectsRestore says that the next application of the container comes from a
// checkpoint, or may.
func (t *task) expectsRestore() bool {
	return t.restores || t.settings.Startup != api.StartScratch || t.now() != StateCreated
}

// Renew puts a new PID 1 into the container of one that has died: nothing of the
// container that is seen from outside changes but its pid.
func (b body) Renew(ctx context.Context) (err error) {
	t, old := b.task, b.inc.Load()
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := t.gate.Acquire(ctx, wholeGate); err != nil {
		return fmt.Errorf("wait for processes that are being put into the container: %w", err)
	}
	defer t.gate.Release(wholeGate)
	old.engine.Close()
	if !old.c.OwnPidNamespace() {
		// Those that PID 1 did not take with it.
		if err := old.c.KillOthers(ctx, 0, nil); err != nil {
			return err
		}
	}
	c, err := old.c.Renew(old.pins)
	if err != nil {
		return err
	}
	inc := &incarnation{c: c, pins: old.pins}
	t.inc.Store(inc)
	defer func() {
		if err != nil && inc.proc != nil {
			_ = c.Signal(unix.SIGKILL)
			await(inc.proc)
		}
		if err != nil && inc.engine != nil {
			inc.engine.Close()
		}
	}()
	io, connect, release, err := t.init.rewire(t.owner())
	if err != nil {
		return err
	}
	defer release()
	if err := t.spawn(inc, io); err != nil {
		return err
	}
	if err := connect(); err != nil {
		return err
	}
	t.init.renew(inc.proc)
	if err := writePid(t.bundle, inc.proc.Pid); err != nil {
		return err
	}
	if err := t.settle(inc); err != nil {
		return err
	}
	if err := t.awaken(ctx, inc); err != nil {
		return err
	}
	if t.ending.Load() {
		return fmt.Errorf("the container is being ended: %w", errdefs.ErrFailedPrecondition)
	}
	if t.now() == StatePaused {
		// What the client had paused is gone; the new one runs.
		t.to(StateRunning)
	}
	if t.heart != nil {
		t.heart.beat(inc)
	}
	return nil
}

// lost decides what follows the end of PID 1: the next one, or nil if the container
// has ended with it.
func (t *task) lost(ctx context.Context, ended container.Ended) *container.Process {
	if t.svc == nil || t.ending.Load() || !t.started() {
		return nil
	}
	loss := service.Loss{At: time.Now()}
	switch {
	case ended.Signaled && t.heart.gaveUp():
		loss.Kind, loss.Cause = "hung", "FastFreeze did not answer and was killed"
	case ended.Signaled:
		loss.Kind, loss.Cause = "killed", fmt.Sprintf("FastFreeze was ended by %s", unix.SignalName(unix.Signal(ended.Status-128)))
	case t.broke(ended):
		loss.Kind, loss.Cause = "failed", fmt.Sprintf("FastFreeze failed with status %d", ended.Status)
	default:
		return nil
	}
	before := t.inc.Load()
	if !t.svc.Lost(loss) {
		return nil
	}
	after := t.inc.Load()
	if after == before {
		return nil
	}
	log.G(ctx).WithField("id", t.id).Warn(loss.Cause + "; it was brought back")
	return after.proc
}

// broke says whether PID 1 has ended by itself and without a reason: its application
// had not.
func (t *task) broke(ended container.Ended) bool {
	engine := t.engine()
	select {
	case <-engine.Gone():
		return engine.AppPid() != 0 || ended.Status == goCrash && t.svc.Status().State == api.Standby
	case <-time.After(tieTimeout):
		return false
	}
}

// goCrash is the exit status of a Go program that crashes.
const goCrash = 2

// started says whether the container runs, frozen or not.
func (t *task) started() bool {
	switch t.now() {
	case StateRunning, StatePausing, StatePaused, StateCheckpointing:
		return true
	}
	return false
}

// rewire makes stdio for a process in place of one that has died, joined to the
// same client. connect is for after its start, release at the end in any case.
func (p *process) rewire(owner stdio.Owner) (io container.Stdio, connect func() error, release func(), err error) {
	if p.terminal == nil {
		if err := p.streams.Renew(owner); err != nil {
			return io, nil, nil, fmt.Errorf("make new stdio: %w", err)
		}
		s := p.streams
		io = container.Stdio{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr}
		return io, func() error { return nil }, s.CloseChild, nil
	}
	socket, err := stdio.NewConsoleSocket()
	if err != nil {
		return io, nil, nil, err
	}
	io.Console = socket.Child
	return io, func() error {
		socket.CloseChild()
		master, err := socket.Receive(consoleTimeout)
		if err != nil {
			return err
		}
		return p.terminal.Renew(master)
	}, socket.Close, nil
}

// keepOutputs lets the output of all lives of the process go to the same place.
func (p *process) keepOutputs() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.streams != nil {
		p.streams.Keep()
	}
	if p.terminal != nil {
		p.terminal.Keep()
	}
}

// renew notes that the process has one in its place.
func (p *process) renew(proc *container.Process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proc = proc
}

// takeDown kills PID 1, if it lives, and waits for it.
func (t *task) takeDown() error {
	if t.init.pid() == 0 {
		return nil
	}
	select {
	case <-t.init.done:
		return nil
	default:
	}
	t.ending.Store(true)
	var errs []error
	if err := t.container().Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, err)
	}
	t.init.exit(await(t.inc.Load().proc).Status)
	return errors.Join(errs...)
}
