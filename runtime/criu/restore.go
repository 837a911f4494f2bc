//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// RestoreOptions describes a restore.
type RestoreOptions struct {
	Place Place
	// Images is the folder that a dump wrote.
	Images *os.File
	// Pages is the folder with the page files (pages-*.img) that are not in Images; nil: all
	// are. It may belong to the container: what is in them is the processes' memory.
	Pages *os.File
	// Seccomp is what CRIU reads in place of seccomp.img in Images, nil: that one. It is read
	// when CRIU starts, and must not change until then.
	Seccomp *os.File
	// Log takes CRIU's log. It is appended to, and read again when the restore fails.
	Log *os.File
	// Pid is the expected root of the tree, in the container's pid namespace; 0: any.
	Pid int
	// ShellJob must be as at the dump.
	ShellJob bool
	// External is as at the dump, for what InheritFD does not give.
	External []string
	// InheritFD gives the files that stand for external ones: "pipe:[INODE]",
	// "tty[RDEV:DEV]", as they were named at the dump.
	InheritFD map[string]*os.File
	// TCP, FileLocks and LinkRemap must be as at the dump.
	TCP       Connections
	FileLocks bool
	LinkRemap bool
	// OwnIPC says that the container's IPC namespace is nobody else's. A checkpoint with
	// System V objects is restored only then: they are made in that namespace, with their
	// identifiers and keys, and its limits (sysvipc(7)) become those of the dump.
	OwnIPC bool
	// Tmpfs are the mount points of file systems in memory that are the container's alone, as
	// in DumpOptions. A checkpoint with files of one is restored only if it is among them. The
	// files take the place of those with the same names; the restore pays for their memory.
	Tmpfs []string
	// Shield keeps the container's processes off CRIU. The zero value does nothing.
	Shield Shield
	// Notify is called at each of CRIU's steps ("pre-restore", "post-restore",
	// "pre-resume", "post-resume") and may end the restore with an error; after
	// "pre-resume" the processes run.
	Notify func(script string, pid int) error
}

// Shield names the cgroups that are frozen while CRIU works. CRIU is a process of the
// container's pid namespace then: one with its user id can end it, one with CAP_SYS_PTRACE can
// take it over. All folders are of one hierarchy, v1's freezer or v2.
type Shield struct {
	// Service is the cgroup that the restored processes are in, through Place, and nobody
	// else. It is frozen before the first of them runs, and thawed when CRIU is gone. When
	// the restore fails, all processes in it are killed.
	Service *os.File
	// Outside is where CRIU is moved to before Service is frozen; not below Service.
	Outside *os.File
	// Others are the cgroups of the container's other processes, PID 1 among them. They are
	// frozen for the whole restore; one that was frozen before stays so. None may be above
	// Service.
	Others []*os.File
}

// RestoreResult tells about a restore that succeeded.
type RestoreResult struct {
	// Pid is the root of the tree in the container's pid namespace.
	Pid int
	// Process is a pidfd of it, for the caller to close.
	Process *os.File
	// Took is the time from the call to the end of CRIU.
	Took time.Duration
}

// Restore brings a tree of processes back, in the container that Place describes, and
// returns when they run and CRIU has ended. The root becomes a child of the container's
// PID 1. When the restore fails or ctx ends first, no process of it is left (one that CRIU
// left behind when it was killed by somebody else is found only with a Shield). Errors are
// of type *Error, or about what was passed in.
func (t *Tool) Restore(ctx context.Context, o RestoreOptions) (_ RestoreResult, err error) {
	begun := time.Now()
	s, err := t.newSession(o.Place, o.Log)
	if err != nil {
		return RestoreResult{}, err
	}
	defer s.close()
	opts, err := t.restoreRequest(ctx, s, o)
	if err != nil {
		return RestoreResult{}, err
	}
	ipc, err := s.restoreIPC(o)
	if err != nil {
		return RestoreResult{}, err
	}
	shield, err := raise(ctx, o.Shield)
	if err != nil {
		return RestoreResult{}, err
	}
	defer func() { err = errors.Join(err, shield.lower()) }()

	s.started = shield.warm
	mark := logEnd(o.Log)
	var root *restored
	out, err := s.run(ctx, &rpc.CriuReq{Type: ptr(rpc.CriuReqType_RESTORE), Opts: opts},
		func(script string, pid int) error {
			err := o.step(s.process.pid, shield, &root, script, pid)
			if script == "post-restore" && err == nil {
				err = ipc.check(root.pid)
			}
			if script != "pre-resume" {
				return err
			}
			// The last moment: CRIU would go on whatever the answer is.
			if err != nil {
				_ = killTree(s.process.pid, shield.thawService)
			}
			if err != nil || ctx.Err() != nil {
				<-s.process.ended
			}
			return errors.Join(err, ctx.Err())
		},
		func(p *process) {
			// Its end is seen by run; what cannot be killed is not there to be told.
			_ = killTree(p.pid, shield.thawService)
		})
	if err == nil && out.ok() && root == nil {
		out.err = fmt.Errorf("CRIU did not tell which process it restored: %w", errdefs.ErrInternal)
	}
	if err == nil && !out.ok() {
		err = newError(ctx, "restore the container's processes", out, o.Log, mark)
	}
	if err != nil {
		return RestoreResult{}, errors.Join(err, killRestored(root, shield), shield.clear(), ipc.undo())
	}
	return RestoreResult{Pid: int(out.resp.GetRestore().GetPid()), Process: root.process, Took: time.Since(begun)}, nil
}

// killRestored ends the processes that run although CRIU failed in the end.
func killRestored(root *restored, shield *shield) error {
	if root == nil {
		return nil
	}
	defer func() { _ = root.process.Close() }()
	fd, err := rawFd(root.process)
	if err != nil {
		return err
	}
	if errors.Is(unix.PidfdSendSignal(fd, 0, nil, 0), unix.ESRCH) {
		return nil
	}
	return killTree(root.pid, shield.thawService)
}

// restored is the root of the restored tree.
type restored struct {
	pid     int // in our own pid namespace
	process *os.File
}

// step is what is done while CRIU waits.
func (o RestoreOptions) step(criu int, shield *shield, root **restored, script string, pid int) (err error) {
	switch script {
	case "post-restore":
		if o.Pid != 0 && pid != o.Pid {
			return fmt.Errorf("the checkpoint's root is process %d, not %d: %w", pid, o.Pid, errdefs.ErrInvalidArgument)
		}
		if *root, err = childByPid(criu, pid); err != nil {
			return err
		}
	case "pre-resume":
		if err := shield.close(criu); err != nil {
			return err
		}
	}
	if o.Notify == nil {
		return nil
	}
	return o.Notify(script, pid)
}

func (t *Tool) restoreRequest(ctx context.Context, s *session, o RestoreOptions) (*rpc.CriuOpts, error) {
	opts, err := t.baseRequest(ctx, s, o.Images)
	if err != nil {
		return nil, err
	}
	if err := s.loadTmpfs(o, opts.GetImagesDir()); err != nil {
		return nil, err
	}
	if o.Pages != nil {
		if _, err := s.tell("FASTMIG_PAGES_FD", o.Pages); err != nil {
			return nil, err
		}
	}
	if o.Seccomp != nil {
		if _, err := s.tell("FASTMIG_SECCOMP_FD", o.Seccomp); err != nil {
			return nil, err
		}
	}
	opts.ShellJob = ptr(o.ShellJob)
	opts.FileLocks = ptr(o.FileLocks)
	opts.LinkRemap = ptr(o.LinkRemap)
	opts.External = o.External
	setConnections(opts, o.TCP)
	for key, file := range o.InheritFD {
		fd, err := s.fd(file)
		if err != nil {
			return nil, err
		}
		opts.InheritFd = append(opts.InheritFd, &rpc.InheritFd{Key: ptr(key), Fd: ptr(int32(fd))})
	}
	return opts, nil
}

// childByPid opens the child that has the number pid in its own pid namespace. CRIU waits for
// an answer meanwhile, so no child of it is reaped and no number reused.
func childByPid(parent, pid int) (*restored, error) {
	for _, child := range childrenOf(parent) {
		if !slices.Contains(namespacePids(child), pid) {
			continue
		}
		fd, err := unix.PidfdOpen(child, 0)
		if err != nil {
			return nil, fmt.Errorf("open the restored process %d: %w", pid, err)
		}
		return &restored{child, os.NewFile(uintptr(fd), "pidfd:"+strconv.Itoa(child))}, nil
	}
	return nil, fmt.Errorf("the restored process %d is not a child of CRIU: %w", pid, errdefs.ErrInternal)
}

// namespacePids is the line NSpid of /proc/PID/status: the number in each pid namespace from
// ours inwards.
func namespacePids(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(b)) {
		rest, found := strings.CutPrefix(line, "NSpid:")
		if !found {
			continue
		}
		var pids []int
		for _, s := range strings.Fields(rest) {
			if n, err := strconv.Atoi(s); err == nil {
				pids = append(pids, n)
			}
		}
		return pids
	}
	return nil
}
