//go:build linux

package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// libcontainer runs this program as `init`.
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
	code := m.Run()
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		folders, _ := filepath.Glob(pattern + cgroupParent)
		for _, folder := range folders {
			if err := os.Remove(folder); err != nil {
				fmt.Fprintln(os.Stderr, "left over:", err)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// cgroupParent is what the containers' cgroups are in.
var cgroupParent = fmt.Sprintf("/fastmig-test-%d", os.Getpid())

// lab is a real container and what belongs to it. Its root file system is a mount of
// its own, with the host's programs in it.
type lab struct {
	t    *testing.T
	dir  string // the bundle, which others than root may pass through
	conf Config
	spec *specs.Spec
	c    *Container
	init *Process
}

// newLab makes a container that is not started; change may change its spec.
func newLab(t *testing.T, change ...func(*lab)) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("/var/lib", "fastmig-test-")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, dir: dir}
	t.Cleanup(l.clean)
	must(t, os.Chmod(dir, 0o755))
	rootfs := filepath.Join(dir, "rootfs")
	must(t, os.Mkdir(rootfs, 0o755))
	must(t, unix.Mount("tmpfs", rootfs, "tmpfs", 0, "mode=755"))
	for _, name := range []string{"usr", "proc", "dev", "sys", "tmp", "shared"} {
		must(t, os.Mkdir(filepath.Join(rootfs, name), 0o755))
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		must(t, os.Symlink("usr/"+name, filepath.Join(rootfs, name)))
	}
	must(t, os.Mkdir(filepath.Join(dir, "shared"), 0o777))
	must(t, os.Chmod(filepath.Join(dir, "shared"), 0o777))

	id := filepath.Base(dir)
	caps := []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"}
	l.spec = &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args: []string{"sleep", "1000000"},
			Env:  []string{"PATH=/usr/sbin:/usr/bin"},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Effective: caps, Permitted: caps,
			},
		},
		Root:     &specs.Root{Path: rootfs},
		Hostname: "first",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/usr", Type: "bind", Source: "/usr", Options: []string{"rbind", "ro"}},
			{Destination: "/shared", Type: "bind", Source: filepath.Join(dir, "shared"), Options: []string{"rbind"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupParent + "/" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.IPCNamespace},
			},
			Resources: &specs.LinuxResources{},
		},
	}
	l.conf = Config{Root: filepath.Join(dir, "state"), ID: id, Bundle: dir, Spec: l.spec, NoNewKeyring: true}
	for _, f := range change {
		f(l)
	}
	c, err := Create(l.conf)
	if err != nil {
		t.Fatal(err)
	}
	l.c = c
	return l
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clean leaves nothing behind, whatever has become of the test.
func (l *lab) clean() {
	if c, err := Load(l.conf.Root, l.conf.ID); err == nil {
		_ = c.Resume()
		_ = c.Kill()
	}
	if p := l.init; p != nil {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = p.Wait()
		}()
		select {
		case <-done:
		case <-time.After(killTimeout):
			l.t.Error("the first process does not end: something that a test started is not waited for")
		}
	}
	if c, err := Load(l.conf.Root, l.conf.ID); err == nil {
		if err := c.Destroy(); err != nil {
			l.t.Error(err)
		}
	}
	_ = unix.Unmount(filepath.Join(l.dir, "rootfs"), unix.MNT_DETACH)
	_ = os.RemoveAll(l.dir)
}

// start starts and releases the first process.
func (l *lab) start() *lab {
	l.t.Helper()
	errors, err := os.CreateTemp(l.dir, "stderr")
	must(l.t, err)
	defer errors.Close()
	p, err := NewProcess(l.spec.Process, true, Stdio{Stdout: errors, Stderr: errors}, nil)
	must(l.t, err)
	must(l.t, l.c.Start(p))
	l.init = p
	must(l.t, l.c.Release())
	return l
}

// kill ends the first process and waits for it.
func (l *lab) kill() {
	l.t.Helper()
	must(l.t, unix.Kill(l.init.Pid, unix.SIGKILL))
	l.wait()
}

func (l *lab) wait() {
	l.t.Helper()
	ended, err := l.init.Wait()
	if err != nil || ended != (Ended{Status: 137, Signaled: true}) {
		l.t.Fatalf("%+v, %v", ended, err)
	}
	l.init = nil
}

func (l *lab) pin() *Pins {
	l.t.Helper()
	p, err := l.c.Pin(l.init.Pid)
	must(l.t, err)
	l.t.Cleanup(p.Close)
	return p
}

// renew kills the first process, and starts the container in its place.
func (l *lab) renew(p *Pins) {
	l.t.Helper()
	l.kill()
	l.replace(p)
	l.start()
}

func (l *lab) replace(p *Pins) {
	l.t.Helper()
	c, err := l.c.Renew(p)
	must(l.t, err)
	l.c = c
}

// end ends the container as the shim does.
func (l *lab) end() {
	l.t.Helper()
	l.kill()
	must(l.t, l.c.Destroy())
}

// sh runs a script in the container.
func (l *lab) sh(script string) string {
	l.t.Helper()
	out, status, err := l.c.Run(l.t.Context(), l.process("sh", "-c", script), nil, 1<<20)
	if err != nil || status != 0 {
		l.t.Fatalf("%s: status %d, %v: %s", script, status, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (l *lab) process(args ...string) *specs.Process {
	p := *l.spec.Process
	p.Args = args
	return &p
}

// background starts a script that goes on. It must be waited for: PID 1 cannot end
// before those who were started into its pid namespace are reaped.
func (l *lab) background(script string) *Process {
	l.t.Helper()
	p, err := NewProcess(l.process("sh", "-c", script), false, Stdio{}, nil)
	must(l.t, err)
	must(l.t, l.c.Start(p))
	return p
}

// ns is a namespace of a process, held so that its number is not given to another.
func (l *lab) ns(pid int, kind string) string {
	l.t.Helper()
	path := fmt.Sprintf("/proc/%d/ns/%s", pid, kind)
	f, err := os.Open(path)
	must(l.t, err)
	l.t.Cleanup(func() { f.Close() })
	name, err := os.Readlink(path)
	must(l.t, err)
	return name
}

// cgroup gives the folder of a controller.
func (l *lab) cgroup(controller string) string {
	l.t.Helper()
	paths, err := l.c.CgroupPaths()
	must(l.t, err)
	if p, ok := paths[controller]; ok {
		return p
	}
	return paths[""]
}

func (l *lab) read(path string) string {
	l.t.Helper()
	data, err := os.ReadFile(path)
	must(l.t, err)
	return strings.TrimSpace(string(data))
}

// mounts are those of this process that belong to the test. Its main thread may be one
// that libcontainer has sent into the container: the look is at this one.
func (l *lab) mounts() string {
	l.t.Helper()
	var out []string
	for line := range strings.Lines(l.read("/proc/thread-self/mountinfo")) {
		if strings.Contains(line, l.dir) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// shared reads what the container wrote into its shared folder.
func (l *lab) shared(name string) string {
	return l.read(filepath.Join(l.dir, "shared", name))
}

// host is the number that the host knows a container's process by.
func (l *lab) host(inner string) int {
	l.t.Helper()
	pids, err := l.c.Pids()
	must(l.t, err)
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); f[0] == "NSpid:" && f[len(f)-1] == inner {
				return pid
			}
		}
	}
	l.t.Fatalf("no process %s in the container", inner)
	return 0
}

func runs(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// spacer is a process in new namespaces of its own.
func spacer(t *testing.T, flags uintptr) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: unix.SIGKILL}
	started := make(chan error)
	end := make(chan struct{})
	go func() {
		// It ends with this thread, which must not end before the test does.
		runtime.LockOSThread()
		started <- cmd.Start()
		<-end
	}()
	must(t, <-started)
	t.Cleanup(func() {
		close(end)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// descriptors are those of this process: what each of them is open on.
func descriptors(t *testing.T) []string {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var out []string
	for _, e := range list {
		// One of them is that of the list itself.
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out = append(out, e.Name()+" "+name)
		}
	}
	return out
}

// settled waits until there are no more descriptors than before; some are closed by
// what goes on beside.
func settled(t *testing.T, before []string) {
	t.Helper()
	end := time.Now().Add(15 * time.Second)
	for len(descriptors(t)) > len(before) {
		if time.Now().After(end) {
			t.Fatalf("descriptors were\n%s\nand are\n%s", strings.Join(before, "\n"), strings.Join(descriptors(t), "\n"))
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func isTimeout(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

func itoa(n int) string { return strconv.Itoa(n) }
