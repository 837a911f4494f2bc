package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
)

// machine is what the values depend on besides the code.
type machine struct {
	Date        time.Time `json:"date"`
	CPU         string    `json:"cpu"`
	Cores       int       `json:"cores"`
	MemoryMiB   int       `json:"memory_mib"`
	Kernel      string    `json:"kernel"`
	Cgroup      string    `json:"cgroup"`
	LoadAverage string    `json:"load_average_before"`
	Containerd  string    `json:"containerd"`
	Runc        string    `json:"runc"`
	CRIU        string    `json:"criu"`
	FastMig     string    `json:"fastmig"`
}

func describeMachine() (machine, error) {
	m := machine{Date: time.Now().UTC().Truncate(time.Second), CPU: "unknown", Cores: runtime.NumCPU()}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	if words := strings.Fields(string(load)); len(words) > 3 {
		m.LoadAverage = strings.Join(words[:3], " ")
	}
	// Not every architecture names its CPU there.
	if model, err := lineOf("/proc/cpuinfo", "model name"); err == nil {
		m.CPU = model
	}
	total, err := lineOf("/proc/meminfo", "MemTotal")
	if err != nil {
		return m, err
	}
	kib, err := strconv.Atoi(strings.TrimSuffix(total, " kB"))
	if err != nil {
		return m, fmt.Errorf("read /proc/meminfo: %w", err)
	}
	m.MemoryMiB = kib / 1024
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, err
	}
	m.Kernel = unix.ByteSliceToString(uts.Release[:]) + " " + unix.ByteSliceToString(uts.Machine[:])
	switch cgroups.Mode() {
	case cgroups.Unified:
		m.Cgroup = "v2"
	case cgroups.Hybrid:
		m.Cgroup = "v1, with v2 beside it"
	default:
		m.Cgroup = "v1"
	}
	return m, nil
}

// addVersions asks the programs of the node.
func (m *machine) addVersions(ctx context.Context, node *harness.Node) error {
	v, err := node.Client().Version(ctx)
	if err != nil {
		return err
	}
	m.Containerd = v.Version
	for _, tool := range []struct {
		name, argument string
		version        *string
	}{{"runc", "--version", &m.Runc}, {"criu", "--version", &m.CRIU}, {"fastmig", "version", &m.FastMig}} {
		out, err := node.Tool(ctx, tool.name, tool.argument)
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(out, "\n")
		for _, title := range []string{tool.name, "version", "Version:"} {
			first = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(first), title))
		}
		*tool.version = first
	}
	return nil
}

// text describes the machine in a few lines.
func (m machine) text(rounds int) string {
	return fmt.Sprintf("%s, %d cores of %s, %.1f GiB of memory\nLinux %s, cgroup %s\n"+
		"containerd %s, runc %s, CRIU %s, FastMig %s\n%d rounds; load average before: %s\n",
		m.Date.Format("2006-01-02 15:04 UTC"), m.Cores, m.CPU, float64(m.MemoryMiB)/1024, m.Kernel, m.Cgroup,
		m.Containerd, m.Runc, m.CRIU, m.FastMig, rounds, m.LoadAverage)
}

// lineOf returns what follows "key:" in a file of such lines.
func lineOf(path, key string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if k, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("no line %q in %s", key, path)
}
