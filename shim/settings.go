//go:build linux

package shim

import (
	"time"

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
	// Startup is api.StartScratch, api.StartRestore or api.StartStandby.
	Startup string
	// Supervise is SuperviseAuto, SuperviseAlways or SuperviseNever.
	Supervise string
	// ImageURL is where checkpoints of the service go and come from; "": none.
	ImageURL string
	// OnExit is OnExitTied, OnExitDefault or a decider's path.
	OnExit string
	// CheckpointInterval is the time between two checkpoints; 0: none are made by
	// themselves.
	CheckpointInterval time.Duration
	// HTTPPort is the TCP port in the container's network namespace; 0: none.
	HTTPPort int
	Hooks    Hooks
}

// The values of the annotation io.fastmig.supervise.
const (
	// SuperviseAuto: a lost FastFreeze is brought back if the service has a whole
	// checkpoint or is not tied.
	SuperviseAuto   = "auto"
	SuperviseAlways = "always"
	SuperviseNever  = "never"
)

// The values of the annotation io.fastmig.on-exit; a decider's path is another.
const (
	// OnExitTied: the container ends with the service.
	OnExitTied = "tied"
	// OnExitDefault: policy.Default decides.
	OnExitDefault = "default"
)

// AnnotationStartup is the one annotation of an update that is a request: its value is
// what the service is to become.
const AnnotationStartup = "io.fastmig.startup"

// Hooks are the commands that run in the container around an operation; empty: none.
type Hooks struct {
	BeforeCheckpoint, AfterCheckpoint []string
	BeforeRestore, AfterRestore       []string
	// Timeout for each; 0: the node's.
	Timeout time.Duration
}

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
