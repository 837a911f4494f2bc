package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// probeWord makes the test's own program the probe, inside a container.
const probeWord = "fastmig-test-probe"

func init() {
	if len(os.Args) < 2 || os.Args[1] != probeWord {
		return
	}
	probe()
	os.Exit(0)
}

// TestReach has a program inside the container try to lay hands on PID 1 and
// its socket, with the same user and without seccomp in its way.
func TestReach(t *testing.T) {
	runSuite(t, []images.Image{images.Shell, images.Busybox}, []labTest{
		{"root", testReach(nil, false)},
		{"user", testReach(func(p *specs.Process) { p.User = specs.User{UID: 1234, GID: 2345} }, false)},
		{"user in the host's network", testReach(func(p *specs.Process) { p.User = specs.User{UID: 1234, GID: 2345} }, true)},
		{"privileged", testPrivilegedReach},
		{"host's view", testHostView},
	})
}

// withProbe mounts the test's program into the container.
func withProbe(t *testing.T, opts harness.RunOptions) harness.RunOptions {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	// Its folder may be closed to other users.
	path := filepath.Join(t.TempDir(), "probe")
	data, err := os.ReadFile(self)
	check(t, err)
	check(t, os.WriteFile(path, data, 0o755))
	opts.Image = images.Shell.Ref()
	opts.Spec = append(slices.Clone(opts.Spec), oci.WithMounts([]specs.Mount{
		{Type: "bind", Source: path, Destination: "/probe", Options: []string{"bind", "ro"}},
	}), noNewPrivileges(false))
	return opts
}

func testReach(user func(*specs.Process), hostNetwork bool) func(*testing.T, *harness.Lab) {
	return func(t *testing.T, lab *harness.Lab) {
		if !lab.Runtime.IsFastMig() {
			return // PID 1 is the application itself there
		}
		opts := withProbe(t, sleeper())
		opts.HostNetwork = hostNetwork
		if user != nil {
			opts.Spec = append(opts.Spec, withProcess(user))
		}
		c := lab.MustRun(opts)
		ref := "fastmig.test/reach:" + c.ID()
		check(t, c.Checkpoint(lab.Context(), ref, false))
		restored := lab.MustRestore(harness.RestoreOptions{Ref: ref})
		for _, c := range []*harness.Container{c, restored} {
			out := lab.MustExec(c, "/probe", probeWord)
			if !strings.Contains(out, "tried") {
				t.Errorf("the probe says %q", out)
			}
			for _, line := range strings.Split(out, "\n") {
				if strings.HasPrefix(line, "REACHED") {
					t.Errorf("in %s: %s", c.ID(), line)
				}
			}
		}
	}
}

// A container with all capabilities reaches PID 1, as any does under the stock
// shim; but not the toolkit on the host through it.
func testPrivilegedReach(t *testing.T, lab *harness.Lab) {
	if !lab.Runtime.IsFastMig() {
		return
	}
	opts := withProbe(t, sleeper())
	opts.Spec = append(opts.Spec, oci.WithAllCurrentCapabilities)
	c := lab.MustRun(opts)
	out := lab.MustExec(c, "/probe", probeWord)
	for _, line := range strings.Split(out, "\n") {
		if strings.HasPrefix(line, "REACHED write") || strings.HasPrefix(line, "REACHED chmod") {
			t.Errorf("%s", line)
		}
	}
	if !strings.Contains(out, "chmod of /proc/1/exe: read-only file system") {
		t.Errorf("the toolkit's program is not on a read-only mount:\n%s", out)
	}
}

// What PID 1 runs and holds, as the host sees it.
func testHostView(t *testing.T, lab *harness.Lab) {
	if !lab.Runtime.IsFastMig() {
		return
	}
	c := lab.MustRun(sleeper())
	proc := fmt.Sprintf("/proc/%d", c.Task.Pid())
	var fs unix.Statfs_t
	check(t, unix.Statfs(proc+"/exe", &fs))
	if fs.Flags&unix.ST_RDONLY == 0 {
		t.Error("PID 1's program lies on a mount that can be written")
	}
	mounts := func(pid string) string {
		data, err := os.ReadFile(pid + "/mountinfo")
		check(t, err)
		return string(data)
	}
	equal(t, "the application's mounts", mounts(fmt.Sprintf("/proc/%d", applicationPid(t, lab, c))), mounts(proc))
	for _, word := range []string{"fastmig ", "fastfreeze", "criu"} {
		// The harness has "fastmig" in its paths.
		for _, line := range strings.Split(mounts(proc), "\n") {
			if fields := strings.Fields(line); len(fields) > 4 && strings.Contains(fields[4], strings.TrimSpace(word)) {
				t.Errorf("a mount of ours: %s", line)
			}
		}
	}
	// No descriptor leads out of the container: pipes, sockets and anonymous
	// ones only.
	for _, line := range fdLines(t, int(c.Task.Pid())) {
		_, target, _ := strings.Cut(line, " -> ")
		if strings.HasPrefix(target, "/") && !strings.HasPrefix(target, "/dev/null") {
			t.Errorf("PID 1 holds %s", line)
		}
	}
}

// probe tries what a hostile program would and tells the outcomes; what must
// not be possible is told as REACHED.
func probe() {
	runtime.LockOSThread() // for ptrace
	fmt.Println("tried as user", os.Getuid())
	try := func(what string, err error) {
		if err == nil {
			fmt.Println("REACHED", what)
		} else {
			fmt.Printf("%s: %v\n", what, bare(err))
		}
	}
	_, err := os.ReadDir("/proc/1/fd")
	if os.Getuid() != 0 {
		// The folder belongs to root, who learns numbers from it and no more.
		try("list of /proc/1/fd", err)
	}
	for _, name := range []string{"fd/3", "cwd", "root", "exe", "ns/mnt"} {
		_, err := os.Readlink("/proc/1/" + name)
		try("link /proc/1/"+name, err)
	}
	for _, name := range []string{"mem", "maps", "environ", "stack", "auxv"} {
		f, err := os.Open("/proc/1/" + name)
		if err == nil {
			// Some may be opened and give nothing.
			_, err = f.Read(make([]byte, 1))
			f.Close()
		}
		try("read of /proc/1/"+name, err)
	}
	f, err := os.OpenFile("/proc/1/exe", os.O_WRONLY, 0)
	try("write to /proc/1/exe", err)
	if err == nil {
		f.Close()
	}
	try("chmod of /proc/1/exe", os.Chmod("/proc/1/exe", 0o777))
	pidfd, err := unix.PidfdOpen(1, 0)
	if err == nil {
		for fd := range 10 {
			_, err = unix.PidfdGetfd(pidfd, fd, 0)
			try(fmt.Sprintf("pidfd_getfd of %d", fd), err)
		}
	}
	local := make([]byte, 8)
	_, err = unix.ProcessVMReadv(1, []unix.Iovec{{Base: &local[0], Len: 8}}, []unix.RemoteIovec{{Base: 0x400000, Len: 8}}, 0)
	if err == unix.EFAULT {
		err = nil // the address is wrong, the access was not refused
	}
	try("process_vm_readv of PID 1", err)
	err = unix.PtraceSeize(1)
	try("ptrace of PID 1", err)
	if err == nil {
		_ = unix.PtraceDetach(1)
	}
	data, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		fmt.Println("REACHED nothing: cannot read /proc/net/unix:", err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if strings.Contains(line, "@") && (strings.Contains(line, "fastfreeze") || strings.Contains(line, "fastmig")) {
			fmt.Println("REACHED a named socket", line)
		}
	}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			fmt.Println("REACHED an inherited socket", e.Name())
		}
	}
}

// bare is the error without the path.
func bare(err error) error {
	if p, ok := err.(*os.PathError); ok {
		return p.Err
	}
	return err
}
