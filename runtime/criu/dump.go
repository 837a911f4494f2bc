//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/containerd/errdefs"
)

// Connections says what happens to established TCP connections.
type Connections int

const (
	// CloseConnections drops them: after the restore the application finds them closed.
	CloseConnections Connections = iota
	// KeepConnections carries them over; the address must come along.
	KeepConnections
)

// logLevel is CRIU's "info": the lines that tell which process and which descriptor an
// error is about.
const logLevel = 3

// GhostLimit is how large a deleted but open file may be, in bytes, to be carried inside
// the checkpoint. CRIU's own limit of 1 MiB is for images that hold little; here a file that
// is left out would make the whole dump fail.
const GhostLimit = 1 << 30

// DumpOptions describes a dump that leaves the processes as they are.
type DumpOptions struct {
	Place Place
	// Pid is the root of the tree, in the container's pid namespace.
	Pid int
	// Images is the folder to write to, open; it should be empty.
	Images *os.File
	// Log takes CRIU's log. It is appended to, and read again when the dump fails.
	Log *os.File
	// ShellJob allows a tree whose session leader is outside of it.
	ShellJob bool
	// External names resources that the restore will give: "pipe:[INODE]",
	// "tty[RDEV:DEV]" (hexadecimal), "unix[INODE]".
	External []string
	// ExternalUnix allows stream and seqpacket sockets whose peer is outside the tree.
	ExternalUnix bool
	// FreezeCgroup is the container's freezer folder: of the freezer hierarchy on v1, of the
	// only one on v2. It must be given when the container is frozen, and stays as it is.
	FreezeCgroup *os.File
	TCP          Connections
	FileLocks    bool
	LinkRemap    bool
	// OwnIPC says that the container's IPC namespace is nobody else's: the System V objects
	// in it (sysvipc(7)) are the container's, and go into the checkpoint. Those of a shared
	// namespace are left alone; a process that maps shared memory of one cannot be dumped.
	OwnIPC bool
	// Tmpfs are the mount points of file systems in memory that are the container's alone:
	// absolute paths in it, free of symbolic links. What is in them goes into the checkpoint,
	// but for sockets, devices, extended attributes and what is mounted below. It is copied
	// before CRIU stops the processes, so the container must be frozen.
	Tmpfs []string
	// Timeout bounds the wait for all processes to stop; 0 is CRIU's 10 s. Whole seconds.
	Timeout time.Duration
	// Notify is called at each of CRIU's steps and may end the dump with an error.
	Notify func(script string, pid int) error
}

// DumpResult tells about a dump that succeeded.
type DumpResult struct {
	// Took is the time from the call to the end of CRIU.
	Took time.Duration
}

// Dump writes the tree's state to the folder and lets it go on (or stay frozen) as it was.
func (t *Tool) Dump(ctx context.Context, o DumpOptions) (DumpResult, error) {
	begun := time.Now()
	if o.Pid <= 0 {
		return DumpResult{}, fmt.Errorf("dump process %d: not a process number: %w", o.Pid, errdefs.ErrInvalidArgument)
	}
	refreeze, err := keepFrozen(o.FreezeCgroup)
	if err != nil {
		return DumpResult{}, err
	}
	if o.OwnIPC {
		if o.Place.Namespaces.IPC, err = dumpIPC(o.Place.Namespaces.IPC); err != nil {
			return DumpResult{}, err
		}
	}
	s, err := t.newSession(o.Place, o.Log)
	if err != nil {
		return DumpResult{}, err
	}
	defer s.close()
	opts, err := t.dumpRequest(ctx, s, o)
	if err != nil {
		return DumpResult{}, err
	}
	// CRIU_FAULT=130 has CRIU follow its code to its end by system calls, as on machines without
	// debug registers: a breakpoint would be the end of a process when CRIU is killed just then,
	// see preload/calm.h.
	s.env = append(s.env, "FASTMIG_SOFT_CANCEL=1", "CRIU_FAULT=130")
	journal, err := s.keepJournal(o.FreezeCgroup)
	if err != nil {
		return DumpResult{}, err
	}
	defer journal.close()
	mark := logEnd(o.Log)
	req := &rpc.CriuReq{Type: ptr(rpc.CriuReqType_DUMP), Opts: opts}
	out, err := s.run(ctx, req, o.Notify, t.stopDump)
	if rerr := journal.repair(refreeze); rerr != nil {
		out.err = errors.Join(out.err, rerr)
	}
	if err != nil {
		return DumpResult{}, errors.Join(err, refreeze())
	}
	if !out.ok() {
		return DumpResult{}, errors.Join(newError(ctx, "dump the container's processes", out, o.Log, mark), refreeze())
	}
	return DumpResult{Took: time.Since(begun)}, nil
}

func (t *Tool) dumpRequest(ctx context.Context, s *session, o DumpOptions) (*rpc.CriuOpts, error) {
	opts, err := t.baseRequest(ctx, s, o.Images)
	if err != nil {
		return nil, err
	}
	s.saveTmpfs(o.Tmpfs, opts.GetImagesDir())
	opts.Pid = ptr(int32(o.Pid))
	opts.LeaveRunning = ptr(true)
	opts.ShellJob = ptr(o.ShellJob)
	opts.ExtUnixSk = ptr(o.ExternalUnix)
	opts.FileLocks = ptr(o.FileLocks)
	opts.LinkRemap = ptr(o.LinkRemap)
	opts.GhostLimit = ptr(uint32(GhostLimit))
	opts.External = o.External
	opts.TcpSkipInFlight = ptr(true)
	setConnections(opts, o.TCP)
	if o.Timeout > 0 {
		opts.Timeout = ptr(uint32((o.Timeout + time.Second - 1) / time.Second))
	}
	if o.FreezeCgroup != nil {
		fd, err := s.tell("FASTMIG_FREEZER_FD", o.FreezeCgroup)
		if err != nil {
			return nil, err
		}
		opts.FreezeCgroup = ptr(selfFd(fd))
	}
	return opts, nil
}

// baseRequest holds what a dump and a restore have in common.
func (t *Tool) baseRequest(ctx context.Context, s *session, images *os.File) (*rpc.CriuOpts, error) {
	kdat, err := t.probe(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := s.tell("FASTMIG_KDAT_FD", kdat); err != nil {
		return nil, err
	}
	if images, err = s.reachable(images); err != nil {
		return nil, err
	}
	fd, err := s.fd(images)
	if err != nil {
		return nil, err
	}
	return &rpc.CriuOpts{
		// As a descriptor CRIU would look it up below /proc/PID of its peer, a number that
		// means another process in the container.
		ImagesDirFd:       ptr(int32(-1)),
		ImagesDir:         ptr(selfFd(fd)),
		NotifyScripts:     ptr(true),
		LogToStderr:       ptr(true),
		LogLevel:          ptr(int32(logLevel)),
		ManageCgroupsMode: ptr(rpc.CriuCgMode_IGNORE),
	}, nil
}

// setConnections: closing needs no lock, and the lock's programs are not in the container.
func setConnections(opts *rpc.CriuOpts, c Connections) {
	opts.TcpClose = ptr(c == CloseConnections)
	opts.TcpEstablished = ptr(c == KeepConnections)
	opts.NetworkLock = ptr(rpc.CriuNetworkLockMethod_SKIP)
	if c == KeepConnections {
		opts.NetworkLock = ptr(rpc.CriuNetworkLockMethod_NFTABLES)
	}
}

// keepFrozen returns what brings a frozen cgroup back to that state. CRIU thaws it while it
// holds all processes, and does not get to freeze it again when it is killed.
func keepFrozen(folder *os.File) (func() error, error) {
	nothing := func() error { return nil }
	if folder == nil {
		return nothing, nil
	}
	c, err := openFreezer(folder)
	if err != nil {
		return nil, err
	}
	frozen, err := c.asked()
	if err != nil || !frozen {
		return nothing, err
	}
	return func() error {
		if frozen, err := c.asked(); err != nil || frozen {
			return err
		}
		return c.freeze()
	}, nil
}
