//go:build linux

package container

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

func TestMergeLeavesTheRest(t *testing.T) {
	res := &cgroups.Resources{
		Memory:     100,
		CpuShares:  512,
		CpusetCpus: "0",
		PidsLimit:  ptr(int64(7)),
		BlkioWeightDevice: []*cgroups.WeightDevice{
			cgroups.NewWeightDevice(8, 0, 10, 0),
			cgroups.NewWeightDevice(8, 16, 20, 0),
		},
	}
	if err := merge(res, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(200))},
		CPU:    &specs.LinuxCPU{Quota: ptr(int64(5000)), Period: ptr(uint64(10000))},
		BlockIO: &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{
			weightDevice(8, 16, 30), weightDevice(9, 0, 40),
		}},
	}); err != nil {
		t.Fatal(err)
	}
	if res.Memory != 200 || res.CpuQuota != 5000 || res.CpuPeriod != 10000 {
		t.Errorf("not changed: %+v", res)
	}
	if res.CpuShares != 512 || res.CpusetCpus != "0" || *res.PidsLimit != 7 {
		t.Errorf("changed without being told: %+v", res)
	}
	var weights []uint16
	for _, d := range res.BlkioWeightDevice {
		weights = append(weights, d.Weight)
	}
	if len(weights) != 3 || weights[0] != 10 || weights[1] != 30 || weights[2] != 40 {
		t.Errorf("weights of the devices: %v", weights)
	}
}

func weightDevice(major, minor int64, weight uint16) specs.LinuxWeightDevice {
	d := specs.LinuxWeightDevice{Weight: &weight}
	d.Major, d.Minor = major, minor
	return d
}

func TestUnlimitedMemoryNeedsNoSwapLimit(t *testing.T) {
	res := &cgroups.Resources{Memory: 100, MemorySwap: 100}
	if err := merge(res, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}); err != nil {
		t.Fatal(err)
	}
	if res.Memory != -1 || res.MemorySwap != 0 {
		t.Errorf("memory %d, swap %d", res.Memory, res.MemorySwap)
	}
}

func TestBeside(t *testing.T) {
	for path, want := range map[string]string{
		"/default/old":            "/default/new",
		"/kubepods/burst/pod/old": "/kubepods/burst/pod/new",
		"old":                     "new",
		"system.slice:pre:old":    "system.slice:pre:new",
	} {
		if got := beside(path, "new"); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestBadSpecs(t *testing.T) {
	good := func() *specs.Spec {
		return &specs.Spec{
			Process: &specs.Process{Cwd: "/", Args: []string{"x"}},
			Root:    &specs.Root{Path: "rootfs"},
			Linux:   &specs.Linux{},
		}
	}
	if err := validate(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*specs.Spec){
		"no process":   func(s *specs.Spec) { s.Process = nil },
		"no args":      func(s *specs.Spec) { s.Process.Args = nil },
		"no cwd":       func(s *specs.Spec) { s.Process.Cwd = "" },
		"relative cwd": func(s *specs.Spec) { s.Process.Cwd = "x" },
		"no root":      func(s *specs.Spec) { s.Root = nil },
		"no linux":     func(s *specs.Spec) { s.Linux = nil },
	} {
		s := good()
		spoil(s)
		if err := validate(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAbsolute(t *testing.T) {
	spec := &specs.Spec{
		Root: &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Type: "bind", Source: "data", Destination: "/d"},
			{Type: "none", Options: []string{"rbind"}, Source: "/abs", Destination: "/a"},
			{Type: "tmpfs", Source: "tmpfs", Destination: "/t"},
		},
	}
	got := absolute(spec, "/bundle")
	if got.Root.Path != "/bundle/rootfs" || got.Mounts[0].Source != "/bundle/data" ||
		got.Mounts[1].Source != "/abs" || got.Mounts[2].Source != "tmpfs" {
		t.Errorf("%+v %+v", got.Root, got.Mounts)
	}
	if spec.Root.Path != "rootfs" || spec.Mounts[0].Source != "data" {
		t.Error("the caller's spec was changed")
	}
}
