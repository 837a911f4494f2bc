//go:build linux

// Package fastfreeze is the engine that runs, checkpoints and restores an
// application inside a container: below PID 1 (cmd/fastfreeze), which it talks
// to over a socket, with CRIU on the host's side. Whoever builds the container
// runs the engine's Args as its first process with the engine's Files.
package fastfreeze

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
	"github.com/fastmig/fastmig/runtime/image"
	"github.com/fastmig/fastmig/runtime/romount"
	"github.com/fastmig/fastmig/runtime/toolkit"
)

const (
	// AppPid is the application's pid in its container: high, so that it is
	// free in another one, whose own processes have low pids.
	AppPid = 1000

	// Descriptors of PID 1, in the order of Files: its socket, itself.
	exeFd = 4

	// startTimeout bounds the start of an application by PID 1.
	startTimeout = 20 * time.Second
)

// Config describes one container to the engine.
type Config struct {
	ID, Namespace string
	// Bundle is where CRIU's logs go.
	Bundle string
	// Image is the image's reference, for the record.
	Image string
	// Args, Env are the spec's command line and environment.
	Args, Env []string
	Terminal  bool
	// OwnPids says that the container has a pid namespace of its own.
	OwnPids bool
	// OwnIPC says that the container has an IPC namespace of its own: System V
	// objects travel with it. Of a pod's there may be others'.
	OwnIPC bool
	// Tmpfs are the mount points of file systems in memory that the container
	// has for itself; what is in them travels with it.
	Tmpfs []string
	// CgroupFolders are the container's cgroups, by controller on v1, under
	// "" on v2.
	CgroupFolders func() (map[string]string, error)
}

// Engine is FastFreeze in one container: it sets one application after the other
// going, for as long as PID 1 lives.
type Engine struct {
	cfg  Config
	tk   toolkit.Toolkit
	exe  *os.File // fastfreeze, read-only for whoever gets it
	sock *os.File // PID 1's end, until it has it
	conn *link

	pid   int
	pidfd *os.File

	launching sync.Mutex // held by Launch and Prepare
	aside     bool       // PID 1 is in its own freezer cgroup; guarded by launching

	mu       sync.Mutex
	bounds   image.Rights // PID 1's, from Ready on; the filters in them from learnFilters on
	filters  *int         // how many PID 1 has, as a manifest notes it
	stdio    [3]stream    // PID 1's, or the application's
	dropped  bool         // PID 1 has let go of its stdio
	launched bool         // an application runs, or has run
	args     []string     // the application's
	keepTCP  bool         // as its Launch said
	hostPid  appOnHost
	closed   bool
}

// appOnHost is where the host sees the application.
type appOnHost struct {
	app, host int
	fd        *os.File
}

// errSharedPids: the application's pids may be taken there, and CRIU would be in
// the reach of processes that are not this container's to freeze.
var errSharedPids = fmt.Errorf("the container shares its pid namespace with others, where its processes can be run but neither checkpointed nor restored: give it one of its own: %w", errdefs.ErrFailedPrecondition)

// CheckToolkit reports whether containers can be run with FastFreeze here; the
// error says what to do.
func CheckToolkit() error {
	_, err := toolkit.Locate()
	return err
}

// UseToolkit puts the toolkit's CRIU before any other in this process's PATH:
// libcontainer looks for one there. Without a toolkit nothing changes.
func UseToolkit() error {
	tk, err := toolkit.Locate()
	if err != nil {
		return nil
	}
	return os.Setenv("PATH", filepath.Dir(tk.CriuWrapper())+":"+os.Getenv("PATH"))
}

// New prepares the engine of a container that is about to be made.
func New(cfg Config) (_ *Engine, err error) {
	e := &Engine{cfg: cfg}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	if e.tk, err = toolkit.Locate(); err != nil {
		return nil, err
	}
	if e.exe, err = romount.OpenReadOnly(e.tk.Fastfreeze(), 0); err != nil {
		return nil, fmt.Errorf("open fastfreeze for the container: %w", err)
	}
	if e.conn, e.sock, err = newLink(); err != nil {
		return nil, err
	}
	return e, nil
}

// Args is the command line of the container's first process.
func (e *Engine) Args() []string {
	return append([]string{fmt.Sprintf("/proc/self/fd/%d", exeFd), "init", "--"}, e.cfg.Args...)
}

// Files are the first process's descriptors from 3 on.
func (e *Engine) Files() []*os.File {
	return []*os.File{e.sock, e.exe}
}

// Spawned tells the engine that the first process is there, as pid.
func (e *Engine) Spawned(pid int) error {
	// From now on the end of the socket means the end of PID 1.
	e.sock.Close()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open a pidfd of the container's first process: %w", err)
	}
	e.pid, e.pidfd = pid, os.NewFile(uintptr(fd), "pidfd")
	return nil
}

// Ready blocks until PID 1 runs. Errors: NotFound if PID 1 did not find the
// application's program; the engine can be used all the same.
func (e *Engine) Ready(ctx context.Context) error {
	missing := e.conn.awaitReady(ctx)
	if missing != nil && !errdefs.IsNotFound(missing) {
		return missing
	}
	stdio, err := e.lookAtStdio()
	if err != nil {
		return err
	}
	rights, filters, err := e.rights()
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stdio, e.bounds, e.filters = stdio, rights, filters
	return missing
}

// Launched says whether an application runs.
func (e *Engine) Launched() bool { return e.AppPid() != 0 }

// AppPid is the application's pid in the container; 0: none runs.
func (e *Engine) AppPid() int { return e.conn.appPid() }

// Dropped says whether PID 1 has let go of its stdio, so that the next
// application needs other.
func (e *Engine) Dropped() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dropped
}

// Exits tells the end of each application, in order, while PID 1 lives. One that
// was tied may take PID 1 along before it is told.
func (e *Engine) Exits() <-chan Exit { return e.conn.exits }

// Gone is closed when the conversation with PID 1 is over: it has ended, or
// talks nonsense.
func (e *Engine) Gone() <-chan struct{} { return e.conn.gone }

// Ping waits until PID 1 answers, as it does whenever it is alive and not
// frozen. Errors: ctx's; FailedPrecondition or NotFound if PID 1 is gone;
// Unavailable if it does not even read.
func (e *Engine) Ping(ctx context.Context) error { return e.conn.ping(ctx) }

// Tie has PID 1 end when the running application does, or stay. When it returns, it
// is so; of a frozen PID 1, which cannot answer before ctx ends, when it is thawed.
func (e *Engine) Tie(ctx context.Context, tied bool) error {
	var flags initproto.Flags
	if tied {
		flags = initproto.Tied
	}
	if err := e.conn.tie(ctx, flags); err != nil {
		return fmt.Errorf("tell PID 1 what ends with the application: %w", err)
	}
	return nil
}

// Untie is Tie(ctx, false).
func (e *Engine) Untie(ctx context.Context) error { return e.Tie(ctx, false) }

// Signal has PID 1 signal the application. Of a frozen container the signal
// arrives when it is thawed.
func (e *Engine) Signal(sig unix.Signal) error {
	return e.conn.signal(sig)
}

// Close gives up what the engine holds; the container's processes are not
// touched. Idempotent.
func (e *Engine) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.closed = true
	if e.conn != nil {
		e.conn.close()
	}
	for _, f := range []*os.File{e.exe, e.sock, e.pidfd, e.hostPid.fd} {
		if f != nil {
			f.Close()
		}
	}
}
