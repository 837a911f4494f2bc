//go:build linux

package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	cshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/container"
	"github.com/fastmig/fastmig/runtime/fastfreeze"
	"github.com/fastmig/fastmig/shim/api"
)

var _ cshim.Shim = (*Manager)(nil)

// groupLabels are the annotations by which containers share a shim, in order
// of precedence.
var groupLabels = []string{
	"io.containerd.fastmig.v2.group",
	"io.containerd.runc.v2.group",
	"io.kubernetes.cri.sandbox-id",
}

// Manager is the birth and death of shim processes: what containerd runs the
// binary for with `start`, `delete` and `-info`.
type Manager struct {
	name    string
	decoder Decoder
}

// NewManager makes a manager for a runtime name.
func NewManager(name string, decoder Decoder) *Manager {
	return &Manager{name: name, decoder: decoder}
}

// Name of the runtime.
func (m *Manager) Name() string { return m.name }

// socket is where a shim listens; it removes what it made when abandoned.
type socket struct {
	address  string
	listener *net.UnixListener
	file     *os.File
}

func (s *socket) abandon() {
	if s.listener != nil {
		s.listener.Close()
	}
	if s.file != nil {
		s.file.Close()
	}
	cshim.RemoveSocket(s.address)
}

// newSocket listens for a group's shim. ErrAlreadyExists comes with a socket
// that has only an address: the group's shim runs.
func newSocket(ctx context.Context, dir, containerd, group string, debug bool) (*socket, error) {
	address, err := cshim.CreateSocketAddress(ctx, dir, containerd, group, debug)
	if err != nil {
		return nil, err
	}
	l, err := cshim.NewSocket(address)
	if err != nil {
		if !cshim.SocketEaddrinuse(err) {
			return nil, fmt.Errorf("create new shim socket: %w", err)
		}
		if !debug && cshim.CanConnect(address) {
			return &socket{address: address}, errdefs.ErrAlreadyExists
		}
		// A dead shim left it.
		if err := cshim.RemoveSocket(address); err != nil {
			return nil, fmt.Errorf("remove pre-existing socket: %w", err)
		}
		if l, err = cshim.NewSocket(address); err != nil {
			return nil, fmt.Errorf("try create new shim socket 2x: %w", err)
		}
	}
	s := &socket{address: address, listener: l}
	if s.file, err = l.File(); err != nil {
		s.abandon()
		return nil, err
	}
	return s, nil
}

// Start runs the shim process for a container, or finds the one of its group.
func (m *Manager) Start(ctx context.Context, opts *bootapi.BootstrapParams) (_ *bootapi.BootstrapResult, err error) {
	result := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc"}
	debug := opts.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	bundle, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	spec, err := readSpec(bundle)
	if err != nil {
		return nil, err
	}
	id := opts.GetInstanceID()
	group := id
	for _, label := range groupLabels {
		if g, ok := spec.Annotations[label]; ok {
			group = g
			break
		}
	}
	dir := opts.GetSocketDir()
	if dir == "" {
		dir = filepath.Join(defaults.DefaultStateDir, "s")
	}
	var sockets []*socket
	defer func() {
		if err != nil {
			for _, s := range sockets {
				s.abandon()
			}
		}
	}()
	open := func(debug bool) (*socket, error) {
		s, err := newSocket(ctx, dir, opts.GetContainerdGrpcAddress(), group, debug)
		if err == nil {
			sockets = append(sockets, s)
		}
		return s, err
	}
	main, err := open(false)
	if errdefs.IsAlreadyExists(err) {
		result.Address = main.address
		return result, nil
	}
	if err != nil {
		return nil, err
	}

	// Beside the start of the shim's process, which takes about as long.
	fastfreeze.WarmCgroups()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"-namespace", ns, "-id", id, "-address", opts.GetContainerdGrpcAddress()}
	if debug {
		args = append(args, "-debug")
		if _, err := open(true); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), "GOMAXPROCS=4")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	for _, s := range sockets {
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.file)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the shim: %w", err)
	}
	defer func() {
		if err != nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	}()

	var ro options.Options
	// Options of another type are read, and refused, at Create.
	if found, err := opts.FindExtension(&ro); err == nil && found && ro.ShimCgroup != "" {
		if err := joinCgroup(ro.ShimCgroup, cmd.Process.Pid); err != nil {
			return nil, err
		}
	}
	if err := cshim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		return nil, fmt.Errorf("failed to adjust OOM score for shim: %w", err)
	}
	result.Address = main.address
	return result, nil
}

func joinCgroup(path string, pid int) error {
	if cgroups.Mode() == cgroups.Unified {
		cg, err := cgroup2.Load(path)
		if err != nil {
			return fmt.Errorf("failed to load cgroup %s: %w", path, err)
		}
		if err := cg.AddProc(uint64(pid)); err != nil {
			return fmt.Errorf("failed to join cgroup %s: %w", path, err)
		}
		return nil
	}
	cg, err := cgroup1.Load(cgroup1.StaticPath(path))
	if err != nil {
		return fmt.Errorf("failed to load cgroup %s: %w", path, err)
	}
	if err := cg.AddProc(uint64(pid)); err != nil {
		return fmt.Errorf("failed to join cgroup %s: %w", path, err)
	}
	return nil
}

// Stop cleans up after a container whose shim is gone or done: no process,
// mount or cgroup of it stays.
func (m *Manager) Stop(ctx context.Context, id string) (cshim.StopStatus, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return cshim.StopStatus{}, err
	}
	bundle := filepath.Join(filepath.Dir(cwd), id)
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return cshim.StopStatus{}, err
	}
	opts, err := readOptions(bundle)
	if err != nil {
		return cshim.StopStatus{}, err
	}
	if err := destroyLeftover(stateRoot(opts, ns), id); err != nil {
		log.G(ctx).WithError(err).Warn("failed to remove the container")
	}
	ended := time.Now()
	for _, leftover := range []string{api.SocketPath(ns, id), startupFile(ns, id)} {
		if err := os.Remove(leftover); err != nil && !errors.Is(err, os.ErrNotExist) {
			log.G(ctx).WithError(err).Warn("failed to remove what the FastMig interface left")
		}
	}
	if err := mount.UnmountRecursive(filepath.Join(bundle, "rootfs"), 0); err != nil {
		log.G(ctx).WithError(err).Warn("failed to cleanup rootfs mount")
	}

	exit, err := readExit(bundle)
	if err == nil {
		return cshim.StopStatus{Pid: exit.Pid, ExitStatus: exit.Status, ExitedAt: exit.Timestamp}, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		log.G(ctx).WithError(err).Warn("failed to read recorded exit status")
	}
	pid, err := readPid(bundle)
	if err != nil {
		log.G(ctx).WithError(err).Warn("failed to read init pid file")
	}
	return cshim.StopStatus{Pid: pid, ExitStatus: 128 + int(unix.SIGKILL), ExitedAt: ended}, nil
}

func destroyLeftover(root, id string) error {
	c, err := container.Load(root, id)
	if err != nil {
		if errdefs.IsNotFound(err) {
			return container.RemoveState(root, id)
		}
		return err
	}
	if err := c.Kill(); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return c.Destroy()
}

// Info answers `-info`: what this runtime is and can do.
func (m *Manager) Info(ctx context.Context, optionsR io.Reader) (*types.RuntimeInfo, error) {
	return runtimeInfo(m.name, m.decoder, optionsR)
}
