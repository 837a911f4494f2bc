//go:build linux

package fastfreeze

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/criu"
	"github.com/fastmig/fastmig/runtime/image"
	"github.com/fastmig/fastmig/runtime/romount"
)

// kdatCache keeps CRIU's probe of the kernel, for all shims of the node.
const kdatCache = "/run/fastmig/criu.kdat"

// dumpTimeout bounds how long CRIU waits for the processes to stand still.
const dumpTimeout = 30 * time.Second

// criuTimeout bounds a whole dump or restore: a CRIU that hangs must not hold the
// container for ever. Ten seconds are enough for a GiB of memory.
const criuTimeout = 30 * time.Minute

// Staging is a checkpoint in the making.
type Staging interface {
	// File is the folder to dump into. It belongs to the Staging.
	File() *os.File
	// Commit makes the checkpoint exist, as a whole.
	Commit(context.Context, *image.Manifest) error
	// Abort removes all of it; after Commit succeeded it does nothing.
	Abort() error
}

// CheckpointRequest says what a checkpoint is to be.
type CheckpointRequest struct {
	// Stage prepares the place that it goes to.
	Stage func() (Staging, error)
	// WorkDir is where CRIU's log goes; empty: the bundle.
	WorkDir string
	// KeepTCP puts established TCP connections into the checkpoint. Those of an
	// application that was launched with KeepTCP are put there anyhow.
	KeepTCP bool
	// ExternalUnix lets the application have unix sockets whose other end is
	// outside; they are restored unconnected.
	ExternalUnix bool
	// Preserve are paths of the container, as preserve.Paths returns them, whose
	// files go into the checkpoint.
	Preserve []string
	Progress Progress
	// Dumped is called when CRIU has ended well, and the container is not touched any
	// more; nil: nobody is.
	Dumped func()
	// Note is told what could not be preserved; nil: nobody is.
	Note func(string)
}

// CheckpointResult is a checkpoint that was written.
type CheckpointResult struct {
	Manifest *image.Manifest
	Bytes    int64 // of all its files
}

// tools are one CRIU each for every path of the toolkit, shared by the shim's
// containers: they keep the kernel probe.
var tools struct {
	sync.Mutex
	byPath map[string]*criuTool
}

type criuTool struct {
	*criu.Tool
	version string
}

func (e *Engine) criu() (*criuTool, error) {
	tools.Lock()
	defer tools.Unlock()
	path := e.tk.CriuDir()
	if t := tools.byPath[path]; t != nil {
		return t, nil
	}
	folder, err := romount.OpenReadOnly(path, 0)
	if err != nil {
		return nil, fmt.Errorf("open the toolkit's CRIU: %w", err)
	}
	t, err := criu.New(criu.Config{Folder: folder, Cache: kdatCache})
	if err != nil {
		folder.Close()
		return nil, err
	}
	m, err := e.tk.ReadManifest()
	if err != nil {
		t.Close()
		folder.Close()
		return nil, err
	}
	if tools.byPath == nil {
		tools.byPath = make(map[string]*criuTool)
	}
	tools.byPath[path] = &criuTool{Tool: t, version: m.Criu.Version}
	return tools.byPath[path], nil
}

// Checkpoint writes the application's state to where the request says and leaves
// the application as it is. The container must be frozen, and stays so. The
// checkpoint comes to be as a whole or not at all.
func (e *Engine) Checkpoint(ctx context.Context, req CheckpointRequest) (CheckpointResult, error) {
	r, err := e.checkpoint(ctx, req)
	if err != nil {
		return CheckpointResult{}, fmt.Errorf("checkpoint %s: %w", e.cfg.ID, err)
	}
	return r, nil
}

func (e *Engine) checkpoint(ctx context.Context, req CheckpointRequest) (_ CheckpointResult, err error) {
	pid := e.AppPid()
	if pid == 0 {
		return CheckpointResult{}, fmt.Errorf("no application runs in the container: %w", errdefs.ErrFailedPrecondition)
	}
	if !e.cfg.OwnPids {
		return CheckpointResult{}, errSharedPids
	}
	tmpfs, err := e.tmpfs()
	if err != nil {
		return CheckpointResult{}, err
	}
	tool, err := e.criu()
	if err != nil {
		return CheckpointResult{}, err
	}
	if err := e.CheckPreserved(req.Preserve); err != nil {
		return CheckpointResult{}, err
	}
	stage, err := req.Stage()
	if err != nil {
		return CheckpointResult{}, err
	}
	defer func() {
		if aerr := stage.Abort(); aerr != nil && err != nil {
			err = errors.Join(err, aerr)
		}
	}()
	e.mu.Lock()
	life := life{pid: pid, args: e.args, stdio: e.stdio, keepTCP: e.keepTCP || req.KeepTCP, tmpfs: tmpfs, criu: tool.version, filters: e.filters}
	e.mu.Unlock()

	bounded, cancel := context.WithTimeout(ctx, criuTimeout)
	defer cancel()
	if life.clocks, err = e.dump(bounded, tool, req, life, stage.File()); err != nil {
		return CheckpointResult{}, err
	}
	if req.Dumped != nil {
		req.Dumped()
	}
	if err := e.pack(bounded, req, stage.File()); err != nil {
		return CheckpointResult{}, err
	}
	m, err := e.describe(life, stage.File())
	if err != nil {
		return CheckpointResult{}, err
	}
	m.PreservedPaths = req.Preserve
	return commit(bounded, stage, m, req.Progress)
}

// life is what a checkpoint has to know about the application.
type life struct {
	pid     int
	args    []string
	stdio   [3]stream
	keepTCP bool
	tmpfs   []string
	criu    string
	filters *int // see image.Manifest
	clocks  image.Clocks
}

// dump has CRIU write the images. It tells when that began.
func (e *Engine) dump(ctx context.Context, tool *criuTool, req CheckpointRequest, app life, images *os.File) (image.Clocks, error) {
	logFile, err := e.openLog(req.WorkDir, "dump")
	if err != nil {
		return image.Clocks{}, err
	}
	defer logFile.Close()
	place, release, err := e.place(false)
	if err != nil {
		return image.Clocks{}, err
	}
	defer release()
	freezer, err := e.freezer()
	if err != nil {
		return image.Clocks{}, err
	}
	defer freezer.Close()

	watch, watched := context.WithCancel(ctx)
	defer watched()
	go releaseStopped(watch, freezer)
	defer watchDump(req.Progress, images, freezer)()

	clocks := now()
	_, err = tool.Dump(ctx, criu.DumpOptions{
		Place:        place,
		Pid:          app.pid,
		Images:       images,
		Log:          logFile.File,
		External:     external(app.stdio),
		FreezeCgroup: freezer,
		OwnIPC:       e.cfg.OwnIPC,
		Tmpfs:        app.tmpfs,
		TCP:          connections(app.keepTCP),
		ExternalUnix: req.ExternalUnix,
		FileLocks:    true,
		Timeout:      dumpTimeout,
	})
	return clocks, logFile.keep(err)
}

// commit makes the checkpoint exist.
func commit(ctx context.Context, stage Staging, m *image.Manifest, progress Progress) (CheckpointResult, error) {
	total := folderBytes(stage.File(), "")
	progress.tell("digest", 0, total)
	if err := stage.Commit(ctx, m); err != nil {
		return CheckpointResult{}, err
	}
	r := CheckpointResult{Manifest: m}
	for _, f := range m.Files {
		r.Bytes += f.Size
	}
	progress.tell("digest", r.Bytes, r.Bytes)
	progress.tell("commit", r.Bytes, r.Bytes)
	return r, nil
}

// describe writes the manifest of what CRIU has dumped.
func (e *Engine) describe(app life, images *os.File) (*image.Manifest, error) {
	if err := image.RearmTimers(images); err != nil {
		return nil, err
	}
	contents, err := image.Inspect(images)
	if err != nil {
		return nil, err
	}
	host, err := image.ProbeHost()
	if err != nil {
		return nil, err
	}
	tcp := image.TCPClose
	if app.keepTCP {
		tcp = image.TCPKeep
	}
	return &image.Manifest{
		Application: image.Application{
			Args:      app.args,
			Pid:       app.pid,
			Terminal:  e.cfg.Terminal,
			Processes: contents.Processes,
		},
		Stdio:       stdioRecord(app.stdio),
		TCP:         tcp,
		Image:       e.cfg.Image,
		ContainerID: e.cfg.ID,
		Namespace:   e.cfg.Namespace,

		SeccompFilters: app.filters,

		CPU:         host.CPU,
		Kernel:      host.Kernel,
		CriuVersion: app.criu,
		Clocks:      app.clocks,
		MappedFiles: elsewhere(contents.Files, app.tmpfs),
	}, nil
}

func now() image.Clocks {
	var mono, boot unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono)
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
	return image.Clocks{Monotonic: mono.Nano(), Boottime: boot.Nano()}
}

func connections(keep bool) criu.Connections {
	if keep {
		return criu.KeepConnections
	}
	return criu.CloseConnections
}
