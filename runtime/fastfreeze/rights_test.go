//go:build linux

package fastfreeze

import (
	"os"
	"testing"

	"github.com/fastmig/fastmig/runtime/image"
)

func TestParseRights(t *testing.T) {
	got, err := parseRights("Name:\tx\nCapBnd:\t000001fffeffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n")
	if want := (image.Rights{Bounding: 0x1fffeffffff, NoNewPrivs: true, Seccomp: true}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "CapBnd:\tx\nNoNewPrivs:\t0\n", "CapBnd:\t0\n"} {
		if _, err := parseRights(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	own, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := parseRights(string(own)); err != nil || r.Bounding == 0 {
		t.Errorf("our own: %+v, %v", r, err)
	}
}
