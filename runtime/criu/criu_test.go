//go:build linux

package criu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dumpOf are the options of a dump of the application with its pipes external.
func (c *container) dumpOf(s *service, cp *checkpoint) DumpOptions {
	return DumpOptions{Place: c.place(), Pid: s.pid, Images: cp.images, Log: cp.log, External: s.pipes()}
}

func (c *container) dump(tool *Tool, s *service) *checkpoint {
	c.t.Helper()
	cp := newCheckpoint(c.t)
	if _, err := tool.Dump(testContext(c.t), c.dumpOf(s, cp)); err != nil {
		c.t.Fatal(err)
	}
	return cp
}

// restoreOf are the options of a restore of what was into again.
func (c *container) restoreOf(cp *checkpoint, was, again *service) RestoreOptions {
	again.pid = was.pid
	return RestoreOptions{
		Place: c.place(), Images: cp.images, Log: newLog(c.t), Pid: was.pid,
		InheritFD: inherit(was.pipes(), again),
	}
}

func (c *container) restore(tool *Tool, cp *checkpoint, was *service) *service {
	c.t.Helper()
	again := newService(c.t)
	r, err := tool.Restore(testContext(c.t), c.restoreOf(cp, was, again))
	if err != nil {
		c.t.Fatal(err)
	}
	closeOnCleanup(c.t, r.Process)
	return again
}

func closeOnCleanup(t testing.TB, f *os.File) { t.Cleanup(func() { _ = f.Close() }) }

func inherit(names []string, to *service) map[string]*os.File {
	files := map[string]*os.File{}
	for i, name := range names {
		files[name] = to.theirs[i]
	}
	return files
}

func expect(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestDumpRestore(t *testing.T) {
	tool := realTool(t)
	a, b, c := newContainer(t), newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("set color green")

	cp := a.dump(tool, app)
	expect(t, "after the dump", app.ask("get color"), "green")
	app.ask("set color red")

	second := newService(t)
	r, err := tool.Restore(testContext(t), b.restoreOf(cp, app, second))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Process.Close() }()
	if r.Pid != 1000 || r.Took <= 0 {
		t.Errorf("result: %+v", r)
	}
	expect(t, "after the restore", second.ask("get color"), "green")
	expect(t, "pid", second.ask("pid"), "1000")
	expect(t, "parent", second.ask("ppid"), "1")

	// What was restored can be dumped again, by a tool that has no probe in memory.
	second.ask("set color blue")
	third := c.restore(realTool(t), b.dump(realTool(t), second), second)
	expect(t, "after the second restore", third.ask("get color"), "blue")

	// The pidfd is the restored process's, and its end is PID 1's to see.
	second.stop()
	if ws := b.exited(1000); ws.ExitStatus() != 0 {
		t.Errorf("the restored process ended with %#x", ws)
	}
	if err := waitPidfd(r.Process, patience); err != nil {
		t.Errorf("pidfd of the restored process: %v", err)
	}
}

func TestRestoredTreeIsWhereItBelongs(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	kids := strings.Fields(app.ask("fanout 15"))
	cp := a.dump(tool, app)

	again := newService(t)
	o := b.restoreOf(cp, app, again)
	if b.freezer.v2 {
		o.Place.CgroupV2 = b.freezer.dir
	} else {
		o.Place.CgroupTasks = []*os.File{b.freezer.dir}
	}
	r, err := tool.Restore(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Process.Close() }()

	init := b.cmd.Process.Pid
	inside := descendants(init)
	if want := 1 + len(kids); len(inside) != want {
		t.Fatalf("%d processes below PID 1, want %d", len(inside), want)
	}
	for _, pid := range inside {
		for _, ns := range []string{"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"} {
			expect(t, fmt.Sprintf("%s namespace of process %d", ns, pid), nsOf(t, pid, ns), nsOf(t, init, ns))
		}
		if want, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", init)); err != nil {
			t.Error(err)
		} else if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil {
			t.Error(err)
		} else {
			expect(t, fmt.Sprintf("cgroups of process %d", pid), string(got), string(want))
		}
	}
	expect(t, "the test's own pid namespace", nsOf(t, os.Getpid(), "pid"), nsOf(t, os.Getppid(), "pid"))
}

func nsOf(t testing.TB, pid int, ns string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestDumpOfFrozenContainer(t *testing.T) {
	for name, newFreezer := range map[string]func(testing.TB) *freezer{"default": newFreezer, "v2": newFreezerV2} {
		t.Run(name, func(t *testing.T) {
			tool := realTool(t)
			a, b := newContainerIn(t, newFreezer(t)), newContainer(t)
			app := a.start(1000)
			app.ask("fanout 3")
			app.ask("set color green")
			a.freezer.freeze()

			cp := newCheckpoint(t)
			o := a.dumpOf(app, cp)
			o.FreezeCgroup = a.freezer.dir
			if _, err := tool.Dump(testContext(t), o); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the container is still frozen", a.freezer.frozen)
			a.freezer.thaw()
			expect(t, "after the dump", app.ask("get color"), "green")
			expect(t, "after the restore", b.restore(tool, cp, app).ask("get color"), "green")

			// A dump that is given up leaves it frozen as well.
			app.ask("memory 256")
			a.freezer.freeze()
			o.Images = newCheckpoint(t).images
			if _, err := tool.Dump(onceItWrites(t, o.Images), o); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled dump: %v", err)
			}
			eventually(t, "the container is still frozen", a.freezer.frozen)
			a.freezer.thaw()
			expect(t, "after the cancelled dump", app.ask("get color"), "green")
		})
	}
}

// onceItWrites is a context that ends as soon as a dump writes the memory.
func onceItWrites(t testing.TB, images *os.File) context.Context {
	ctx, cancel := context.WithCancel(testContext(t))
	t.Cleanup(cancel)
	go func() {
		defer cancel()
		eventually(t, "the dump writes pages", func() bool {
			st, err := os.Stat(filepath.Join(images.Name(), "pages-1.img"))
			return ctx.Err() != nil || err == nil && st.Size() > 0
		})
	}()
	return ctx
}

func TestCancelledDumpLeavesNothingBehind(t *testing.T) {
	tool := realTool(t)
	a := newContainer(t)
	app := a.start(1000)
	app.ask("memory 256")
	app.ask("fanout 2")
	before := app.ask("maps")
	for range 3 {
		cp := newCheckpoint(t)
		_, err := tool.Dump(onceItWrites(t, cp.images), a.dumpOf(app, cp))
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled dump: %v", err)
		}
		expect(t, "number of mappings", app.ask("maps"), before)
	}
	a.dump(tool, app)
}

func TestTerminal(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := newTerminal(t, a)
	a.startWith(app, request{Pid: 1000, TTY: true})
	app.ask("set color green")
	expect(t, "terminal before the dump", app.ask("tty"), "1000 80x24")

	cp := newCheckpoint(t)
	key := app.terminalKey()
	o := DumpOptions{Place: a.place(), Pid: 1000, Images: cp.images, Log: cp.log, External: []string{key}, ShellJob: true}
	if _, err := tool.Dump(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	expect(t, "terminal after the dump", app.ask("tty"), "1000 80x24")

	again := newTerminal(t, b)
	r, err := tool.Restore(testContext(t), RestoreOptions{
		Place: b.place(), Images: cp.images, Log: cp.log, Pid: 1000, ShellJob: true,
		InheritFD: map[string]*os.File{key: again.theirs[0]},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Process.Close() }()
	expect(t, "state", again.ask("get color"), "green")
	expect(t, "terminal after the restore", again.ask("tty"), "1000 80x24")
}

// newTerminal makes a terminal inside the container, with the master outside.
func newTerminal(t testing.TB, c *container) *service {
	t.Helper()
	master, err := os.OpenFile(fmt.Sprintf("/proc/%d/root/dev/pts/ptmx", c.cmd.Process.Pid), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := rawFd(master)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slaveFd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave := os.NewFile(slaveFd, "slave")
	termios, err := unix.IoctlGetTermios(int(slaveFd), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	termios.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(int(slaveFd), unix.TCSETS, termios); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(slaveFd), unix.TIOCSWINSZ, &unix.Winsize{Col: 80, Row: 24}); err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, master)
	closeOnCleanup(t, slave)
	return &service{t: t, in: master, out: master, reader: bufio.NewReader(master), theirs: []*os.File{slave, slave, slave}}
}

// terminalKey names the application's terminal as CRIU does.
func (s *service) terminalKey() string {
	s.t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(s.theirs[0].Fd()), &st); err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("tty[%x:%x]", st.Rdev, st.Dev)
}

func TestConnectionsAreClosed(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("listen tcp 127.0.0.1:7000")
	app.ask("connect tcp 127.0.0.1:7000")
	expect(t, "connection", app.ask("talk one"), "one")
	cp := a.dump(tool, app)
	expect(t, "connection after the dump", app.ask("talk two"), "two")

	again := b.restore(tool, cp, app)
	if answer, err := again.try("talk three"); err == nil {
		t.Errorf("the connection still works after the restore: %q", answer)
	}
	again.ask("listen tcp 127.0.0.1:7001") // brings lo up
	expect(t, "new connection to the old listener", again.ask("reach tcp 127.0.0.1:7000 four"), "four")
}

func TestConnectionsAreKept(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("listen tcp 127.0.0.1:7000")
	app.ask("connect tcp 127.0.0.1:7000")
	cp := newCheckpoint(t)
	o := a.dumpOf(app, cp)
	o.TCP = KeepConnections
	if _, err := tool.Dump(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	expect(t, "connection after the dump", app.ask("talk two"), "two")

	other := b.start(500)
	other.ask("listen tcp 127.0.0.1:7001") // brings lo up
	again := newService(t)
	ro := b.restoreOf(cp, app, again)
	ro.TCP = KeepConnections
	r, err := tool.Restore(testContext(t), ro)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Process.Close() }()
	expect(t, "connection after the restore", again.ask("talk three"), "three")
}

func TestFiles(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("file /tmp/deleted %s unlinked", "text")
	app.ask("lock")
	cp := newCheckpoint(t)
	o := a.dumpOf(app, cp)
	o.FileLocks = true
	if _, err := tool.Dump(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	again := newService(t)
	ro := b.restoreOf(cp, app, again)
	ro.FileLocks = true
	r, err := tool.Restore(testContext(t), ro)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Process.Close() }()
	expect(t, "deleted file", again.ask("read"), "text")
	if _, err := os.Stat(filepath.Join(b.root(), "tmp/deleted")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the deleted file is back: %v", err)
	}
}

// root is the container's root as seen from the host.
func (c *container) root() string { return fmt.Sprintf("/proc/%d/root", c.cmd.Process.Pid) }

func TestClockGoesOn(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	clock := func(s *service) time.Duration {
		n, err := strconv.ParseInt(s.ask("clock"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(n)
	}
	before := clock(app)
	cp := a.dump(tool, app)
	// Let real time pass, so that a clock that goes on differs from the machine's.
	begun := time.Now()
	eventually(t, "time passes", func() bool { return time.Since(begun) > 300*time.Millisecond })
	again := b.restore(tool, cp, app)
	after, real := clock(again), clock(app)
	if after < before || after > real-200*time.Millisecond {
		t.Errorf("CLOCK_MONOTONIC was %v at the dump, is %v after the restore and %v on the machine", before, after, real)
	}
	// And once more, out of the time namespace that the first restore made.
	third := newContainer(t).restore(tool, b.dump(tool, again), again)
	if last := clock(third); last < after || last > after+patience {
		t.Errorf("CLOCK_MONOTONIC was %v after the first restore and is %v after the second", after, last)
	}
}

func TestTwoRestoresAtOnce(t *testing.T) {
	tool := realTool(t)
	a := newContainer(t)
	app := a.start(1000)
	app.ask("set color green")
	cp := a.dump(tool, app)
	var wg sync.WaitGroup
	for range 4 {
		c := newContainer(t)
		again := newService(t)
		o := c.restoreOf(cp, app, again)
		wg.Go(func() {
			r, err := tool.Restore(testContext(t), o)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = r.Process.Close() }()
			if got, err := again.try("get color"); err != nil || got != "green" {
				t.Errorf("after the restore: %q %v", got, err)
			}
		})
	}
	wg.Wait()
}

func readLog(t testing.TB, log *os.File) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(log, 0, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
