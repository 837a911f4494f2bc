//go:build linux

package node

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestProbeThisMachine runs every probe for real. What it finds depends on the
// machine, but as root on a kernel that runs the other tests it knows each
// answer, and these must be yes.
func TestProbeThisMachine(t *testing.T) {
	p := Probe(t.Context(), Options{Configuration: Finding{Status: Yes}, Toolkit: Finding{Status: Yes}})
	if p.Kernel == "" || p.Kernel == "unknown" {
		t.Errorf("kernel %q", p.Kernel)
	}
	for _, f := range features {
		found, ok := p.Findings[f.name]
		t.Logf("%-22s %-8s %s", f.name, found.Status, found.Detail)
		if !ok || found.Status == "" {
			t.Errorf("%s was not probed", f.name)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs root")
	}
	for _, name := range []Name{Root, CgroupFeature, Namespaces, Openat2, DetachedMounts, Kcmp, PrSetMM, NsLastPid, SetTid, Ptrace} {
		if found := p.Findings[name]; found.Status != Yes {
			t.Errorf("%s: %v", name, found)
		}
	}
	for _, name := range []Name{Seccomp, Userfaultfd, SoftDirty, TimeNS, UserNS, Overlayfs} {
		if found := p.Findings[name]; found.Status == Unknown {
			t.Errorf("%s: %v", name, found)
		}
	}
	if found := p.Findings[Capabilities]; found.Status == Unknown || found.Status == No {
		t.Errorf("capabilities: %v", found)
	}
}

func TestProbeCriu(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("CRIU needs root")
	}
	failed := errors.New("exit status 1")
	works := func(_ context.Context, args ...string) (string, error) {
		switch strings.Join(args, " ") {
		case "--version":
			return "Version: 4.1.1\nGitID: v4.1.1\n", nil
		case "check":
			return "Looks good.\n", nil
		case "check --feature mem_dirty_track":
			return "Warn  (criu/cr-check.c:824): Dirty tracking is OFF. Memory snapshot will not work.\n", failed
		case "check --feature pagemap_scan":
			return "Error (criu/cr-check.c:1866): Unknown feature pagemap_scan\n", failed
		}
		return "is supported\n", nil
	}
	old := func(_ context.Context, args ...string) (string, error) {
		if args[0] == "--version" {
			return "Version: 3.17.1\n", nil
		}
		return "Error (criu/vdso.c:279): Unexpected rt vDSO area bounds\n", failed
	}
	broken := func(context.Context, ...string) (string, error) { return "", failed }
	for _, tc := range []struct {
		name string
		criu func(context.Context, ...string) (string, error)
		want map[Name]Finding
	}{
		{"works", works, map[Name]Finding{
			Criu: {Yes, "4.1.1"}, CriuCheck: {Status: Yes}, CriuUffd: {Status: Yes},
			CriuMemTrack: {No, "Dirty tracking is OFF. Memory snapshot will not work."},
			CriuPagemap:  {No, "this CRIU does not know it"},
		}},
		{"too old for the kernel", old, map[Name]Finding{Criu: {Yes, "3.17.1"}, CriuCheck: {No, "Unexpected rt vDSO area bounds"}}},
		{"does not start", broken, map[Name]Finding{Criu: {No, "it does not start: exit status 1"}, CriuCheck: {Unknown, "CRIU does not start"}}},
		{"none", nil, map[Name]Finding{Criu: {No, "not installed"}, CriuTimeNS: {Unknown, "there is no CRIU"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			found := map[Name]Finding{}
			probeCriu(t.Context(), tc.criu, found)
			for name, want := range tc.want {
				if found[name] != want {
					t.Errorf("%s: got %v, want %v", name, found[name], want)
				}
			}
		})
	}
}

func TestInspectStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Inspect(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want context.Canceled", err)
	}
}
