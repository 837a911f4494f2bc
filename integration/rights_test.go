package integration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// TestRights compares what the application may do and what it sees with the
// stock shim, before and after a checkpoint and a restore.
func TestRights(t *testing.T) {
	var tests []labTest
	for _, c := range rightsCases {
		tests = append(tests, labTest{c.name, c.run})
	}
	runSuite(t, []images.Image{images.Shell}, tests)
}

// rightsCase is a container's spec.
type rightsCase struct {
	name     string
	terminal bool
	spec     []oci.SpecOpts
}

func withProcess(change func(*specs.Process)) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		change(s.Process)
		return nil
	}
}

func noNewPrivileges(on bool) oci.SpecOpts {
	return withProcess(func(p *specs.Process) { p.NoNewPrivileges = on })
}

// someUser has supplementary groups, a umask, limits and no capabilities but
// an ambient one.
var someUser = withProcess(func(p *specs.Process) {
	umask := uint32(0o027)
	p.User = specs.User{UID: 1234, GID: 2345, AdditionalGids: []uint32{3456, 4567}, Umask: &umask}
	p.Rlimits = []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 500, Hard: 1000},
		{Type: "RLIMIT_NPROC", Soft: 600, Hard: 700},
		{Type: "RLIMIT_CORE", Soft: 0, Hard: 4096},
	}
	adjust := 321
	p.OOMScoreAdj = &adjust
	p.Cwd = "/usr"
	if c := p.Capabilities; c != nil {
		c.Inheritable, c.Ambient = []string{"CAP_NET_RAW"}, []string{"CAP_NET_RAW"}
	}
})

var rightsCases = []rightsCase{
	{name: "root", spec: []oci.SpecOpts{seccomp.WithDefaultProfile(), noNewPrivileges(false)}},
	{name: "root, no new privileges", spec: []oci.SpecOpts{seccomp.WithDefaultProfile(), noNewPrivileges(true)}},
	{name: "user", spec: []oci.SpecOpts{seccomp.WithDefaultProfile(), noNewPrivileges(false), someUser}},
	{name: "user, no new privileges", spec: []oci.SpecOpts{seccomp.WithDefaultProfile(), noNewPrivileges(true), someUser}},
	{name: "terminal", terminal: true, spec: []oci.SpecOpts{seccomp.WithDefaultProfile()}},
	{name: "all capabilities", spec: []oci.SpecOpts{oci.WithAllCurrentCapabilities, noNewPrivileges(false)}},
	{name: "hostname and environment", spec: []oci.SpecOpts{oci.WithHostname("somename"), oci.WithEnv([]string{"WORD=a word", "GOGC=7", "GODEBUG=x=1"})}},
}

// look is the application: it tells about itself when it is asked to.
const look = `
report() {
	echo "== begin"
	id; umask; uname -n; pwd; ulimit -Sa; ulimit -Ha
	env | sort
	for f in kernel/hostname kernel/ns_last_pid net/ipv4/ip_forward vm/swappiness; do
		if { : >>/proc/sys/$f; } 2>/dev/null; then echo "$f can be opened for writing"; else echo "$f is read-only"; fi
	done
	if mount -t tmpfs none /mnt 2>/dev/null; then echo "may mount"; umount /mnt; else echo "may not mount"; fi
	if unshare -r true 2>/dev/null; then echo "may unshare"; else echo "may not unshare"; fi
	if [ -t 0 ]; then tty; ps -o tty= -p $$; fi
	echo "== end"
}
report
while read -r line; do report; done`

func (rc rightsCase) run(t *testing.T, lab *harness.Lab) {
	opts := harness.RunOptions{Image: images.Shell.Ref(), Args: []string{"bash", "-c", look}, Spec: rc.spec, Terminal: rc.terminal}
	stock := lab.MustRun(asStock(t, lab, opts))
	want := rightsOf(t, lab, stock)
	source := lab.MustRun(opts)
	if diff := diffLines(rightsOf(t, lab, source), want); diff != "" {
		t.Errorf("the application differs from the stock shim's (+ ours, - stock):\n%s", diff)
	}
	ref := "fastmig.test/rights:" + source.ID()
	check(t, source.Checkpoint(lab.Context(), ref, true))
	exitOf(t, lab, source)
	check(t, source.Remove(lab.Context()))
	if !lab.Runtime.IsFastMig() {
		return // what the stock shim restores is its own affair
	}
	restored := lab.MustRestore(harness.RestoreOptions{Ref: ref})
	_, err := restored.Stdin.Write([]byte("\n"))
	check(t, err)
	got := rightsOf(t, lab, restored)
	// The clocks of a restored application go on in a time namespace of its
	// own.
	got, want = withoutTime(got), withoutTime(want)
	if diff := diffLines(got, want); diff != "" {
		t.Errorf("the restored application differs from the stock shim's (+ ours, - stock):\n%s", diff)
	}
}

func withoutTime(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.HasPrefix(l, "namespace time") })
}

// applicationPid is the host's pid of the container's application: PID 1 under
// the stock shim and in plain containers, else its child with the pid 1000.
func applicationPid(t *testing.T, lab *harness.Lab, c *harness.Container) int {
	t.Helper()
	pids, err := c.Task.Pids(lab.Context())
	check(t, err)
	for _, p := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid))
		check(t, err)
		for _, line := range strings.Split(string(data), "\n") {
			if words := strings.Fields(line); len(words) > 1 && words[0] == "NSpid:" && words[len(words)-1] == "1000" {
				return int(p.Pid)
			}
		}
	}
	return int(c.Task.Pid())
}

// rightsOf tells all about the application, from inside and from outside, with
// what must differ between containers replaced.
func rightsOf(t *testing.T, lab *harness.Lab, c *harness.Container) []string {
	t.Helper()
	waitText(t, lab, c.Output, "== end")
	inside := strings.ReplaceAll(c.Output.String(), "\r", "")
	_, inside, _ = strings.Cut(inside, "== begin\n")
	inside, _, _ = strings.Cut(inside, "== end")
	lines := strings.Split("inside:\n"+inside, "\n")

	pid := applicationPid(t, lab, c)
	// The report's children must be gone, and the application wait for more.
	lab.WaitFor("the application to wait", func(context.Context) (bool, error) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		return err == nil && len(bytes.TrimSpace(data)) == 0, err
	})
	proc := func(name string) string {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
		if err != nil {
			return errors.Unwrap(err).Error()
		}
		return strings.TrimRight(string(data), "\n\x00")
	}
	add := func(title, text string) {
		for _, line := range strings.Split(text, "\n") {
			lines = append(lines, title+" "+line)
		}
	}
	for _, line := range strings.Split(proc("status"), "\n") {
		name, value, _ := strings.Cut(line, ":")
		if statusFields[name] {
			add(name, strings.Join(strings.Fields(value), " "))
		}
	}
	for _, name := range []string{"limits", "oom_score_adj", "attr/current", "personality", "coredump_filter", "uid_map", "gid_map", "setgroups", "loginuid", "cgroup", "timerslack_ns"} {
		add(name, proc(name))
	}
	add("environ", strings.ReplaceAll(proc("environ"), "\x00", "\n"))
	add("cmdline", strings.ReplaceAll(proc("cmdline"), "\x00", "\n"))
	for _, line := range strings.Split(proc("mountinfo"), "\n") {
		add("mount", mountLine(line))
	}
	for _, name := range []string{"cwd", "root", "exe"} {
		target, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), name))
		check(t, err)
		add(name, target)
	}
	lines = append(lines, statLines(proc("stat"), pid)...)
	lines = append(lines, namespaceLines(t, pid)...)
	lines = append(lines, fdLines(t, pid)...)
	for i, line := range lines {
		lines[i] = numbers.ReplaceAllString(strings.ReplaceAll(line, c.ID(), "ID"), "$1:[N]")
	}
	return lines
}

var (
	statusFields = map[string]bool{
		"Umask": true, "Uid": true, "Gid": true, "Groups": true, "CapInh": true, "CapPrm": true, "CapEff": true,
		"CapBnd": true, "CapAmb": true, "NoNewPrivs": true, "Seccomp": true, "Seccomp_filters": true, "SigPnd": true,
		"ShdPnd": true, "SigBlk": true, "SigIgn": true, "SigCgt": true, "Threads": true, "THP_enabled": true,
		"Speculation_Store_Bypass": true, "SpeculationIndirectBranch": true, "Cpus_allowed": true, "Mems_allowed": true,
		"TracerPid": true, "CoreDumping": true, "Name": true,
	}
	numbers = regexp.MustCompile(`(pipe|socket|mnt|net|ipc|pid|uts|time|user|cgroup):\[\d+\]`)
	peers   = regexp.MustCompile(`(shared|master|propagate_from):\d+`)
)

// mountLine is a line of mountinfo without its numbers.
func mountLine(line string) string {
	fields := strings.Fields(line)
	if len(fields) < 6 {
		return line
	}
	text := peers.ReplaceAllString(strings.Join(fields[3:], " "), "$1")
	return snapshotNumber.ReplaceAllString(text, "snapshots/N/")
}

// statLines are what /proc/PID/stat tells of session, terminal and scheduling.
func statLines(stat string, pid int) []string {
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	field := func(n int) string { return f[n-3] } // as proc_pid_stat(5) numbers them
	own := func(n int) bool { return field(n) == strconv.Itoa(pid) }
	return []string{
		fmt.Sprintf("leads its process group: %v, its session: %v", own(5), own(6)),
		fmt.Sprintf("terminal: %s, in its foreground: %v", field(7), own(8)),
		fmt.Sprintf("nice: %s, policy: %s, real-time priority: %s, exit signal: %s", field(19), field(41), field(40), field(38)),
	}
}

func namespaceLines(t *testing.T, pid int) []string {
	t.Helper()
	var lines []string
	for _, kind := range []string{"cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "user", "uts"} {
		got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		check(t, err)
		host, err := os.Readlink("/proc/self/ns/" + kind)
		check(t, err)
		lines = append(lines, fmt.Sprintf("namespace %s: the host's: %v", kind, got == host))
	}
	return lines
}

// fdLines are the open descriptors, with their flags.
func fdLines(t *testing.T, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	check(t, err)
	var lines []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		check(t, err)
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, e.Name()))
		check(t, err)
		flags := ""
		for _, line := range strings.Split(string(info), "\n") {
			if strings.HasPrefix(line, "flags:") {
				n, err := strconv.ParseUint(strings.Fields(line)[1], 8, 32)
				check(t, err)
				// O_LARGEFILE is all that opening a descriptor anew adds, and
				// means nothing to a 64-bit program.
				flags = fmt.Sprintf("flags 0%o", n&^0o100000)
			}
		}
		lines = append(lines, fmt.Sprintf("descriptor %s -> %s, %s", e.Name(), target, flags))
	}
	return lines
}
