//go:build linux

package container

import (
	"fmt"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Update changes the container's limits to those in r; what r leaves out stays.
func (c *Container) Update(r *specs.LinuxResources) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.replaced {
		return c.gone()
	}
	cfg := c.lc.Config()
	// Config is a shallow copy: the resources must not change before Set
	// has accepted them.
	group := *cfg.Cgroups
	res := *group.Resources
	group.Resources = &res
	cfg.Cgroups = &group

	if err := merge(&res, r); err != nil {
		return err
	}
	// Device rules cannot be changed by an update; leaving them alone keeps
	// what others (GPU plugins) have added.
	res.SkipDevices = true
	// Nor is the container to be paused or resumed by one: libcontainer has the last
	// pause's state in there.
	res.Freezer = cgroups.Undefined
	err := c.lc.Set(cfg)
	// With it libcontainer would start no process any more.
	res.SkipDevices = false
	return err
}

func merge(res *cgroups.Resources, r *specs.LinuxResources) error {
	if m := r.Memory; m != nil {
		set(&res.Memory, m.Limit)
		set(&res.MemoryReservation, m.Reservation)
		set(&res.MemorySwap, m.Swap)
		set(&res.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
		// Without a limit there can be no swap limit.
		if m.Limit != nil && *m.Limit == -1 && m.Swap == nil {
			res.MemorySwap = 0
		}
	}
	if cpu := r.CPU; cpu != nil {
		set(&res.CpuQuota, cpu.Quota)
		set(&res.CpuPeriod, cpu.Period)
		set(&res.CpuRtRuntime, cpu.RealtimeRuntime)
		set(&res.CpuRtPeriod, cpu.RealtimePeriod)
		if cpu.Burst != nil {
			res.CpuBurst = cpu.Burst
		}
		if cpu.Shares != nil {
			res.CpuShares = *cpu.Shares
			res.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*cpu.Shares)
		}
		if cpu.Idle != nil {
			res.CPUIdle = cpu.Idle
		}
		if cpu.Cpus != "" {
			res.CpusetCpus = cpu.Cpus
		}
		if cpu.Mems != "" {
			res.CpusetMems = cpu.Mems
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil {
		res.PidsLimit = r.Pids.Limit
	}
	if r.Unified != nil {
		res.Unified = r.Unified
	}
	for _, h := range r.HugepageLimits {
		res.HugetlbLimit = upsert(res.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit},
			func(a, b *cgroups.HugepageLimit) bool { return a.Pagesize == b.Pagesize })
	}
	return mergeBlockIO(res, r.BlockIO)
}

func mergeBlockIO(res *cgroups.Resources, b *specs.LinuxBlockIO) error {
	if b == nil {
		return nil
	}
	set(&res.BlkioWeight, b.Weight)
	set(&res.BlkioLeafWeight, b.LeafWeight)
	for _, d := range b.WeightDevice {
		if d.Weight == nil && d.LeafWeight == nil {
			return fmt.Errorf("blkio weight of device %d:%d: no weight given", d.Major, d.Minor)
		}
		var weight, leaf uint16
		set(&weight, d.Weight)
		set(&leaf, d.LeafWeight)
		res.BlkioWeightDevice = upsert(res.BlkioWeightDevice, cgroups.NewWeightDevice(d.Major, d.Minor, weight, leaf),
			func(a, b *cgroups.WeightDevice) bool { return a.Major == b.Major && a.Minor == b.Minor })
	}
	for _, t := range []struct {
		to   *[]*cgroups.ThrottleDevice
		from []specs.LinuxThrottleDevice
	}{
		{&res.BlkioThrottleReadBpsDevice, b.ThrottleReadBpsDevice},
		{&res.BlkioThrottleWriteBpsDevice, b.ThrottleWriteBpsDevice},
		{&res.BlkioThrottleReadIOPSDevice, b.ThrottleReadIOPSDevice},
		{&res.BlkioThrottleWriteIOPSDevice, b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			*t.to = upsert(*t.to, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate),
				func(a, b *cgroups.ThrottleDevice) bool { return a.Major == b.Major && a.Minor == b.Minor })
		}
	}
	return nil
}

func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func upsert[T any](list []*T, item *T, same func(a, b *T) bool) []*T {
	out := append([]*T(nil), list...)
	for i, have := range out {
		if same(have, item) {
			out[i] = item
			return out
		}
	}
	return append(out, item)
}
