// Package api is the vocabulary of the FastMig interface: the bodies of its
// requests and answers, as JSON, for the server in the shim and for its clients.
package api

import (
	"errors"
	"net/http"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

// SocketDir is where the containers' sockets are: NAMESPACE/ID.sock below it.
const SocketDir = "/run/fastmig"

// SocketPath is a container's socket. It may be longer than a unix socket's
// address can be (unix(7)): listen and dial by way of its folder.
func SocketPath(namespace, id string) string {
	return filepath.Join(SocketDir, namespace, id+".sock")
}

// State is a service's.
type State string

// The states of a service. Of those that end with "ing", an operation is under
// way.
const (
	// Standby: the container runs, the service does not.
	Standby State = "standby"
	// Starting from scratch.
	Starting State = "starting"
	// Restoring from a checkpoint.
	Restoring State = "restoring"
	// Running, which includes being stopped by a signal.
	Running State = "running"
	// Paused with its container.
	Paused State = "paused"
	// Checkpointing, frozen.
	Checkpointing State = "checkpointing"
	// Stopping: it is being ended on request.
	Stopping State = "stopping"
	// Exited by itself; what follows is being decided, or waited for.
	Exited State = "exited"
	// Recovering: FastFreeze is being brought back.
	Recovering State = "recovering"
	// Ended with its container.
	Ended State = "ended"
)

// Startup modes.
const (
	StartScratch = "scratch"
	StartRestore = "restore"
	StartStandby = "standby"
)

// Status is the answer of GET /v1/status.
type Status struct {
	ID        string `json:"id"`
	Namespace string `json:"namespace"`
	// State of the service.
	State State `json:"state"`
	// Container's state as containerd has it: created, running, paused, stopped.
	Container string `json:"container"`
	// Since is when the service came into its state.
	Since time.Time `json:"since"`
	// InitPid is PID 1's number and AppPid the application's, as the host sees
	// them; 0: none.
	InitPid int `json:"init_pid"`
	AppPid  int `json:"app_pid"`
	// Startup, OnExit and Supervise are as the annotations say, or as a request
	// has changed them.
	Startup   string `json:"startup"`
	OnExit    string `json:"on_exit"`
	Supervise string `json:"supervise"`
	// ImageURL is where checkpoints of the service go and come from; "": none.
	ImageURL string `json:"image_url,omitempty"`
	// Checkpoint is the last whole one, of which the service could be brought back.
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`
	// Starts counts the lives of the service, Recoveries the lost FastFreezes that were
	// brought back, Restarts those starts that followed an exit by itself since the
	// service was last healthy for a while.
	Starts     int `json:"starts"`
	Recoveries int `json:"recoveries"`
	Restarts   int `json:"restarts"`
	// StartedAt is the start of the service's present life, EndedAt the end of its last.
	StartedAt *time.Time `json:"started_at,omitempty"`
	EndedAt   *time.Time `json:"ended_at,omitempty"`
	// ExitStatus of the last life that ended by itself: its code, or 128+n for
	// signal n.
	ExitStatus *int `json:"exit_status,omitempty"`
	// NextStart is when the service is started again, if it is waiting for that.
	NextStart *time.Time `json:"next_start,omitempty"`
	// Reason says why the service is where it is, if there is more to say: a crash loop,
	// a failed restore, a checkpoint that was passed over.
	Reason    string   `json:"reason,omitempty"`
	LastError *Failure `json:"last_error,omitempty"`
	// History is the transitions, oldest first; only the last hundred are kept.
	History []Transition `json:"history"`
}

// Checkpoint is one that was reported whole.
type Checkpoint struct {
	URL       string    `json:"url"`
	CreatedAt time.Time `json:"created_at"`
	// Bytes of all its files.
	Bytes int64 `json:"bytes"`
	// Digest is the sha256 of its manifest, in hex, which has those of the files.
	Digest string `json:"digest"`
}

// Transition is one step in the life of a service.
type Transition struct {
	At    time.Time `json:"at"`
	From  State     `json:"from"`
	To    State     `json:"to"`
	Cause string    `json:"cause"`
}

// Failure is an operation that failed.
type Failure struct {
	At        time.Time `json:"at"`
	Operation string    `json:"operation"`
	Error     Error     `json:"error"`
}

// Run is the body of POST /run, as FastMig's daemon published it.
type Run struct {
	// AppArgs is the command, in shell words (quotes and backslashes, nothing
	// else); empty: the container's own.
	AppArgs string `json:"app_args"`
	// ImageURL of the checkpoint; empty: the container's io.fastmig.image-url.
	ImageURL string `json:"image_url"`
	// OnAppReady is a command to run in the container when the application runs.
	OnAppReady     string   `json:"on_app_ready"`
	PassphraseFile string   `json:"passphrase_file"`
	PreservedPaths string   `json:"preserved_paths"`
	NoRestore      bool     `json:"no_restore"`
	AllowBadImage  bool     `json:"allow_bad_image"`
	LeaveStopped   bool     `json:"leave_stopped"`
	Verbose        int      `json:"verbose"`
	Envs           []string `json:"envs"`
}

// CheckpointRun is the body of POST /checkpoint, as FastMig's daemon published it.
type CheckpointRun struct {
	LeaveRunning   bool     `json:"leave_running"`
	ImageURL       string   `json:"image_url"`
	PreservedPaths string   `json:"preserved_paths"`
	NumShards      *int     `json:"num_shards"`
	CPUBudget      string   `json:"cpu_budget"`
	PassphraseFile string   `json:"passphrase_file"`
	Verbose        int      `json:"verbose"`
	Envs           []string `json:"envs"`
}

// CheckpointRequest is the body of POST /v1/checkpoint.
type CheckpointRequest struct {
	// ImageURL to write to; empty: the container's.
	ImageURL string `json:"image_url,omitempty"`
	// LeaveRunning lets the service go on; else it ends and its container goes on in
	// standby. nil: true.
	LeaveRunning *bool  `json:"leave_running,omitempty"`
	Hooks        *Hooks `json:"hooks,omitempty"`
	// TCP is close or keep; empty: as the container's annotation says.
	TCP string `json:"tcp,omitempty"`
	// PreservedPaths are absolute paths in the container whose files travel in the
	// checkpoint, besides those that the run named.
	PreservedPaths []string `json:"preserved_paths,omitempty"`
}

// RestoreRequest is the body of POST /v1/restore.
type RestoreRequest struct {
	// ImageURL to restore from; empty: the container's.
	ImageURL string `json:"image_url,omitempty"`
	// LeaveStopped leaves the application stopped, as by SIGSTOP.
	LeaveStopped bool   `json:"leave_stopped,omitempty"`
	Hooks        *Hooks `json:"hooks,omitempty"`
}

// StartRequest is the body of POST /v1/start: from scratch.
type StartRequest struct {
	// Args are the command; empty: the container's own.
	Args []string `json:"args,omitempty"`
	// Env are further variables, K=V.
	Env   []string `json:"env,omitempty"`
	Hooks *Hooks   `json:"hooks,omitempty"`
}

// StopRequest is the body of POST /v1/stop and POST /v1/standby. Both end the
// service and leave the container in standby: stop as asked here, standby at once,
// by SIGKILL, and without a word about a service that does not run.
type StopRequest struct {
	// Signal, by name or number; empty: SIGTERM.
	Signal string `json:"signal,omitempty"`
	// Timeout is how long the service has until SIGKILL, such as "10s", which it is
	// when empty.
	Timeout string `json:"timeout,omitempty"`
}

// Hooks are commands that run in the container, with its user and rights, around
// an operation. One that is missing here is as the annotations say.
type Hooks struct {
	BeforeCheckpoint []string `json:"before_checkpoint,omitempty"`
	AfterCheckpoint  []string `json:"after_checkpoint,omitempty"`
	BeforeRestore    []string `json:"before_restore,omitempty"`
	// AfterRestore runs when the application runs, restored or started.
	AfterRestore []string `json:"after_restore,omitempty"`
	// Timeout for each, such as "30s", which it is when empty.
	Timeout string `json:"timeout,omitempty"`
}

// Result is the answer of an operation that succeeded.
type Result struct {
	State State `json:"state"`
	// AppPid is the application's, as the host sees it; 0: none runs.
	AppPid int `json:"app_pid"`
	// Seconds that the operation took, and that the service stood still or was away.
	Seconds float64 `json:"seconds"`
	Away    float64 `json:"away_seconds"`
	// Checkpoint that was written or restored.
	Checkpoint *Checkpoint `json:"checkpoint,omitempty"`
	// Notes are what went otherwise than it should have without making the operation
	// fail: a hook after it that failed, a checkpoint that was passed over.
	Notes []string `json:"notes,omitempty"`
}

// Kinds of events.
const (
	EventState    = "state"
	EventProgress = "progress"
	EventNote     = "note"
)

// Event is one of GET /v1/events: the SSE event's name is Kind, its data this as
// JSON, its id Seq.
type Event struct {
	Seq  uint64    `json:"seq"`
	At   time.Time `json:"at"`
	Kind string    `json:"kind"`
	// Transition of a state event.
	Transition *Transition `json:"transition,omitempty"`
	// Progress of an operation.
	Progress *Progress `json:"progress,omitempty"`
	// Note is a sentence: a hook failed, a checkpoint was passed over.
	Note string `json:"note,omitempty"`
}

// Progress of an operation.
type Progress struct {
	// Operation is checkpoint, restore, start, stop or recover.
	Operation string `json:"operation"`
	// Step is what is being done: hook, freeze, dump, preserve, digest, commit; verify,
	// preserve, restore, resume.
	Step string `json:"step"`
	// Bytes that the step has done, of Total; 0: not known.
	Bytes int64 `json:"bytes"`
	Total int64 `json:"total"`
	// Percent of the step, 0 to 100; -1: not known.
	Percent int `json:"percent"`
}

// Error is the body of an answer that is not 2xx, under /v1.
type Error struct {
	// Kind is the errdefs kind, in snake case: invalid_argument, not_found, ….
	Kind string `json:"kind"`
	// Message names the step, the cause and the remedy.
	Message string `json:"message"`
	// State of the service when it was refused.
	State State `json:"state,omitempty"`
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// Unwrap gives the errdefs kind.
func (e *Error) Unwrap() error {
	for _, k := range kinds {
		if k.name == e.Kind {
			return k.err
		}
	}
	return errdefs.ErrUnknown
}

// kinds pairs errdefs' with their names here and their HTTP status; the first that
// fits an error counts.
var kinds = []struct {
	err    error
	name   string
	status int
}{
	{errdefs.ErrInvalidArgument, "invalid_argument", http.StatusBadRequest},
	{errdefs.ErrDataLoss, "data_loss", http.StatusUnprocessableEntity},
	{errdefs.ErrResourceExhausted, "resource_exhausted", http.StatusInsufficientStorage},
	{errdefs.ErrPermissionDenied, "permission_denied", http.StatusForbidden},
	{errdefs.ErrAlreadyExists, "already_exists", http.StatusConflict},
	{errdefs.ErrFailedPrecondition, "failed_precondition", http.StatusConflict},
	{errdefs.ErrNotImplemented, "not_implemented", http.StatusNotImplemented},
	{errdefs.ErrNotFound, "not_found", http.StatusNotFound},
	{errdefs.ErrUnavailable, "unavailable", http.StatusServiceUnavailable},
	{errdefs.ErrAborted, "aborted", http.StatusInternalServerError},
}

// NewError is the wire form of an error, and the HTTP status that goes with it.
func NewError(err error, state State) (*Error, int) {
	e := &Error{Kind: "internal", Message: err.Error(), State: state}
	switch {
	case errdefs.IsCanceled(err):
		e.Kind = "cancelled"
		return e, 499 // as proxies say of a client that went away
	case errdefs.IsDeadlineExceeded(err):
		e.Kind = "deadline_exceeded"
		return e, http.StatusGatewayTimeout
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			e.Kind = k.name
			return e, k.status
		}
	}
	return e, http.StatusInternalServerError
}
