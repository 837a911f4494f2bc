//go:build linux

package preserve

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// container is a folder that stands for a container's root, and its user.
type container struct {
	t      *testing.T
	dir    string
	root   *os.File
	rights *Rights
	notes  []string
}

// newContainer has the rights of the process pid.
func newContainer(t *testing.T, pid int) *container {
	t.Helper()
	c := &container{t: t, dir: t.TempDir()}
	must(t, os.Chmod(c.dir, 0o755))
	// Above it there are the test's folders, which are root's only.
	for p := filepath.Dir(c.dir); p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		must(t, os.Chmod(p, 0o755))
	}
	var err error
	c.root, err = os.Open(c.dir)
	must(t, err)
	t.Cleanup(func() { c.root.Close() })
	c.rights, err = RightsOf(pid)
	must(t, err)
	return c
}

// process runs one with these attributes until the test's end.
func process(t *testing.T, attr *syscall.SysProcAttr) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = attr
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// user is a process without capabilities.
func user(t *testing.T, uid uint32, groups ...uint32) int {
	return process(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: groups}})
}

// namespaced is root of a user namespace whose ids begin at first on the host.
func namespaced(t *testing.T, first int) int {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: 65536}}
	return process(t, &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c *container) path(p string) string { return filepath.Join(c.dir, p) }

func (c *container) mkdir(p string, mode os.FileMode) {
	c.t.Helper()
	must(c.t, os.MkdirAll(c.path(p), 0o755))
	must(c.t, os.Chmod(c.path(p), mode))
}

func (c *container) write(p, content string) {
	c.t.Helper()
	must(c.t, os.MkdirAll(filepath.Dir(c.path(p)), 0o755))
	must(c.t, os.WriteFile(c.path(p), []byte(content), 0o644))
}

func (c *container) own(p string, uid, gid int) {
	c.t.Helper()
	must(c.t, os.Lchown(c.path(p), uid, gid))
}

func (c *container) age(p string) {
	c.t.Helper()
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: 1234567890, Nsec: 987654321}}
	must(c.t, unix.UtimesNanoAt(unix.AT_FDCWD, c.path(p), ts, unix.AT_SYMLINK_NOFOLLOW))
}

func (c *container) read(p string) string {
	c.t.Helper()
	b, err := os.ReadFile(c.path(p))
	must(c.t, err)
	return string(b)
}

func (c *container) missing(p string) {
	c.t.Helper()
	if _, err := os.Lstat(c.path(p)); !os.IsNotExist(err) {
		c.t.Errorf("%s is there: %v", p, err)
	}
}

func (c *container) options() Options {
	return Options{Rights: c.rights, Note: func(s string) { c.notes = append(c.notes, s) }}
}

func (c *container) pack(paths ...string) ([]byte, error) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	var b bytes.Buffer
	err := Pack(ctx, c.root, paths, &b, c.options())
	return b.Bytes(), err
}

func (c *container) unpack(archive []byte, paths ...string) error {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	err := Unpack(ctx, c.root, paths, bytes.NewReader(archive), int64(len(archive)), c.options())
	// Whatever comes of it, nothing of ours is left.
	must(c.t, filepath.WalkDir(c.dir, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return filepath.SkipDir // of the kernel's files, which a test mounts
		}
		if ok, _ := filepath.Match(tempPrefix+"*", filepath.Base(p)); ok {
			c.t.Errorf("%s is left", p)
		}
		return nil
	}))
	return err
}

// describe is all that is to survive of a file.
func (c *container) describe(p string) string {
	c.t.Helper()
	var st unix.Stat_t
	must(c.t, unix.Lstat(c.path(p), &st))
	kind := st.Mode & unix.S_IFMT
	s := fmt.Sprintf("%o %d:%d %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	switch kind {
	case unix.S_IFLNK:
		to, err := os.Readlink(c.path(p))
		must(c.t, err)
		s += " -> " + to
	case unix.S_IFREG:
		s += fmt.Sprintf(" %d links, %q", st.Nlink, c.read(p))
	}
	if kind == unix.S_IFREG || kind == unix.S_IFDIR {
		for _, name := range []string{"user.a", "user.b", capabilityXattr, accessACL, defaultACL} {
			buf := make([]byte, 1024)
			if n, err := unix.Getxattr(c.path(p), name, buf); err == nil {
				s += fmt.Sprintf(" %s=%x", name, buf[:n])
			}
		}
	}
	return s
}

// forge writes an archive that Pack would not.
func forge(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		content := h.Uname // carries it
		h.Uname = ""
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		must(t, w.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(content))
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Uname: content}
}

func folder(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name + "/"} }
