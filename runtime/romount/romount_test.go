//go:build linux

package romount

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := OpenReadOnly(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	through := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
	if b, err := os.ReadFile(through + "/file"); err != nil || string(b) != "text" {
		t.Errorf("read through it: %q %v", b, err)
	}
	if err := os.WriteFile(through+"/file", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through it: %v", err)
	}
	if err := os.Mkdir(through+"/new", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("make a folder through it: %v", err)
	}
	if err := os.Remove(through + "/file"); !errors.Is(err, unix.EROFS) {
		t.Errorf("remove through it: %v", err)
	}
	// The host's own way to it is as it was.
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("other"), 0o644); err != nil {
		t.Errorf("write on the host: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("the clone shows in the host's mounts: %v", err)
	}
}

func TestExecute(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		t.Fatal(err)
	}
	f, err := OpenReadOnly(program, unix.O_PATH)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.Args[0] = "true"
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("execute: %v %s", err, out)
	}
	// The way back from a descriptor to a writable file is closed.
	if _, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("open again for writing: %v", err)
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := OpenReadOnly(path, unix.O_NOATIME)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if b, err := io.ReadAll(f); err != nil || string(b) != "text" {
		t.Errorf("read: %q %v", b, err)
	}
	if got, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || got&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags of the descriptor: %#x %v", got, err)
	}
}

func TestRefusals(t *testing.T) {
	if _, err := OpenReadOnly(filepath.Join(t.TempDir(), "missing"), 0); !errdefs.IsNotFound(err) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_CREAT, unix.O_TRUNC} {
		if _, err := OpenReadOnly("/", flags); !errdefs.IsInvalidArgument(err) {
			t.Errorf("flags %#x: %v", flags, err)
		}
	}
}
