//go:build linux

// Package criu runs CRIU as a child process that dumps and restores processes inside a
// container: with all rights of the host, in the container's namespaces, and without
// taking a file of the container for code or configuration.
package criu

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The toolkit's files, below the folder given to New.
const (
	loaderName  = "ld.so"
	binaryName  = "criu"
	libraryDir  = "lib"
	preloadName = "lib/fastmig-preload.so"
)

// Config says which CRIU and where its memory is.
type Config struct {
	// Folder is an open folder with ld.so, criu and lib/. It should come from
	// romount.OpenReadOnly, so that the container cannot reach the host's files through it.
	// The Tool does not close it.
	Folder *os.File
	// Cache is the path of the file that keeps the result of CRIU's kernel probe, on a file
	// system that a reboot empties, in a folder that only root can write; it is created.
	// Empty: the probe is kept in memory only.
	Cache string
}

// Tool starts one CRIU an operation. Its methods may run at the same time.
type Tool struct {
	config Config
	// grace is stopGrace, but for tests.
	grace time.Duration
	// step, for tests, is called at the beginning and end of each system call of a CRIU that
	// dumps a frozen container.
	step func(pid int) (killed bool)

	mu   sync.Mutex
	kdat *os.File // guarded by mu: sealed memfd with the kernel probe, nil before the first
}

// New checks that the folder holds CRIU. Errors: errdefs.ErrNotFound naming what is missing.
func New(config Config) (*Tool, error) {
	dir, err := rawFd(config.Folder)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{loaderName, binaryName, preloadName} {
		if err := unix.Faccessat(dir, name, unix.F_OK, 0); err != nil {
			err = &fs.PathError{Op: "access", Path: config.Folder.Name() + "/" + name, Err: err}
			return nil, fmt.Errorf("the toolkit's CRIU is incomplete: %w: run `fastmig install`: %w", err, errdefs.ErrNotFound)
		}
	}
	return &Tool{config: config, grace: stopGrace}, nil
}

// Close frees what the Tool keeps. No operation may be running.
func (t *Tool) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kdat == nil {
		return nil
	}
	err := t.kdat.Close()
	t.kdat = nil
	return err
}

// Prepare makes the kernel probe, about 50 ms once after a boot, unless there is one. Dump
// and Restore do it by themselves.
func (t *Tool) Prepare(ctx context.Context) error {
	_, err := t.probe(ctx)
	return err
}

// session is one conversation with one CRIU.
type session struct {
	tool   *Tool
	place  Place
	log    *os.File
	null   *os.File
	socket int
	folder int
	conn   *conn
	theirs *os.File
	fds    fdTable
	env    []string
	mapped *os.File // the images' folder with mapped ids, or nil
	// process is set before the conversation begins.
	process *process
	// started, if not nil, is called when CRIU has been executed, before the conversation.
	started func(pid int)
	// dying, if not nil, is called when CRIU was killed and still holds the processes.
	dying func()
}

// newSession lays out CRIU's descriptors; more can be added with fd before run.
func (t *Tool) newSession(place Place, log *os.File) (_ *session, err error) {
	s := &session{tool: t, place: place, log: log}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if s.conn, s.theirs, err = newConn(); err != nil {
		return nil, err
	}
	for _, f := range []*os.File{s.null, log, log} {
		if _, err = s.fds.add(f); err != nil {
			return nil, err
		}
	}
	if s.socket, err = s.fds.add(s.theirs); err != nil {
		return nil, err
	}
	if s.folder, err = s.fds.add(t.config.Folder); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *session) close() {
	if s.null != nil {
		_ = s.null.Close()
	}
	if s.mapped != nil {
		_ = s.mapped.Close()
	}
	if s.theirs != nil {
		_ = s.theirs.Close()
	}
	if s.conn != nil {
		s.conn.close()
	}
}

// fd passes a file on and returns its number in CRIU.
func (s *session) fd(f *os.File) (int, error) { return s.fds.add(f) }

// tell passes a file on to the code of preload/preload.c under a name in the environment.
func (s *session) tell(name string, f *os.File) (int, error) {
	fd, err := s.fds.add(f)
	if err != nil {
		return -1, err
	}
	s.env = append(s.env, fmt.Sprintf("%s=%d", name, fd))
	return fd, nil
}

// reachable gives the images' folder as root of the container's user namespace must see it:
// in a mount whose ids are mapped (mount_setattr(2)), so that what root owns on the disk is
// its own.
func (s *session) reachable(images *os.File) (*os.File, error) {
	user := s.place.Namespaces.User
	ours, err := isOurs(user, "user")
	if err != nil || ours {
		return images, err
	}
	dir, err := rawFd(images)
	if err != nil {
		return nil, err
	}
	ns, err := rawFd(user)
	if err != nil {
		return nil, err
	}
	tree, err := unix.OpenTree(dir, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("clone the mount of the checkpoint's folder: %w", err)
	}
	s.mapped = os.NewFile(uintptr(tree), images.Name())
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, fmt.Errorf("map the ids of the checkpoint's folder for the container's user namespace: %w: "+
			"put it on a file system that can do it (ext4, xfs, btrfs, tmpfs since Linux 6.3): %w", err, errdefs.ErrFailedPrecondition)
	}
	return s.mapped, nil
}

func selfFd(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// nowhere is a folder that exists in every container, which the container cannot change,
// and which holds neither a program that CRIU would run (sh, iptables, ip, tar) nor a file
// named *.so that it would load as a plug-in.
const nowhere = "/proc/self/ns"

// start executes CRIU.
func (s *session) start() (*process, error) {
	for _, ns := range []struct {
		file       *os.File
		name, told string
	}{
		{s.place.Namespaces.Mount, "mnt", "FASTMIG_MNT_FD"},
		{s.place.Namespaces.User, "user", "FASTMIG_USER_FD"},
	} {
		ours, err := isOurs(ns.file, ns.name)
		if err != nil {
			return nil, err
		}
		if ours {
			continue
		}
		if _, err := s.tell(ns.told, ns.file); err != nil {
			return nil, err
		}
	}
	base := selfFd(s.folder) + "/"
	return spawnWatched(command{
		path: base + loaderName,
		argv: []string{
			"criu", "--inhibit-cache", "--library-path", base + libraryDir, "--preload", base + preloadName,
			base + binaryName,
			// Neither configuration nor plug-ins out of the container.
			"--no-default-config", "--libdir", nowhere,
			"swrk", fmt.Sprint(s.socket),
		},
		env: append([]string{"PATH=" + nowhere, "LC_ALL=C", fmt.Sprintf("FASTMIG_CLOSE_FROM=%d", len(s.fds.raw))}, s.env...),
		fds: s.fds,
	}, s.place, s.dying, s.tool.step)
}

// outcome is what a CRIU that has ended left behind.
type outcome struct {
	resp   *rpc.CriuResp // nil when it ended without an answer
	status syscall.WaitStatus
	err    error // the conversation's own error, or the caller's from notify
}

// run executes CRIU, has the conversation, and returns when CRIU has ended. When ctx ends
// first, stop is called once; it must see to it that CRIU ends.
func (s *session) run(ctx context.Context, req *rpc.CriuReq, notify func(string, int) error, stop func(*process)) (outcome, error) {
	if err := ctx.Err(); err != nil {
		return outcome{}, err
	}
	p, err := s.start()
	if err != nil {
		return outcome{}, err
	}
	defer p.close()
	s.process = p
	if s.started != nil {
		s.started(p.pid)
	}
	_ = s.theirs.Close()

	var o outcome
	talked := make(chan struct{})
	go func() {
		defer close(talked)
		o.resp, o.err = s.conn.converse(req, notify)
	}()
	select {
	case <-p.ended:
	case <-ctx.Done():
		stop(p)
		<-p.ended
	}
	s.conn.finish()
	<-talked
	o.status = p.status
	return o, p.err
}
