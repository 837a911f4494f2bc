package harness

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Traces is what a node's containers occupy on the host at one moment. Two of
// them around an operation tell what it leaked.
type Traces struct {
	// kinds maps a kind of thing to its things and how many there are.
	kinds map[string]map[string]int
}

// Traces looks at the node: its processes, mounts and cgroups, its files below
// the run-time folders (bundles, fifos, sockets, shims' state), network devices
// and the open descriptors of containerd and each shim.
func (n *Node) Traces(ctx context.Context) (Traces, error) {
	t := Traces{kinds: map[string]map[string]int{}}
	for _, p := range n.Processes() {
		t.add("process", p.String())
	}
	for _, g := range cgroupsOf(n.id) {
		t.add("cgroup", g)
	}
	err := n.InMachine(func() error {
		table, err := os.Open("/proc/thread-self/mountinfo")
		if err != nil {
			return err
		}
		defer table.Close()
		mounts, err := mountinfo.GetMountsFromReader(table, nil)
		if err != nil {
			return err
		}
		for _, m := range mounts {
			t.add("mount", m.Mountpoint+" ("+m.FSType+")")
		}
		for _, dir := range []string{n.stateDir(), filepath.Join(n.Dir, "s"), n.fifoDir(), "/run"} {
			if err := t.addFiles(dir); err != nil {
				return err
			}
		}
		return t.addLinks()
	})
	if err != nil {
		return Traces{}, fmt.Errorf("look for traces: %w", err)
	}
	for _, p := range append(n.Shims(), Process{Pid: n.DaemonPid(), Args: "containerd"}) {
		if p.Pid != 0 {
			t.addDescriptors(p)
		}
	}
	return t, ctx.Err()
}

func (t Traces) add(kind, thing string) {
	if t.kinds[kind] == nil {
		t.kinds[kind] = map[string]int{}
	}
	t.kinds[kind][thing]++
}

// addFiles adds what is below dir, but not a container's root file system.
func (t Traces) addFiles(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // gone since its folder was read
			}
			return err
		}
		if d.IsDir() && d.Name() == "rootfs" {
			return filepath.SkipDir
		}
		if path != dir {
			t.add("file", path+" ("+d.Type().String()+")")
		}
		return nil
	})
}

func (t Traces) addLinks() error {
	data, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(data), "\n")[2:] {
		if name, _, ok := strings.Cut(line, ":"); ok {
			t.add("network device", strings.TrimSpace(name))
		}
	}
	return nil
}

// inodeNumber is what tells one anonymous descriptor from another; the check
// counts how many of a sort there are.
var inodeNumber = regexp.MustCompile(`:\[\d+\]`)

func (t Traces) addDescriptors(p Process) {
	dir := fmt.Sprintf("/proc/%d/fd", p.Pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			t.add(fmt.Sprintf("descriptor of %d (%.60s)", p.Pid, p.Args), inodeNumber.ReplaceAllString(target, ""))
		}
	}
}

// Diff lists what t has more of than before, a line each; it is empty when
// nothing was leaked.
func (t Traces) Diff(before Traces) string {
	var lines []string
	for _, kind := range slices.Sorted(maps.Keys(t.kinds)) {
		for _, thing := range slices.Sorted(maps.Keys(t.kinds[kind])) {
			count, old := t.kinds[kind][thing], before.kinds[kind][thing]
			switch {
			case count > old && old == 0 && count == 1:
				lines = append(lines, fmt.Sprintf("+ %s %s", kind, thing))
			case count > old:
				lines = append(lines, fmt.Sprintf("+ %s %s (%d, before %d)", kind, thing, count, old))
			}
		}
	}
	return strings.Join(lines, "\n")
}

// WaitForNoLeak waits until the node has no more traces than before. What ends
// a moment after its container, such as a shim, is thus no leak.
func (n *Node) WaitForNoLeak(ctx context.Context, before Traces) error {
	return WaitFor(ctx, "everything that was started to be gone", func(ctx context.Context) (bool, error) {
		now, err := n.Traces(ctx)
		if err != nil {
			return false, err
		}
		diff := now.Diff(before)
		return diff == "", fmt.Errorf("left:\n%s", diff)
	})
}
