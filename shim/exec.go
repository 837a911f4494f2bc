//go:build linux

package shim

import (
	"context"
	"encoding/json"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/runtime/container"
	"github.com/fastmig/fastmig/shim/stdio"
)

// process finds the first process ("") or an exec'ed one.
func (t *task) process(id string) (*process, error) {
	if id == "" {
		return t.init, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.execs[id]
	if !ok {
		return nil, fmt.Errorf("process does not exist %s: %w", id, errdefs.ErrNotFound)
	}
	return p, nil
}

// execPids are the exec'ed processes that run, by pid.
func (t *task) execPids() map[int]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	pids := make(map[int]string)
	for id, p := range t.execs {
		if pid := p.pid(); pid > 0 {
			pids[pid] = id
		}
	}
	return pids
}

// addExec notes a process that is to be started in the container.
func (t *task) addExec(r *taskapi.ExecProcessRequest) error {
	if r.ExecID == "" {
		return fmt.Errorf("an exec needs an id: %w", errdefs.ErrInvalidArgument)
	}
	t.mu.Lock()
	_, taken := t.execs[r.ExecID]
	t.mu.Unlock()
	if taken {
		return fmt.Errorf("id %s: %w", r.ExecID, errdefs.ErrAlreadyExists)
	}
	if err := t.allowExec(); err != nil {
		return err
	}
	var spec specs.Process
	if err := json.Unmarshal(r.Spec.GetValue(), &spec); err != nil {
		return fmt.Errorf("read the exec's process spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	spec.Terminal = r.Terminal
	p := newProcess(r.ExecID, stdio.Addresses{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal})
	p.spec = &spec

	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.execs[r.ExecID]; taken {
		return fmt.Errorf("id %s: %w", r.ExecID, errdefs.ErrAlreadyExists)
	}
	t.execs[r.ExecID] = p
	return nil
}

// allowExec: besides what the states say, nothing of the container may run while
// a restore works in it.
func (t *task) allowExec() error {
	if err := t.allow("exec"); err != nil {
		return err
	}
	if t.restores && t.now() == StateCreated {
		return fmt.Errorf("cannot exec in a task that has not been restored yet: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// startExec runs an exec; announce is called once it runs, and exited, in a
// goroutine of its own, after it has ended.
func (t *task) startExec(ctx context.Context, p *process, announce func(pid int), exited func(status int)) error {
	if err := t.allowExec(); err != nil {
		return err
	}
	p.announce.Lock()
	defer p.announce.Unlock()
	p.mu.Lock()
	again := p.started || !p.exited.IsZero()
	p.mu.Unlock()
	if again {
		return fmt.Errorf("cannot start exec %s a second time: %w", p.id, errdefs.ErrFailedPrecondition)
	}
	t.mu.Lock()
	if t.dead {
		t.mu.Unlock()
		return fmt.Errorf("container %s init process is not running: %w", t.id, errdefs.ErrFailedPrecondition)
	}
	t.running.Add(1)
	t.mu.Unlock()

	proc, err := t.spawnExec(ctx, p)
	if err != nil {
		t.running.Done()
		// Who waits for it must not wait for ever.
		p.exit(255)
		return fmt.Errorf("OCI runtime exec failed: exec failed: %w", err)
	}
	announce(proc.Pid)
	go func() {
		defer t.running.Done()
		status := await(proc).Status
		p.announce.Lock()
		defer p.announce.Unlock()
		p.exit(status)
		exited(status)
	}()
	return nil
}

func (t *task) spawnExec(ctx context.Context, p *process) (*container.Process, error) {
	w, err := p.wire(ctx, t.ns, t.id, t.owner())
	if err != nil {
		return nil, fmt.Errorf("failed to create exec process I/O: %w", err)
	}
	proc, err := container.NewProcess(p.spec, false, w.io, nil)
	if err != nil {
		w.abandon()
		return nil, err
	}
	// The container must not be frozen with the process half made; what comes while
	// the service is being checkpointed or restored waits for that.
	if err = t.gate.Acquire(ctx, 1); err == nil {
		if err = t.allowExec(); err == nil {
			err = t.container().Start(proc)
		}
		t.gate.Release(1)
	}
	if err != nil {
		w.abandon()
		return nil, err
	}
	p.run(proc)
	err = w.connect(ctx, t.consoles, t.ns, t.id)
	w.release()
	if err != nil {
		if kerr := proc.Signal(9); kerr == nil {
			await(proc)
		}
		w.abandon()
		return nil, err
	}
	return proc, nil
}

// deleteExec forgets an exec that has ended or never started.
func (t *task) deleteExec(ctx context.Context, p *process) error {
	p.mu.Lock()
	alive := p.started && p.exited.IsZero()
	p.mu.Unlock()
	if alive {
		return fmt.Errorf("cannot delete a running process: %w", errdefs.ErrFailedPrecondition)
	}
	p.close(ctx)
	t.mu.Lock()
	delete(t.execs, p.id)
	t.mu.Unlock()
	return nil
}
