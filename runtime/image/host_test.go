package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestProbeHost(t *testing.T) {
	h, err := ProbeHost()
	if err != nil {
		t.Fatal(err)
	}
	if h.Architecture == "" || h.Kernel == "" || len(h.CPU.Features) == 0 || !slices.IsSorted(h.CPU.Features) {
		t.Errorf("%+v", h)
	}
}

func TestReadCPU(t *testing.T) {
	for name, text := range map[string]string{
		"x86": "processor\t: 0\nvendor_id\t: V\nflags\t\t: sse2 avx2\nbugs\t\t: spectre_v1\n\nprocessor\t: 1\nvendor_id\t: W\nflags\t\t: x\n",
		"arm": "processor\t: 0\nFeatures\t: sse2 avx2\nCPU implementer\t: V\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			writeFile(t, dir, "cpuinfo", text)
			cpu, err := readCPU(filepath.Join(dir, "cpuinfo"))
			if err != nil || cpu.Vendor != "V" || !slices.Equal(cpu.Features, []string{"avx2", "sse2"}) {
				t.Errorf("got %+v, %v", cpu, err)
			}
		})
	}
	if _, err := readCPU("/nowhere"); !os.IsNotExist(err) {
		t.Error(err)
	}
}

func TestCheckHost(t *testing.T) {
	cpu := func(features string) CPU { return CPU{Vendor: "V", Features: strings.Fields(features)} }
	source := &Checkpoint{Manifest: &Manifest{Architecture: "amd64", CPU: cpu("avx2 avx512f constant_tsc fpu ibpb sse4_1 vmx"), CriuVersion: "4.1.1"}}
	for _, tc := range []struct {
		name string
		host Host
		says string // "" = accepted
	}{
		{"same", Host{"amd64", source.Manifest.CPU, "", "4.1.1"}, ""},
		{"richer CPU, newer CRIU", Host{"amd64", cpu("avx2 avx512f fpu sse4_1 amx_tile"), "", "5.0"}, ""},
		{"older minor CRIU", Host{"amd64", source.Manifest.CPU, "", "4.0"}, ""},
		{"no virtual machines, other mitigations", Host{"amd64", cpu("avx2 avx512f fpu sse4_1 svm"), "", ""}, ""},
		{"other architecture", Host{"arm64", source.Manifest.CPU, "", "4.1.1"}, "taken on amd64, this is arm64"},
		{"poorer CPU", Host{"amd64", cpu("avx2 fpu"), "", "4.1.1"}, "lacks: avx512f, sse4_1"},
		{"older CRIU", Host{"amd64", source.Manifest.CPU, "", "3.19"}, "written by CRIU 4.1.1, this node has 3.19"},
		{"no CRIU version", Host{"amd64", source.Manifest.CPU, "", "unknown"}, "no version of CRIU"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := source.CheckHost(tc.host)
			if tc.says == "" && err != nil || tc.says != "" && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
}

func TestUserFeature(t *testing.T) {
	for _, tc := range []struct {
		arch, features string
		want           bool
	}{
		{"amd64", "sse sse2 sse4a ssse3 avx avx2 avx512f avx512_vnni avx_vnni avx10_1 amx_tile bmi2 pku rdpid sha_ni xsavec fsgsbase", true},
		{"amd64", "constant_tsc rep_good hypervisor ibpb ssbd arat pti smep smap pcid vmx svm hwp invpcid la57 xsaves splitlock aperfmperf avail", false},
		{"arm64", "fp asimd sve2 atomics", true},
		{"arm64", "evtstrm cpuid", false},
	} {
		for _, f := range strings.Fields(tc.features) {
			if got := userFeature(tc.arch, f); got != tc.want {
				t.Errorf("%s on %s: got %v, want %v", f, tc.arch, got, tc.want)
			}
		}
	}
}
