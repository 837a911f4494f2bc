//go:build linux

package preserve

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// An access list: user rwx, user 1234 rw-, group r-x, mask rwx, others r--.
const sampleACL = "02000000" + "01000700ffffffff" + "02000600d2040000" + "04000500ffffffff" + "10000700ffffffff" + "20000400ffffffff"

// CAP_NET_BIND_SERVICE, permitted and effective.
const sampleCaps = "0100000200040000000000000000000000000000"

func (c *container) xattr(p, name, value string) {
	c.t.Helper()
	raw, err := hex.DecodeString(value)
	must(c.t, err)
	must(c.t, unix.Setxattr(c.path(p), name, raw, 0))
}

// sample makes files of every kind at /data; ids begin at first.
func (c *container) sample(first int) []string {
	c.write("data/plain", "plain text")
	c.write("data/empty", "")
	c.write("data/deep/er/large", strings.Repeat("0123456789abcdef", 3*bufferSize/16)+"end")
	c.write("data/odd \xff\n name", "x")
	c.write("data/setuid", "s")
	c.mkdir("data/closed", 0o755)
	c.write("data/closed/inside", "in")
	must(c.t, os.Symlink("/etc/passwd", c.path("data/link")))
	must(c.t, os.Symlink("nowhere/at all", c.path("data/deep/dangling")))
	must(c.t, os.Link(c.path("data/plain"), c.path("data/deep/same")))
	must(c.t, unix.Mkfifo(c.path("data/fifo"), 0o622))
	names := []string{"data", "data/plain", "data/empty", "data/deep", "data/deep/er", "data/deep/er/large", "data/odd \xff\n name", "data/setuid",
		"data/closed", "data/closed/inside", "data/link", "data/deep/dangling", "data/deep/same", "data/fifo"}
	for i, p := range names {
		if p != "data/plain" {
			c.own(p, first+i, first+100+i)
		}
	}
	c.xattr("data/plain", "user.a", "00ff")
	c.xattr("data/deep", "user.b", "")
	c.xattr("data/empty", accessACL, sampleACL)
	c.xattr("data/deep", defaultACL, sampleACL)
	must(c.t, os.Chmod(c.path("data/setuid"), os.ModeSetuid|os.ModeSetgid|0o751))
	must(c.t, os.Chmod(c.path("data/closed"), 0o500))
	must(c.t, os.Chmod(c.path("data"), os.ModeSticky|0o777))
	must(c.t, os.Chmod(c.path("data/fifo"), 0o622))
	slices.Reverse(names)
	for _, p := range names {
		c.age(p)
	}
	return names
}

func TestRoundTrip(t *testing.T) {
	from := newContainer(t, os.Getpid())
	names := from.sample(1000)
	from.xattr("data/empty", capabilityXattr, sampleCaps)
	want := map[string]string{}
	for _, p := range names {
		want[p] = from.describe(p)
	}
	archive, err := from.pack("/data")
	must(t, err)
	compare := func(c *container) {
		t.Helper()
		for p, w := range want {
			if got := c.describe(p); got != w {
				t.Errorf("%q is\n%.300s, not\n%.300s", p, got, w)
			}
		}
		var a, b unix.Stat_t
		must(t, unix.Stat(c.path("data/plain"), &a))
		must(t, unix.Stat(c.path("data/deep/same"), &b))
		if a.Ino != b.Ino {
			t.Error("one file with two names became two")
		}
	}
	to := newContainer(t, os.Getpid())
	for range 2 { // the second time over what is there
		must(t, to.unpack(archive, "/data"))
		compare(to)
	}
	// Merged, and replaced whatever it was.
	over := newContainer(t, os.Getpid())
	over.write("data/of its own", "stays")
	over.write("precious", "stays")
	must(t, os.Symlink("../precious", over.path("data/plain")))
	must(t, os.Link(over.path("precious"), over.path("data/empty")))
	must(t, over.unpack(archive, "/data"))
	compare(over)
	if over.read("data/of its own") != "stays" || over.read("precious") != "stays" {
		t.Error("a file that is not in the archive was changed")
	}
}

func TestPathsAndMissingFolders(t *testing.T) {
	from := newContainer(t, os.Getpid())
	from.write("real/run/app/state", "1")
	from.write("etc/app.conf", "2")
	from.write("etc/other", "no")
	from.write("real/run/app/named/x", "3")
	must(t, os.MkdirAll(from.path("var"), 0o755))
	must(t, os.Symlink("/real/run", from.path("var/run")))
	must(t, os.Symlink("../../../etc/app.conf", from.path("real/conf")))
	paths, err := Paths([]string{"/var/run/app/", "/real/conf", "/real/run/app/named", "/var/run/app"})
	must(t, err)
	must(t, Check(from.root, paths, from.rights))
	archive, err := from.pack(paths...)
	must(t, err)
	to := newContainer(t, os.Getpid())
	must(t, to.unpack(archive, paths...))
	if to.read("var/run/app/state")+to.read("real/conf")+to.read("real/run/app/named/x") != "123" {
		t.Error("wrong content")
	}
	to.missing("etc")
	// With the links that the source has, it goes where they lead.
	linked := newContainer(t, os.Getpid())
	linked.mkdir("real/run", 0o755)
	linked.mkdir("var", 0o755)
	linked.mkdir("etc", 0o755)
	must(t, os.Symlink("/real/run", linked.path("var/run")))
	must(t, os.Symlink("../../../etc/app.conf", linked.path("real/conf")))
	must(t, linked.unpack(archive, paths...))
	if linked.read("etc/app.conf")+linked.read("real/run/app/state") != "21" {
		t.Error("wrong content")
	}
	if to, err := os.Readlink(linked.path("real/conf")); err != nil || to != "../../../etc/app.conf" {
		t.Errorf("the link is %q, %v", to, err)
	}
}

func TestPathsRefused(t *testing.T) {
	for _, p := range []string{"", "a", "/", "//", "/..", "/a/../b", "/a\x00", "/proc", "/proc/1/root/etc", "/sys/x", "/dev/shm", "/" + strings.Repeat("a", unix.PathMax)} {
		if _, err := Paths([]string{"/fine", p}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%.30q: %v", p, err)
		}
	}
	c := newContainer(t, os.Getpid())
	c.mkdir("d", 0o755)
	must(t, unix.Mknod(c.path("d/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.Symlink("loop", c.path("loop")))
	must(t, os.Symlink("..", c.path("up")))
	must(t, os.Symlink("/outside/../../../../etc", c.path("out")))
	for p, says := range map[string]string{"/none": "is not there", "/none/x": "is not there", "/d/null": "device", "/loop": "", "/up": "no name", "/out": "is not there"} {
		err := Check(c.root, []string{"/d", p}, c.rights)
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), p+": ") || !strings.Contains(err.Error(), says) {
			t.Errorf("check %s: %v", p, err)
		}
		if _, err := c.pack("/d", p); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("pack %s: %v", p, err)
		}
	}
}

// Sockets, devices, and other file systems below stay behind.
func TestPassedOver(t *testing.T) {
	c := newContainer(t, os.Getpid())
	c.write("data/file", "x")
	c.mkdir("data/mounted", 0o755)
	must(t, unix.Mount("tmpfs", c.path("data/mounted"), "tmpfs", 0, "size=2m"))
	t.Cleanup(func() { _ = unix.Unmount(c.path("data/mounted"), unix.MNT_DETACH) })
	c.write("data/mounted/inside", "in")
	c.mkdir("proc", 0o755)
	must(t, unix.Mount("proc", c.path("proc"), "proc", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(c.path("proc"), unix.MNT_DETACH) })
	must(t, os.Symlink("/proc/1", c.path("kernel")))
	must(t, unix.Mknod(c.path("data/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: c.path("data/socket")}))
	archive, err := c.pack("/data")
	must(t, err)
	to := newContainer(t, os.Getpid())
	must(t, to.unpack(archive, "/data"))
	if to.read("data/file") != "x" || len(c.notes) != 3 {
		t.Errorf("notes: %q", c.notes)
	}
	for _, p := range []string{"data/mounted", "data/null", "data/socket"} {
		to.missing(p)
	}
	// What is named goes along wherever it is.
	archive, err = c.pack("/data", "/data/mounted")
	must(t, err)
	must(t, to.unpack(archive, "/data", "/data/mounted"))
	if to.read("data/mounted/inside") != "in" {
		t.Error("wrong content")
	}
	if _, err := c.pack("/kernel"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "kernel") {
		t.Errorf("a link into /proc: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	from := newContainer(t, os.Getpid())
	from.write("data/a", strings.Repeat("x", 3<<20))
	archive, err := from.pack("/data")
	must(t, err)
	to := newContainer(t, os.Getpid())
	to.mkdir("data", 0o755)
	must(t, unix.Mount("tmpfs", to.path("data"), "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { _ = unix.Unmount(to.path("data"), unix.MNT_DETACH) })
	if err := to.unpack(archive, "/data"); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "/data/a") {
		t.Errorf("unpack: %v", err)
	}
	f, err := os.Create(to.path("data/archive"))
	must(t, err)
	defer f.Close()
	// Told before it is written if it can be, else when there is no room left.
	for _, hole := range []bool{false, true} {
		if hole {
			must(t, os.Truncate(from.path("data/a"), 1<<40))
		}
		err = Pack(t.Context(), from.root, []string{"/data"}, f, from.options())
		if !errdefs.IsResourceExhausted(err) {
			t.Errorf("pack: %v", err)
		}
	}
	must(t, os.Truncate(from.path("data/a"), 10))
	for i := range 2000 {
		from.write(fmt.Sprintf("data/%d", i), "y")
	}
	if err = Pack(t.Context(), from.root, []string{"/data"}, f, from.options()); !errdefs.IsResourceExhausted(err) {
		t.Errorf("pack: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	c := newContainer(t, os.Getpid())
	c.sample(0)
	archive, err := c.pack("/data")
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Pack(ctx, c.root, []string{"/data"}, new(bytes.Buffer), c.options()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := Unpack(ctx, c.root, []string{"/data"}, bytes.NewReader(archive), int64(len(archive)), c.options()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// The threads of this process are as they were: what ran as somebody else is gone.
func TestThreadsAreGone(t *testing.T) {
	c := newContainer(t, user(t, 4242))
	for range 20 {
		_ = Check(c.root, []string{"/x"}, c.rights)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		odd := ""
		tasks, err := os.ReadDir("/proc/self/task")
		must(t, err)
		for _, task := range tasks {
			status, err := os.ReadFile("/proc/self/task/" + task.Name() + "/status")
			if err == nil && strings.Contains(string(status), "4242") {
				odd = task.Name()
			}
		}
		if odd == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("thread %s still has the user's rights", odd)
		}
	}
}
