//go:build linux

package criu

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// traps are files that CRIU, its loader and its libraries would take for code or
// configuration, if they looked for them in the container.
func (c *container) traps() {
	c.t.Helper()
	app, err := os.ReadFile(testApp)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"etc/ld.so.preload":              []byte("/evil.so\n"),
		"etc/criu/default.conf":          []byte("no-such-option\n"),
		"root/.criu/default.conf":        []byte("no-such-option\n"),
		"etc/gnutls/config":              []byte("[overrides]\nno-such = option\n"),
		"run/criu.kdat":                  []byte("forged"),
		"usr/lib/criu/evil.so":           []byte("not a library"),
		"usr/lib/x86_64-linux-gnu/a.so":  []byte("not a library"),
		"lib/x86_64-linux-gnu/libc.so.6": []byte("not a library"),
		"bin/sh":                         app,
		"usr/sbin/iptables":              app,
		"usr/sbin/nft":                   app,
		"usr/bin/tar":                    app,
		"sbin/ip":                        app,
	} {
		path := filepath.Join(c.root(), name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			c.t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
}

// files lists the container's root file system, with sizes and times of change.
func (c *container) files() string {
	c.t.Helper()
	var b strings.Builder
	root := c.root() + "/"
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch name := strings.TrimPrefix(path, root); name {
		case "proc", "dev/pts":
			return fs.SkipDir
		default:
			info, err := d.Info()
			if err != nil {
				return err
			}
			b.WriteString(name + " " + info.Mode().String() + " " + info.ModTime().String() + "\n")
			return nil
		}
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return b.String()
}

// Nothing of the container is taken for code or configuration, and nothing is left in it.
func TestContainerIsNotTrusted(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	app.ask("listen tcp 127.0.0.1:7000")
	app.ask("connect tcp 127.0.0.1:7000")
	for _, c := range []*container{a, b} {
		c.traps()
	}
	before, beforeB := a.files(), b.files()

	cp := newCheckpoint(t)
	o := a.dumpOf(app, cp)
	o.TCP = KeepConnections // the case in which CRIU would look for iptables and nft
	if _, err := tool.Dump(testContext(t), o); err != nil {
		t.Fatal(err)
	}
	expect(t, "files after the dump", a.files(), before)

	b.start(500).ask("listen tcp 127.0.0.1:7001") // brings lo up
	again := newService(t)
	ro := b.restoreOf(cp, app, again)
	ro.TCP = KeepConnections
	r, err := tool.Restore(testContext(t), ro)
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, r.Process)
	expect(t, "files after the restore", b.files(), beforeB)
	if log := readLog(t, cp.log) + readLog(t, ro.Log); strings.Contains(log, "evil.so") {
		t.Errorf("CRIU looked at the container's files: %s", log)
	}
}

// What CRIU and the processes that it makes could be reached through.
func TestCriuInTheContainer(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	cp := a.dump(tool, app)
	leak, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, leak)
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	seen := false
	o := b.restoreOf(cp, app, newService(t))
	o.Notify = func(script string, _ int) error {
		if script != "pre-restore" {
			return nil
		}
		seen = true
		criu := filepath.Join("/proc", itoa(runningCriu(t)))
		// The toolkit's file, which the container cannot open for writing even so.
		if f, err := os.OpenFile(filepath.Join(criu, "exe"), os.O_WRONLY, 0); err == nil {
			_ = f.Close()
			t.Error("CRIU's program can be opened for writing")
		} else if !strings.Contains(err.Error(), "read-only file system") && !strings.Contains(err.Error(), "text file busy") {
			t.Errorf("open CRIU's program for writing: %v", err)
		}
		fds, err := os.ReadDir(filepath.Join(criu, "fd"))
		if err != nil {
			t.Error(err)
		}
		for _, fd := range fds {
			if link, err := os.Readlink(filepath.Join(criu, "fd", fd.Name())); err == nil && link == "/etc/passwd" {
				t.Error("CRIU has a descriptor that is not its own")
			}
		}
		return nil
	}
	r, err := tool.Restore(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, r.Process)
	if !seen {
		t.Error("CRIU was not looked at")
	}
}
