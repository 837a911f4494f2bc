//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const sysvKey = 0x5eed

// dumpOwn dumps a service of a container whose IPC namespace is its own.
func (c *container) dumpOwn(tool *Tool, s *service) *checkpoint {
	c.t.Helper()
	cp := newCheckpoint(c.t)
	o := c.dumpOf(s, cp)
	o.OwnIPC = true
	if _, err := tool.Dump(testContext(c.t), o); err != nil {
		c.t.Fatal(err)
	}
	return cp
}

func (c *container) restoreOwn(tool *Tool, cp *checkpoint, was *service) *service {
	c.t.Helper()
	again := newService(c.t)
	o := c.restoreOf(cp, was, again)
	o.OwnIPC = true
	r, err := tool.Restore(testContext(c.t), o)
	if err != nil {
		c.t.Fatal(err)
	}
	closeOnCleanup(c.t, r.Process)
	return again
}

// ipcImages lists the files of a checkpoint that are about an IPC namespace.
func ipcImages(t testing.TB, cp *checkpoint) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(cp.images.Name(), "ipcns-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func (c *container) sysv() string {
	c.t.Helper()
	objects, err := sysvObjects(c.ns.IPC)
	if err != nil {
		c.t.Fatal(err)
	}
	return fmt.Sprint(objects)
}

// descriptors lists what a process has open, by number.
func descriptors(t testing.TB, pid int) string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range files {
		link, err := os.Readlink(name)
		if err != nil {
			t.Fatal(err)
		}
		link, _, _ = strings.Cut(link, ":") // numbers of pipes differ
		all = append(all, filepath.Base(name)+" "+link)
	}
	return strings.Join(all, "\n")
}

// host lists the objects of our own namespace.
func hostObjects(t testing.TB) string {
	t.Helper()
	var all string
	for _, k := range sysvKinds {
		text, err := os.ReadFile("/proc/sysvipc/" + k.name)
		if err != nil {
			t.Fatal(err)
		}
		all += string(text)
	}
	return all
}

func TestSystemV(t *testing.T) {
	tool := realTool(t)
	a, b, c := newContainer(t), newContainer(t), newContainer(t)
	host := hostObjects(t)
	app := a.start(1000)
	// Identifiers that a fresh namespace does not give by itself.
	ids := strings.Fields(app.ask("sysv %d first", sysvKey+1))
	app.ask("sysvremove %s", ids[0])
	app.ask("sysv %d green", sysvKey)
	app.ask("write /proc/sys/kernel/msgmnb 20000")
	app.ask("fanout 2")
	want := app.ask("sysvread %d", sysvKey)
	if !strings.HasSuffix(want, "green green [7 0 9] 1:green 2:green") {
		t.Fatalf("the objects: %s", want)
	}
	open := descriptors(t, descendants(a.cmd.Process.Pid)[0])

	cp := a.dumpOwn(tool, app)
	expect(t, "after the dump", app.ask("sysvread %d", sysvKey), want)

	again := b.restoreOwn(tool, cp, app)
	expect(t, "after the restore", again.ask("sysvread %d", sysvKey), want)
	expect(t, "a limit", again.ask("show /proc/sys/kernel/msgmnb"), "20000")
	tree := descendants(b.cmd.Process.Pid)
	if len(tree) != 3 {
		t.Fatalf("%d processes, want 3", len(tree))
	}
	for _, pid := range tree {
		expect(t, "IPC namespace", nsOf(t, pid, "ipc"), nsOf(t, b.cmd.Process.Pid, "ipc"))
	}
	expect(t, "descriptors", descriptors(t, tree[0]), open)

	third := c.restoreOwn(tool, b.dumpOwn(tool, again), again)
	expect(t, "after the second restore", third.ask("sysvread %d", sysvKey), want)
	expect(t, "the host's objects", hostObjects(t), host)
}

// In a user namespace CRIU may not look at the memory.
func TestSystemVInUserNamespace(t *testing.T) {
	tool := realTool(t)
	a := newContainerAs(t, newFreezer(t), 200000)
	app := newService(t)
	app.give(a.user)
	a.startWith(app, request{Pid: 1000})
	app.ask("sysv %d green", sysvKey)
	want := app.ask("sysvread %d", sysvKey)
	o := a.dumpOf(app, newCheckpoint(t))
	o.OwnIPC = true
	_, err := tool.Dump(testContext(t), o)
	var failed *Error
	if !errors.As(err, &failed) || !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("dump: %v", err)
	}
	expect(t, "cause", failed.Cause, "the container has System V shared memory and a user namespace, which CRIU cannot dump together")
	expect(t, "after the dump", app.ask("sysvread %d", sysvKey), want)
}

// Without objects the namespace stays out of the checkpoint, which can be restored anywhere.
func TestNoSystemV(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("set color green")
	cp := a.dumpOwn(tool, app)
	if names := ipcImages(t, cp); len(names) != 0 {
		t.Errorf("the checkpoint has %q", names)
	}
	expect(t, "after the restore", b.restore(tool, cp, app).ask("get color"), "green")
}

func TestSystemVOfSharedNamespace(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)

	// Somebody else's object, which the application does not map.
	other := a.start(500)
	ids := strings.Fields(other.ask("sysv %d other", sysvKey+1))
	cp := a.dump(tool, app)
	if names := ipcImages(t, cp); len(names) != 0 {
		t.Errorf("the checkpoint has %q", names)
	}
	b.restore(tool, cp, app).stop()
	b.exited(1000)
	expect(t, "objects after a restore without any", b.sysv(), "[]")

	app.ask("sysv %d green", sysvKey)
	before := a.sysv()
	_, err := tool.Dump(testContext(t), a.dumpOf(app, newCheckpoint(t)))
	var failed *Error
	if !errors.As(err, &failed) || !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("dump: %v", err)
	}
	expect(t, "cause", failed.Cause, "process 1000 uses System V shared memory, and the container shares its IPC namespace with others")
	expect(t, "objects after the dump", a.sysv(), before)
	expect(t, "after the dump", strings.Fields(other.ask("sysvread %d", sysvKey+1))[0], ids[0])

	// The way back: objects go into no shared namespace, and not into our own.
	cp = a.dumpOwn(tool, app)
	host := hostObjects(t)
	for name, change := range map[string]func(*RestoreOptions){
		"shared":  func(*RestoreOptions) {},
		"not one": func(o *RestoreOptions) { o.OwnIPC, o.Place.Namespaces.IPC = true, nil },
		"our own": func(o *RestoreOptions) { o.OwnIPC, o.Place.Namespaces.IPC = true, ownIPC(t) },
	} {
		o := b.restoreOf(cp, app, newService(t))
		change(&o)
		if _, err := tool.Restore(testContext(t), o); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "shares its IPC namespace") {
			t.Errorf("%s: restore: %v", name, err)
		}
	}
	expect(t, "objects", b.sysv(), "[]")
	expect(t, "the host's objects", hostObjects(t), host)
}

func ownIPC(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Open("/proc/self/ns/ipc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// A namespace that is our own is never dumped, whatever the caller says.
func TestOwnNamespaceIsNotDumped(t *testing.T) {
	ns := ownIPC(t)
	memory, err := unix.SysvShmGet(unix.IPC_PRIVATE, 4096, unix.IPC_CREAT|0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.SysvShmCtl(memory, unix.IPC_RMID, nil) })
	for _, ns := range []*os.File{ns, nil} {
		if joined, err := dumpIPC(ns); err != nil || joined != ns {
			t.Errorf("CRIU joins %v (%v), want %v", joined, err, ns)
		}
	}
}

func TestFailedRestoreRemovesSystemVObjects(t *testing.T) {
	tool := realTool(t)
	a := newContainer(t)
	app := a.start(1000)
	ids := strings.Fields(app.ask("sysv %d green", sysvKey))
	cp := a.dumpOwn(tool, app)
	refusal := errors.New("the test does not want it")

	for name, test := range map[string]struct {
		taken  string // a command for a process of the container
		notify func(string, context.CancelFunc) error
		cause  string
	}{
		"identifier taken": {taken: fmt.Sprintf("sysv %d other", sysvKey+1), cause: "the identifier " + ids[0] + " of a System V object (shm) is taken in the container"},
		"key taken":        {taken: fmt.Sprintf("sysv %d other", sysvKey), cause: "the key of a System V object (shm) is taken in the container"},
		"refused":          {notify: func(string, context.CancelFunc) error { return refusal }, cause: refusal.Error()},
		"given up":         {notify: func(_ string, cancel context.CancelFunc) error { cancel(); return nil }, cause: "it was given up: context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newContainer(t)
			if test.taken != "" {
				b.start(500).ask("%s", test.taken)
			}
			before := b.sysv()
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			o := b.restoreOf(cp, app, newService(t))
			o.OwnIPC = true
			o.Notify = func(script string, _ int) error {
				if script != "post-restore" || test.notify == nil {
					return nil
				}
				if b.sysv() == before {
					t.Error("nothing was made yet")
				}
				return test.notify(script, cancel)
			}
			_, err := tool.Restore(ctx, o)
			var failed *Error
			if !errors.As(err, &failed) {
				t.Fatalf("restore: %v", err)
			}
			expect(t, "cause", failed.Cause, test.cause)
			expect(t, "objects", b.sysv(), before)
			if test.taken == "" {
				// PID 1 reaps what was killed in its own time.
				eventually(t, "process 1000 is gone", func() bool {
					_, err := os.Stat(fmt.Sprintf("/proc/%d/root/proc/1000", b.cmd.Process.Pid))
					return err != nil
				})
				expect(t, "after another try", strings.Fields(b.restoreOwn(tool, cp, app).ask("sysvread %d", sysvKey))[0], ids[0])
			}
		})
	}
}

func BenchmarkDumpSystemV(b *testing.B) {
	for name, objects := range map[string]bool{"none": false, "some": true} {
		b.Run(name, func(b *testing.B) {
			tool := realTool(b)
			if err := tool.Prepare(b.Context()); err != nil {
				b.Fatal(err)
			}
			c := newContainer(b)
			app := c.start(1000)
			if objects {
				app.ask("sysv %d green", sysvKey)
			}
			for b.Loop() {
				b.StopTimer()
				o := c.dumpOf(app, newCheckpoint(b))
				o.OwnIPC = true
				b.StartTimer()
				if _, err := tool.Dump(b.Context(), o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSystemVObjects(b *testing.B) {
	c := newContainer(b)
	for b.Loop() {
		if _, err := sysvObjects(c.ns.IPC); err != nil {
			b.Fatal(err)
		}
	}
}
