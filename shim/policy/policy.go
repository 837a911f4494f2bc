//go:build linux

// Package policy decides how a service that has ended goes on.
package policy

import (
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/shim/api"
)

// Mode is how a service starts: api.StartScratch, api.StartRestore or
// api.StartStandby.
type Mode = string

// What happened to a service.
const (
	// EventExit: it ended by itself.
	EventExit = "exit"
	// EventStartFailed: it could not be started or restored.
	EventStartFailed = "start_failed"
)

// Event is what a decider gets, as JSON.
type Event struct {
	// Event is exit or start_failed.
	Event     string `json:"event"`
	ID        string `json:"id"`
	Namespace string `json:"namespace"`
	// ExitStatus is the code, or 128+n for signal n.
	ExitStatus int `json:"exit_status"`
	// Signal that ended the service, such as SIGKILL; "": none.
	Signal    string `json:"signal"`
	OOMKilled bool   `json:"oom_killed"`
	// Reason is a sentence for people.
	Reason string `json:"reason"`
	// Image is the URL of the service's checkpoints; Checkpoint says whether there is
	// a whole one.
	Image      string `json:"image"`
	Checkpoint bool   `json:"checkpoint"`
	// Restarts in a row so far.
	Restarts int `json:"restarts"`
	// RanSeconds is how long the service's last life was.
	RanSeconds float64   `json:"ran_seconds"`
	At         time.Time `json:"at"`
}

// Default is the logic of FastMig's paper: what ended well is restored, what a signal
// ended (a checkpoint ends by one too) stays in standby, what failed starts from
// scratch.
func Default(e Event) Mode {
	switch {
	case e.ExitStatus == 0:
		return api.StartRestore
	case e.ExitStatus >= 128 && e.ExitStatus <= 159:
		return api.StartStandby
	}
	return api.StartScratch
}

// ParseAnswer reads a decider's answer: scratch, restore or standby, or 0, 1 or 2 as in
// FastMig's startup option config. What follows the first word does not count.
func ParseAnswer(s string) (Mode, error) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return "", fmt.Errorf("it answered nothing: it must write scratch, restore or standby: %w", errdefs.ErrInvalidArgument)
	}
	switch words[0] {
	case api.StartScratch, "0":
		return api.StartScratch, nil
	case api.StartRestore, "1":
		return api.StartRestore, nil
	case api.StartStandby, "2":
		return api.StartStandby, nil
	}
	word := words[0]
	if len(word) > 64 {
		word = word[:64]
	}
	return "", fmt.Errorf("it answered %q: it must write scratch, restore or standby: %w", word, errdefs.ErrInvalidArgument)
}

// Backoff counts the restarts of a service and says how long each has to wait. It is
// not for use by several goroutines at once.
type Backoff struct {
	first, most, healthy time.Duration
	limit, restarts      int
	wait                 time.Duration
}

// NewBackoff is one that has seen no restart.
func NewBackoff(s config.Supervisor) *Backoff {
	return &Backoff{
		first:   time.Duration(s.Backoff),
		most:    time.Duration(s.BackoffMax),
		healthy: time.Duration(s.Healthy),
		limit:   s.Restarts,
	}
}

// Next says how long to wait before a service that ran for so long is started again;
// ok is false in a crash loop, in which it is not to be started.
func (b *Backoff) Next(ran time.Duration) (wait time.Duration, ok bool) {
	if ran >= b.healthy {
		b.Reset()
	}
	if b.restarts >= b.limit {
		return 0, false
	}
	switch {
	case b.restarts == 0:
		b.wait = b.first
	case b.wait > b.most/2: // compared thus, doubling cannot overflow
		b.wait = b.most
	default:
		b.wait *= 2
	}
	b.restarts++
	return b.wait, true
}

// Restarts that Next has allowed since the last Reset.
func (b *Backoff) Restarts() int { return b.restarts }

// Reset forgets the restarts: somebody has asked for a start, or the service was
// healthy.
func (b *Backoff) Reset() { b.restarts = 0 }
