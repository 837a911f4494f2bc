//go:build linux

package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze"
	"github.com/fastmig/fastmig/runtime/store"
	"github.com/fastmig/fastmig/shim/api"
	"github.com/fastmig/fastmig/shim/service"
)

const (
	// wholeGate is the weight of whoever wants nothing to be put into the container.
	wholeGate = 1 << 30
	// hookOutput bounds what is kept of a hook's output, in bytes.
	hookOutput = 2048
	// leaveTime is how long a checkpoint that CRIU has written has to end when its store does not answer.
	leaveTime = 3 * time.Second
	// tieTimeout bounds the wait for PID 1 to say that it heard.
	tieTimeout = 5 * time.Second
	// prepareTimeout bounds the wait for PID 1 to say that the service is gone.
	prepareTimeout = 5 * time.Second
)

// body is the task as its service sees it.
type body struct{ *task }

var _ service.Body = body{}

func (b body) Acquire(ctx context.Context) (func(), error) { return b.acquire(ctx) }

func (b body) Ready() error { return b.allow(changeService) }

// Launch runs the application; nothing else is put into the container meanwhile.
func (b body) Launch(ctx context.Context, l service.Launch) (service.Running, error) {
	var none service.Running
	t, engine := b.task, b.engine()
	if err := t.gate.Acquire(ctx, wholeGate); err != nil {
		return none, fmt.Errorf("wait for processes that are being put into the container: %w", err)
	}
	defer t.gate.Release(wholeGate)
	launch := fastfreeze.Launch{
		Args: l.Args, Env: l.Env,
		Tied:         l.Tied,
		DropStdio:    t.settings.asStock(),
		KeepTCP:      l.KeepTCP,
		LeaveStopped: l.LeaveStopped,
		WorkPath:     t.opts.CriuWorkPath,
		Progress:     l.Progress,
	}
	if l.Image != nil {
		launch.Checkpoint = l.Image.Checkpoint
	}
	if engine.Dropped() {
		files, done, err := t.freshStdio()
		if err != nil {
			return none, err
		}
		defer done()
		launch.Stdio = files
	}
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if l.Image != nil && l.Image.Watch != nil {
		l.Image.Watch(bounded, cancel)
	}
	if _, err := engine.Launch(bounded, launch); err != nil {
		if ctx.Err() == nil && bounded.Err() != nil {
			err = context.Cause(bounded)
		}
		return none, err
	}
	exit := make(chan int, 1)
	go func() {
		defer close(exit)
		select {
		case e := <-engine.Exits():
			exit <- statusOf(e.Status)
		case <-engine.Gone():
			// What came before the end still counts.
			select {
			case e := <-engine.Exits():
				exit <- statusOf(e.Status)
			default:
			}
		}
	}()
	return service.Running{Pid: engine.HostPid(), Exit: exit}, nil
}

func statusOf(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// freshStdio makes new ends of the container's stdio, in place of those that PID 1
// has let go of.
func (t *task) freshStdio() (*[3]*os.File, func(), error) {
	s := t.init.streams
	if err := s.Renew(t.owner()); err != nil {
		return nil, nil, fmt.Errorf("make new stdio for the service: %w", err)
	}
	files := [3]*os.File{s.Stdin, s.Stdout, s.Stderr}
	var null *os.File
	for i, f := range files {
		if f != nil {
			continue
		}
		if null == nil {
			var err error
			if null, err = t.null(); err != nil {
				s.CloseChild()
				return nil, nil, err
			}
		}
		files[i] = null
	}
	return &files, func() {
		s.CloseChild()
		if null != nil {
			null.Close()
		}
	}, nil
}

// null opens the container's own /dev/null: a descriptor of the host's could not be
// checkpointed.
func (t *task) null() (*os.File, error) {
	root, err := t.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), "dev/null", &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open the container's /dev/null: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at the container's /dev/null: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return nil, fmt.Errorf("the container's /dev/null is not the null device any more: %w", errdefs.ErrFailedPrecondition)
	}
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0)
}

// root opens the container's root directory.
func (t *task) root() (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/root", t.init.pid()))
	if err != nil {
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	return f, nil
}

func (b body) Tie(ctx context.Context, tied bool) error {
	if !tied {
		// Before the service ends: its client would take the end of its output for the
		// container's.
		b.init.keepOutputs()
	}
	ctx, cancel := context.WithTimeout(ctx, tieTimeout)
	defer cancel()
	if err := b.engine().Tie(ctx, tied); err != nil {
		return fmt.Errorf("tell PID 1 what ends with the service: %w", err)
	}
	return nil
}

// Freeze holds the gate until the thaw.
func (b body) Freeze(ctx context.Context) (func() error, error) {
	t, before := b.task, b.now()
	if err := t.gate.Acquire(ctx, wholeGate); err != nil {
		return nil, fmt.Errorf("wait for processes that are being put into the container: %w", err)
	}
	t.to(StateCheckpointing)
	if before == StateRunning {
		if err := t.container().Pause(); err != nil {
			t.to(before)
			t.gate.Release(wholeGate)
			return nil, err
		}
	}
	t.thawed = sync.OnceValue(func() error {
		defer t.gate.Release(wholeGate)
		t.to(before)
		if before != StateRunning || t.now() == StateStopped {
			return nil
		}
		return t.container().Resume()
	})
	return t.thawed, nil
}

func (b body) Breathe(ctx context.Context, f func() error) (err error) {
	c := b.container()
	if err := c.Resume(); err != nil {
		return fmt.Errorf("thaw the container for a moment: %w", err)
	}
	defer func() {
		if perr := c.Pause(); perr != nil && b.now() != StateStopped {
			err = errors.Join(err, fmt.Errorf("freeze the container again: %w", perr))
		}
	}()
	return f()
}

func (b body) CheckPreserved(paths []string) error { return b.engine().CheckPreserved(paths) }

func (b body) Dump(ctx context.Context, d service.Dump) (api.Checkpoint, error) {
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stage := d.Stage
	if stage == nil {
		stage = func() (fastfreeze.Staging, error) {
			st, err := b.store.Stage(ctx, d.URL)
			if err != nil {
				return nil, err
			}
			// CRIU and those who read what it wrote know no time limit.
			st.Watch(bounded, cancel)
			return st, nil
		}
	}
	type result struct {
		fastfreeze.CheckpointResult
		err error
	}
	done, dumped := make(chan result, 1), make(chan struct{})
	go func() {
		r, err := b.engine().Checkpoint(bounded, fastfreeze.CheckpointRequest{
			Dumped: func() { close(dumped) }, Stage: stage, WorkDir: d.WorkDir, KeepTCP: d.KeepTCP, ExternalUnix: d.ExternalUnix,
			Preserve: d.Preserve, Progress: d.Progress, Note: d.Note,
		})
		done <- result{r, err}
	}()
	var res result
	select {
	case res = <-done:
	case <-bounded.Done():
		// CRIU is waited for: it leaves the container frozen.
		select {
		case res = <-done:
		case <-dumped:
			select {
			case res = <-done:
			case <-time.After(leaveTime):
				// Whoever is left behind hangs in the store and touches nothing else.
				res.err = context.Cause(bounded)
			}
		}
	}
	if res.err != nil {
		if ctx.Err() == nil && bounded.Err() != nil {
			res.err = context.Cause(bounded)
		}
		return api.Checkpoint{}, res.err
	}
	c := api.Checkpoint{CreatedAt: res.Manifest.CreatedAt, Bytes: res.Bytes, Digest: res.Manifest.Digest}
	if d.Stage == nil {
		c.URL = d.URL.String()
		b.init.keepOutputs() // there may be another life from now on
	}
	return c, nil
}

func (b body) Open(ctx context.Context, u store.URL) (service.Image, error) {
	opened, err := b.store.Open(ctx, u)
	if err != nil {
		return service.Image{}, err
	}
	cp, err := fastfreeze.FitCheckpoint(opened.Checkpoint)
	if err != nil {
		opened.Close()
		return service.Image{}, err
	}
	image := imageOf(cp)
	image.Info.URL, image.Note, image.Close = u.String(), opened.Note, func() { opened.Close() }
	image.Watch = func(ctx context.Context, cancel context.CancelCauseFunc) {
		b.store.Watch(ctx, u, opened.Checkpoint, cancel)
	}
	return *image, nil
}

func (b body) Stat(ctx context.Context, u store.URL) (api.Checkpoint, error) {
	info, err := b.store.Stat(ctx, u)
	if err != nil {
		return api.Checkpoint{}, err
	}
	return api.Checkpoint{URL: u.String(), CreatedAt: info.CreatedAt, Bytes: info.Bytes, Digest: info.Digest}, nil
}

func (b body) Signal(sig int) error { return b.engine().Signal(unix.Signal(sig)) }

func (b body) EndService(ctx context.Context) error {
	t := b.task
	thaw := t.thawed
	t.thawed = nil
	err := t.container().KillOthers(ctx, t.init.pid(), slices.Collect(keys(t.execPids())))
	if thaw != nil {
		if terr := thaw(); terr != nil && !errdefs.IsFailedPrecondition(terr) && !errdefs.IsNotFound(terr) {
			err = errors.Join(err, fmt.Errorf("thaw the container: %w", terr))
		}
	}
	if err == nil {
		go prepare(b.engine())
	}
	return err
}

// prepare makes the container ready for a quick restore, once PID 1 has told that the
// service is gone. Where that fails, the restore does it by itself.
func prepare(engine *fastfreeze.Engine) {
	ctx, cancel := context.WithTimeout(context.Background(), prepareTimeout)
	defer cancel()
	for engine.AppPid() != 0 {
		select {
		case <-time.After(time.Millisecond):
		case <-engine.Gone():
			return
		case <-ctx.Done():
			return
		}
	}
	if err := engine.Prepare(ctx); err != nil && !errdefs.IsFailedPrecondition(err) {
		log.L.WithError(err).Debug("prepare the container for a restore")
	}
}

func keys(m map[int]string) func(func(int) bool) {
	return func(yield func(int) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (b body) EndContainer(ctx context.Context) error {
	b.ending.Store(true)
	if err := b.container().Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return b.init.wait(ctx)
}

func (b body) Exec(ctx context.Context, args, env []string) (string, error) {
	spec := *b.spec.Process
	spec.Args, spec.Env, spec.Terminal = args, env, false
	output, status, err := b.container().Run(ctx, &spec, io.LimitReader(strings.NewReader(""), 0), hookOutput)
	if err == nil && status != 0 {
		err = fmt.Errorf("it ended with status %d", status)
	}
	return string(output), err
}

func (b body) OOMKilled() bool {
	t := b.task
	n, err := t.container().OOMKills()
	if err != nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	more := n > t.oomKills
	t.oomKills = n
	return more
}

func (b body) Describe(st *api.Status) {
	st.Container = strings.ToLower(b.now().status().String())
	st.InitPid = b.init.pid()
	if b.now() == StateStopped {
		st.InitPid = 0
	}
}
