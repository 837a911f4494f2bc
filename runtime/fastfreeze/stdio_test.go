//go:build linux

package fastfreeze

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

func TestHostID(t *testing.T) {
	for idMap, want := range map[string]int{
		"         0          0 4294967295\n":       0,
		"         0     100000      65536\n":       100000,
		"     1000       1000          1\n0 7 1\n": 7,
		"     1000       1000          1\n":        0,
		"nonsense":                                 0,
	} {
		if got := hostID(idMap); got != want {
			t.Errorf("%q: %d, want %d", idMap, got, want)
		}
	}
}

func TestClassify(t *testing.T) {
	for _, tc := range []struct {
		stat     unix.Stat_t
		kind, id string
	}{
		{unix.Stat_t{Mode: unix.S_IFIFO, Ino: 4711}, image.StdioPipe, "pipe:[4711]"},
		{unix.Stat_t{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(1, 3)}, image.StdioNull, ""},
		{unix.Stat_t{Mode: unix.S_IFCHR, Rdev: unix.Mkdev(136, 0), Dev: 0x1f}, image.StdioTTY, "tty[8800:1f]"},
		{unix.Stat_t{Mode: unix.S_IFREG}, image.StdioFile, ""},
	} {
		if s := classify(tc.stat); s.kind != tc.kind || s.id != tc.id {
			t.Errorf("%+v: %s %s", tc.stat, s.kind, s.id)
		}
	}
}
