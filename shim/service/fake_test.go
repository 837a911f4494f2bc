//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
)

// fake is a container: what the service may rely on, and what it must not do. It
// lives in a synctest bubble, so that waiting costs nothing.
type fake struct {
	svc  *Service
	lock chan struct{} // holds one value while the operation lock is held
	done chan struct{} // closed when the container has ended

	mu       sync.Mutex
	rng      *rand.Rand
	gone     chan struct{} // closed when the present PID 1 has died
	signaled bool          // how it died
	ending   bool          // somebody ends the container
	ended    bool
	endsTied bool // PID 1 ends when it is thawed
	paused   bool // by the client
	frozen   bool // by Freeze
	app      *app
	apps     int               // that were ever run
	unsaid   []func(told bool) // ends of applications that a frozen PID 1 has not told yet
	images   int               // that are open
	oom      bool
	places   map[string][]kept // newest last
	faults   []fault
	calls    []string
	execs    []string
	problems []string
	// preserved are the paths of the last dump.
	preserved []string
}

// app is one life of the application.
type app struct {
	pid     int
	count   int // its memory
	tied    bool
	launch  Launch
	exit    chan int
	pending *int  // it wants to exit as soon as it is thawed
	ignores bool  // SIGTERM
	signals []int // that it got
}

// kept is a checkpoint in the store.
type kept struct {
	count  int
	digest string
	broken bool
}

// fault is what goes wrong in the next call of a name.
type fault struct {
	call string
	// kind: fail, abort, refuse, missing, hang, lose (PID 1 dies), exit (the application does).
	kind   string
	status int
}

// hangLimit is what bounds a call of the real container that hangs.
const hangLimit = 2 * time.Minute

func newFake(seed uint64) *fake {
	f := &fake{
		lock:   make(chan struct{}, 1),
		done:   make(chan struct{}),
		rng:    rand.New(rand.NewPCG(seed, 1)),
		gone:   make(chan struct{}),
		places: map[string][]kept{},
	}
	return f
}

func (f *fake) problem(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems = append(f.problems, fmt.Sprintf(format, args...))
}

// arm lets the next call of that name fail so.
func (f *fake) arm(call, kind string) { f.armFault(fault{call: call, kind: kind}) }

func (f *fake) armFault(x fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, x)
}

func (f *fake) disarm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

func (f *fake) fault(call string) fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, x := range f.faults {
		if x.call == call {
			f.faults = append(f.faults[:i:i], f.faults[i+1:]...)
			return x
		}
	}
	return fault{}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

var errGone = fmt.Errorf("PID 1 is gone: %w", errdefs.ErrUnavailable)

// work is the time that a call takes, and what goes wrong in it. Nothing but the
// service's own operations may call, one at a time.
func (f *fake) work(ctx context.Context, call string, needsInit bool) error {
	// Tie is asked for by Ending, too, which must not wait for an operation.
	if len(f.lock) == 0 && call != "Tie" {
		f.problem("%s without the operation lock", call)
	}
	f.mu.Lock()
	f.calls = append(f.calls, call)
	gone := f.gone
	d := time.Duration(1+f.rng.IntN(15)) * time.Millisecond
	f.mu.Unlock()
	if !needsInit {
		gone = nil
	}
	x := f.fault(call)
	if x.kind == "hang" {
		d = hangLimit
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", call, ctx.Err())
	case <-gone:
		return fmt.Errorf("%s: %w", call, errGone)
	}
	switch x.kind {
	case "fail":
		return fmt.Errorf("%s: it was to fail", call)
	case "abort":
		return fmt.Errorf("%s: CRIU was killed: %w", call, errdefs.ErrAborted)
	case "refuse":
		return fmt.Errorf("%s: refused: %w", call, errdefs.ErrFailedPrecondition)
	case "hang":
		return fmt.Errorf("%s: %w", call, context.DeadlineExceeded)
	case "lose":
		f.loseInit(true)
		if needsInit {
			return fmt.Errorf("%s: %w", call, errGone)
		}
	case "exit":
		f.exitApp(x.status)
	}
	return nil
}

// watch is the shim's: it follows PID 1 from one to the next.
func (f *fake) watch() {
	for {
		f.mu.Lock()
		gone := f.gone
		f.mu.Unlock()
		<-gone
		f.mu.Lock()
		final := f.ending || !f.signaled
		f.mu.Unlock()
		if final || !f.svc.Lost(Loss{Kind: "killed", Cause: "FastFreeze was ended by SIGKILL", At: time.Now()}) {
			break
		}
		f.mu.Lock()
		same := f.gone == gone
		f.mu.Unlock()
		if same {
			f.problem("Lost is true and there is no new PID 1")
			break
		}
	}
	f.mu.Lock()
	f.ended, f.frozen = true, false
	f.mu.Unlock()
	f.svc.End("the container has ended")
	close(f.done)
}

// loseInit ends PID 1, and with it all that runs in the container.
func (f *fake) loseInit(signaled bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if isClosed(f.gone) {
		return
	}
	f.signaled = signaled
	if f.app != nil {
		close(f.app.exit)
		f.app = nil
	}
	for _, say := range f.unsaid {
		say(false)
	}
	f.unsaid = nil
	close(f.gone)
}

// exitApp ends the application by itself: at once, or when it is thawed if it is
// frozen and not killed.
func (f *fake) exitApp(status int) {
	f.mu.Lock()
	a := f.app
	if a == nil {
		f.mu.Unlock()
		return
	}
	if (f.frozen || f.paused) && status != 137 {
		a.pending = &status
		f.mu.Unlock()
		return
	}
	f.app = nil
	say := func(told bool) {
		if told {
			a.exit <- status
		}
		close(a.exit)
	}
	if f.frozen || f.paused {
		f.unsaid = append(f.unsaid, say)
		f.endsTied = a.tied
		f.mu.Unlock()
		return
	}
	say(true)
	f.mu.Unlock()
	if a.tied {
		f.loseInit(false)
	}
}

// thawed lets an application exit that wanted to.
func (f *fake) thawed() {
	f.mu.Lock()
	a := f.app
	still := f.frozen || f.paused
	tied := false
	if !still {
		for _, say := range f.unsaid {
			say(true)
		}
		f.unsaid, tied, f.endsTied = nil, f.endsTied, false
	}
	f.mu.Unlock()
	switch {
	case still:
	case tied:
		f.loseInit(false)
	case a != nil && a.pending != nil:
		f.exitApp(*a.pending)
	}
}

// pause and resume are the shim's, for its client.
func (f *fake) pause(ctx context.Context) error {
	release, err := f.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := f.Ready(); err != nil {
		return err
	}
	f.mu.Lock()
	f.paused = true
	f.mu.Unlock()
	f.svc.Paused()
	return nil
}

func (f *fake) resume(ctx context.Context) error {
	release, err := f.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	f.mu.Lock()
	was := f.paused && !f.ended
	f.paused = f.paused && !was
	f.mu.Unlock()
	if !was {
		return fmt.Errorf("resume: %w", errdefs.ErrFailedPrecondition)
	}
	f.svc.Resumed()
	f.thawed()
	return nil
}

// put puts a checkpoint into the store.
func (f *fake) put(url string, count int, broken bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := kept{count: count, digest: fmt.Sprintf("%s#%d", url, count), broken: broken}
	f.places[url] = append(f.places[url], k)
	if n := len(f.places[url]); n > 2 {
		f.places[url] = f.places[url][n-2:]
	}
}

func (k kept) info(u store.URL) api.Checkpoint {
	return api.Checkpoint{URL: u.String(), Digest: k.digest, Bytes: int64(k.count), CreatedAt: time.Now()}
}

func (f *fake) current() *app {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.app
}

func (f *fake) count(list func(*fake) []string, name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range list(f) {
		if c == name {
			n++
		}
	}
	return n
}

func (f *fake) called(name string) int {
	return f.count(func(f *fake) []string { return f.calls }, name)
}

func (f *fake) executed(name string) int {
	return f.count(func(f *fake) []string { return f.execs }, name)
}

// recorder is a Recorder that keeps what it is told.
type recorder struct {
	mu         sync.Mutex
	operations []string
	recoveries []string
}

func (r *recorder) Operation(name string, err error, _, _ time.Duration, _ int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		name += "!"
	}
	r.operations = append(r.operations, name)
}

func (r *recorder) Recovery(cause string, err error, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		cause += "!"
	}
	r.recoveries = append(r.recoveries, cause)
}

var errNoStage = errors.New("neither a URL nor a stage")
