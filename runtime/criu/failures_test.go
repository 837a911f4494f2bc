//go:build linux

package criu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The real CRIU, made to fail. What it wrote then is in testdata; this shows that it still
// says so, and that the application has not suffered.
func TestDumpFailures(t *testing.T) {
	for name, c := range map[string]struct {
		commands []string
		options  func(*testing.T, *DumpOptions)
		want     string
		kind     error
	}{
		"mptcp":       {[]string{"listen mptcp 127.0.0.1:7000"}, nil, "process 1000 (app) has a socket of Multipath TCP", errdefs.ErrFailedPrecondition},
		"userfaultfd": {[]string{"anon userfaultfd"}, nil, "process 1000 (app) has an open anon_inode:[userfaultfd]", errdefs.ErrFailedPrecondition},
		"io_uring":    {[]string{"anon io_uring"}, nil, "process 1000 has an open io_uring", errdefs.ErrFailedPrecondition},
		"watch":       {[]string{"file /tmp/x text", "watch /tmp/x", "remove /tmp/x"}, nil, "process 1000 (app) watches", errdefs.ErrFailedPrecondition},
		"renamed":     {[]string{"file /tmp/x text", "link /tmp/x /tmp/y"}, nil, "has the file /tmp/x open", errdefs.ErrFailedPrecondition},
		"lock":        {[]string{"file /tmp/x text", "lock"}, nil, "holds file locks", errdefs.ErrFailedPrecondition},
		"nested":      {[]string{"nested 0x20000000"}, nil, "is in a pid namespace of its own", errdefs.ErrFailedPrecondition},
		"traced":      {[]string{"traced"}, nil, "is traced by another one", errdefs.ErrFailedPrecondition},
		"no process":  {nil, func(_ *testing.T, o *DumpOptions) { o.Pid = 77 }, "there is no process 77", errdefs.ErrNotFound},
		"disk full":   {[]string{"memory 4"}, smallDisk, "no space is left", errdefs.ErrResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			a := newContainer(t)
			app := a.start(1000)
			app.ask("set color green")
			for _, command := range c.commands {
				app.ask("%s", command)
			}
			o := a.dumpOf(app, newCheckpoint(t))
			if c.options != nil {
				c.options(t, &o)
			}
			_, err := realTool(t).Dump(testContext(t), o)
			checkError(t, err, c.kind, c.want)
			expect(t, "the application afterwards", app.ask("get color"), "green")
		})
	}
}

func checkError(t *testing.T, err, kind error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, kind) {
		t.Errorf("error %v: want %q of kind %v", err, want, kind)
	}
}

func smallDisk(t *testing.T, o *DumpOptions) {
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	images, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	o.Images = images
	t.Cleanup(func() {
		_ = images.Close()
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestRestoreFailures(t *testing.T) {
	write := func(text string, mode os.FileMode) func(*testing.T, *container, *RestoreOptions) {
		return func(t *testing.T, b *container, _ *RestoreOptions) {
			if err := os.WriteFile(filepath.Join(b.root(), "tmp/x"), []byte(text), mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	open := "file /tmp/x text"
	for name, c := range map[string]struct {
		commands []string
		prepare  func(*testing.T, *container, *RestoreOptions)
		want     string
		kind     error
	}{
		"pid taken":    {nil, func(_ *testing.T, b *container, _ *RestoreOptions) { b.start(1000) }, "the process number 1000 is taken", errdefs.ErrFailedPrecondition},
		"missing file": {[]string{open}, nil, "process 1000 had the file /tmp/x open, which cannot be opened now", errdefs.ErrFailedPrecondition},
		"other size":   {[]string{open}, write("longer text", 0o600), "which had 4 bytes at the checkpoint and has 11 now", errdefs.ErrFailedPrecondition},
		"other mode":   {[]string{open}, write("text", 0o644), "which had mode 0100600 at the checkpoint and has 0100644 now", errdefs.ErrFailedPrecondition},
		"port taken": {[]string{"listen tcp 127.0.0.1:7000"}, func(_ *testing.T, b *container, _ *RestoreOptions) {
			b.start(900).ask("listen tcp 127.0.0.1:7000")
		}, "the port that process 1000 listened on is taken", errdefs.ErrFailedPrecondition},
		"empty folder": {nil, func(t *testing.T, _ *container, o *RestoreOptions) { o.Images = newCheckpoint(t).images }, "missing or damaged", errdefs.ErrDataLoss},
		"truncated": {nil, func(t *testing.T, _ *container, o *RestoreOptions) {
			if err := os.Truncate(filepath.Join(o.Images.Name(), "core-1000.img"), 40); err != nil {
				t.Fatal(err)
			}
		}, "missing or damaged", errdefs.ErrDataLoss},
		"other root": {nil, func(_ *testing.T, _ *container, o *RestoreOptions) { o.Pid = 999 }, "process 1000, not 999", errdefs.ErrInvalidArgument},
		"no /proc": {nil, func(_ *testing.T, b *container, _ *RestoreOptions) {
			b.start(900).ask("unmount /proc")
		}, "/proc", errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			tool := realTool(t)
			a, b := newContainer(t), newContainer(t)
			app := a.start(1000)
			for _, command := range c.commands {
				app.ask("%s", command)
			}
			o := b.restoreOf(a.dump(tool, app), app, newService(t))
			if c.prepare != nil {
				c.prepare(t, b, &o)
			}
			_, err := tool.Restore(testContext(t), o)
			checkError(t, err, c.kind, c.want)
		})
	}
}
