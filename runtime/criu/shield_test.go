//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// shielded prepares a restore into a container whose service has a freezer of its own.
func (c *container) shielded(cp *checkpoint, was, again *service, newFreezer func(testing.TB) *freezer) (RestoreOptions, *freezer) {
	c.t.Helper()
	service := newFreezer(c.t)
	c.t.Cleanup(service.remove)
	parent, err := os.Open(filepath.Dir(service.path))
	if err != nil {
		c.t.Fatal(err)
	}
	closeOnCleanup(c.t, parent)
	o := c.restoreOf(cp, was, again)
	if service.v2 {
		o.Place.CgroupV2 = service.dir
	} else {
		o.Place.CgroupTasks = []*os.File{service.dir}
	}
	o.Shield = Shield{Service: service.dir, Outside: parent, Others: []*os.File{c.freezer.dir}}
	return o, service
}

func (f *freezer) procs() []string {
	f.t.Helper()
	b, err := os.ReadFile(filepath.Join(f.path, "cgroup.procs"))
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Fields(string(b))
}

func TestShield(t *testing.T) {
	for name, newFreezer := range map[string]func(testing.TB) *freezer{"default": newFreezer, "v2": newFreezerV2} {
		t.Run(name, func(t *testing.T) {
			tool := realTool(t)
			a := newContainer(t)
			app := a.start(1000)
			app.ask("set color green")
			app.ask("fanout 5")
			cp := a.dump(tool, app)

			b := newContainerIn(t, newFreezer(t))
			again := newService(t)
			o, service := b.shielded(cp, app, again, newFreezer)
			var criu string
			o.Notify = func(script string, _ int) error {
				switch script {
				case "pre-restore":
					criu = strconv.Itoa(runningCriu(t))
					if procs := service.procs(); !slices.Contains(procs, criu) {
						t.Errorf("%q are in the service's cgroup before the restore, not CRIU (%s)", procs, criu)
					}
				case "post-resume":
					// CRIU has let them go by now, and is still there.
					if slices.Contains(service.procs(), criu) || len(service.procs()) != 6 {
						t.Errorf("%q are in the service's cgroup, CRIU is %s", service.procs(), criu)
					}
					if !service.frozen() {
						t.Error("restored processes run while CRIU is there")
					}
					if !b.freezer.frozen() {
						t.Error("the container's other processes run while CRIU is there")
					}
				}
				return nil
			}
			r, err := tool.Restore(testContext(t), o)
			if err != nil {
				t.Fatal(err)
			}
			t.Log("restore took", r.Took)
			closeOnCleanup(t, r.Process)
			expect(t, "after the restore", again.ask("get color"), "green")
			if n := len(service.procs()); n != 6 {
				t.Errorf("%d processes are in the service's cgroup, want 6", n)
			}
			if b.freezer.frozen() {
				t.Error("the container is still frozen")
			}
			again.stop()
			b.exited(1000)
			if err := service.control().killAll(testContext(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// control is the freezer as the package sees it.
func (f *freezer) control() cgroup { return cgroup{folder: f.dir, v2: f.v2} }

// A restore that fails or is given up at any of CRIU's steps leaves no process.
func TestFailedRestoreLeavesNothingBehind(t *testing.T) {
	tool := realTool(t)
	a := newContainer(t)
	app := a.start(1000)
	app.ask("fanout 5")
	cp := a.dump(tool, app)
	for _, step := range []string{"pre-restore", "post-restore", "pre-resume"} {
		for how, fail := range map[string]func(cancel func()) error{
			"error":  func(func()) error { return errors.New("not wanted") },
			"cancel": func(cancel func()) error { cancel(); return nil },
			"kill":   nil,
		} {
			for _, shield := range []bool{true, false} {
				if how == "kill" && !shield {
					continue
				}
				t.Run(step+" "+how+" "+strconv.FormatBool(shield), func(t *testing.T) {
					b := newContainer(t)
					o, _ := b.shielded(cp, app, newService(t), newFreezer)
					if !shield {
						o.Shield = Shield{}
					}
					ctx, cancel := context.WithCancel(testContext(t))
					defer cancel()
					o.Notify = func(script string, _ int) error {
						if script != step {
							return nil
						}
						if fail == nil {
							return syscall.Kill(runningCriu(t), syscall.SIGKILL)
						}
						return fail(cancel)
					}
					_, err := tool.Restore(ctx, o)
					var e *Error
					if !errors.As(err, &e) {
						t.Fatalf("error: %v", err)
					}
					switch how {
					case "cancel":
						if !errors.Is(err, context.Canceled) {
							t.Errorf("error: %v", err)
						}
					case "error":
						if !strings.Contains(err.Error(), "not wanted") {
							t.Errorf("error: %v", err)
						}
					case "kill":
						if !errdefs.IsAborted(err) {
							t.Errorf("error: %v", err)
						}
					}
					eventually(t, "PID 1 has no descendants", func() bool { return len(descendants(b.cmd.Process.Pid)) == 0 })
					again := b.restore(tool, cp, app)
					expect(t, "a restore afterwards", again.ask("pid"), "1000")
				})
			}
		}
	}
}

// runningCriu is the CRIU that this process has started.
func runningCriu(t testing.TB) (criu int) {
	t.Helper()
	// The list of children is unreliable while the thread that made one ends.
	eventually(t, "CRIU is a child of the test", func() bool {
		for _, pid := range childrenOf(os.Getpid()) {
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(comm) == "criu\n" {
				criu = pid
				return true
			}
		}
		return false
	})
	if criu == 0 {
		t.FailNow()
	}
	return criu
}

func TestShieldNeedsBothCgroups(t *testing.T) {
	f := newFreezer(t)
	t.Cleanup(f.remove)
	if _, err := raise(t.Context(), Shield{Service: f.dir}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Service without Outside: %v", err)
	}
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, folder)
	if _, err := raise(t.Context(), Shield{Others: []*os.File{folder}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a folder that is no cgroup: %v", err)
	}
}

func TestKillTree(t *testing.T) {
	c := newContainer(t)
	app := c.start(1000)
	app.ask("fanout 20")
	var root int
	for _, pid := range childrenOf(c.cmd.Process.Pid) {
		root = pid
	}
	thawed := false
	if err := killTree(root, func() { thawed = true }); err != nil {
		t.Fatal(err)
	}
	if !thawed {
		t.Error("what is frozen was not thawed")
	}
	c.exited(1000)
	eventually(t, "PID 1 has no descendants", func() bool { return len(descendants(c.cmd.Process.Pid)) == 0 })
}
