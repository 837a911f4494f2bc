//go:build linux

package container

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Stdio are the child's ends of a process's standard descriptors; nil ones
// become the container's /dev/null. With Console set they are not used: the
// process gets a new terminal, whose other end arrives on that socket.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	Console               *os.File
}

// Process is one process that this shim starts in a container, and waits for.
type Process struct {
	lp libcontainer.Process
	// Pid as this process sees it, from the start on.
	Pid int
}

// NewProcess prepares a process. args replaces the spec's when not nil, extra
// are descriptors that it gets from 3 on.
func NewProcess(spec *specs.Process, init bool, io Stdio, args []string, extra ...*os.File) (*Process, error) {
	if args == nil {
		args = spec.Args
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("the process's spec: args must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	p := &Process{lp: libcontainer.Process{
		Args:            args,
		Env:             spec.Env,
		UID:             int(spec.User.UID),
		GID:             int(spec.User.GID),
		Cwd:             spec.Cwd,
		Label:           spec.SelinuxLabel,
		NoNewPrivileges: &spec.NoNewPrivileges,
		AppArmorProfile: spec.ApparmorProfile,
		Scheduler:       spec.Scheduler,
		IOPriority:      spec.IOPriority,
		Init:            init,
		ExtraFiles:      extra,
	}}
	lp := &p.lp
	if spec.ConsoleSize != nil {
		lp.ConsoleWidth = uint16(spec.ConsoleSize.Width)
		lp.ConsoleHeight = uint16(spec.ConsoleSize.Height)
	}
	if c := spec.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding:    c.Bounding,
			Effective:   c.Effective,
			Inheritable: c.Inheritable,
			Permitted:   c.Permitted,
			Ambient:     c.Ambient,
		}
	}
	for _, g := range spec.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	for _, r := range spec.Rlimits {
		kind, err := rlimit(r.Type)
		if err != nil {
			return nil, err
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: kind, Hard: r.Hard, Soft: r.Soft})
	}
	affinity, err := configs.ConvertCPUAffinity(spec.ExecCPUAffinity)
	if err != nil {
		return nil, fmt.Errorf("the process's spec: execCPUAffinity: %w", err)
	}
	lp.CPUAffinity = affinity

	if io.Console != nil {
		lp.ConsoleSocket = io.Console
		return p, nil
	}
	// Interfaces must not hold typed nils: os/exec opens /dev/null for nil.
	if io.Stdin != nil {
		lp.Stdin = io.Stdin
	}
	if io.Stdout != nil {
		lp.Stdout = io.Stdout
	}
	if io.Stderr != nil {
		lp.Stderr = io.Stderr
	}
	return p, nil
}

func (p *Process) started() error {
	pid, err := p.lp.Pid()
	if err != nil {
		return err
	}
	p.Pid = pid
	return nil
}

// Ended is how a process ended.
type Ended struct {
	// Status is its exit code, 128+n for one that signal n ended.
	Status int
	// Signaled says that a signal ended it: a program may also exit with 128+n.
	Signaled bool
}

// Wait blocks until the process has ended. To be called once for every started
// process. With an error, Status is 255.
func (p *Process) Wait() (Ended, error) {
	if err := p.awaitEnd(); err != nil {
		return Ended{Status: 255}, fmt.Errorf("wait for process %d: %w", p.Pid, err)
	}
	st, err := p.lp.Wait()
	if err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return Ended{Status: 255}, fmt.Errorf("wait for process %d: %w", p.Pid, err)
		}
		st = exit.ProcessState
	}
	ws, ok := st.Sys().(syscall.WaitStatus)
	if !ok {
		return Ended{Status: st.ExitCode()}, nil
	}
	if ws.Signaled() {
		return Ended{Status: 128 + int(ws.Signal()), Signaled: true}, nil
	}
	return Ended{Status: ws.ExitStatus()}, nil
}

// awaitEnd blocks until the process has ended, without taking its status. waitpid(2)
// would also return when the process is stopped by a tracer that is a thread of this
// program (ptrace(2)), and that would be taken for the end.
func (p *Process) awaitEnd() error {
	// It is our child and not waited for: the number is its.
	fd, err := unix.PidfdOpen(p.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open a pidfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// Signal sends a signal to the process; ErrNotFound if it has ended.
func (p *Process) Signal(sig unix.Signal) error {
	return state(p.lp.Signal(sig))
}

var rlimits = map[string]int{
	"RLIMIT_CPU":        unix.RLIMIT_CPU,
	"RLIMIT_FSIZE":      unix.RLIMIT_FSIZE,
	"RLIMIT_DATA":       unix.RLIMIT_DATA,
	"RLIMIT_STACK":      unix.RLIMIT_STACK,
	"RLIMIT_CORE":       unix.RLIMIT_CORE,
	"RLIMIT_RSS":        unix.RLIMIT_RSS,
	"RLIMIT_NPROC":      unix.RLIMIT_NPROC,
	"RLIMIT_NOFILE":     unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK":    unix.RLIMIT_MEMLOCK,
	"RLIMIT_AS":         unix.RLIMIT_AS,
	"RLIMIT_LOCKS":      unix.RLIMIT_LOCKS,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE":   unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE":       unix.RLIMIT_NICE,
	"RLIMIT_RTPRIO":     unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME":     unix.RLIMIT_RTTIME,
}

func rlimit(name string) (int, error) {
	n, ok := rlimits[name]
	if !ok {
		return 0, fmt.Errorf("wrong rlimit value: %s: %w", name, errdefs.ErrInvalidArgument)
	}
	return n, nil
}
