//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resources are the commands that hold something CRIU must carry over, or cannot.
var resources = map[string]func(a *app, args []string) (string, error){
	"clock":      clock,
	"connect":    connect,
	"fanout":     fanout,
	"grow":       grow,
	"link":       link,
	"nested":     nested,
	"traced":     traced,
	"unmount":    unmount,
	"watch":      watch,
	"zombie":     zombie,
	"file":       file,
	"listen":     listen,
	"lock":       lock,
	"maps":       maps,
	"memory":     memory,
	"posix":      posix,
	"queue":      queue,
	"read":       read,
	"reach":      reach,
	"remove":     remove,
	"show":       show,
	"socket":     socket,
	"sysv":       sysv,
	"sysvread":   sysvRead,
	"sysvremove": sysvRemove,
	"talk":       talk,
	"tty":        tty,
	"anon":       anonymous,
	"write":      write,
	"tree":       tree,
	"folder":     folder,
	"mount":      mount,
}

// patience bounds what waits for somebody else.
const patience = 10 * time.Second

func number(args []string, i int) int {
	if i >= len(args) {
		return 0
	}
	n, _ := strconv.ParseInt(args[i], 0, 64)
	return int(n)
}

// memory N: holds N MiB of pages that are not zero.
func memory(a *app, args []string) (string, error) {
	b := make([]byte, number(args, 0)<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = byte(i>>12) | 1
	}
	a.held = append(a.held, b)
	return "", nil
}

// maps: how many mappings the process has.
func maps(*app, []string) (string, error) {
	b, err := os.ReadFile("/proc/self/maps")
	return strconv.Itoa(strings.Count(string(b), "\n")), err
}

// clock: CLOCK_MONOTONIC in nanoseconds.
func clock(*app, []string) (string, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return fmt.Sprint(ts.Nano()), err
}

// fanout N: N children, each the same program at rest; their pids.
func fanout(_ *app, args []string) (string, error) {
	var pids []string
	for range number(args, 0) {
		pid, err := child(nil)
		if err != nil {
			return "", err
		}
		pids = append(pids, pid)
	}
	return strings.Join(pids, " "), nil
}

// file NAME TEXT [unlinked]: an open file with that text.
func file(a *app, args []string) (string, error) {
	fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return "", err
	}
	a.fd = fd
	if _, err := unix.Write(fd, []byte(args[1])); err != nil {
		return "", err
	}
	if len(args) > 2 {
		return "", unix.Unlink(args[0])
	}
	return "", nil
}

// read: the whole text of the open file.
func read(a *app, _ []string) (string, error) {
	b := make([]byte, 4096)
	n, err := unix.Pread(a.fd, b, 0)
	return string(b[:max(n, 0)]), err
}

// write NAME TEXT: a file, closed again.
func write(_ *app, args []string) (string, error) {
	return "", os.WriteFile(args[0], []byte(args[1]), 0o600)
}

// show NAME: what a file holds.
func show(_ *app, args []string) (string, error) {
	b, err := os.ReadFile(args[0])
	return strings.TrimSpace(string(b)), err
}

// unmount PATH: takes a mount away, even if it is in use.
func unmount(_ *app, args []string) (string, error) {
	return "", unix.Unmount(args[0], unix.MNT_DETACH)
}

// remove NAME: deletes a file.
func remove(_ *app, args []string) (string, error) {
	return "", os.Remove(args[0])
}

// lock: an flock(2) on the open file.
func lock(a *app, _ []string) (string, error) {
	return "", unix.Flock(a.fd, unix.LOCK_EX|unix.LOCK_NB)
}

// socket FAMILY TYPE PROTOCOL: an open socket, by number.
func socket(a *app, args []string) (string, error) {
	fd, err := unix.Socket(number(args, 0), number(args, 1)|unix.SOCK_CLOEXEC, number(args, 2))
	a.held = append(a.held, fd)
	return strconv.Itoa(fd), err
}

// anonymous KIND: an open descriptor of a kind that has no file.
func anonymous(a *app, args []string) (string, error) {
	var fd uintptr
	var errno unix.Errno
	switch args[0] {
	case "io_uring":
		params := make([]byte, 120)
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params[0])), 0)
	case "userfaultfd":
		fd, _, errno = unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	case "memfd_secret":
		fd, _, errno = unix.Syscall(unix.SYS_MEMFD_SECRET, 0, 0, 0)
	case "fanotify":
		fd, _, errno = unix.Syscall(unix.SYS_FANOTIFY_INIT, 0, unix.O_RDONLY, 0)
	case "perf":
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: unix.PERF_ATTR_SIZE_VER0}
		n, err := unix.PerfEventOpen(&attr, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err != nil {
			return "", err
		}
		fd = uintptr(n)
	default:
		return "", fmt.Errorf("no such kind: %s", args[0])
	}
	if errno != 0 {
		return "", errno
	}
	a.held = append(a.held, fd)
	return strconv.Itoa(int(fd)), nil
}

// grow N: the open file gets N MiB, none of them written.
func grow(a *app, args []string) (string, error) {
	return "", unix.Ftruncate(a.fd, int64(number(args, 0))<<20)
}

// link OLD NEW: a second name for a file; OLD is removed.
func link(_ *app, args []string) (string, error) {
	if err := os.Link(args[0], args[1]); err != nil {
		return "", err
	}
	return "", os.Remove(args[0])
}

// watch NAME: an inotify watch of a file.
func watch(a *app, args []string) (string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return "", err
	}
	a.held = append(a.held, fd)
	_, err = unix.InotifyAddWatch(fd, args[0], unix.IN_MODIFY)
	return "", err
}

// nested FLAGS: a child in namespaces of its own, by the flags of clone(2).
func nested(_ *app, args []string) (string, error) {
	return child(&syscall.SysProcAttr{Cloneflags: uintptr(number(args, 0))})
}

// traced: a child that this process traces.
func traced(*app, []string) (string, error) { return child(&syscall.SysProcAttr{Ptrace: true}) }

// zombie: a child that has ended and is not waited for.
func zombie(*app, []string) (string, error) { return child(nil, "no-such-command") }

func child(attr *syscall.SysProcAttr, args ...string) (string, error) {
	runtime.LockOSThread() // a tracer is a thread
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return "", err
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(null) }()
	pid, err := syscall.ForkExec("/app", append([]string{"/app", "app"}, args...),
		&syscall.ProcAttr{Files: []uintptr{uintptr(p[0]), uintptr(null), uintptr(null)}, Sys: attr})
	return strconv.Itoa(pid), err
}

// listen NETWORK ADDRESS (tcp, mptcp, unix): a listening socket whose connections are echoed.
func listen(a *app, args []string) (string, error) {
	if err := loopback(); err != nil {
		return "", err
	}
	var config net.ListenConfig
	config.SetMultipathTCP(args[0] == "mptcp") // Go's own default is true
	l, err := config.Listen(context.Background(), strings.TrimPrefix(args[0], "mp"), args[1])
	if err != nil {
		return "", err
	}
	a.held = append(a.held, l)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String(), nil
}

// connect NETWORK ADDRESS: an established connection.
func connect(a *app, args []string) (string, error) {
	c, err := net.DialTimeout(args[0], args[1], patience)
	if err != nil {
		return "", err
	}
	a.conn = c
	return "", nil
}

// talk TEXT: what comes back over the connection.
func talk(a *app, args []string) (string, error) { return echo(a.conn, args[0]) }

// reach NETWORK ADDRESS TEXT: what comes back over a new connection.
func reach(_ *app, args []string) (string, error) {
	c, err := net.DialTimeout(args[0], args[1], patience)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	return echo(c, args[2])
}

func echo(c net.Conn, text string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	b := make([]byte, len(text))
	_, err := io.ReadFull(c, b)
	return string(b), err
}

// tty: the process group in front of the controlling terminal, and the terminal's size.
func tty(*app, []string) (string, error) {
	t, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = t.Close() }()
	front, err := unix.IoctlGetInt(int(t.Fd()), unix.TIOCGPGRP)
	if err != nil {
		return "", err
	}
	size, err := unix.IoctlGetWinsize(int(t.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %dx%d", front, size.Col, size.Row), nil
}

// loopback brings the network namespace's lo up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
