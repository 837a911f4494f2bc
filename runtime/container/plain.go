//go:build linux

package container

import (
	"fmt"
	"os"

	"github.com/opencontainers/runc/libcontainer"
)

// CheckpointConfig says how a whole container is checkpointed with CRIU, in
// the stock shim's format.
type CheckpointConfig struct {
	ImageDir, WorkDir, ParentDir string
	// Exit ends the container after the dump.
	Exit                bool
	OpenTCP             bool
	ExternalUnixSockets bool
	Terminal            bool
	FileLocks           bool
	EmptyNamespaces     []string
	CgroupsMode         string
}

// CheckpointWhole dumps the container, namespaces included, through
// libcontainer. CRIU is found through PATH.
func (c *Container) CheckpointWhole(cfg CheckpointConfig) error {
	opts, err := cfg.criu()
	if err != nil {
		return err
	}
	return c.lc.Checkpoint(opts)
}

// RestoreWhole makes the container's processes from a whole-container image.
// It returns when they run; the first one is a child of this process.
func (c *Container) RestoreWhole(p *Process, cfg CheckpointConfig) error {
	opts, err := cfg.criu()
	if err != nil {
		return err
	}
	if err := c.lc.Restore(&p.lp, opts); err != nil {
		return err
	}
	// Restore leaves the start time of the first process unknown, without
	// which libcontainer takes it for dead; the state on disk has it.
	lc, err := libcontainer.Load(c.config.Root, c.config.ID)
	if err != nil {
		return err
	}
	c.lc = lc
	return p.started()
}

// Sys/netns masks of CRIU's empty_ns option (clone(2) flags).
var namespaceFlags = map[string]uint32{
	"network": 0x40000000,
}

func (cfg CheckpointConfig) criu() (*libcontainer.CriuOpts, error) {
	opts := &libcontainer.CriuOpts{
		ImagesDirectory:         cfg.ImageDir,
		WorkDirectory:           cfg.WorkDir,
		ParentImage:             cfg.ParentDir,
		LeaveRunning:            !cfg.Exit,
		TcpEstablished:          cfg.OpenTCP,
		ExternalUnixConnections: cfg.ExternalUnixSockets,
		ShellJob:                cfg.Terminal,
		FileLocks:               cfg.FileLocks,
		ManageCgroupsMode:       cfg.CgroupsMode,
		StatusFd:                -1,
	}
	for _, ns := range cfg.EmptyNamespaces {
		flag, ok := namespaceFlags[ns]
		if !ok {
			return nil, fmt.Errorf("namespace %s is not supported as an empty one", ns)
		}
		opts.EmptyNs |= flag
	}
	if cfg.WorkDir != "" {
		if err := os.MkdirAll(cfg.WorkDir, 0o711); err != nil {
			return nil, fmt.Errorf("make CRIU's work folder: %w", err)
		}
	}
	return opts, nil
}
