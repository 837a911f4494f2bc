//go:build linux

// Package service is the life of the application in a container, which is not
// the container's: its state machine, the operations on it, and what is done
// when it, or FastFreeze, ends unasked. The container itself is a Body to it.
package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/internal/config"
	"github.com/fastmig/fastmig/runtime/fastfreeze"
	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/policy"
)

// Values of the annotations io.fastmig.supervise and io.fastmig.on-exit; another
// one of the latter is the path of a decider.
const (
	SuperviseAuto   = "auto"
	SuperviseAlways = "always"
	SuperviseNever  = "never"

	OnExitTied    = "tied"
	OnExitDefault = "default"
)

// Body is the container that a service lives in. But for Acquire and Signal, its
// methods are called by whoever holds what Acquire gives. What can hang ends with
// ctx.
type Body interface {
	// Acquire takes the container's operation lock.
	Acquire(ctx context.Context) (release func(), err error)
	// Ready refuses, by FailedPrecondition, what needs a container that was started
	// and is neither paused nor at its end.
	Ready() error
	// Launch runs the application below PID 1; when it fails none runs.
	Launch(ctx context.Context, l Launch) (Running, error)
	// Tie makes the container end with the application, or not.
	Tie(ctx context.Context, tied bool) error
	// Freeze stops everything in the container until thaw is called. A container that
	// the client has paused stays so.
	Freeze(ctx context.Context) (thaw func() error, err error)
	// Breathe thaws a paused container for as long as f takes.
	Breathe(ctx context.Context, f func() error) error
	// CheckPreserved refuses paths in the container that cannot be preserved.
	CheckPreserved(paths []string) error
	// Dump writes a checkpoint of the frozen application.
	Dump(ctx context.Context, d Dump) (api.Checkpoint, error)
	// Open finds the newest whole checkpoint at a URL, and verifies it.
	Open(ctx context.Context, u store.URL) (Image, error)
	// Stat is what the newest checkpoint at a URL says of itself.
	Stat(ctx context.Context, u store.URL) (api.Checkpoint, error)
	// Signal the application.
	Signal(sig int) error
	// EndService kills the application and what it left, and returns when they are
	// gone. PID 1 and exec'ed processes go on, thawed if Freeze had stopped them.
	EndService(ctx context.Context) error
	// EndContainer kills the container.
	EndContainer(ctx context.Context) error
	// Exec runs a program in the container, with the rights of the container's user,
	// and returns the end of what it said.
	Exec(ctx context.Context, args, env []string) (output string, err error)
	// Renew makes a new PID 1 in place of one that has died.
	Renew(ctx context.Context) error
	// OOMKilled says whether the container ran out of its own memory since it was
	// last asked.
	OOMKilled() bool
	// Describe fills in what the container knows: ids, its state, pids.
	Describe(*api.Status)
}

// Launch says how the application is run.
type Launch struct {
	Image        *Image // nil: from scratch
	Args, Env    []string
	Tied         bool
	KeepTCP      bool
	LeaveStopped bool
	Progress     fastfreeze.Progress
}

// Running is an application that runs.
type Running struct {
	// Pid as the host sees it.
	Pid int
	// Exit gives the application's exit status, 128+n for signal n, or is closed
	// when PID 1 has gone.
	Exit <-chan int
}

// Dump says where a checkpoint goes.
type Dump struct {
	// URL of the place, or Stage if a client chose a folder.
	URL   store.URL
	Stage func() (fastfreeze.Staging, error)
	// WorkDir takes CRIU's log; "": the container's own place.
	WorkDir               string
	KeepTCP, ExternalUnix bool
	// Preserve are paths in the container whose files travel in it.
	Preserve []string
	Progress fastfreeze.Progress
	// Note is told what could not be preserved.
	Note func(string)
}

// Image is a checkpoint that was found whole.
type Image struct {
	*fastfreeze.Checkpoint
	Info api.Checkpoint
	// Note says why a newer one was passed over.
	Note string
	// Watch cancels what is restored from it when its store does not answer; nil:
	// there is no store.
	Watch func(context.Context, context.CancelCauseFunc)
	// Close gives it up.
	Close func()
}

// Recorder counts what is done.
type Recorder interface {
	Operation(name string, err error, took, away time.Duration, bytes int64)
	Recovery(cause string, err error, away time.Duration)
}

// Settings are what the container's annotations say, and requests may change.
type Settings struct {
	// Startup is api.StartScratch, api.StartRestore or api.StartStandby.
	Startup string
	// OnExit is OnExitTied, OnExitDefault or the path of a decider.
	OnExit string
	// Supervise is SuperviseAuto, SuperviseAlways or SuperviseNever.
	Supervise string
	// ImageURL is where checkpoints of the service go and come from; "": none.
	ImageURL string
	// KeepTCP keeps established TCP connections through a restore.
	KeepTCP bool
	// Interval of periodic checkpoints; 0: none.
	Interval time.Duration
	Hooks    Hooks
}

func (s Settings) tied() bool { return s.OnExit == OnExitTied }

// Config of a service.
type Config struct {
	ID, Namespace string
	// Args and Env are the container's own.
	Args, Env []string
	Settings  Settings
	Node      *config.Config
	Body      Body
	Recorder  Recorder
	// StartupFile holds the mode of the next start: 0, 1 or 2.
	StartupFile string
}

// Service is one container's.
type Service struct {
	machine
	cfg    Config
	body   Body
	ctx    context.Context // ends with the container
	cancel context.CancelFunc
	wait   sync.WaitGroup

	// restart is the start that an exited service waits for; it looks whether it is
	// still the one. Guarded by the operation lock.
	restart *pending
	// afterResume is a hook that waits for the client to resume the container.
	// Guarded by the operation lock.
	afterResume *hookRun
	// args and extra are what the last start from scratch was asked to run, and its
	// further variables; a restart runs the same. Guarded by the operation lock.
	args, extra []string
	interval    chan time.Duration
	periodic    sync.Once

	mu  sync.Mutex // of what follows; inside it no other lock is taken
	set Settings
	// preserved are the paths that the last run named for its checkpoints.
	preserved []string
	backoff   *policy.Backoff
	life      *life
	ending    bool            // a client ends the container
	saved     *api.Checkpoint // the last whole one of this service
	status    counters
	// lives ends when the container is to end, or has: PID 1 is not brought back then.
	lives  context.Context
	giveUp context.CancelFunc
}

// counters are what a status tells besides the machine's state.
type counters struct {
	starts, recoveries int
	began, ended       time.Time
	exit               *int
	next               time.Time
	reason             string
	failure            *api.Failure
}

// life is one run of the application.
type life struct {
	pid   int
	began time.Time
	// ended is closed when the application, or PID 1, has; status counts if the
	// former.
	ended  chan struct{}
	lost   bool
	status int

	tied     bool // the container ends with it; guarded by Service.mu
	expected bool // it is ended on request; guarded by Service.mu
}

// New makes the service of a container that has none running.
func New(cfg Config) *Service {
	s := &Service{
		cfg:      cfg,
		body:     cfg.Body,
		set:      cfg.Settings,
		backoff:  policy.NewBackoff(cfg.Node.Supervisor),
		interval: make(chan time.Duration, 1),
	}
	s.machine = machine{state: api.Standby, since: time.Now(), hub: newHub()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.lives, s.giveUp = context.WithCancel(s.ctx)
	return s
}

// End is told that the container has ended. What the service does by itself ends
// soon after.
func (s *Service) End(cause string) {
	s.to(api.Ended, cause)
	s.cancel()
	s.mu.Lock()
	if s.life != nil {
		s.status.ended = time.Now()
	}
	s.life = nil
	s.mu.Unlock()
	s.hub.close()
}

// Close blocks until an ended service does nothing any more.
func (s *Service) Close() {
	s.End("the container is given up")
	s.wait.Wait()
}

// Ending is told that a client ends the container by a signal which the service is
// about to get: the container ends with it, whatever its logic would say.
func (s *Service) Ending(ctx context.Context) {
	s.mu.Lock()
	s.ending = true
	l := s.life
	s.mu.Unlock()
	if l == nil || l.isTied(s) {
		return
	}
	// PID 1 of a paused container hears it when it is thawed, before it hears the signal.
	ctx, cancel := context.WithTimeout(ctx, hearTimeout)
	defer cancel()
	if err := s.body.Tie(ctx, true); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return
	}
	s.mu.Lock()
	l.tied = true
	s.mu.Unlock()
}

// hearTimeout bounds how long a signal waits for PID 1.
const hearTimeout = 200 * time.Millisecond

func (l *life) isTied(s *Service) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.tied
}

// Settings as they are now.
func (s *Service) Settings() Settings { return s.settings() }

// Recovering says whether a lost FastFreeze is being brought back.
func (s *Service) Recovering() bool { return s.now() == api.Recovering }

// Note tells listeners of something that is no operation's.
func (s *Service) Note(text string) { s.note(text) }

func (s *Service) settings() Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set
}

// Status of the service.
func (s *Service) Status() api.Status {
	s.machine.mu.Lock()
	st := api.Status{State: s.state, Since: s.since, History: append([]api.Transition{}, s.history...)}
	s.machine.mu.Unlock()
	st.ID, st.Namespace = s.cfg.ID, s.cfg.Namespace
	s.mu.Lock()
	st.Startup, st.OnExit, st.Supervise, st.ImageURL = s.set.Startup, s.set.OnExit, s.set.Supervise, s.set.ImageURL
	c := s.status
	st.Checkpoint = s.saved
	if s.life != nil {
		st.AppPid = s.life.pid
	}
	s.mu.Unlock()
	st.Starts, st.Recoveries, st.Restarts = c.starts, c.recoveries, s.tries()
	st.StartedAt, st.EndedAt, st.NextStart = moment(c.began), moment(c.ended), moment(c.next)
	st.ExitStatus, st.Reason, st.LastError = c.exit, c.reason, c.failure
	s.body.Describe(&st)
	return st
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Events are those after a number, as far as they are known, and those to come.
// The channel is closed when ctx or the container ends.
func (s *Service) Events(ctx context.Context, after uint64) <-chan api.Event {
	return s.hub.listen(ctx, after)
}

func (s *Service) note(text string) { s.hub.send(api.Event{Kind: api.EventNote, Note: text}) }

func (s *Service) reason(text string) {
	s.mu.Lock()
	s.status.reason = text
	s.mu.Unlock()
}

// operation is one that is under way; it holds the operation lock.
type operation struct {
	s       *Service
	name    string
	began   time.Time
	away    time.Duration
	bytes   int64
	saved   *api.Checkpoint
	notes   []string
	percent int // of the last progress that was told
	step    string
}

// begin takes the operation lock, if the service is in a state for the operation.
// Its finish must be called, with the operation's outcome.
func (s *Service) begin(ctx context.Context, name string) (*operation, func(*error), error) {
	refuse := func(err error) (*operation, func(*error), error) { return nil, nil, err }
	if err := s.allow(name); err != nil {
		return refuse(err)
	}
	release, err := s.body.Acquire(ctx)
	if err != nil {
		return refuse(err)
	}
	if err := s.allow(name); err != nil {
		release()
		return refuse(err)
	}
	o := s.operation(name)
	return o, func(err *error) {
		o.finish(*err)
		release()
	}, nil
}

func (s *Service) operation(name string) *operation {
	return &operation{s: s, name: name, began: time.Now()}
}

func (o *operation) finish(err error) {
	o.s.cfg.Recorder.Operation(o.name, err, time.Since(o.began), o.away, o.bytes)
	if err != nil {
		o.s.failed(o.name, err)
	}
}

// failed notes an operation that did not succeed.
func (s *Service) failed(operation string, err error) {
	wire, _ := api.NewError(err, s.now())
	s.mu.Lock()
	s.status.failure = &api.Failure{At: time.Now(), Operation: operation, Error: *wire}
	s.mu.Unlock()
}

func (o *operation) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	o.notes = append(o.notes, text)
	o.s.note(text)
}

// progress tells listeners of a step, not more often than its percentage changes.
func (o *operation) progress(step string, done, total int64) {
	percent := -1
	if total > 0 {
		percent = int(min(100, done*100/total))
	}
	if step == o.step && percent == o.percent && percent >= 0 {
		return
	}
	o.step, o.percent = step, percent
	o.s.hub.send(api.Event{Kind: api.EventProgress, Progress: &api.Progress{
		Operation: o.name, Step: step, Bytes: done, Total: total, Percent: percent,
	}})
}

func (o *operation) result() api.Result {
	r := api.Result{
		State:      o.s.now(),
		Seconds:    time.Since(o.began).Seconds(),
		Away:       o.away.Seconds(),
		Checkpoint: o.saved,
		Notes:      o.notes,
	}
	if l := o.s.current(); l != nil {
		r.AppPid = l.pid
	}
	return r
}

// current is the life that runs; nil: none.
func (s *Service) current() *life {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// url is the one that a request names, or else the container's.
func (s *Service) url(asked string) (store.URL, error) {
	if asked == "" {
		asked = s.settings().ImageURL
	}
	if asked == "" {
		return store.URL{}, fmt.Errorf("no checkpoint is named: give image_url, or the container the annotation io.fastmig.image-url: %w", errdefs.ErrInvalidArgument)
	}
	return store.Parse(asked)
}
