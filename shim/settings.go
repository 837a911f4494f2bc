//go:build linux

package shim

import (
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fastmig/fastmig/shim/service"
)

// Mode says how a container's application runs.
type Mode string

// The values of the annotation io.fastmig.mode.
const (
	ModeFastFreeze Mode = "fastfreeze"
	ModePlain      Mode = "plain"
)

// Settings are what a container's annotations say of how it is run.
type Settings struct {
	Mode Mode
	// CheckpointExit ends the service after a checkpoint whose request
	// carries no options.
	CheckpointExit bool
	// HTTPPort is the TCP port in the container's network namespace; 0: none.
	HTTPPort int
	// Settings of the service.
	service.Settings
}

// AnnotationStartup is the one annotation of an update that is a request: its value is
// what the service is to become.
const AnnotationStartup = "io.fastmig.startup"

// Decoder reads what containerd and the user say of a container; the plugin
// package has the one in use.
type Decoder interface {
	// Options reads runc's Options, the generic runtime options, or none.
	Options(*anypb.Any) (*options.Options, error)
	// Settings reads the annotations; unknown values are ErrInvalidArgument.
	Settings(*specs.Spec) (Settings, error)
	// Update reads the annotations of an update of a container that has the old
	// settings, and names those that are new. What cannot change while the container
	// exists is ErrFailedPrecondition; on error nothing is to be changed.
	Update(old Settings, annotations map[string]string) (s Settings, changed []string, err error)
}
