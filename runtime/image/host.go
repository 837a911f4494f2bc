package image

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Host is where a checkpoint is taken or restored.
type Host struct {
	Architecture string
	CPU          CPU
	Kernel       string
	CriuVersion  string // "" if not known: not compared then
}

// ProbeHost describes this machine. It leaves CriuVersion to the caller, who
// runs CRIU.
func ProbeHost() (Host, error) {
	h := Host{Architecture: runtime.GOARCH}
	var err error
	if h.CPU, err = readCPU("/proc/cpuinfo"); err != nil {
		return Host{}, fmt.Errorf("find out what this machine is: %w", withKind(err))
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Host{}, fmt.Errorf("find out what this machine is: uname: %w", withKind(err))
	}
	h.Kernel = unix.ByteSliceToString(uts.Release[:])
	return h, nil
}

// readCPU reads the first processor of /proc/cpuinfo (proc_cpuinfo(5)): vendor
// and features stand there under other keys on each architecture.
func readCPU(path string) (CPU, error) {
	f, err := os.Open(path)
	if err != nil {
		return CPU{}, err
	}
	defer f.Close()
	var cpu CPU
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && (cpu.Vendor == "" || cpu.Features == nil) {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "CPU implementer":
			if cpu.Vendor == "" {
				cpu.Vendor = strings.TrimSpace(value)
			}
		case "flags", "Features", "features":
			if cpu.Features == nil {
				cpu.Features = strings.Fields(value)
			}
		}
	}
	slices.Sort(cpu.Features)
	return cpu, lines.Err()
}

// CheckHost refuses a host on which the application could not go on: another
// architecture, a CPU that lacks features which code may be using, a CRIU that
// is older than the images.
//
// Errors: FailedPrecondition, naming what differs.
func (c *Checkpoint) CheckHost(host Host) error {
	m := c.Manifest
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("restore the checkpoint on this host: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrFailedPrecondition)
	}
	if m.Architecture != host.Architecture {
		return refuse("it was taken on %s, this is %s: restore it on a node with its architecture", m.Architecture, host.Architecture)
	}
	if lacking := lackingFeatures(m.Architecture, m.CPU.Features, host.CPU.Features); len(lacking) > 0 {
		return refuse("the CPU that it was taken on (%s) has features which this one (%s) lacks: %s: restore it on a node whose CPU has them",
			m.CPU.Vendor, host.CPU.Vendor, strings.Join(lacking, ", "))
	}
	if host.CriuVersion == "" {
		return nil
	}
	theirs, err := criuMajor(m.CriuVersion)
	if err != nil {
		return refuse("%v", err)
	}
	ours, err := criuMajor(host.CriuVersion)
	if err != nil {
		return refuse("%v", err)
	}
	if ours < theirs {
		return refuse("it was written by CRIU %s, this node has %s: install CRIU %d or newer", m.CriuVersion, host.CriuVersion, theirs)
	}
	return nil
}

// criuMajor returns the 4 of 4.1.1.
func criuMajor(version string) (int, error) {
	head, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(head)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q is no version of CRIU", version)
	}
	return n, nil
}
