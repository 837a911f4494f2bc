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
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/criu"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
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
	// Args is the application's command line.
	Args     []string
	Terminal bool
	// KeepTCP keeps established TCP connections through a restore.
	KeepTCP bool
	// OwnPids says that the container has a pid namespace of its own.
	OwnPids bool
	// OwnIPC says that the container has an IPC namespace of its own: System V
	// objects travel with it. Of a pod's there may be others'.
	OwnIPC bool
	// Tmpfs are the mount points of file systems in memory that the container
	// has for itself; what is in them travels with it.
	Tmpfs []string
	// Checkpoint is what the application starts from; nil: from scratch. The
	// engine takes it over.
	Checkpoint *Checkpoint
	// CriuWorkPath is where CRIU's log of a restore goes; empty: the bundle.
	CriuWorkPath string
	// CgroupFolders are the container's cgroups, by controller on v1, under
	// "" on v2.
	CgroupFolders func() (map[string]string, error)
}

// Engine is FastFreeze in one container.
type Engine struct {
	cfg  Config
	tk   toolkit.Toolkit
	exe  *os.File // fastfreeze, read-only for whoever gets it
	sock *os.File // PID 1's end, until it has it
	conn *link

	pid   int
	pidfd *os.File
	stdio [3]stream

	aside bool // PID 1 is in its own freezer cgroup; guarded by the caller's order

	mu     sync.Mutex
	app    int // the application's pid in the container; 0: none yet
	closed bool
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
			e.cfg.Checkpoint = nil // stays the caller's
			e.Close()
		}
	}()
	if cfg.Checkpoint != nil && !cfg.OwnPids {
		return nil, fmt.Errorf("restore %s: %w", cfg.ID, errSharedPids)
	}
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

// Ready blocks until PID 1 runs and has found the application's program; for
// one that starts from a checkpoint, also until the container's files are known
// to fit it.
func (e *Engine) Ready(ctx context.Context) error {
	if err := e.conn.ready(ctx); err != nil {
		return err
	}
	if err := e.lookAtStdio(); err != nil {
		return err
	}
	if e.cfg.Checkpoint == nil {
		return nil
	}
	if _, err := e.stepAside(); err != nil {
		return err
	}
	return e.checkDestination()
}

// Launch runs the application, from scratch or from the checkpoint; it blocks
// until it runs.
func (e *Engine) Launch(ctx context.Context) error {
	pid, err := e.launch(ctx)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.app = pid
	if e.cfg.Checkpoint != nil {
		e.cfg.Checkpoint.Close()
		e.cfg.Checkpoint = nil
	}
	return nil
}

func (e *Engine) launch(ctx context.Context) (int, error) {
	if e.cfg.Checkpoint != nil {
		return e.restore(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if e.cfg.OwnPids {
		if err := e.nextPid(AppPid); err != nil {
			return 0, err
		}
	}
	pid, err := e.conn.start(ctx, e.flags())
	if err != nil {
		return 0, fmt.Errorf("start the application: %w", err)
	}
	if e.cfg.OwnPids && pid != AppPid {
		log.G(ctx).WithField("id", e.cfg.ID).Warnf("the application got pid %d instead of %d: a restore needs that pid free", pid, AppPid)
	}
	return pid, nil
}

// nextPid makes n, or the first free one after it, the pid namespace's next pid.
func (e *Engine) nextPid(n int) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", e.pid))
	if err != nil {
		return fmt.Errorf("choose the next pid: %w", err)
	}
	defer ns.Close()
	return criu.SetLastPid(ns, e.exe, n-1)
}

func (e *Engine) flags() initproto.Flags {
	f := initproto.Tied | initproto.DropStdio
	if e.cfg.Terminal {
		f |= initproto.Terminal
	}
	return f
}

// Launched says whether the application runs, or has run.
func (e *Engine) Launched() bool { return e.appPid() != 0 }

func (e *Engine) appPid() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.app
}

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
	for _, f := range []*os.File{e.exe, e.sock, e.pidfd} {
		if f != nil {
			f.Close()
		}
	}
	if e.cfg.Checkpoint != nil {
		e.cfg.Checkpoint.Close()
	}
}
