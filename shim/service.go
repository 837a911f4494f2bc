//go:build linux

// Package shim is the shim process: its birth and death, the Task API, and the
// state machine of each container.
package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oom"
	"github.com/containerd/containerd/v2/pkg/protobuf"
	ptypes "github.com/containerd/containerd/v2/pkg/protobuf/types"
	cshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/container"
	"github.com/fastmig/fastmig/runtime/fastfreeze"
	"github.com/fastmig/fastmig/shim/stdio"
)

var (
	_     taskapi.TTRPCTaskService = (*Service)(nil)
	_     cshim.TTRPCService       = (*Service)(nil)
	empty                          = &ptypes.Empty{}
)

// Service is the Task API of one shim, for all the containers in it. Each call
// delegates to a task and maps the error; nothing else happens here.
type Service struct {
	decoder  Decoder
	events   *forwarder
	consoles *stdio.Consoles
	oom      oom.Watcher
	shutdown shutdown.Service

	mu       sync.Mutex
	tasks    map[string]*task
	creating map[string]struct{}
}

// NewService makes the Task API of a shim.
func NewService(ctx context.Context, publisher cshim.Publisher, sd shutdown.Service, decoder Decoder) (*Service, error) {
	if err := fastfreeze.UseToolkit(); err != nil {
		return nil, err
	}
	resetSignals()
	watcher, err := newOOMWatcher(ctx, publisher)
	if err != nil {
		return nil, err
	}
	consoles, err := stdio.NewConsoles()
	if err != nil {
		return nil, err
	}
	sd.RegisterCallback(func(context.Context) error { return consoles.Close() })
	for _, address := range listeningSockets() {
		sd.RegisterCallback(func(context.Context) error { return cshim.RemoveSocket(address) })
	}
	if err := leaveBundle(); err != nil {
		return nil, err
	}
	return &Service{
		decoder:  decoder,
		events:   newForwarder(ctx, publisher, sd),
		consoles: consoles,
		oom:      watcher,
		shutdown: sd,
		tasks:    make(map[string]*task),
		creating: make(map[string]struct{}),
	}, nil
}

// RegisterTTRPC registers the Task API.
func (s *Service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

func (s *Service) task(id string) (*task, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[id]
	if t == nil {
		return nil, errgrpc.ToGRPCf(errdefs.ErrNotFound, "container not created")
	}
	return t, nil
}

func (s *Service) find(id, execID string) (*task, *process, error) {
	t, err := s.task(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := t.process(execID)
	if err != nil {
		return nil, nil, errgrpc.ToGRPC(err)
	}
	return t, p, nil
}

// reserve keeps two Create calls from building one container.
func (s *Service) reserve(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, creating := s.creating[id]
	if _, there := s.tasks[id]; there || creating {
		return errgrpc.ToGRPCf(errdefs.ErrAlreadyExists, "container %s", id)
	}
	s.creating[id] = struct{}{}
	return nil
}

// Create builds a container up to its first process.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if err := s.reserve(r.ID); err != nil {
		return nil, err
	}
	t, err := newTask(ctx, ns, s.decoder, s.consoles, r)
	s.mu.Lock()
	delete(s.creating, r.ID)
	if err == nil {
		s.tasks[r.ID] = t
	}
	s.mu.Unlock()
	if err != nil {
		log.G(ctx).WithError(err).WithField("id", r.ID).Error("create")
		return nil, errgrpc.ToGRPC(err)
	}
	pid := uint32(t.init.pid())
	s.events.send(&eventstypes.TaskCreate{
		ContainerID: r.ID,
		Bundle:      r.Bundle,
		Rootfs:      r.Rootfs,
		IO: &eventstypes.TaskIO{
			Stdin:    r.Stdin,
			Stdout:   r.Stdout,
			Stderr:   r.Stderr,
			Terminal: r.Terminal,
		},
		Checkpoint: r.Checkpoint,
		Pid:        pid,
	})
	if pid > 0 {
		s.watch(ctx, t)
	}
	return &taskapi.CreateTaskResponse{Pid: pid}, nil
}

// watch follows a container's first process from its birth to its exit event,
// which is the container's last.
func (s *Service) watch(ctx context.Context, t *task) {
	ctx = context.WithoutCancel(ctx)
	if t.cgroup != nil {
		if err := s.oom.Add(t.id, t.cgroup); err != nil {
			log.G(ctx).WithError(err).Error("add cg to OOM monitor")
		}
		delegateControllers(ctx, t.cgroup)
	}
	t.init.mu.Lock()
	proc := t.init.proc
	t.init.mu.Unlock()
	go func() {
		ended := await(proc)
		for next := t.lost(ctx, ended); next != nil; next = t.lost(ctx, ended) {
			proc = next
			ended = await(proc)
		}
		status := ended.Status
		t.init.announce.Lock()
		defer t.init.announce.Unlock()
		t.ended(ctx)
		t.init.exit(status)
		_, at := t.init.exitStatus()
		if err := writeExit(t.bundle, exitRecord{Timestamp: at, Pid: proc.Pid, Status: status}); err != nil {
			log.G(ctx).WithError(err).WithField("id", t.id).Error("store the exit status")
		}
		s.events.send(&eventstypes.TaskExit{
			ContainerID: t.id,
			ID:          t.id,
			Pid:         uint32(proc.Pid),
			ExitStatus:  uint32(status),
			ExitedAt:    protobuf.ToTimestamp(at),
		})
	}()
}

// ended settles what an exited first process leaves: in a shared pid namespace
// the others still run; and the exits of execs are told before its own.
func (t *task) ended(ctx context.Context) {
	t.to(StateStopped)
	t.mu.Lock()
	t.dead = true
	t.mu.Unlock()
	t.quiet()
	if !t.container().OwnPidNamespace() {
		if err := t.container().SignalAll(unix.SIGKILL); err != nil {
			log.G(ctx).WithError(err).WithField("id", t.id).Error("failed to kill init's children")
		}
	}
	t.running.Wait()
}

func await(p *container.Process) container.Ended {
	ended, err := p.Wait()
	if err != nil {
		log.L.WithError(err).Error("wait for a process")
	}
	return ended
}

// Start runs the container's application, or an exec.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	t, p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		late := t.init.pid() == 0
		err = t.start(ctx, func(pid int) {
			s.events.send(&eventstypes.TaskStart{ContainerID: t.id, Pid: uint32(pid)})
			if late {
				s.watch(ctx, t)
			}
		})
	} else {
		err = t.startExec(ctx, p, func(pid int) {
			s.events.send(&eventstypes.TaskExecStarted{ContainerID: t.id, ExecID: p.id, Pid: uint32(pid)})
		}, func(status int) {
			_, at := p.exitStatus()
			s.events.send(&eventstypes.TaskExit{
				ContainerID: t.id,
				ID:          p.id,
				Pid:         uint32(p.pid()),
				ExitStatus:  uint32(status),
				ExitedAt:    protobuf.ToTimestamp(at),
			})
		})
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("id", r.ID).WithField("exec", r.ExecID).Error("start")
		return nil, errgrpc.ToGRPC(err)
	}
	return &taskapi.StartResponse{Pid: uint32(p.pid())}, nil
}

// Delete removes an ended container or exec.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	t, p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.ExecID != "" {
		err = t.deleteExec(ctx, p)
	} else {
		err = t.delete(ctx)
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	status, at := p.exitStatus()
	if r.ExecID == "" {
		s.mu.Lock()
		delete(s.tasks, r.ID)
		s.mu.Unlock()
		s.events.send(&eventstypes.TaskDelete{
			ContainerID: t.id,
			Pid:         uint32(p.pid()),
			ExitStatus:  uint32(status),
			ExitedAt:    protobuf.ToTimestamp(at),
		})
	}
	return &taskapi.DeleteResponse{
		Pid:        uint32(p.pid()),
		ExitStatus: uint32(status),
		ExitedAt:   protobuf.ToTimestamp(at),
	}, nil
}

// Exec notes a process to be started in the container.
func (s *Service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*ptypes.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	if err := t.addExec(r); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.events.send(&eventstypes.TaskExecAdded{ContainerID: t.id, ExecID: r.ExecID})
	return empty, nil
}

// ResizePty of a process.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*ptypes.Empty, error) {
	_, p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return empty, errgrpc.ToGRPC(p.resize(r.Width, r.Height))
}

// State of a process.
func (s *Service) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	t, p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	status, at := p.exitStatus()
	id := t.id
	if r.ExecID != "" {
		id = p.id
	}
	return &taskapi.StateResponse{
		ID:         id,
		Bundle:     t.bundle,
		Pid:        uint32(p.pid()),
		Status:     t.status(p),
		Stdin:      p.addr.Stdin,
		Stdout:     p.addr.Stdout,
		Stderr:     p.addr.Stderr,
		Terminal:   p.addr.Terminal,
		ExitStatus: uint32(status),
		ExitedAt:   protobuf.ToTimestamp(at),
	}, nil
}

// status of the task or of one of its execs, which are paused with it.
func (t *task) status(p *process) tasktypes.Status {
	now := t.now().status()
	if p == t.init {
		return now
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.exited.IsZero():
		return tasktypes.Status_STOPPED
	case now == tasktypes.Status_PAUSED || now == tasktypes.Status_PAUSING:
		return now
	case p.started:
		return tasktypes.Status_RUNNING
	default:
		return tasktypes.Status_CREATED
	}
}

// Pause the container.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*ptypes.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	if err := t.pause(ctx); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.events.send(&eventstypes.TaskPaused{ContainerID: t.id})
	return empty, nil
}

// Resume the container.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*ptypes.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	if err := t.resume(ctx); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	s.events.send(&eventstypes.TaskResumed{ContainerID: t.id})
	return empty, nil
}

// Kill sends a signal to a process, or to all of the container's.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*ptypes.Empty, error) {
	t, p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.ExecID != "" {
		err = p.signal(unix.Signal(r.Signal))
	} else {
		err = t.kill(ctx, unix.Signal(r.Signal), r.All)
	}
	return empty, errgrpc.ToGRPC(err)
}

// Pids of all processes in the container.
func (s *Service) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	pids, err := t.container().Pids()
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	execs := t.execPids()
	var out []*tasktypes.ProcessInfo
	for _, pid := range pids {
		info := &tasktypes.ProcessInfo{Pid: uint32(pid)}
		if id, ok := execs[pid]; ok {
			details, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: id})
			if err != nil {
				return nil, errgrpc.ToGRPC(fmt.Errorf("failed to marshal process %d info: %w", pid, err))
			}
			info.Info = details
		}
		out = append(out, info)
	}
	return &taskapi.PidsResponse{Processes: out}, nil
}

// CloseIO ends a process's input.
func (s *Service) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*ptypes.Empty, error) {
	_, p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if err := p.closeStdin(); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("close stdin: %w", err))
	}
	return empty, nil
}

// Checkpoint writes the state of the container's application into a folder.
func (s *Service) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*ptypes.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	req, err := t.checkpointRequest(r)
	if err == nil {
		err = t.checkpoint(ctx, req)
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("id", r.ID).Error("checkpoint")
		return nil, errgrpc.ToGRPC(err)
	}
	return empty, nil
}

// Update the container's limits.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*ptypes.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	var res *specs.LinuxResources
	if r.Resources != nil {
		if err := json.Unmarshal(r.Resources.GetValue(), &res); err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("read the resources: %w: %w", err, errdefs.ErrInvalidArgument))
		}
	}
	return empty, errgrpc.ToGRPC(t.update(ctx, res, s.decoder, r.Annotations))
}

// Wait for a process to end.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	_, p, err := s.find(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if err := p.wait(ctx); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	status, at := p.exitStatus()
	return &taskapi.WaitResponse{ExitStatus: uint32(status), ExitedAt: protobuf.ToTimestamp(at)}, nil
}

// Stats are the metrics of the container's cgroup.
func (s *Service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	m, err := cgroupMetrics(t.cgroup)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	data, err := typeurl.MarshalAny(m)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &taskapi.StatsResponse{Stats: typeurl.MarshalProto(data)}, nil
}

// Connect tells the pids of the shim and of the container.
func (s *Service) Connect(ctx context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	var pid int
	if t, err := s.task(r.ID); err == nil {
		pid = t.init.pid()
	}
	return &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), TaskPid: uint32(pid)}, nil
}

// Shutdown ends the shim once it has no container.
func (s *Service) Shutdown(ctx context.Context, r *taskapi.ShutdownRequest) (*ptypes.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tasks) > 0 || len(s.creating) > 0 {
		return empty, nil
	}
	s.shutdown.Shutdown()
	return empty, nil
}
