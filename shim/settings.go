//go:build linux

package shim

import (
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// Mode says how a container's application runs.
type Mode string

// The values of the annotation io.fastmig.mode.
const (
	ModeFastFreeze Mode = "fastfreeze"
	ModePlain      Mode = "plain"
)

// TCPMode says what becomes of established TCP connections at a restore.
type TCPMode string

// The values of the annotation io.fastmig.tcp.
const (
	TCPClose TCPMode = "close"
	TCPKeep  TCPMode = "keep"
)

// Settings are what a container's annotations say of how it is run.
type Settings struct {
	Mode Mode
	TCP  TCPMode
	// CheckpointExit ends the service after a checkpoint whose request
	// carries no options.
	CheckpointExit bool
}

// Decoder reads what containerd and the user say of a container; the plugin
// package has the one in use.
type Decoder interface {
	// Options reads runc's Options, the generic runtime options, or none.
	Options(*anypb.Any) (*options.Options, error)
	// Settings reads the annotations; unknown values are ErrInvalidArgument.
	Settings(*specs.Spec) (Settings, error)
}
