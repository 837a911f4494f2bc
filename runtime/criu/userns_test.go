//go:build linux

package criu

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A container in a user namespace: CRIU is root there, and no more.
func TestUserNamespace(t *testing.T) {
	for name, newFreezer := range map[string]func(testing.TB) *freezer{"default": newFreezer, "v2": newFreezerV2} {
		t.Run(name, func(t *testing.T) {
			tool := realTool(t)
			a, b := newContainerAs(t, newFreezer(t), 100000), newContainerAs(t, newFreezer(t), 300000)
			app := newService(t)
			app.give(a.user)
			a.startWith(app, request{Pid: 1000})
			app.ask("set color green")
			app.ask("listen tcp 127.0.0.1:7000")
			app.ask("file /tmp/deleted text unlinked")
			app.ask("fanout 2")

			cp := newCheckpoint(t)
			o := a.dumpOf(app, cp)
			a.freezer.freeze()
			o.FreezeCgroup = a.freezer.dir
			if _, err := tool.Dump(testContext(t), o); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the container is still frozen", a.freezer.frozen)
			a.freezer.thaw()
			expect(t, "after the dump", app.ask("get color"), "green")
			st, err := os.Stat(filepath.Join(cp.images.Name(), "inventory.img"))
			if err != nil {
				t.Fatal(err)
			}
			if owner := ownerOf(st); owner != 0 {
				t.Errorf("the checkpoint belongs to user %d", owner)
			}

			again := newService(t)
			again.give(b.user)
			r, err := tool.Restore(testContext(t), b.restoreOf(cp, app, again))
			if err != nil {
				t.Fatal(err)
			}
			closeOnCleanup(t, r.Process)
			expect(t, "after the restore", again.ask("get color"), "green")
			expect(t, "deleted file", again.ask("read"), "text")
			for _, pid := range descendants(b.cmd.Process.Pid) {
				expect(t, "user namespace", nsOf(t, pid, "user"), nsOf(t, b.cmd.Process.Pid, "user"))
				if info, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil || ownerOf(info) != b.user {
					t.Errorf("process %d: %v, belongs to user %d, want %d", pid, err, ownerOf(info), b.user)
				}
			}
		})
	}
}

// give makes the application's streams its own, as a runtime does.
func (s *service) give(user int) {
	s.t.Helper()
	for _, f := range s.theirs {
		if err := f.Chown(user, user); err != nil {
			s.t.Fatal(err)
		}
	}
}

func ownerOf(info os.FileInfo) int {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return -1
	}
	return int(st.Uid)
}
