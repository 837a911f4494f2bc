//go:build linux

package container

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func memoryLimit(l *lab) string {
	name := "memory.limit_in_bytes"
	if cgroups.IsCgroup2UnifiedMode() {
		name = "memory.max"
	}
	return l.read(filepath.Join(l.cgroup("memory"), name))
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Ino
}

func TestRenew(t *testing.T) {
	l := newLab(t, func(l *lab) {
		l.spec.Linux.Sysctl = map[string]string{
			"kernel.msgmax": "4096", "net.ipv4.ip_forward": "0", "kernel.domainname": "start",
		}
		l.spec.Domainname = "start"
	}).start()
	mounts := l.mounts()
	l.sh("ip link set lo up && ip addr add 10.9.8.7/32 dev lo && hostname later && echo 1 > /proc/sys/net/ipv4/ip_forward && echo later > /proc/sys/kernel/domainname && echo kept > /file && echo lost > /dev/file")
	must(t, l.c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}}))
	group, ino := l.cgroup("memory"), inode(t, l.cgroup("memory"))

	// Another process that looks for the container at any moment must find it.
	stop := make(chan struct{})
	var look sync.WaitGroup
	look.Go(func() {
		for n := 0; ; n++ {
			if c, err := Load(l.conf.Root, l.conf.ID); err != nil || c.ID() != l.conf.ID {
				t.Errorf("look %d: %v", n, err)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	t.Cleanup(sync.OnceFunc(func() { look.Wait() }))
	halt := sync.OnceFunc(func() { close(stop) })
	t.Cleanup(halt)

	for round := range 3 {
		before := map[string]string{}
		for _, kind := range []string{"net", "uts", "user", "pid", "mnt", "ipc"} {
			before[kind] = l.ns(l.init.Pid, kind)
		}
		pins := l.pin()
		l.renew(pins)
		pins.Close()
		for kind, was := range before {
			stays := kind == "net" || kind == "uts" || kind == "user"
			if now := l.ns(l.init.Pid, kind); (now == was) != stays {
				t.Errorf("round %d: %s was %s, is %s", round, kind, was, now)
			}
		}
		if l.c.ID() != l.conf.ID || l.cgroup("memory") != group || inode(t, group) != ino {
			t.Errorf("round %d: %s in %s", round, l.c.ID(), l.cgroup("memory"))
		}
		for script, want := range map[string]string{
			"hostname":                                     "later",
			"cat /proc/sys/kernel/domainname":              "later",
			"cat /proc/sys/net/ipv4/ip_forward":            "1",
			"cat /proc/sys/kernel/msgmax":                  "4096",
			"cat /file; test -e /dev/file || echo":         "kept",
			"ip -o addr show dev lo | grep -c 10.9.8.7/32": "1",
			"ip -o link show lo | grep -c LOOPBACK,UP":     "1",
		} {
			if got := l.sh(script); got != want {
				t.Errorf("round %d: %s: %s, want %s", round, script, got, want)
			}
		}
		if got := memoryLimit(l); got != "67108864" {
			t.Errorf("round %d: memory limit %s", round, got)
		}
		if pids, err := l.c.Pids(); err != nil || !slices.Equal(pids, []int{l.init.Pid}) {
			t.Errorf("round %d: processes %v, %v", round, pids, err)
		}
		must(t, l.c.Pause())
		must(t, l.c.Resume())
	}
	halt()
	look.Wait()

	// Update goes on where it was.
	must(t, l.c.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(99))}}))
	if got := memoryLimit(l); got != "67108864" {
		t.Errorf("memory limit %s", got)
	}
	if now := l.mounts(); now != mounts || mounts == "" {
		t.Errorf("mounts were\n%s\nand are\n%s", mounts, now)
	}
	paths, err := l.c.CgroupPaths()
	must(t, err)
	l.end()
	for _, path := range append([]string{filepath.Join(l.conf.Root, l.conf.ID)}, values(paths)...) {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

func values(m map[string]string) []string {
	var out []string
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

func TestRenewLeavesNoDescriptor(t *testing.T) {
	l := newLab(t).start()
	cycle := func() {
		pins := l.pin()
		l.renew(pins)
		pins.Close()
	}
	cycle() // what is opened once, is open now
	fds := descriptors(t)
	for range 3 {
		cycle()
	}
	settled(t, fds)
}

func TestHooksAtRenew(t *testing.T) {
	l := newLab(t, func(l *lab) {
		hook := func(name, dir string) []specs.Hook {
			return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo " + name + " >> " + dir + "/hooks"}}}
		}
		host := filepath.Join(l.dir, "shared")
		l.spec.Hooks = &specs.Hooks{
			//lint:ignore SA1019 still in use, and run by libcontainer
			Prestart:        hook("prestart", host),
			CreateRuntime:   hook("createRuntime", host),
			CreateContainer: hook("createContainer", host),
			StartContainer:  hook("startContainer", "/shared"),
			Poststart:       hook("poststart", host),
			Poststop:        hook("poststop", host),
		}
	}).start()
	ran := func(want ...string) {
		t.Helper()
		if got := strings.Fields(l.shared("hooks")); !slices.Equal(got, want) {
			t.Errorf("hooks %v, want %v", got, want)
		}
	}
	// libcontainer's Start runs poststart, before Release.
	once := []string{"prestart", "createRuntime", "createContainer", "poststart", "startContainer"}
	eventually(t, "the first process runs", func() bool { return strings.Contains(l.shared("hooks"), "startContainer") })
	ran(once...)
	l.renew(l.pin())
	twice := append(once, "createContainer", "startContainer")
	eventually(t, "the second runs", func() bool { return strings.Count(l.shared("hooks"), "startContainer") == 2 })
	ran(twice...)
	l.end()
	ran(append(twice, "poststop")...)
}

func TestRenewInUserNamespace(t *testing.T) {
	l := newLab(t, func(l *lab) {
		l.spec.Linux.Namespaces = append(l.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		l.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		l.spec.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
		rootfs := filepath.Join(l.dir, "rootfs")
		for _, p := range []string{rootfs, rootfs + "/tmp"} {
			must(l.t, os.Chown(p, 100000, 200000))
		}
	}).start()
	l.sh("ip addr add 10.9.8.7/32 dev lo && hostname later && echo kept > /file")
	for range 2 {
		user, net := l.ns(l.init.Pid, "user"), l.ns(l.init.Pid, "net")
		pins := l.pin()
		l.renew(pins)
		if l.ns(l.init.Pid, "user") != user || l.ns(l.init.Pid, "net") != net {
			t.Error("another namespace")
		}
		if user == l.ns(os.Getpid(), "user") {
			t.Error("it is the host's user namespace")
		}
		want := "0 0 later kept 0 100000 65536 1"
		got := l.sh("echo $(id -u) $(id -g) $(hostname) $(cat /file) $(cat /proc/1/uid_map) $(ip -o addr show dev lo | grep -c 10.9.8.7/32)")
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if groups := l.sh("grep Groups /proc/1/status"); groups != "Groups:" {
			t.Errorf("supplementary groups of PID 1: %q", groups)
		}
		var st unix.Stat_t
		must(t, unix.Stat("/proc/"+itoa(l.init.Pid), &st))
		if st.Uid != 100000 || st.Gid != 200000 {
			t.Errorf("PID 1 is %d:%d", st.Uid, st.Gid)
		}
	}
	l.end()
}

func TestRenewWithOthersNamespaces(t *testing.T) {
	pod := spacer(t, unix.CLONE_NEWPID|unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWUTS)
	path := func(kind string) string { return "/proc/" + itoa(pod) + "/ns/" + kind }
	l := newLab(t, func(l *lab) {
		l.spec.Hostname = ""
		l.spec.Linux.Namespaces = []specs.LinuxNamespace{
			{Type: specs.PIDNamespace, Path: path("pid")}, {Type: specs.NetworkNamespace, Path: path("net")},
			{Type: specs.IPCNamespace, Path: path("ipc")}, {Type: specs.UTSNamespace, Path: path("uts")},
			{Type: specs.MountNamespace},
		}
		l.spec.Process.Args = []string{"sh", "-c", "sleep 1000000 & echo $! > /shared/child; exec sleep 1000000"}
	}).start()
	for range 2 {
		eventually(t, "it has a child", func() bool {
			data, err := os.ReadFile(filepath.Join(l.dir, "shared/child"))
			return err == nil && strings.HasSuffix(string(data), "\n")
		})
		child := l.host(l.shared("child"))
		must(t, os.Remove(filepath.Join(l.dir, "shared/child")))
		pins := l.pin()
		if len(pins.files) != 0 {
			t.Errorf("pinned: %v", pins.files)
		}
		l.kill()
		if !runs(child) {
			t.Fatal("the child ended with its parent: the test is of no use")
		}
		l.replace(pins)
		if runs(child) {
			t.Error("the child is still there")
		}
		l.start()
		for _, kind := range []string{"pid", "net", "ipc", "uts"} {
			if l.ns(l.init.Pid, kind) != l.ns(pod, kind) {
				t.Errorf("%s: not the pod's", kind)
			}
		}
	}
}

func TestRenewOfAPausedContainer(t *testing.T) {
	l := newLab(t).start()
	pins := l.pin()
	must(t, l.c.Pause())
	must(t, l.c.Signal(unix.SIGKILL))
	l.wait()
	must(t, l.c.group.Freeze(cgroups.Frozen))
	l.replace(pins)
	l.start()
	if got := l.sh("echo runs"); got != "runs" {
		t.Error(got)
	}
}

func TestRenewRefused(t *testing.T) {
	l := newLab(t).start()
	pins := l.pin()
	if _, err := l.c.Renew(pins); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("while it lives: %v", err)
	}
	old := l.c
	l.kill()
	if _, err := l.c.Renew(nil); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "namespace was not pinned") {
		t.Errorf("without pins: %v", err)
	}
	l.replace(pins)
	l.start()
	if _, err := old.Renew(pins); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second time: %v", err)
	}
	if err := old.Destroy(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("destroy the old one: %v", err)
	}
	if got := l.sh("echo runs"); got != "runs" {
		t.Error(got)
	}
}

func TestRenewAfterAStartThatFailed(t *testing.T) {
	l := newLab(t).start()
	l.sh("ip addr add 10.9.8.7/32 dev lo")
	must(t, l.c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}}))
	pins := l.pin()
	l.kill()
	l.replace(pins)
	rootfs := filepath.Join(l.dir, "rootfs")
	must(t, os.Rename(rootfs+"/proc", rootfs+"/away"))
	must(t, os.Symlink("away", rootfs+"/proc"))
	p, err := NewProcess(l.spec.Process, true, Stdio{}, nil)
	must(t, err)
	if err := l.c.Start(p); err == nil {
		l.init = p
		t.Fatal("it started: the test is of no use")
	}
	must(t, os.Remove(rootfs+"/proc"))
	must(t, os.Rename(rootfs+"/away", rootfs+"/proc"))
	l.replace(pins)
	l.start()
	if got := l.sh("ip -o addr show dev lo | grep -c 10.9.8.7/32"); got != "1" {
		t.Error(got)
	}
	if got := memoryLimit(l); got != "67108864" {
		t.Errorf("memory limit %s", got)
	}
}

// A shim that dies after Renew leaves what `delete` finds and removes.
func TestDeleteOfARenewedContainer(t *testing.T) {
	l := newLab(t, func(l *lab) {
		l.spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo x >> " + l.dir + "/shared/poststop"}}}}
	}).start()
	pins := l.pin()
	l.kill()
	l.replace(pins)
	pins.Close()
	group := l.cgroup("devices")
	c, err := Load(l.conf.Root, l.conf.ID)
	must(t, err)
	must(t, c.Kill())
	must(t, c.Destroy())
	if _, err := os.Stat(group); !os.IsNotExist(err) {
		t.Errorf("its cgroup is left: %v", err)
	}
	if l.shared("poststop") != "x" {
		t.Error("poststop did not run once")
	}
	l.c.pins.Close()
}

func TestPinOfAnother(t *testing.T) {
	l := newLab(t).start()
	for _, pid := range []int{os.Getpid(), 1, 1 << 22} {
		if _, err := l.c.Pin(pid); !errdefs.IsNotFound(err) {
			t.Errorf("%d: %v", pid, err)
		}
	}
	pid := l.init.Pid
	l.kill()
	if _, err := l.c.Pin(pid); !errdefs.IsNotFound(err) {
		t.Errorf("after its end: %v", err)
	}
}
