//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Request is what the test asks of PID 1: run the program with the descriptors that come
// along as its stdio.
type Request struct {
	Args []string
	// Pid is the number that the program gets.
	Pid int
	// TTY makes its stdin the controlling terminal.
	TTY bool
	// SameSession leaves it in the session of PID 1.
	SameSession bool
}

// Event is what PID 1 tells: a program was started, or a child ended.
type Event struct {
	Started, Exited int
	Status          int
	Err             string
}

const control = 3

// runInit is PID 1. The new root is a tmpfs with this program as /app and procfs on /proc.
func runInit(root string) error {
	// Whatever the test itself has inherited is not the application's.
	if err := unix.CloseRange(control, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	if err := enterRoot(root); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("testapp")); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go func() {
		for range children {
			for {
				var ws unix.WaitStatus
				pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
				if err != nil || pid <= 0 {
					break
				}
				tell(Event{Exited: pid, Status: int(ws)})
			}
		}
	}()
	tell(Event{Started: 1})
	for {
		if err := serve(); err != nil {
			return err
		}
	}
}

func serve() error {
	buf, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := unix.Recvmsg(control, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("the test is gone")
	}
	var req Request
	if err := json.Unmarshal(buf[:n], &req); err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return err
	}
	var files []uintptr
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			files = append(files, uintptr(fd))
		}
	}
	pid, err := start(req, files)
	for _, fd := range files {
		_ = unix.Close(int(fd))
	}
	if err != nil {
		tell(Event{Err: err.Error()})
		return nil
	}
	tell(Event{Started: pid})
	return nil
}

// start tries until the program has its number: threads of this process take numbers too.
func start(req Request, files []uintptr) (int, error) {
	for range 100 {
		if err := lastPid(strconv.Itoa(req.Pid - 1)); err != nil {
			return 0, err
		}
		// Not os.StartProcess, which may try out what the kernel can do with a process of its own.
		pid, err := syscall.ForkExec(req.Args[0], req.Args, &syscall.ProcAttr{
			Dir: "/", Env: []string{}, Files: files,
			Sys: &unix.SysProcAttr{Setsid: !req.SameSession, Setctty: req.TTY},
		})
		if err != nil || pid == req.Pid {
			return pid, err
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("process number %d is taken", req.Pid)
}

func tell(e Event) {
	b, err := json.Marshal(e)
	if err == nil {
		_, err = unix.Write(control, b)
	}
	if err != nil {
		fail(err)
	}
}

func enterRoot(root string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"keep mounts apart", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"mount the root", func() error { return unix.Mount("rootfs", root, "tmpfs", 0, "mode=755") }},
		{"make folders", func() error {
			for _, d := range []string{"proc", "dev", "dev/pts", "dev/shm", "tmp", "run", "etc"} {
				if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
					return err
				}
			}
			return nil
		}},
		{"copy the program", func() error { return os.WriteFile(filepath.Join(root, "app"), self, 0o755) }},
		{"mount /proc", func() error { return unix.Mount("proc", filepath.Join(root, "proc"), "proc", 0, "") }},
		{"mount /dev/pts", func() error {
			return unix.Mount("devpts", filepath.Join(root, "dev/pts"), "devpts", 0, "newinstance,ptmxmode=0666,mode=620")
		}},
		{"mount /dev/shm", func() error { return memoryAt(root, "dev/shm", "mode=1777") }},
		{"mount /run", func() error { return memoryAt(root, "run", "mode=755,size=1m") }},
		{"make /dev/ptmx", func() error { return os.Symlink("pts/ptmx", filepath.Join(root, "dev/ptmx")) }},
		{"make /dev/null", func() error { return device(root, "null") }},
		{"make /dev/tty", func() error { return device(root, "tty") }},
		{"enter the root", func() error { return os.Chdir(root) }},
		{"change the root", func() error { return unix.PivotRoot(".", ".") }},
		{"leave the host's root", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
		{"enter the new root", func() error { return os.Chdir("/") }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// memoryAt mounts a tmpfs in the new root.
func memoryAt(root, path, options string) error {
	return unix.Mount("tmpfs", filepath.Join(root, path), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options)
}

// device makes a device node of the host's in the new root: a mount, as a user namespace has
// no right to make nodes.
func device(root, name string) error {
	path := filepath.Join(root, "dev", name)
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		return err
	}
	return unix.Mount("/dev/"+name, path, "", unix.MS_BIND, "")
}
