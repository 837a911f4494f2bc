//go:build linux

package criu

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a running child of ours.
type process struct {
	pid    int
	pidfd  *os.File
	ended  chan struct{} // closed after status is set
	status syscall.WaitStatus
	err    error
	step   func(pid int) bool // see Tool.step
}

// fdTable collects the descriptors of a child; the index is the child's number.
type fdTable struct {
	files []*os.File
	raw   []uintptr
}

func (t *fdTable) add(f *os.File) (int, error) {
	fd, err := rawFd(f)
	if err != nil {
		return -1, err
	}
	t.files = append(t.files, f)
	t.raw = append(t.raw, uintptr(fd))
	return len(t.raw) - 1, nil
}

// command is what a launch executes.
type command struct {
	path string
	argv []string
	env  []string
	fds  fdTable
}

// spawn starts the command from a thread of its own that joined the place's cgroups and
// namespaces, the mount namespace excepted, and that is thrown away afterwards: a thread
// that once joined cannot come back, and one whose children go to another pid namespace
// cannot start threads (pid_namespaces(7)). Nothing but raw system calls runs on it.
func spawn(cmd command, place Place) (*process, error) { return spawnWatched(cmd, place, nil, nil) }

// spawnWatched has dying called when the process was killed and before it lets go of anything:
// what it traces is still held then.
func spawnWatched(cmd command, place Place, dying func(), step func(pid int) bool) (*process, error) {
	joins, err := place.Namespaces.joins()
	if err != nil {
		return nil, err
	}
	nsFds := make([]int, len(joins))
	for i, ns := range joins {
		if nsFds[i], err = rawFd(ns.file); err != nil {
			return nil, err
		}
	}
	tasks, err := openTasks(place.CgroupTasks)
	defer closeFds(tasks)
	if err != nil {
		return nil, err
	}
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: "/", Env: cmd.env, Files: cmd.fds.raw,
		// A session of its own: the parent's is not visible in the container, and a
		// terminal of the parent must not become the container's.
		Sys: &syscall.SysProcAttr{PidFD: &pidfd, Setsid: true},
	}
	if place.CgroupV2 != nil {
		fd, err := rawFd(place.CgroupV2)
		if err != nil {
			return nil, err
		}
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd
	}

	var pid int
	onSpareThread(func() {
		// A write of "0" moves the writing thread alone, without the lock that moving
		// another process takes (10 ms and more).
		for _, fd := range tasks {
			if _, err = unix.Write(fd, []byte("0")); err != nil {
				err = fmt.Errorf("enter the container's cgroup: %w", err)
				return
			}
		}
		for i, ns := range joins {
			if err = unix.Setns(nsFds[i], ns.kind); err != nil {
				err = fmt.Errorf("join the container's %s namespace: %w", ns.name, err)
				return
			}
		}
		if pid, err = syscall.ForkExec(cmd.path, cmd.argv, attr); err != nil {
			err = fmt.Errorf("execute %s: %w", cmd.path, err)
		}
	})
	runtime.KeepAlive(cmd.fds.files)
	runtime.KeepAlive(place)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, ended: make(chan struct{}), step: step}
	if pidfd >= 0 {
		p.pidfd = os.NewFile(uintptr(pidfd), "pidfd:"+strconv.Itoa(pid))
	}
	if dying != nil {
		watching := make(chan struct{})
		go p.watch(dying, watching)
		<-watching
	} else {
		go p.wait()
	}
	return p, nil
}

// onSpareThread runs f on a thread that does nothing else and ends afterwards. It is never
// the process's first thread: that one does not end, and what it joined would show for good
// in /proc/PID/ns, cgroup and mountinfo of the whole process.
func onSpareThread(f func()) {
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine holds the first thread, another one cannot get it.
			onSpareThread(f)
			runtime.UnlockOSThread()
			close(done)
			return
		}
		f()
		close(done) // the goroutine ends locked, and the thread with it
	}()
	<-done
}

func (p *process) wait() {
	for {
		_, err := syscall.Wait4(p.pid, &p.status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		p.err = err
		close(p.ended)
		return
	}
}

// signal sends to the process and to no later one of the same number.
func (p *process) signal(sig syscall.Signal) error {
	select {
	case <-p.ended:
		return os.ErrProcessDone
	default:
	}
	if p.pidfd == nil {
		return syscall.Kill(p.pid, sig)
	}
	fd, err := rawFd(p.pidfd)
	if err != nil {
		return err
	}
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

// close lets go of the descriptor of a process that ended.
func (p *process) close() {
	if p.pidfd != nil {
		_ = p.pidfd.Close()
	}
}

func openTasks(folders []*os.File) ([]int, error) {
	var fds []int
	for _, folder := range folders {
		dir, err := rawFd(folder)
		if err != nil {
			return fds, err
		}
		fd, err := unix.Openat(dir, "tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fds, fmt.Errorf("open the container's cgroup %s/tasks: %w", folder.Name(), err)
		}
		fds = append(fds, fd)
	}
	runtime.KeepAlive(folders)
	return fds, nil
}

func closeFds(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
