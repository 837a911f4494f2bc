//go:build linux

// Package container is the container's life: namespaces, cgroup, mounts and
// the first process, built with libcontainer inside the shim. It knows nothing
// of FastFreeze; whoever creates a container says what its first process is.
package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	// The device rules of both cgroup versions, which libcontainer leaves to
	// its user to link.
	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DefaultRoot is where libcontainer keeps the state of the node's containers,
// one folder a containerd namespace.
const DefaultRoot = "/run/containerd/fastmig"

// killTimeout bounds the wait for a killed first process to be gone.
const killTimeout = 10 * time.Second

// Config says how a container is built.
type Config struct {
	// Root is the folder for libcontainer's state, the namespace included.
	Root string
	// ID of the container.
	ID string
	// Bundle is the OCI bundle's folder.
	Bundle string
	// Spec is the container's; its paths may be relative to Bundle.
	Spec *specs.Spec
	// Source is set when the spec comes from the container that a checkpoint
	// was taken of, and names it. The spec's cgroup is then that container's:
	// this one gets its own beside it.
	Source string
	// SystemdCgroup selects the systemd driver instead of cgroupfs.
	SystemdCgroup bool
	NoPivotRoot   bool
	NoNewKeyring  bool
}

// Container is one container on this node.
type Container struct {
	lc     *libcontainer.Container
	config Config
	// group is the cgroup, past libcontainer's lock, which the start of a process
	// holds.
	group cgroups.Manager
	// spaces are the namespaces as the spec has them.
	spaces configs.Namespaces

	// mu serialises what libcontainer's own lock does not: see Update, and Renew.
	mu sync.Mutex
	// pins are the namespaces that the first process is yet to join.
	pins *Pins
	// replaced is set by Renew.
	replaced bool
}

// wrap takes libcontainer's container.
func wrap(lc *libcontainer.Container, c Config) (*Container, error) {
	st, err := lc.State()
	if err != nil {
		return nil, err
	}
	// Its own copy: the manager writes the freezer's state into the resources.
	group := *st.Config.Cgroups
	if group.Resources != nil {
		res := *group.Resources
		group.Resources = &res
	}
	m, err := manager.NewWithPaths(&group, st.CgroupPaths)
	if err != nil {
		return nil, fmt.Errorf("find the cgroup of %s: %w", c.ID, err)
	}
	return &Container{lc: lc, config: c, group: m, spaces: st.Config.Namespaces}, nil
}

// Create lays out the container's state and cgroup; no process runs yet.
func Create(c Config) (*Container, error) {
	if err := validate(c.Spec); err != nil {
		return nil, err
	}
	spec := absolute(c.Spec, c.Bundle)
	cfg, err := c.libcontainer(spec)
	if err != nil {
		return nil, err
	}
	if c.Source != "" && notOwn(cfg, spec.Linux.CgroupsPath, c.Source) {
		linux := *spec.Linux
		linux.CgroupsPath = beside(linux.CgroupsPath, c.ID)
		spec.Linux = &linux
		if cfg, err = c.libcontainer(spec); err != nil {
			return nil, err
		}
	}
	// libcontainer takes its working directory for the bundle; one shim
	// serves the bundles of a whole pod.
	for i, l := range cfg.Labels {
		if strings.HasPrefix(l, "bundle=") {
			cfg.Labels[i] = "bundle=" + c.Bundle
		}
	}
	if err := os.MkdirAll(c.Root, 0o711); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	lc, err := libcontainer.Create(c.Root, c.ID, cfg)
	if err != nil {
		if errors.Is(err, libcontainer.ErrExist) {
			return nil, fmt.Errorf("container %s: %w: %w", c.ID, err, errdefs.ErrAlreadyExists)
		}
		return nil, err
	}
	return wrap(lc, c)
}

func (c Config) libcontainer(spec *specs.Spec) (*configs.Config, error) {
	cfg, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{
		CgroupName:       c.ID,
		UseSystemdCgroup: c.SystemdCgroup,
		NoPivotRoot:      c.NoPivotRoot,
		NoNewKeyring:     c.NoNewKeyring,
		Spec:             spec,
	})
	if err != nil {
		return nil, fmt.Errorf("read the spec of %s: %w", c.ID, err)
	}
	return cfg, nil
}

// Load finds a container that another process of this node made: the shim's
// `delete` after the shim was killed. ErrNotFound if there is none.
func Load(root, id string) (*Container, error) {
	lc, err := libcontainer.Load(root, id)
	if err != nil {
		if errors.Is(err, libcontainer.ErrNotExist) {
			return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
		}
		return nil, err
	}
	return wrap(lc, Config{Root: root, ID: id})
}

func validate(spec *specs.Spec) error {
	invalid := func(what string) error {
		return fmt.Errorf("the container's spec: %s: %w", what, errdefs.ErrInvalidArgument)
	}
	switch p := spec.Process; {
	case p == nil:
		return invalid("process property must not be empty")
	case p.Cwd == "":
		return invalid("Cwd property must not be empty")
	case !filepath.IsAbs(p.Cwd):
		return invalid("Cwd must be an absolute path")
	case len(p.Args) == 0:
		return invalid("args must not be empty")
	}
	if spec.Root == nil {
		return invalid("root must be specified")
	}
	if spec.Linux == nil {
		return invalid("linux must be specified")
	}
	return nil
}

// absolute returns the spec with the paths that the OCI runtime spec lets be
// relative to the bundle made absolute.
func absolute(spec *specs.Spec, bundle string) *specs.Spec {
	s := *spec
	root := *spec.Root
	if !filepath.IsAbs(root.Path) {
		root.Path = filepath.Join(bundle, root.Path)
	}
	s.Root = &root
	s.Mounts = append([]specs.Mount(nil), spec.Mounts...)
	for i, m := range s.Mounts {
		if m.Type == "bind" || isBind(m.Options) {
			if !filepath.IsAbs(m.Source) {
				s.Mounts[i].Source = filepath.Join(bundle, m.Source)
			}
		}
	}
	return &s
}

func isBind(options []string) bool {
	for _, o := range options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

// ID of the container.
func (c *Container) ID() string { return c.config.ID }

// Start makes the process: the container's first one if p.Init, else one more
// in a running container. For the first one it returns when the container
// stands and the process waits for Release.
func (c *Container) Start(p *Process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.replaced {
		return c.gone()
	}
	if err := c.lc.Start(&p.lp); err != nil {
		return fmt.Errorf("unable to start container process: %w", err)
	}
	if p.lp.Init {
		c.pins.Close()
		c.pins = nil
	}
	return p.started()
}

// Release lets the first process run what Start prepared.
func (c *Container) Release() error {
	return c.lc.Exec()
}

// HasStartHooks says whether the spec has startContainer hooks, which run
// after the start operation is called (runtime-spec, config.md, Hooks).
func (c *Container) HasStartHooks() bool {
	cfg := c.lc.Config()
	return len(cfg.Hooks[configs.StartContainer]) > 0
}

// OwnPidNamespace says whether the container has a pid namespace of its own.
func (c *Container) OwnPidNamespace() bool {
	cfg := c.lc.Config()
	return cfg.Namespaces.IsPrivate(configs.NEWPID)
}

// Pause freezes every process of the container; it returns when they are
// frozen.
func (c *Container) Pause() error {
	return state(c.lc.Pause())
}

// Resume thaws what Pause froze.
func (c *Container) Resume() error {
	return state(c.lc.Resume())
}

// Signal sends a signal to the first process; SIGKILL also thaws a frozen
// container and reaches every process of one that shares its pid namespace.
func (c *Container) Signal(sig unix.Signal) error {
	return state(c.lc.Signal(sig))
}

// SignalAll sends a signal to every process of the container but those in
// except (pids as this process sees them).
func (c *Container) SignalAll(sig unix.Signal, except ...int) error {
	pids, err := c.lc.Processes()
	if err != nil {
		return err
	}
next:
	for _, pid := range pids {
		for _, e := range except {
			if pid == e {
				continue next
			}
		}
		if err := c.signalMember(pid, sig); err != nil {
			return err
		}
	}
	return nil
}

// signalMember signals a pid that was read from the cgroup, through a pidfd
// that is taken while the pid is still in that cgroup.
func (c *Container) signalMember(pid int, sig unix.Signal) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	defer unix.Close(fd)
	now, err := c.lc.Processes()
	if err != nil {
		return err
	}
	for _, p := range now {
		if p == pid {
			if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("signal %d: %w", pid, err)
			}
			break
		}
	}
	return nil
}

// Pids are those of every process in the container's cgroup, as this process
// sees them.
func (c *Container) Pids() ([]int, error) {
	return c.lc.Processes()
}

// CgroupPaths are the folders of the container's cgroups: by controller on
// cgroup v1, under "" on v2.
func (c *Container) CgroupPaths() (map[string]string, error) {
	s, err := c.lc.State()
	if err != nil {
		return nil, err
	}
	return s.CgroupPaths, nil
}

// Destroy removes the container's cgroup and state and runs its poststop
// hooks. The first process must have ended.
func (c *Container) Destroy() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.replaced {
		return c.gone()
	}
	c.pins.Close()
	c.pins = nil
	return c.lc.Destroy()
}

// gone is the error of a container that another has taken the place of.
func (c *Container) gone() error {
	return fmt.Errorf("container %s was renewed: use what Renew returned: %w", c.config.ID, errdefs.ErrFailedPrecondition)
}

// Kill ends every process of the container and waits until the first is gone.
// It is meant for containers of a shim that is no more.
func (c *Container) Kill() error {
	paths, err := c.CgroupPaths()
	if err != nil {
		return err
	}
	if err := c.lc.Signal(unix.SIGKILL); err != nil && !errors.Is(err, libcontainer.ErrNotRunning) {
		return state(err)
	}
	deadline := time.Now().Add(killTimeout)
	for {
		// A checkpoint or restore that was cut short has frozen what it left, and whoever
		// carried it out may live on for a moment.
		thaw(paths["freezer"])
		if err := c.lc.Signal(unix.Signal(0)); err != nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("container %s: its first process is still there %v after SIGKILL", c.config.ID, killTimeout)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// thaw lets the killed in a freezer of cgroup v1, and in those below it, die; on v2
// they do anyhow.
func thaw(freezer string) {
	if freezer == "" {
		return
	}
	_ = filepath.WalkDir(freezer, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.WriteFile(filepath.Join(path, "freezer.state"), []byte("THAWED"), 0)
		}
		return nil
	})
}

// RemoveState removes the folder of a container that libcontainer cannot
// load, such as one whose creation was cut short.
func RemoveState(root, id string) error {
	if id == "" || id != filepath.Base(id) {
		return fmt.Errorf("container id %q: %w", id, errdefs.ErrInvalidArgument)
	}
	return os.RemoveAll(filepath.Join(root, id))
}

// state maps libcontainer's errors to errdefs kinds.
func state(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, libcontainer.ErrNotRunning), errors.Is(err, os.ErrProcessDone), errors.Is(err, unix.ESRCH):
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case errors.Is(err, libcontainer.ErrNotPaused):
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	default:
		return err
	}
}
