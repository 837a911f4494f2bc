package main_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto/initconn"
)

// The tests start the real binary as PID 1 of a real pid namespace, with the descriptors that the shim passes.
// The test binary is its own helper: in the new namespaces it mounts /proc, prepares what a test wants and
// executes fastfreeze in its place.

const (
	helperEnv = "FASTFREEZE_TEST_HELPER"
	patience  = 20 * time.Second
)

var binary string

func TestMain(m *testing.M) {
	if script := os.Getenv(helperEnv); script != "" {
		helper(script)
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests make pid namespaces: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "fastfreeze-test-")
	if err != nil {
		panic(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "fastfreeze")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "building fastfreeze: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// helper runs in the new namespaces: words of the script are things to do, then it executes its arguments.
func helper(script string) {
	check := func(what string, err error) {
		if err != nil {
			fmt.Fprintf(os.Stderr, "helper: %s: %v\n", what, err)
			os.Exit(99)
		}
	}
	runtime.LockOSThread()
	uid := 0
	// What the tests themselves were started with is not for the container.
	check("close_range", unix.CloseRange(5, 1<<31, unix.CLOSE_RANGE_CLOEXEC))
	path := os.Args[1]
	for _, word := range strings.Fields(script) {
		key, value, _ := strings.Cut(word, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "proc":
			check("private mounts", unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
			check("mounting /proc", unix.Mount("proc", "/proc", "proc", 0, ""))
		case "ctty":
			_, err := unix.Setsid()
			check("setsid", err)
			check("TIOCSCTTY", unix.IoctlSetInt(0, unix.TIOCSCTTY, 0))
		case "nofile":
			check("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(n), Max: uint64(n) * 2}))
		case "umask":
			unix.Umask(n)
		case "chdir":
			check("chdir", os.Chdir(value))
		case "block":
			set := unix.Sigset_t{}
			set.Val[0] = 1 << (n - 1)
			check("sigmask", unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil))
		case "leak":
			check("dup", unix.Dup3(0, 9, 0))
		case "nonewprivs":
			check("no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		case "uid":
			uid = n
		case "env":
			check("setenv", os.Setenv("PATH", value))
		}
	}
	if uid != 0 {
		check("setgroups", syscall.Setgroups([]int{uid + 1}))
		check("setgid", syscall.Setgid(uid))
		check("setuid", syscall.Setuid(uid))
	}
	env := os.Environ()
	for i, v := range env {
		if strings.HasPrefix(v, helperEnv+"=") {
			env = append(env[:i:i], env[i+1:]...)
			break
		}
	}
	env = append(env, "DOUBLE=1", "DOUBLE=2", "NOEQUALS", "", "GODEBUG=gctrace=1", "GOMAXPROCS=7")
	check("exec "+path, syscall.Exec(path, os.Args[1:], env))
}

// options of a container under test.
type options struct {
	script string // for the helper
	argv   []string
	stdin  *os.File
	stdout *os.File // a buffer if nil
	hostNS bool     // no pid namespace of its own
	direct bool     // the program itself, without fastfreeze
}

// container is a fastfreeze under test.
type container struct {
	t      *testing.T
	cmd    *exec.Cmd
	conn   *initconn.Conn
	socket int // the same end, to send what is no message
	stdout *bytes.Buffer
	stderr *bytes.Buffer
	waited chan error
}

func run(t *testing.T, o options) *container {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "init's end")
	defer theirs.Close()
	dup, err := unix.FcntlInt(uintptr(pair[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := initconn.New(os.NewFile(uintptr(pair[0]), "shim's end"))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(binary, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	self := os.NewFile(uintptr(fd), binary)
	defer self.Close()

	c := &container{t: t, conn: conn, socket: dup, stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}, waited: make(chan error, 1)}
	args := o.argv
	if !o.direct {
		args = append([]string{"/proc/self/fd/4", "init", "--"}, o.argv...)
	}
	c.cmd = exec.Command("/proc/self/exe", args...)
	c.cmd.Env = append(os.Environ(), helperEnv+"=x "+o.script)
	c.cmd.ExtraFiles = []*os.File{theirs, self}
	if o.direct {
		c.cmd.ExtraFiles = nil
	}
	c.cmd.Stdout, c.cmd.Stderr = c.stdout, c.stderr
	if o.stdin != nil {
		c.cmd.Stdin = o.stdin
	}
	if o.stdout != nil {
		c.cmd.Stdout, c.cmd.Stderr = o.stdout, o.stdout
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	if !o.hostNS {
		c.cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWPID
		c.cmd.Env[len(c.cmd.Env)-1] += " proc"
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.waited <- c.cmd.Wait() }()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.waited
		c.hangUp()
	})
	return c
}

// receive gets the next message, which must be of that type.
func (c *container) receive(want initproto.Type) initproto.Message {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	m, err := c.conn.Receive(ctx)
	if err != nil {
		c.t.Fatalf("waiting for %v: %v; stderr: %s", want, err, c.stderr)
	}
	if m.Type != want {
		c.t.Fatalf("received %+v, want %v", m, want)
	}
	return m
}

func (c *container) send(m initproto.Message) {
	c.t.Helper()
	c.sendWith(m)
}

// sendWith sends a message and the descriptors that it needs.
func (c *container) sendWith(m initproto.Message, files ...*os.File) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.conn.Send(ctx, m, files...); err != nil {
		c.t.Fatal(err)
	}
}

// raw sends a datagram as it is, with the rights to a descriptor if fds are given.
func (c *container) raw(b []byte, fds ...int) {
	c.t.Helper()
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(c.socket, b, rights, nil, 0)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EAGAIN) {
			c.t.Fatal(err)
		}
		poll := []unix.PollFd{{Fd: int32(c.socket), Events: unix.POLLOUT}}
		if n, err := unix.Poll(poll, int(patience.Milliseconds())); n != 1 {
			c.t.Fatalf("PID 1 does not read: %v", err)
		}
	}
}

// hangUp closes the shim's end of the socket.
func (c *container) hangUp() {
	_ = c.conn.Close()
	if c.socket >= 0 {
		_ = unix.Close(c.socket)
		c.socket = -1
	}
}

// sync returns when PID 1 has handled all that was sent before.
func (c *container) sync() {
	c.t.Helper()
	c.send(initproto.Message{Type: initproto.Ping, Seq: 7})
	c.receive(initproto.Pong)
}

// start brings the application up and returns its pid in the namespace.
func (c *container) start(flags initproto.Flags) int {
	c.t.Helper()
	if m := c.receive(initproto.Ready); m.Text != "" {
		c.t.Fatalf("READY: %s", m.Text)
	}
	c.send(initproto.Message{Type: initproto.Start, Flags: flags})
	return int(c.receive(initproto.Started).Pid)
}

// wait gives PID 1's exit code.
func (c *container) wait() int {
	c.t.Helper()
	select {
	case err := <-c.waited:
		c.waited <- err
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			c.t.Fatal(err)
		}
		if ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
			return 1000 + int(ws.Signal())
		}
		return c.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		c.t.Fatalf("PID 1 does not end; stderr: %s", c.stderr)
	}
	return 0
}

// root is the container's file system and /proc as seen from here.
func (c *container) proc(pid int, file string) string {
	return fmt.Sprintf("/proc/%d/root/proc/%d/%s", c.cmd.Process.Pid, pid, file)
}

// inside runs a program in the container's pid namespace (with the host's mounts) and returns its output.
func (c *container) inside(argv ...string) string {
	c.t.Helper()
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is of no use to others afterwards: it ends with the goroutine.
		runtime.LockOSThread()
		var r result
		defer func() { done <- r }()
		var fd int
		if fd, r.err = unix.Open(fmt.Sprintf("/proc/%d/ns/pid", c.cmd.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0); r.err != nil {
			return
		}
		defer unix.Close(fd)
		if r.err = unix.Setns(fd, unix.CLONE_NEWPID); r.err == nil {
			r.out, r.err = exec.Command(argv[0], argv[1:]...).Output()
		}
	}()
	r := <-done
	if r.err != nil {
		c.t.Fatalf("%v: %v: %s", argv, r.err, r.out)
	}
	return strings.TrimSpace(string(r.out))
}

// pipe makes a pipe whose reader does not wait for ever.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return r, w
}

// startTrap starts an application that ends with the given code on a signal, and waits until it is ready for it.
func startTrap(t *testing.T, signal string, code int, flags initproto.Flags) *container {
	t.Helper()
	r, w := pipe(t)
	script := fmt.Sprintf("trap 'exit %d' %s; echo ready; exec >&- 2>&-; while :; do read x <&9; done 9<>%s", code, signal, fifo(t))
	c := run(t, options{argv: []string{"sh", "-c", script}, stdout: w})
	w.Close()
	c.start(flags)
	if line, err := bufio.NewReader(r).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the application says %q, %v", line, err)
	}
	return c
}

// orphan makes a process whose parent is PID 1 and returns its pid in the namespace. It ends with an exit code
// of 5 by SIGTERM and of 6 by SIGUSR1, whatever it is told first.
func (c *container) orphan() int {
	c.t.Helper()
	out := c.inside("sh", "-c", `sh -c 'trap "exit 5" TERM; trap "exit 6" USR1; echo $$; exec >&- 2>&-; while :; do read x <&9; done' 9<>"$1" &
		true`, "sh", fifo(c.t))
	pid, err := strconv.Atoi(out)
	if err != nil {
		c.t.Fatal(err)
	}
	return pid
}

// fifo makes a fifo to wait on for ever.
func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

// status reads a field of a process's /proc status in the namespace; it is empty when there is no such process.
func (c *container) status(pid int, field string) string {
	b, _ := os.ReadFile(c.proc(pid, "status"))
	for _, line := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// eventually waits for a condition that no descriptor announces.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		runtime.Gosched()
	}
}
