package image

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
)

func inspectDir(t testing.TB, dir string) (*Contents, error) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return Inspect(d)
}

func TestInspect(t *testing.T) {
	dir := t.TempDir()
	writeImages(t, dir)
	got, err := inspectDir(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := &Contents{
		Processes: []Process{
			{Pid: 1000, Comm: "server", State: StateRunning, Threads: 2},
			{Pid: 1002, PPid: 1000, Comm: "worker", State: StateStopped, Threads: 1},
			{Pid: 1003, PPid: 1000, Comm: "gone", State: StateZombie, Threads: 1},
		},
		Files:     []FileCheck{{"/bin/server", 0}, {"/usr/lib/libx.so", 140}},
		Pipes:     []Pipe{{Inode: 815, Read: true, Write: true}, {Inode: 4711, Write: true}},
		TTYs:      []TTY{{TTYID{Rdev: 0x8801, Dev: 0x1f}, true}},
		TCPClosed: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if p := got.Process(1002); p == nil || p.Comm != "worker" {
		t.Errorf("process 1002: %+v", p)
	}
	if p := got.Process(1); p != nil {
		t.Errorf("process 1: %+v", p)
	}
}

func TestInspectDamaged(t *testing.T) {
	pristine := t.TempDir()
	writeImages(t, pristine)
	for _, name := range []string{"inventory.img", "pstree.img", "core-1000.img", "files.img"} {
		for what, spoil := range map[string]func(t *testing.T, file string){
			"missing":   func(t *testing.T, file string) { os.Remove(file) },
			"empty":     func(t *testing.T, file string) { os.Truncate(file, 0) },
			"truncated": func(t *testing.T, file string) { st, _ := os.Stat(file); os.Truncate(file, st.Size()-1) },
			"no magic":  func(t *testing.T, file string) { os.WriteFile(file, make([]byte, 100), 0o600) },
			"huge file": func(t *testing.T, file string) { os.Truncate(file, maxImage+1) },
			"huge entry": func(t *testing.T, file string) {
				b, _ := os.ReadFile(file)
				b = binary.LittleEndian.AppendUint32(b[:8], 0xffffffff)
				os.WriteFile(file, b, 0o600)
			},
			"link": func(t *testing.T, file string) { os.Rename(file, file+"x"); symlink(t, file+"x", file) },
			"fifo": func(t *testing.T, file string) { os.Remove(file); mkfifo(t, file) },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "cp")
				if err := os.CopyFS(dir, os.DirFS(pristine)); err != nil {
					t.Fatal(err)
				}
				spoil(t, filepath.Join(dir, name))
				if _, err := inspectDir(t, dir); !errdefs.IsDataLoss(err) {
					t.Errorf("got %v, want DataLoss", err)
				}
			})
		}
	}
}

func TestInspectWithoutOptionalImages(t *testing.T) {
	dir := t.TempDir()
	writeImages(t, dir)
	os.Remove(filepath.Join(dir, "remap-fpath.img"))
	os.Remove(filepath.Join(dir, "tty-info.img"))
	got, err := inspectDir(t, dir)
	if err != nil || len(got.TTYs) != 0 || len(got.Files) != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// FuzzInspect feeds the reader of CRIU's images: a checkpoint may come from
// anywhere, and a digest only says that it came unchanged.
func FuzzInspect(f *testing.F) {
	dir := f.TempDir()
	writeImages(f, dir)
	raw, err := os.ReadFile(filepath.Join(dir, "files.img"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:8])
	f.Fuzz(func(t *testing.T, files []byte) {
		// Each fuzzing process runs one input at a time.
		writeFile(t, dir, "files.img", string(files))
		c, err := inspectDir(t, dir)
		if err != nil && !errdefs.IsDataLoss(err) {
			t.Fatalf("an error without its kind: %v", err)
		}
		if err != nil {
			return
		}
		for _, file := range c.Files {
			if !filepath.IsAbs(file.Path) || file.Size < 0 {
				t.Fatalf("took %+v", file)
			}
		}
	})
}
