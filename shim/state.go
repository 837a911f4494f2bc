//go:build linux

package shim

import (
	"fmt"
	"sync"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// State of a container's task.
type State int

// The states of a task. A restoring one is starting from a checkpoint.
const (
	StateCreated State = iota
	StateStarting
	StateRunning
	StatePausing
	StatePaused
	StateCheckpointing
	StateStopped
	StateDeleted
)

var stateNames = map[State]string{
	StateCreated:       "created",
	StateStarting:      "starting",
	StateRunning:       "running",
	StatePausing:       "pausing",
	StatePaused:        "paused",
	StateCheckpointing: "checkpointing",
	StateStopped:       "stopped",
	StateDeleted:       "deleted",
}

func (s State) String() string { return stateNames[s] }

// transitions is the whole of the machine: from each state, those that may
// follow. What is not in it is a bug, not an input.
var transitions = map[State][]State{
	StateCreated:       {StateStarting, StateStopped},
	StateStarting:      {StateRunning, StateCreated, StateStopped},
	StateRunning:       {StatePausing, StateCheckpointing, StateStopped},
	StatePausing:       {StatePaused, StateRunning, StateStopped},
	StatePaused:        {StateRunning, StateCheckpointing, StateStopped},
	StateCheckpointing: {StateRunning, StatePaused, StateStopped},
	StateStopped:       {StateDeleted},
	StateDeleted:       nil,
}

// changeService is the operation of whatever the service is asked to do.
const changeService = "change the service of"

// operations says in which states a request may be carried out.
var operations = map[string][]State{
	"start":       {StateCreated},
	"exec":        {StateCreated, StateRunning, StateCheckpointing},
	changeService: {StateRunning},
	"pause":       {StateRunning},
	"resume":      {StatePaused},
	"checkpoint":  {StateRunning, StatePaused},
	"update":      {StateCreated, StateRunning, StatePaused},
	"kill":        {StateCreated, StateStarting, StateRunning, StatePausing, StatePaused, StateCheckpointing},
	"delete":      {StateCreated, StateStopped},
}

// status is how containerd knows the states.
func (s State) status() tasktypes.Status {
	switch s {
	case StateCreated, StateStarting:
		return tasktypes.Status_CREATED
	case StateRunning:
		return tasktypes.Status_RUNNING
	case StatePausing:
		return tasktypes.Status_PAUSING
	case StatePaused, StateCheckpointing:
		return tasktypes.Status_PAUSED
	default:
		return tasktypes.Status_STOPPED
	}
}

// machine holds a task's state; the container that has it is its only owner.
type machine struct {
	mu    sync.Mutex
	state State
	since time.Time
}

// allow reports whether an operation may be carried out now: ErrNotFound for
// one on a task that has ended and cannot take it, else ErrFailedPrecondition.
func (m *machine) allow(operation string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range operations[operation] {
		if s == m.state {
			return nil
		}
	}
	if operation == "kill" || m.state == StateDeleted {
		return fmt.Errorf("process already finished: cannot %s a %s task: %w", operation, m.state, errdefs.ErrNotFound)
	}
	return fmt.Errorf("cannot %s a task in state %s: %w", operation, m.state, errdefs.ErrFailedPrecondition)
}

// to moves on. A task that has stopped in the meantime stays so: that is the
// one event which comes from outside; it is then false.
func (m *machine) to(next State) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range transitions[m.state] {
		if s == next {
			m.state, m.since = next, time.Now()
			return true
		}
	}
	if m.state == StateStopped || m.state == StateDeleted {
		return false
	}
	panic(fmt.Sprintf("task state machine: %s -> %s", m.state, next))
}

func (m *machine) now() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}
