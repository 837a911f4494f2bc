//go:build linux && amd64

package criu

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// killer ends CRIU before the nth step by which it touches the processes of a dump.
type killer struct {
	n, seen int
	late    time.Duration // so much after the step has begun, with CRIU at work
	last    string
	report  string
}

// ptraceNames are the requests that CRIU makes (ptrace(2)).
var ptraceNames = map[uint64]string{
	0x1: "PEEKTEXT", 0x2: "PEEKDATA", 0x4: "POKETEXT", 0x5: "POKEDATA", 0x6: "POKEUSER", 0x7: "CONT", 0xe: "GETFPREGS",
	0x11: "DETACH", 0x18: "SYSCALL", 0x19: "ARCH_PRCTL", 0x4200: "SETOPTIONS", 0x4202: "GETSIGINFO", 0x4204: "GETREGSET", 0x4205: "SETREGSET",
	0x4206: "SEIZE", 0x4207: "INTERRUPT", 0x4209: "PEEKSIGINFO", 0x420a: "GETSIGMASK", 0x420b: "SETSIGMASK",
}

func (k *killer) step(pid int) (killed bool) {
	var regs unix.PtraceRegs
	if k.report != "" || unix.PtraceGetRegs(pid, &regs) != nil {
		return false
	}
	if int64(regs.Rax) != -int64(unix.ENOSYS) || regs.Orig_rax != unix.SYS_PTRACE && regs.Orig_rax != unix.SYS_WAIT4 {
		return false
	}
	name := "wait4"
	if regs.Orig_rax == unix.SYS_PTRACE {
		if name = ptraceNames[regs.Rdi]; name == "" {
			name = strconv.FormatUint(regs.Rdi, 16)
		}
	}
	if k.seen++; k.seen == k.n {
		k.report = fmt.Sprintf("killed before %s, after %s", name, k.last)
		if k.late > 0 {
			k.report = fmt.Sprintf("killed %v from %s on, after %s", k.late, name, k.last)
			time.AfterFunc(k.late, func() { _ = unix.Kill(pid, unix.SIGKILL) })
			return false
		}
		return unix.Kill(pid, unix.SIGKILL) == nil
	}
	k.last = name
	return false
}

// traces are what CRIU has left in a process: its mapping, its descriptor, its signal mask.
func traces(pid int) (found []string) {
	maps, _ := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if strings.Contains(string(maps), parasiteName) {
		found = append(found, "mapping")
	}
	folder := fmt.Sprintf("/proc/%d/fd/", pid)
	fds, _ := os.ReadDir(folder)
	for _, fd := range fds {
		if link, _ := os.Readlink(folder + fd.Name()); strings.HasPrefix(link, parasiteName) {
			found = append(found, "descriptor")
		}
	}
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, task := range tasks {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, task.Name()))
		// All but SIGTRAP, and what cannot be blocked.
		if strings.Contains(string(status), "SigBlk:\tfffffffffffbfeef") {
			found = append(found, "signal mask")
		}
	}
	return found
}

// CRIU is killed at every stage of a dump; the processes are unharmed and go on.
func TestProcessesSurviveAKilledCRIU(t *testing.T) {
	const stride = 67 // of some 450 steps
	for name, c := range map[string]struct {
		freezer func(testing.TB) *freezer
		first   int
	}{"default": {newFreezer, 1}, "v2": {newFreezerV2, 12}} {
		t.Run(name, func(t *testing.T) {
			tool := realTool(t)
			if err := tool.Prepare(testContext(t)); err != nil {
				t.Fatal(err)
			}
			for who, start := range victims(t) {
				t.Run(who, func(t *testing.T) {
					for n := c.first; survives(t, tool, c.freezer, start, killer{n: n}); n += fromEnv(t, "FASTMIG_KILL_STRIDE", stride) {
					}
					for range fromEnv(t, "FASTMIG_KILL_ROUNDS", 3) {
						n, late := 1+rand.IntN(250), time.Duration(1+rand.IntN(500))*time.Microsecond
						survives(t, tool, c.freezer, start, killer{n: n, late: late})
					}
				})
			}
		})
	}
}

// fromEnv is how thorough a test is: FASTMIG_KILL_STRIDE=1 kills CRIU at each step, and
// FASTMIG_KILL_ROUNDS says how often at any moment.
func fromEnv(t *testing.T, name string, usual int) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv(name), strconv.Itoa(usual)))
	if err != nil || n < 1 {
		t.Fatalf("%s=%s is no number of at least 1", name, os.Getenv(name))
	}
	return n
}

// victim is started in a container; the function that it gives checks that it is alive and well.
type victim func(t *testing.T, c *container) (*service, func(t *testing.T))

// victims are an application in Go, one that is like a shell, and one in C with threads.
func victims(t *testing.T) map[string]victim {
	program := filepath.Join(t.TempDir(), "victim")
	if out, err := exec.Command("gcc", "-O2", "-static", "-pthread", "-o", program, "testdata/victim.c").CombinedOutput(); err != nil {
		t.Fatalf("build testdata/victim.c: %v\n%s", err, out)
	}
	return map[string]victim{
		"go": func(_ *testing.T, c *container) (*service, func(*testing.T)) {
			app := c.start(1000)
			app.ask("set color green")
			app.ask("fanout 1")
			return app, func(t *testing.T) {
				expect(t, "the application", app.ask("get color"), "green")
				eventually(t, "there are the two processes and no other", func() bool { return len(descendants(c.cmd.Process.Pid)) == 2 })
			}
		},
		"shell":   inC(program),
		"threads": inC(program, "3"),
	}
}

func inC(program string, args ...string) victim {
	return func(t *testing.T, c *container) (*service, func(*testing.T)) {
		root := fmt.Sprintf("/proc/%d/root/", c.cmd.Process.Pid)
		code, err := os.ReadFile(program)
		if err == nil {
			err = os.WriteFile(root+"victim", code, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		app := newService(t)
		c.startWith(app, request{Args: append([]string{"/victim"}, args...), Pid: 1000})
		rounds := func() uint64 {
			b, _ := os.ReadFile(root + "run/rounds")
			if len(b) < 8 {
				return 0
			}
			return binary.LittleEndian.Uint64(b)
		}
		eventually(t, "the application works", func() bool { return rounds() > 3 })
		return app, func(t *testing.T) {
			before := rounds()
			deadline := time.Now().Add(patience)
			for rounds() < before+20 {
				if e := c.ended(app.pid); e != nil {
					t.Fatalf("the application has ended: %v", describe(syscall.WaitStatus(e.Status)))
				}
				if time.Now().After(deadline) {
					t.Fatal("the application does not go on")
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
}

// ended gives the end of a child of PID 1, or nil if it is still there.
func (c *container) ended(pid int) *event {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		if e.Exited == pid {
			return &e
		}
	}
	return nil
}

func describe(ws syscall.WaitStatus) string {
	if ws.Signaled() {
		return ws.Signal().String()
	}
	return fmt.Sprintf("status %d", ws.ExitStatus())
}

// survives is false if the dump has fewer than the killer's n steps.
func survives(t *testing.T, tool *Tool, newFreezer func(testing.TB) *freezer, start victim, k killer) (killed bool) {
	t.Run(strconv.Itoa(k.n), func(t *testing.T) {
		a := newContainerIn(t, newFreezer(t))
		app, well := start(t, a)
		a.freezer.freeze()
		o := a.dumpOf(app, newCheckpoint(t))
		o.FreezeCgroup = a.freezer.dir
		k.last = "the beginning"
		tool.step = k.step
		_, err := tool.Dump(testContext(t), o)
		tool.step = nil
		if killed = k.report != ""; !killed {
			if err != nil {
				t.Errorf("a dump that nobody hinders: %v", err)
			}
			return
		}
		t.Log(k.report)
		if err != nil || k.late == 0 { // else it was over by then
			checkError(t, err, errdefs.ErrAborted, "signal 9")
		}
		eventually(t, "the container is still frozen", a.freezer.frozen)
		a.freezer.thaw()
		well(t)
		var left []string
		eventually(t, "nothing of CRIU is left", func() bool {
			left = nil
			for _, pid := range descendants(a.cmd.Process.Pid) {
				left = append(left, traces(pid)...)
			}
			return len(left) == 0
		})
		if len(left) > 0 {
			t.Errorf("left by CRIU: %v", left)
		}
		a.dump(tool, app)
		well(t)
	})
	return killed
}
