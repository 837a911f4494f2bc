package main_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

func TestStartAtChosenPid(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		c := run(t, options{argv: []string{"true"}})
		c.receive(initproto.Ready)
		c.inside(binary, "last-pid", "999")
		c.send(initproto.Message{Type: initproto.Start, Flags: initproto.Tied})
		if m := c.receive(initproto.Started); m.Pid != 1000 {
			t.Fatalf("the application has pid %d, want 1000", m.Pid)
		}
		if m := c.receive(initproto.Exited); m.Pid != 1000 || m.Status != 0 {
			t.Fatalf("EXITED %+v", m)
		}
		if code := c.wait(); code != 0 {
			t.Fatalf("exit code %d", code)
		}
	}
}

func TestTiedExitCode(t *testing.T) {
	for _, tc := range []struct {
		script string
		status syscall.WaitStatus
		code   int
	}{
		{"exit 0", 0, 0},
		{"exit 7", 7 << 8, 7},
		{"exit 255", 255 << 8, 255},
		{"kill -KILL $$", 9, 137},
		{"kill -TERM $$", 15, 143},
		{"ulimit -c 0; kill -SEGV $$", 11, 139},
	} {
		t.Run(tc.script, func(t *testing.T) {
			c := run(t, options{argv: []string{"sh", "-c", tc.script}})
			pid := c.start(initproto.Tied)
			m := c.receive(initproto.Exited)
			if int(m.Pid) != pid || syscall.WaitStatus(m.Status)&^0x80 != tc.status {
				t.Errorf("EXITED %+v, want status %#x of %d", m, tc.status, pid)
			}
			if code := c.wait(); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
		})
	}
}

func TestUntiedStartsAgain(t *testing.T) {
	c := run(t, options{argv: []string{"sh", "-c", "exit 3"}})
	c.receive(initproto.Ready)
	for range 3 {
		c.send(initproto.Message{Type: initproto.Start})
		c.receive(initproto.Started)
		if m := c.receive(initproto.Exited); m.Status != 3<<8 {
			t.Fatalf("EXITED %+v", m)
		}
		c.sync()
	}
}

func TestSecondStartIsRefused(t *testing.T) {
	c := run(t, options{argv: []string{"sleep", "1000"}})
	c.start(0)
	for _, m := range []initproto.Message{{Type: initproto.Start}, {Type: initproto.Adopt, Pid: 77}} {
		c.send(m)
		if m := c.receive(initproto.StartFailed); syscall.Errno(m.Errno) != unix.EBUSY {
			t.Errorf("STARTFAILED %+v", m)
		}
	}
}

// signalTest is an application that says which signals it gets.
const signalTest = `
import os, signal
wanted = set(range(1, 65)) - {9, 17, 19, 32, 33}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
os.write(1, b"ready\n")
while True:
    os.write(1, b"%d\n" % signal.sigwait(wanted))
`

// faults are the signals that end PID 1 if they come from outside of its pid namespace.
var faults = []unix.Signal{unix.SIGILL, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV}

func TestFaultsFromOutside(t *testing.T) {
	for _, sig := range faults {
		c := run(t, options{argv: []string{"sleep", "1000"}})
		c.start(initproto.Tied)
		if err := unix.Kill(c.cmd.Process.Pid, sig); err != nil {
			t.Fatal(err)
		}
		if code := c.wait(); code != 1000+int(unix.SIGSEGV) {
			t.Errorf("%v: exit code %d", sig, code)
		}
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("needs python3: contrib/dev/deps.sh installs it")
	}
	r, w := pipe(t)
	c := run(t, options{argv: []string{python, "-c", signalTest}, stdout: w})
	w.Close()
	lines := bufio.NewScanner(r)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("the application says %q, want %q (%v)", lines.Text(), want, lines.Err())
		}
	}
	c.start(initproto.Tied)
	expect("ready")
	for sig := 1; sig <= 64; sig++ {
		switch sig {
		case 9, 17, 19, 32, 33:
			continue
		}
		c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(sig)})
		expect(strconv.Itoa(sig))
		if sig == int(unix.SIGTTIN) || sig == int(unix.SIGTTOU) {
			continue
		}
		if !slices.Contains(faults, unix.Signal(sig)) {
			if err := unix.Kill(c.cmd.Process.Pid, unix.Signal(sig)); err != nil {
				t.Fatal(err)
			}
			expect(strconv.Itoa(sig))
		}
		c.inside("sh", "-c", `kill -$1 1`, "sh", strconv.Itoa(sig))
		expect(strconv.Itoa(sig))
	}
	for _, sig := range []unix.Signal{unix.SIGTTIN, unix.SIGTTOU, unix.SIGCHLD} {
		if err := unix.Kill(c.cmd.Process.Pid, sig); err != nil {
			t.Fatal(err)
		}
	}
	c.sync()
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGUSR2)})
	expect(strconv.Itoa(int(unix.SIGUSR2)))
}

// queuedTest waits for a real-time signal and says its number, si_code and value.
const queuedTest = `
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [40])
os.write(1, b"ready\n")
info = (ctypes.c_byte * 128)()
mask = (ctypes.c_ulong * 16)(1 << 39)
libc.sigwaitinfo(mask, info)
raw = bytes(info)
os.write(1, b"%d %d %d\n" % tuple(int.from_bytes(raw[a:b], "little", signed=True) for a, b in ((0, 4), (8, 12), (24, 32))))
`

func TestQueuedSignalsKeepTheirValue(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Fatal("needs python3: contrib/dev/deps.sh installs it")
	}
	r, w := pipe(t)
	c := run(t, options{argv: []string{python, "-c", queuedTest}, stdout: w})
	w.Close()
	out := bufio.NewReader(r)
	c.start(initproto.Tied)
	if line, err := out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	// struct siginfo_t with si_code SI_QUEUE and a value.
	info := struct {
		signo, errno, code, _ int32
		pid, uid              uint32
		value                 uint64
		_                     [96]byte
	}{signo: 40, code: -1, value: 1 << 40}
	if _, _, e := unix.Syscall(unix.SYS_RT_SIGQUEUEINFO, uintptr(c.cmd.Process.Pid), 40, uintptr(unsafe.Pointer(&info))); e != 0 {
		t.Fatal(e)
	}
	if line, err := out.ReadString('\n'); line != "40 -1 1099511627776\n" {
		t.Errorf("the application says %q, %v", line, err)
	}
}

func TestStopAndContinue(t *testing.T) {
	c := run(t, options{argv: []string{"sleep", "1000"}})
	pid := c.start(0)
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGSTOP)})
	eventually(t, "stopping", func() bool { return strings.HasPrefix(c.status(pid, "State"), "T") })
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGCONT)})
	eventually(t, "going on", func() bool { return strings.HasPrefix(c.status(pid, "State"), "S") })
	c.send(initproto.Message{Type: initproto.Signal, Signo: uint32(unix.SIGKILL)})
	if m := c.receive(initproto.Exited); m.Status != 9 {
		t.Errorf("EXITED %+v", m)
	}
}

func TestSignalsWithoutApplication(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		c := run(t, options{argv: []string{"true"}})
		c.receive(initproto.Ready)
		for _, harmless := range []unix.Signal{unix.SIGUSR1, unix.SIGPROF, unix.SIGWINCH, unix.SIGSYS, unix.SIGABRT, 34, 64} {
			if err := unix.Kill(c.cmd.Process.Pid, harmless); err != nil {
				t.Fatal(err)
			}
		}
		c.sync()
		if err := unix.Kill(c.cmd.Process.Pid, sig); err != nil {
			t.Fatal(err)
		}
		if code := c.wait(); code != 128+int(sig) {
			t.Errorf("%v: exit code %d", sig, code)
		}
	}
}

func TestOrphansStayBelowTheApplication(t *testing.T) {
	r, w := pipe(t)
	c := run(t, options{argv: []string{"sh", "-c", `sh -c 'sleep 1000 & echo $!' ; exec sleep 1000`}, stdout: w})
	w.Close()
	app := c.start(0)
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the daemon's parent being the application", func() bool { return c.status(daemon, "PPid") == strconv.Itoa(app) })
}

func TestOrphansOfOthersAreReaped(t *testing.T) {
	c := run(t, options{argv: []string{"sleep", "1000"}})
	c.start(0)
	var pids []int
	for range 5 {
		pids = append(pids, c.orphan())
	}
	for _, pid := range pids {
		eventually(t, "the orphan's parent being PID 1", func() bool { return c.status(pid, "PPid") == "1" })
		c.inside("kill", "-KILL", strconv.Itoa(pid))
	}
	for _, pid := range pids {
		eventually(t, "the orphan being reaped", func() bool { return c.status(pid, "State") == "" })
	}
	c.sync()
}

func TestExecErrors(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "no-format")
	if err := os.WriteFile(file, []byte("no program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := run(t, options{argv: []string{file}})
	c.receive(initproto.Ready)
	for range 2 {
		c.send(initproto.Message{Type: initproto.Start, Flags: initproto.Tied})
		m := c.receive(initproto.StartFailed)
		if syscall.Errno(m.Errno) != unix.ENOEXEC || m.Text != "exec "+file+": exec format error" {
			t.Errorf("STARTFAILED %+v", m)
		}
	}
	c.sync()
}

func TestLookupErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", 0o644)
	write("program", 0o755)
	t.Setenv("PATH", "/no/such/folder::"+dir+"/:/usr/bin:/bin")
	for _, name := range []string{
		"no-such-program", "plain", plain, dir, dir + "/", "/no/such/file", plain + "/below", "", ".", "..",
		"program", "true", "./program", strings.Repeat("x", 300), "/" + strings.Repeat("y", 300),
	} {
		t.Run(name, func(t *testing.T) {
			want := ""
			if _, err := exec.LookPath(name); err != nil {
				want = err.Error()
			}
			c := run(t, options{argv: []string{name}})
			m := c.receive(initproto.Ready)
			if m.Text != want {
				t.Errorf("READY %q, want %q", m.Text, want)
			}
			if want == "" {
				return
			}
			c.send(initproto.Message{Type: initproto.Start})
			if m := c.receive(initproto.StartFailed); m.Errno == 0 || m.Text != want {
				t.Errorf("STARTFAILED %+v, want %q", m, want)
			}
		})
	}
}

func TestDropStdio(t *testing.T) {
	for _, drop := range []bool{true, false} {
		r, w := pipe(t)
		c := run(t, options{argv: []string{"sh", "-c", "echo hello; exec sleep 1000 <&- >&- 2>&-"}, stdout: w})
		w.Close()
		flags := initproto.Flags(0)
		if drop {
			flags = initproto.DropStdio
		}
		c.start(flags)
		if line, err := bufio.NewReader(r).ReadString('\n'); line != "hello\n" || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		if drop {
			// The end of file comes although PID 1 goes on.
			if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Fatalf("read %d bytes, %v", n, err)
			}
			c.sync()
		} else if link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/1", c.cmd.Process.Pid)); err != nil || !sameFile(t, link, r) {
			t.Fatalf("PID 1's stdout is %q, %v", link, err)
		}
	}
}

// sameFile reports whether link, of a descriptor in /proc, names the pipe that r reads.
func sameFile(t *testing.T, link string, r *os.File) bool {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(r.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return link == fmt.Sprintf("pipe:[%d]", st.Ino)
}
