//go:build linux

package service

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/shim/api"
)

// transitions is the whole of the machine: from each state, those that may
// follow. What is not in it is a bug, not an input. The way to Recovering is
// open from everywhere: FastFreeze dies when it likes; so is that to Ended.
var transitions = map[api.State][]api.State{
	api.Standby:       {api.Starting, api.Restoring, api.Recovering, api.Ended},
	api.Starting:      {api.Running, api.Standby, api.Exited, api.Recovering, api.Ended},
	api.Restoring:     {api.Running, api.Standby, api.Exited, api.Recovering, api.Ended},
	api.Running:       {api.Paused, api.Checkpointing, api.Stopping, api.Exited, api.Recovering, api.Ended},
	api.Paused:        {api.Running, api.Checkpointing, api.Exited, api.Recovering, api.Ended},
	api.Checkpointing: {api.Running, api.Paused, api.Stopping, api.Exited, api.Recovering, api.Ended},
	api.Stopping:      {api.Standby, api.Running, api.Paused, api.Exited, api.Recovering, api.Ended},
	api.Exited:        {api.Starting, api.Restoring, api.Standby, api.Recovering, api.Ended},
	api.Recovering:    {api.Standby, api.Exited, api.Ended},
	api.Ended:         nil,
}

// operations says in which states a request may be carried out.
var operations = map[string][]api.State{
	"start":      {api.Standby, api.Exited},
	"restore":    {api.Standby, api.Exited},
	"checkpoint": {api.Running, api.Paused},
	"stop":       {api.Running, api.Exited},
	"standby":    {api.Standby, api.Running, api.Exited},
	"pause":      {api.Running, api.Standby, api.Exited},
	"resume":     {api.Paused, api.Standby, api.Exited},
}

// historyKept bounds the transitions that can be read.
const historyKept = 100

// machine holds a service's state; the service is its only owner.
type machine struct {
	mu      sync.Mutex
	state   api.State
	since   time.Time
	history []api.Transition
	hub     *hub
}

// allow says whether an operation may begin in the present state.
func (m *machine) allow(operation string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Contains(operations[operation], m.state) {
		return nil
	}
	return fmt.Errorf("%s: the service is %s, and it must be %s for that: %w", operation, m.state, alternatives(operations[operation]), errdefs.ErrFailedPrecondition)
}

func alternatives(states []api.State) string {
	text := ""
	for i, s := range states {
		switch {
		case i == 0:
		case i == len(states)-1:
			text += " or "
		default:
			text += ", "
		}
		text += string(s)
	}
	return text
}

// to moves on. A service that has ended with its container in the meantime
// stays so: that is the one event which comes from outside; it is then false.
func (m *machine) to(next api.State, cause string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == api.Ended {
		return false
	}
	if !slices.Contains(transitions[m.state], next) {
		panic(fmt.Sprintf("service state machine: %s -> %s (%s)", m.state, next, cause))
	}
	step := api.Transition{At: time.Now(), From: m.state, To: next, Cause: cause}
	m.state, m.since = next, step.At
	if len(m.history) == historyKept {
		m.history = slices.Delete(m.history, 0, 1)
	}
	m.history = append(m.history, step)
	m.hub.send(api.Event{At: step.At, Kind: api.EventState, Transition: &step})
	return true
}

func (m *machine) now() api.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}
