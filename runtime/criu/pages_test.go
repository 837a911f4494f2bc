//go:build linux

package criu

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// takePagesAway moves the page files of a checkpoint to another folder and returns it.
func takePagesAway(t testing.TB, cp *checkpoint) *os.File {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(cp.images.Name(), "pages-*.img"))
	if err != nil || len(files) == 0 {
		t.Fatalf("page files: %v, %v", files, err)
	}
	for _, file := range files {
		if err := os.Rename(file, filepath.Join(dir, filepath.Base(file))); err != nil {
			t.Fatal(err)
		}
	}
	pages, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, pages)
	return pages
}

func TestPagesInAnotherFolder(t *testing.T) {
	for _, tc := range []struct {
		name string
		user int
	}{{"", 0}, {"user namespace", 100000}} {
		t.Run(tc.name, func(t *testing.T) {
			tool := realTool(t)
			a := newContainerAs(t, newFreezer(t), tc.user)
			app := newService(t)
			app.give(a.user)
			a.startWith(app, request{Pid: 1000})
			app.ask("set color green")
			app.ask("fanout 3")
			cp := newCheckpoint(t)
			o := a.dumpOf(app, cp)
			a.freezer.freeze()
			o.FreezeCgroup = a.freezer.dir
			if _, err := tool.Dump(testContext(t), o); err != nil {
				t.Fatal(err)
			}
			a.freezer.thaw()
			pages := takePagesAway(t, cp)
			// What cannot be a page file is not touched.
			if err := unix.Mkfifo(filepath.Join(pages.Name(), "pages-77.img"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/etc/passwd", filepath.Join(pages.Name(), "pages-78.img")); err != nil {
				t.Fatal(err)
			}
			// More than once from the same descriptor.
			for range 2 {
				b := newContainerAs(t, newFreezer(t), tc.user)
				again := newService(t)
				again.give(b.user)
				r := b.restoreOf(cp, app, again)
				r.Pages = pages
				restored, err := tool.Restore(testContext(t), r)
				if err != nil {
					t.Fatal(err)
				}
				closeOnCleanup(t, restored.Process)
				expect(t, "after the restore", again.ask("get color"), "green")
				processes := descendants(b.cmd.Process.Pid)
				if len(processes) != 4 {
					t.Errorf("%d processes, want 4", len(processes))
				}
				for _, pid := range processes {
					for _, link := range openFiles(t, pid) {
						if strings.HasPrefix(link, pages.Name()) || strings.HasPrefix(link, cp.images.Name()) {
							t.Errorf("process %d has %s open", pid, link)
						}
					}
					maps, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "maps"))
					if err != nil || strings.Contains(string(maps), "pages-") {
						t.Errorf("process %d has a page file mapped (%v)", pid, err)
					}
				}
			}
		})
	}
}

func TestPagesMissing(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	cp := a.dump(tool, app)
	pages := takePagesAway(t, cp)
	for _, name := range []string{"pages-1.img"} {
		if err := os.Remove(filepath.Join(pages.Name(), name)); err != nil {
			t.Fatal(err)
		}
	}
	o := b.restoreOf(cp, app, newService(t))
	o.Pages = pages
	if _, err := tool.Restore(testContext(t), o); err == nil {
		t.Error("restored without its memory")
	}
}

func openFiles(t testing.TB, pid int) (links []string) {
	t.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			links = append(links, link)
		}
	}
	return links
}
