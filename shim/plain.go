//go:build linux

package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/runtime/container"
	"github.com/fastmig/fastmig/runtime/fastfreeze"
)

// plainRestore is a container without FastFreeze that starts from a checkpoint
// of the whole container, in the stock shim's format. As there, all of it
// happens at Start.
type plainRestore struct {
	dir, parent string
	proc        *container.Process
}

func (r *plainRestore) prepare(spec *specs.Spec, w *wiring) error {
	proc, err := container.NewProcess(spec.Process, true, w.io, nil)
	if err != nil {
		return err
	}
	r.proc = proc
	return nil
}

func (t *task) workDir() string { return filepath.Join(t.bundle, "work") }

func (t *task) restorePlain(ctx context.Context) error {
	work := t.opts.CriuWorkPath
	if work == "" {
		work = t.workDir()
	}
	r := t.plain
	if err := t.container().RestoreWhole(r.proc, container.CheckpointConfig{
		ImageDir:  r.dir,
		ParentDir: r.parent,
		WorkDir:   work,
	}); err != nil {
		return fmt.Errorf("OCI runtime restore failed: %w", fastfreeze.ExplainLog("restore the whole container",
			filepath.Join(work, "restore.log"), fastfreeze.LogPath(t.ns, t.id, "restore"), err))
	}
	t.inc.Load().proc = r.proc
	t.init.run(r.proc)
	t.cgroup = loadCgroup(ctx, r.proc.Pid)
	if err := writePid(t.bundle, r.proc.Pid); err != nil {
		return err
	}
	return t.wiring.connect(ctx, t.consoles, t.ns, t.id)
}

func (t *task) checkpointPlain(req *checkpointRequest) error {
	work := req.options.WorkPath
	if work == "" {
		work = filepath.Join(t.workDir(), "criu-work")
		defer os.RemoveAll(work)
	}
	before := t.now()
	t.to(StateCheckpointing)
	defer t.to(before)
	if err := t.container().CheckpointWhole(container.CheckpointConfig{
		ImageDir:            req.path,
		WorkDir:             work,
		ParentDir:           req.options.ParentPath,
		Exit:                req.exit,
		OpenTCP:             req.options.OpenTcp,
		ExternalUnixSockets: req.options.ExternalUnixSockets,
		Terminal:            req.options.Terminal,
		FileLocks:           req.options.FileLocks,
		EmptyNamespaces:     req.options.EmptyNamespaces,
		CgroupsMode:         req.options.CgroupsMode,
	}); err != nil {
		return fastfreeze.ExplainLog("checkpoint the whole container",
			filepath.Join(work, "dump.log"), fastfreeze.LogPath(t.ns, t.id, "dump"), err)
	}
	return nil
}
