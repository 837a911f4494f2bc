//go:build linux

package shim

import (
	"testing"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// Every state has a name, a status and its transitions, and every transition
// and operation is between states that exist.
func TestTablesAreWhole(t *testing.T) {
	for s := StateCreated; s <= StateDeleted; s++ {
		if s.String() == "" {
			t.Errorf("state %d has no name", s)
		}
		if _, ok := transitions[s]; !ok {
			t.Errorf("state %s has no row of transitions", s)
		}
		if s.status() == tasktypes.Status_UNKNOWN {
			t.Errorf("state %s has no status", s)
		}
	}
	if len(transitions) != int(StateDeleted)+1 || len(stateNames) != len(transitions) {
		t.Errorf("%d rows of transitions, %d names", len(transitions), len(stateNames))
	}
}

// All states but the last lead to the end: no task can be stuck.
func TestEveryStateCanEnd(t *testing.T) {
	for from := range transitions {
		if !reaches(from, StateDeleted, map[State]bool{}) {
			t.Errorf("no way from %s to %s", from, StateDeleted)
		}
	}
}

func reaches(from, to State, seen map[State]bool) bool {
	if from == to {
		return true
	}
	if seen[from] {
		return false
	}
	seen[from] = true
	for _, next := range transitions[from] {
		if reaches(next, to, seen) {
			return true
		}
	}
	return false
}

func TestAllow(t *testing.T) {
	for _, tc := range []struct {
		operation string
		state     State
		kind      func(error) bool
	}{
		{"start", StateCreated, nil},
		{"start", StateRunning, errdefs.IsFailedPrecondition},
		{"start", StateStopped, errdefs.IsFailedPrecondition},
		{"exec", StateRunning, nil},
		{"exec", StatePaused, errdefs.IsFailedPrecondition},
		{"pause", StateRunning, nil},
		{"pause", StatePaused, errdefs.IsFailedPrecondition},
		{"resume", StatePaused, nil},
		{"resume", StateRunning, errdefs.IsFailedPrecondition},
		{"checkpoint", StateRunning, nil},
		{"checkpoint", StatePaused, nil},
		{"checkpoint", StateCreated, errdefs.IsFailedPrecondition},
		{"checkpoint", StateCheckpointing, errdefs.IsFailedPrecondition},
		{"kill", StatePaused, nil},
		{"kill", StateStopped, errdefs.IsNotFound},
		{"delete", StateStopped, nil},
		{"delete", StateCreated, nil},
		{"delete", StateRunning, errdefs.IsFailedPrecondition},
		{"delete", StateDeleted, errdefs.IsNotFound},
	} {
		m := machine{state: tc.state}
		err := m.allow(tc.operation)
		switch {
		case tc.kind == nil && err != nil:
			t.Errorf("%s in %s: %v", tc.operation, tc.state, err)
		case tc.kind != nil && !tc.kind(err):
			t.Errorf("%s in %s: %v, of another kind", tc.operation, tc.state, err)
		}
	}
}

func TestTransitions(t *testing.T) {
	m := machine{state: StateRunning}
	if !m.to(StateCheckpointing) || !m.to(StateStopped) {
		t.Fatal("a task may end while it is being checkpointed")
	}
	// The end came first: what was under way cannot bring the task back.
	if m.to(StateRunning) || m.now() != StateStopped {
		t.Fatalf("an ended task is %s", m.now())
	}
	defer func() {
		if recover() == nil {
			t.Fatal("a transition that is not in the table is a bug and must show")
		}
	}()
	m = machine{state: StateCreated}
	m.to(StatePaused)
}
