//go:build linux

package criu

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ownTmpfs are the file systems in memory of the tests' containers (internal/testapp).
var ownTmpfs = []string{"/dev/shm", "/run"}

// list describes all files below a folder of the container's, but for sockets and what is
// mounted there: names, modes, owners in it, sizes, space, links and times.
func (c *container) list(folder string) string {
	c.t.Helper()
	root := c.root() + folder
	var b strings.Builder
	var device uint64
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no stat")
		}
		if path == root {
			device = st.Dev
			return nil
		}
		if st.Dev != device {
			return fs.SkipDir
		}
		target := ""
		if d.Type() == fs.ModeSymlink {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		time := info.ModTime().String()
		switch {
		case d.Type() == fs.ModeSocket:
			return nil
		case d.IsDir() && path == root+"/x": // a socket is made in it
			time = ""
		}
		fmt.Fprintf(&b, "%q %v %d %d %d %d %d %q %s\n", strings.TrimPrefix(path, root), info.Mode(),
			int(st.Uid)-c.user, int(st.Gid)-c.user, st.Size, st.Blocks, st.Nlink, target, time)
		return nil
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return b.String()
}

func archives(t *testing.T, cp *checkpoint) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(cp.images.Name(), "tmpfs-*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestTmpfs(t *testing.T) {
	for name, users := range map[string][2]int{"root": {}, "user namespace": {100000, 300000}} {
		t.Run(name, func(t *testing.T) {
			tool := realTool(t)
			a, b := newContainerAs(t, newFreezer(t), users[0]), newContainerAs(t, newFreezer(t), users[1])
			app := newService(t)
			app.give(a.user)
			a.startWith(app, request{Pid: 1000})
			app.ask("posix seg green")
			app.ask("tree /run")
			app.ask("folder /run/x")
			app.ask("listen unix /run/x/y.sock")
			app.ask("mount /run/secrets")
			app.ask("write /run/secrets/key text")
			app.ask("file /run/app/log line")
			run, shm := a.list("/run"), a.list("/dev/shm")

			a.freezer.freeze()
			cp := newCheckpoint(t)
			o := a.dumpOf(app, cp)
			o.FreezeCgroup, o.Tmpfs = a.freezer.dir, ownTmpfs
			if _, err := tool.Dump(testContext(t), o); err != nil {
				t.Fatal(err)
			}
			a.freezer.thaw()
			images := archives(t, cp)
			if len(images) != 2 {
				t.Errorf("archives: %q, want 2", images)
			}
			for _, image := range images {
				if info, err := os.Stat(image); err != nil || info.Size() > 200<<10 || ownerOf(info) != 0 {
					t.Errorf("%s: %v: %d bytes", image, err, info.Size())
				}
			}
			app.ask("posix seg red")

			// A container without file systems of its own is refused.
			ro := b.restoreOf(cp, app, newService(t))
			ro.Tmpfs = ownTmpfs[:1]
			if _, err := tool.Restore(testContext(t), ro); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `a tmpfs at "/run"`) {
				t.Errorf("restore without /run: %v", err)
			}
			expect(t, "files after a refused restore", b.list("/run")+b.list("/dev/shm"), "")

			// What is there, of other kinds too, gives way; mounts stay.
			other := newService(t)
			other.give(b.user)
			b.startWith(other, request{Pid: 500})
			other.ask("folder /run/app")
			other.ask("folder /run/app/pid")
			other.ask("write /run/app/deep text")
			other.ask("write /run/app/link text")
			other.ask("folder /run/x")
			other.ask("listen unix /run/x/y.sock")
			other.ask("mount /run/secrets")
			other.ask("write /run/secrets/key other")
			other.ask("folder /dev/shm/seg")
			again := newService(t)
			again.give(b.user)
			ro = b.restoreOf(cp, app, again)
			ro.Tmpfs = ownTmpfs
			r, err := tool.Restore(testContext(t), ro)
			if err != nil {
				t.Fatal(err)
			}
			closeOnCleanup(t, r.Process)
			expect(t, "shared memory after the restore", again.ask("posix seg"), "green green")
			// The mount point of the source's is none of its files.
			expect(t, "/run", b.list("/run"), run)
			expect(t, "/dev/shm", b.list("/dev/shm"), shm)
			expect(t, "open file", again.ask("read"), "line")
			expect(t, "pid file", again.ask("show /run/app/pid"), "1000")
			expect(t, "mounted below", again.ask("show /run/secrets/key"), "other")
			expect(t, "socket", again.ask("reach unix /run/x/y.sock hello"), "hello")
			begin, end := make([]byte, 5), make([]byte, 3)
			f, err := os.Open(b.root() + "/run/app/holes")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			if _, err := f.ReadAt(begin, 1<<20); err != nil {
				t.Error(err)
			}
			if _, err := f.ReadAt(end, 64<<30-3); err != nil {
				t.Error(err)
			}
			expect(t, "data between holes", string(begin)+string(end), "beginend")
		})
	}
}

// Nothing is written for what a new container has as well, or what CRIU makes itself.
func TestNoTmpfsArchive(t *testing.T) {
	for name, test := range map[string]struct {
		prepare []string
		want    int
	}{
		"empty":                 {nil, 0},
		"mount points":          {[]string{"mount /run/secrets", "mount /run/a/b", "write /run/a/b/c text"}, 0},
		"a socket":              {[]string{"listen unix /run/sock"}, 0},
		"taken away":            {[]string{"tree /run", "unmount /run"}, 0},
		"a folder":              {[]string{"folder /run/lock"}, 1},
		"a folder beside mount": {[]string{"mount /run/a/b", "folder /run/a/c"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			tool := realTool(t)
			a, b := newContainer(t), newContainer(t)
			app := a.start(1000)
			for _, command := range test.prepare {
				app.ask("%s", command)
			}
			cp := newCheckpoint(t)
			o := a.dumpOf(app, cp)
			o.Tmpfs = ownTmpfs
			if _, err := tool.Dump(testContext(t), o); err != nil {
				t.Fatal(err)
			}
			if images := archives(t, cp); len(images) != test.want {
				t.Errorf("archives: %q, want %d", images, test.want)
			}
			ro := b.restoreOf(cp, app, newService(t))
			ro.Tmpfs = ownTmpfs
			r, err := tool.Restore(testContext(t), ro)
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Process.Close()
		})
	}
}

// Set-user-id bits come back only where they mean nothing.
func TestTmpfsSetUserID(t *testing.T) {
	tool := realTool(t)
	a, b, c := newContainer(t), newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("tree /run")
	other := c.start(500)
	other.ask("unmount /run")
	other.ask("mount /run") // without nosuid
	cp := newCheckpoint(t)
	o := a.dumpOf(app, cp)
	o.Tmpfs = ownTmpfs
	if _, err := tool.Dump(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		to           *container
		file, folder os.FileMode
	}{
		{b, 0o755 | os.ModeSetuid, 0o777 | os.ModeDir | os.ModeSticky | os.ModeSetgid},
		{c, 0o755, 0o777 | os.ModeDir | os.ModeSticky | os.ModeSetgid},
	} {
		ro := test.to.restoreOf(cp, app, newService(t))
		ro.Tmpfs = ownTmpfs
		r, err := tool.Restore(testContext(t), ro)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Process.Close()
		for name, want := range map[string]os.FileMode{"pid": test.file, "empty": test.folder} {
			info, err := os.Stat(test.to.root() + "/run/app/" + name)
			if err != nil {
				t.Fatal(err)
			}
			expect(t, "mode of "+name, info.Mode().String(), want.String())
		}
	}
}

// A tree that is too deep is told, and the application goes on.
func TestTmpfsTooDeep(t *testing.T) {
	tool := realTool(t)
	a := newContainer(t)
	app := a.start(1000)
	if err := os.MkdirAll(a.root()+"/run"+strings.Repeat("/d", 300), 0o755); err != nil {
		t.Fatal(err)
	}
	o := a.dumpOf(app, newCheckpoint(t))
	o.Tmpfs = ownTmpfs
	if _, err := tool.Dump(testContext(t), o); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "go deeper into the container's /run/d/d/") {
		t.Errorf("dump: %v", err)
	}
	app.ask("pid")
}

// A checkpoint's folder that is full is told apart from a full file system of the container's.
func TestTmpfsDiskFull(t *testing.T) {
	tool := realTool(t)
	a := newContainer(t)
	app := a.start(1000)
	if err := os.WriteFile(a.root()+"/dev/shm/big", bytes.Repeat([]byte("x"), 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	o := a.dumpOf(app, newCheckpoint(t))
	o.Tmpfs = ownTmpfs
	smallDisk(t, &o)
	if _, err := tool.Dump(testContext(t), o); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "checkpoint's folder") {
		t.Errorf("dump: %v", err)
	}
	app.ask("pid")
}

// end kills a restored application and waits for PID 1 to see it.
func (c *container) end(r RestoreResult) {
	c.t.Helper()
	fd, err := rawFd(r.Process)
	if err == nil {
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	_ = r.Process.Close()
	c.exited(r.Pid)
}

// An attempt that failed half-way does not stand in the way of the next one.
func TestTmpfsRestoredAgain(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("tree /run")
	files := a.list("/run")
	cp := newCheckpoint(t)
	o := a.dumpOf(app, cp)
	o.Tmpfs = ownTmpfs
	if _, err := tool.Dump(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	image := archives(t, cp)[0]
	whole, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []int{len(whole) / 2, len(whole) - 1} {
		if err := os.WriteFile(image, whole[:part], 0o600); err != nil {
			t.Fatal(err)
		}
		ro := b.restoreOf(cp, app, newService(t))
		ro.Tmpfs = ownTmpfs
		if _, err := tool.Restore(testContext(t), ro); !errdefs.IsDataLoss(err) {
			t.Errorf("restore of a part: %v", err)
		}
	}
	if err := os.WriteFile(image, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		ro := b.restoreOf(cp, app, newService(t))
		ro.Tmpfs = ownTmpfs
		r, err := tool.Restore(testContext(t), ro)
		if err != nil {
			t.Fatal(err)
		}
		b.end(r)
	}
	expect(t, "/run", b.list("/run"), files)
}

// The memory is the container's to pay for.
func TestTmpfsMemoryLimit(t *testing.T) {
	tool := realTool(t)
	var place Place
	path := limited(t, &place, 24<<20) // goes after the containers
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	if err := os.WriteFile(a.root()+"/dev/shm/big", bytes.Repeat([]byte("x"), 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cp := newCheckpoint(t)
	o := a.dumpOf(app, cp)
	o.Tmpfs = ownTmpfs
	if _, err := tool.Dump(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	ro := b.restoreOf(cp, app, newService(t))
	ro.Tmpfs = ownTmpfs
	ro.Place.CgroupTasks, ro.Place.CgroupV2 = place.CgroupTasks, place.CgroupV2
	// CRIU goes before any other process of the container.
	for file, text := range map[string]string{
		path + "/cgroup.procs": itoa(b.cmd.Process.Pid),
		fmt.Sprintf("/proc/%d/oom_score_adj", b.cmd.Process.Pid): "500",
	} {
		if err := os.WriteFile(file, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err := tool.Restore(testContext(t), ro)
	if _, serr := os.Stat(b.root() + "/app"); serr != nil {
		t.Errorf("the container's PID 1: %v", serr)
	}
	if err == nil || !strings.Contains(err.Error(), "memory limit") {
		t.Errorf("restore: %v", err)
	}
}

// limited makes a cgroup with that much memory, its path, and the place to run in it.
func limited(t *testing.T, place *Place, limit int) string {
	t.Helper()
	parent, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	_, err := os.Stat(parent)
	v2 := err != nil
	if v2 {
		parent, file = "/sys/fs/cgroup", "memory.max"
	}
	path, err := os.MkdirTemp(parent, "fastmig-criu-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, "the test's memory cgroup is empty", func() bool { return os.Remove(path) == nil })
	})
	if err := os.WriteFile(filepath.Join(path, file), []byte(fmt.Sprint(limit)), 0); err != nil {
		t.Fatal(err)
	}
	folder, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = folder.Close() })
	if v2 {
		place.CgroupV2 = folder
	} else {
		place.CgroupTasks = append(place.CgroupTasks, folder)
	}
	return path
}
