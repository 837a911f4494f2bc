//go:build linux

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// Files of libcontainer's in a container's state folder.
const (
	stateFile = "state.json"
	execFifo  = "exec.fifo"
)

// Renew makes a container in c's place, whose first process has ended: with the same
// id, state folder, rootfs and cgroup, the limits of the last Update, and the pinned
// namespaces; its pid, mount, ipc and cgroup namespaces are new, its time namespace is
// as the spec says. Namespaces that the spec names by a path stay those.
//
// No process runs in it yet: Start and Release it as a new one. The hooks for the
// runtime's side (prestart, createRuntime, poststart) are not run again, those inside
// (createContainer, startContainer) are; poststop waits for Destroy.
//
// What still runs in the container is killed first, which takes killTimeout at most.
// From then on c is of no use: only what is returned is to be destroyed. If Renew fails,
// c is as it was, and can be renewed again or destroyed. p stays the caller's.
//
// ErrFailedPrecondition while the first process lives.
func (c *Container) Renew(p *Pins) (*Container, error) {
	next, err := c.renew(p)
	if err != nil {
		return nil, fmt.Errorf("renew container %s: %w", c.config.ID, err)
	}
	return next, nil
}

func (c *Container) renew(p *Pins) (_ *Container, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.replaced {
		return nil, c.gone()
	}
	if err := c.lc.Signal(unix.Signal(0)); !errors.Is(err, libcontainer.ErrNotRunning) {
		return nil, fmt.Errorf("its first process lives: end it first: %w", errdefs.ErrFailedPrecondition)
	}
	pins, err := p.dup(c.spaces)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			pins.Close()
		}
	}()
	if err := c.empty(); err != nil {
		return nil, err
	}

	st, err := c.lc.State()
	if err != nil {
		return nil, err
	}
	props := st.Config.Cgroups.SystemdProps
	st.Config = c.again(st.Config, pins)
	// As of a container that has not been started.
	st.InitProcessPid, st.InitProcessStartTime = -1, 0
	st.NamespacePaths, st.ExternalDescriptors = nil, nil
	// libcontainer's Create wants the folder not to be there. To it there is always a
	// container: a shim that cleans up after this one finds the old or the new.
	folder := filepath.Join(c.config.Root, c.config.ID)
	if err := os.Remove(filepath.Join(folder, execFifo)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove what an unfinished start has left: %w", err)
	}
	if err := writeState(folder, st); err != nil {
		return nil, fmt.Errorf("write its state: %w", err)
	}
	lc, err := libcontainer.Load(c.config.Root, c.config.ID)
	if err != nil {
		return nil, fmt.Errorf("read its state: %w", err)
	}
	// The only one of what is needed that is not in the file.
	cfg := lc.Config()
	cfg.Cgroups.SystemdProps = props
	next, err := wrap(lc, c.config)
	if err != nil {
		return nil, err
	}
	next.spaces = c.spaces
	next.pins = pins
	c.replaced = true
	c.pins.Close()
	c.pins = nil
	return next, nil
}

// empty ends what is left in the container, and thaws it: a new first process could
// not run in a frozen cgroup.
func (c *Container) empty() error {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	frozen, err := c.group.GetFreezerState()
	if err != nil {
		return fmt.Errorf("look whether it is frozen: %w", err)
	}
	if frozen == cgroups.Frozen {
		if err := c.group.Freeze(cgroups.Thawed); err != nil {
			return fmt.Errorf("thaw it: %w", err)
		}
	}
	return c.KillOthers(ctx, 0, nil)
}

// again is the configuration for another first process: what was done once, in
// namespaces that are still there, is left out.
func (c *Container) again(cfg configs.Config, pins *Pins) configs.Config {
	cfg.Namespaces = pins.join(c.spaces)
	cfg.Hostname, cfg.Domainname = "", ""
	cfg.Networks, cfg.Routes, cfg.NetDevices = nil, nil, nil
	cfg.Sysctl = c.sysctls(cfg.Sysctl)

	cfg.Hooks = maps.Clone(cfg.Hooks)
	for _, name := range []configs.HookName{configs.Prestart, configs.CreateRuntime, configs.Poststart} {
		delete(cfg.Hooks, name)
	}

	group := *cfg.Cgroups
	res := *group.Resources
	// The first process would be frozen by it.
	res.Freezer = cgroups.Undefined
	group.Resources = &res
	cfg.Cgroups = &group
	return cfg
}

// sysctls are those of the ipc namespace, if that is a new one; the others that a spec
// may have (net, user, kernel.domainname) belong to namespaces that stay.
func (c *Container) sysctls(all map[string]string) map[string]string {
	out := map[string]string{}
	if !c.spaces.IsPrivate(configs.NEWIPC) {
		return out
	}
	for name, value := range all {
		dots := strings.ReplaceAll(name, "/", ".")
		if strings.HasPrefix(dots, "fs.mqueue.") || strings.HasPrefix(dots, "kernel.") && dots != "kernel.domainname" {
			out[name] = value
		}
	}
	return out
}

// writeState replaces the state of the container in one step.
func writeState(folder string, st *libcontainer.State) error {
	f, err := os.CreateTemp(folder, "state-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it has its name
	defer f.Close()
	if err := json.NewEncoder(f).Encode(st); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(folder, stateFile))
}
