package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "usr/lib/x.so", "12345")
	symlink(t, "/usr/lib", filepath.Join(dir, "lib"))              // absolute: means the container's
	symlink(t, "../../../../../usr/lib", filepath.Join(dir, "up")) // stays in the root
	symlink(t, "loop", filepath.Join(dir, "loop"))
	symlink(t, "/proc/self/exe", filepath.Join(dir, "magic"))
	mkfifo(t, filepath.Join(dir, "fifo"))
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, tc := range []struct {
		path string
		size int64
		says string // "" = fine
	}{
		{"/usr/lib/x.so", 5, ""},
		{"/lib/x.so", 5, ""},
		{"/up/x.so", 5, ""},
		{"/../../usr/lib/x.so", 5, ""},
		{"//usr/lib/x.so", 5, ""},
		{"/usr/lib/x.so", 140, "/usr/lib/x.so: 5 bytes here, 140 in the checkpoint"},
		{"/usr/lib/y.so", 5, "missing here"},
		{"/usr/lib/x.so/z", 5, "missing here"},
		{"/loop", 5, "a loop of links here"},
		{"/magic", 5, "missing here"},
		{"/fifo", 0, "a fifo here"},
		{"/usr", 0, "a folder here"},
		{"/", 0, "a folder here"},
		{"/etc/passwd", 0, "missing here"},
	} {
		err := CheckFiles(root, []FileCheck{{"/usr/lib/x.so", 5}, {tc.path, tc.size}})
		if tc.says == "" && err != nil || tc.says != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: got %v, want %q", tc.path, err, tc.says)
		}
	}
	var many []FileCheck
	for i := range 20 {
		many = append(many, FileCheck{fmt.Sprintf("/f%d", i), 1})
	}
	if err := CheckFiles(root, many); err == nil || !strings.Contains(err.Error(), "and 15 more") {
		t.Errorf("got %v", err)
	}
	if err := CheckFiles(root, nil); err != nil {
		t.Error(err)
	}
}
