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

// CheckpointRequest says where a checkpoint goes.
type CheckpointRequest struct {
	// Dir is the folder; it must be empty, or not exist.
	Dir string
	// WorkDir is where CRIU's log goes; empty: the bundle.
	WorkDir string
	// KeepTCP puts established TCP connections into the checkpoint, as
	// Config.KeepTCP does for all of the container's.
	KeepTCP bool
	// ExternalUnix lets the application have unix sockets whose other end is
	// outside; they are restored unconnected.
	ExternalUnix bool
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

// Checkpoint writes the application's state into a folder and leaves the
// application as it is. The container must be frozen, and stays so. The folder
// becomes a checkpoint as a whole or is left as it was.
func (e *Engine) Checkpoint(ctx context.Context, req CheckpointRequest) (err error) {
	pid := e.appPid()
	if pid == 0 {
		return fmt.Errorf("no application runs in the container: %w", errdefs.ErrFailedPrecondition)
	}
	if !e.cfg.OwnPids {
		return fmt.Errorf("checkpoint %s: %w", e.cfg.ID, errSharedPids)
	}
	tmpfs, err := e.tmpfs()
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", e.cfg.ID, err)
	}
	tool, err := e.criu()
	if err != nil {
		return err
	}
	stage, err := image.Stage(req.Dir)
	if err != nil {
		return err
	}
	defer func() {
		if aerr := stage.Abort(); aerr != nil && err != nil {
			err = errors.Join(err, aerr)
		}
	}()
	logFile, err := e.openLog(req.WorkDir, "dump")
	if err != nil {
		return err
	}
	defer logFile.Close()

	place, release, err := e.place(false)
	if err != nil {
		return err
	}
	defer release()
	freezer, err := e.freezer()
	if err != nil {
		return err
	}
	defer freezer.Close()

	keep := e.cfg.KeepTCP || req.KeepTCP
	watch, watched := context.WithCancel(ctx)
	defer watched()
	go releaseStopped(watch, freezer)

	clocks := now()
	ctx, cancel := context.WithTimeout(ctx, criuTimeout)
	defer cancel()
	if _, err := tool.Dump(ctx, criu.DumpOptions{
		Place:        place,
		Pid:          pid,
		Images:       stage.File(),
		Log:          logFile.File,
		External:     e.external(),
		FreezeCgroup: freezer,
		OwnIPC:       e.cfg.OwnIPC,
		Tmpfs:        tmpfs,
		TCP:          connections(keep),
		ExternalUnix: req.ExternalUnix,
		FileLocks:    true,
		Timeout:      dumpTimeout,
	}); err != nil {
		return fmt.Errorf("checkpoint %s: %w", e.cfg.ID, logFile.keep(err))
	}
	m, err := e.describe(pid, keep, tmpfs, tool.version, clocks, stage)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", e.cfg.ID, err)
	}
	if err := stage.Commit(ctx, m); err != nil {
		return fmt.Errorf("checkpoint %s: %w", e.cfg.ID, err)
	}
	return nil
}

// describe writes the manifest of what CRIU has dumped.
func (e *Engine) describe(pid int, keepTCP bool, tmpfs []string, criuVersion string, clocks image.Clocks, stage *image.Staging) (*image.Manifest, error) {
	if err := image.RearmTimers(stage.File()); err != nil {
		return nil, err
	}
	contents, err := image.Inspect(stage.File())
	if err != nil {
		return nil, err
	}
	host, err := image.ProbeHost()
	if err != nil {
		return nil, err
	}
	tcp := image.TCPClose
	if keepTCP {
		tcp = image.TCPKeep
	}
	return &image.Manifest{
		Application: image.Application{
			Args:      e.cfg.Args,
			Pid:       pid,
			Terminal:  e.cfg.Terminal,
			Processes: contents.Processes,
		},
		Stdio:       e.stdioRecord(),
		TCP:         tcp,
		Image:       e.cfg.Image,
		ContainerID: e.cfg.ID,
		Namespace:   e.cfg.Namespace,
		CPU:         host.CPU,
		Kernel:      host.Kernel,
		CriuVersion: criuVersion,
		Clocks:      clocks,
		MappedFiles: elsewhere(contents.Files, tmpfs),
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

// freezer opens the cgroup folder that freezes the container.
func (e *Engine) freezer() (*os.File, error) {
	folders, err := e.cfg.CgroupFolders()
	if err != nil {
		return nil, err
	}
	path, ok := folders["freezer"]
	if !ok {
		path = folders[""]
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the container's freezer cgroup: %w", err)
	}
	return f, nil
}

// place opens the container's namespaces, and its cgroups if CRIU's children
// are to be born into them.
func (e *Engine) place(inside bool) (_ criu.Place, release func(), err error) {
	var open []*os.File
	var place criu.Place
	release = func() {
		place.Namespaces.Close()
		for _, f := range open {
			f.Close()
		}
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if place.Namespaces, err = criu.OpenNamespaces(e.pid, e.pidfd); err != nil {
		return place, nil, err
	}
	if !inside {
		return place, release, nil
	}
	folders, err := e.cfg.CgroupFolders()
	if err != nil {
		return place, nil, err
	}
	seen := make(map[string]bool)
	for controller, path := range folders {
		if seen[path] {
			continue
		}
		seen[path] = true
		f, err := os.Open(path)
		if err != nil {
			return place, nil, fmt.Errorf("open the container's cgroup: %w", err)
		}
		open = append(open, f)
		if controller == "" {
			place.CgroupV2 = f
		} else {
			place.CgroupTasks = append(place.CgroupTasks, f)
		}
	}
	return place, release, nil
}
