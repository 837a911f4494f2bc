//go:build linux

package criu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// shmFiles lists a container's /dev/shm: names, modes, owners in it and sizes.
func (c *container) shmFiles() string {
	c.t.Helper()
	entries, err := os.ReadDir(c.root() + "/dev/shm")
	if err != nil {
		c.t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, fmt.Sprint(e.Name(), info.Mode(), ownerOf(info)-c.user, info.Size()))
	}
	return strings.Join(all, "\n")
}

// plant puts a symbolic link and a fifo into a container's /dev/shm.
func (c *container) plant(link, fifo string) {
	c.t.Helper()
	if c.user != 0 {
		return // our own user id does not exist there
	}
	dir := c.root() + "/dev/shm/"
	if err := os.Symlink("/tmp/elsewhere", dir+link); err != nil {
		c.t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+fifo, 0o666); err != nil {
		c.t.Fatal(err)
	}
}

func TestPosixSharedMemory(t *testing.T) {
	for name, users := range map[string][2]int{"root": {}, "user namespace": {100000, 300000}} {
		t.Run(name, func(t *testing.T) {
			tool := realTool(t)
			a, b := newContainerAs(t, newFreezer(t), users[0]), newContainerAs(t, newFreezer(t), users[1])
			app := newService(t)
			app.give(a.user)
			a.startWith(app, request{Pid: 1000})
			app.ask("posix seg green")
			dir := a.root() + "/dev/shm/"
			app.ask("write /dev/shm/small text")
			if err := os.Chown(dir+"small", a.user+77, a.user+78); err != nil {
				t.Fatal(err)
			}
			files := a.shmFiles()
			// What is no shared memory is not even opened.
			a.plant("link", "fifo")

			a.freezer.freeze()
			cp := newCheckpoint(t)
			o := a.dumpOf(app, cp)
			o.FreezeCgroup, o.OwnShm = a.freezer.dir, true
			if _, err := tool.Dump(testContext(t), o); err != nil {
				t.Fatal(err)
			}
			a.freezer.thaw()
			images, err := filepath.Glob(filepath.Join(cp.images.Name(), "shm-*"))
			if err != nil || len(images) != 2 {
				t.Fatalf("images %q (%v), want 2", images, err)
			}
			for _, image := range images {
				info, err := os.Stat(image)
				if err != nil {
					t.Fatal(err)
				}
				if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Blocks*512 > 1<<20 || ownerOf(info) != 0 {
					t.Errorf("%s: %+v", image, info.Sys())
				}
			}
			app.ask("posix seg red")

			// A container without a /dev/shm of its own is refused.
			ro := b.restoreOf(cp, app, newService(t))
			if _, err := tool.Restore(testContext(t), ro); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("restore without /dev/shm: %v", err)
			}
			expect(t, "files after a refused restore", b.shmFiles(), "")

			// A file of that name may be there, or a link of it elsewhere.
			b.plant("seg", "small")
			again := newService(t)
			again.give(b.user)
			ro = b.restoreOf(cp, app, again)
			ro.OwnShm = true
			r, err := tool.Restore(testContext(t), ro)
			if err != nil {
				t.Fatal(err)
			}
			closeOnCleanup(t, r.Process)
			expect(t, "after the restore", again.ask("posix seg"), "green green")
			expect(t, "files", b.shmFiles(), files)
		})
	}
}

// A container that took its /dev/shm away has none to be saved.
func TestNoSharedMemoryFolder(t *testing.T) {
	tool := realTool(t)
	a := newContainer(t)
	app := a.start(1000)
	if err := os.Remove(a.root() + "/dev/shm"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/tmp", a.root()+"/dev/shm"); err != nil {
		t.Fatal(err)
	}
	app.ask("write /tmp/x text")
	cp := newCheckpoint(t)
	o := a.dumpOf(app, cp)
	o.OwnShm = true
	if _, err := tool.Dump(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	if images, _ := filepath.Glob(filepath.Join(cp.images.Name(), "shm-*")); len(images) != 0 {
		t.Errorf("images %q", images)
	}
}

// The images are not trusted to name files of that folder only.
func TestForgedSharedMemory(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	for name, head := range map[string]string{
		"elsewhere": "fm-shm-1" + strings.Repeat("\x00", 20) + "../etc/forged\x00",
		"endless":   "fm-shm-1" + strings.Repeat("\x00", 20) + strings.Repeat("x", 4096),
		"foreign":   strings.Repeat("\x00", 4096),
		"short":     "fm-shm-1",
	} {
		t.Run(name, func(t *testing.T) {
			cp := a.dump(tool, app)
			if name != "short" {
				head += strings.Repeat("\x00", 4096)
			}
			if err := os.WriteFile(filepath.Join(cp.images.Name(), "shm-0.img"), []byte(head), 0o600); err != nil {
				t.Fatal(err)
			}
			before := b.files()
			o := b.restoreOf(cp, app, newService(t))
			o.OwnShm = true
			if _, err := tool.Restore(testContext(t), o); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "read the image of a file in /dev/shm") {
				t.Errorf("restore: %v", err)
			}
			expect(t, "the container's files", b.files(), before)
		})
	}
}
