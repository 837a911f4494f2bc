//go:build linux

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	cgroups "github.com/containerd/cgroups/v3"
	"github.com/moby/sys/capability"
	"golang.org/x/sys/unix"
)

// Options says how CRIU and the toolkit are reached: this package knows neither.
type Options struct {
	// Configuration is the finding about the node's configuration file.
	Configuration Finding
	// Toolkit is the finding about the toolkit.
	Toolkit Finding
	// Criu runs CRIU with arguments and returns what it printed; nil when there
	// is none.
	Criu func(ctx context.Context, args ...string) (string, error)
}

// Inspect probes the machine and judges. It needs root's rights for all probes
// to tell something, changes nothing, and takes about half a second, most of it
// CRIU's, or until ctx ends.
func Inspect(ctx context.Context, opts Options) (Report, error) {
	p := Probe(ctx, opts)
	if err := ctx.Err(); err != nil {
		return Report{}, fmt.Errorf("node: probe the machine: %w", err)
	}
	return Judge(p), nil
}

// Probe probes the machine. What cannot be probed is Unknown.
func Probe(ctx context.Context, opts Options) Probed {
	p := Probed{Kernel: kernelRelease(), Arch: runtime.GOARCH, Findings: map[Name]Finding{}}
	for name, probe := range map[Name]func() Finding{
		Root: root, Capabilities: capabilities, CgroupFeature: cgroupMode, Freezer: freezer, Namespaces: namespaces,
		UserNS: userNamespaces, TimeNS: timeNamespaces, Overlayfs: overlayfs, Seccomp: seccomp, Openat2: openat2,
		DetachedMounts: detachedMounts, Kcmp: kcmp, PrSetMM: prSetMM, NsLastPid: nsLastPid, SetTid: setTid,
		Ptrace: ptrace, Userfaultfd: userfaultfd, SoftDirty: softDirty,
	} {
		p.Findings[name] = probe()
	}
	p.Findings[Configuration] = opts.Configuration
	p.Findings[Toolkit] = opts.Toolkit
	probeCriu(ctx, opts.Criu, p.Findings)
	return p
}

func yes(format string, args ...any) Finding { return Finding{Yes, fmt.Sprintf(format, args...)} }
func no(format string, args ...any) Finding  { return Finding{No, fmt.Sprintf(format, args...)} }

// bySyscall is the finding when a system call's outcome is the answer.
func bySyscall(name string, err error) Finding {
	switch {
	case err == nil:
		return yes("")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return Finding{Unknown, name + " is not permitted: not root, or kept away by a seccomp filter"}
	}
	return no("%s: %v", name, err)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func root() Finding {
	if uid := os.Geteuid(); uid != 0 {
		return no("user %d", uid)
	}
	return yes("")
}

func capabilities() Finding {
	have, err := capability.NewPid2(0)
	if err == nil {
		err = have.Load()
	}
	if err != nil {
		return Finding{Unknown, err.Error()}
	}
	supported, err := capability.ListSupported()
	if err != nil {
		return Finding{Unknown, err.Error()}
	}
	var missing []string
	for _, c := range supported {
		if !have.Get(capability.EFFECTIVE, c) {
			missing = append(missing, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return judgeCapabilities(missing)
}

func cgroupMode() Finding {
	switch cgroups.Mode() {
	case cgroups.Unified:
		return yes("v2")
	case cgroups.Hybrid:
		return yes("v1, with v2 beside it (hybrid)")
	case cgroups.Legacy:
		return yes("v1")
	}
	return no("none is mounted at /sys/fs/cgroup")
}

func freezer() Finding {
	if cgroups.Mode() == cgroups.Unified {
		// The root group has no cgroup.freeze; any other has, from Linux 5.2 on.
		groups, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.freeze")
		if err == nil && len(groups) > 0 {
			return yes("v2")
		}
		if own, err := os.ReadFile("/proc/self/cgroup"); err == nil {
			path := strings.TrimSpace(strings.TrimPrefix(string(own), "0::"))
			if exists(filepath.Join("/sys/fs/cgroup", path, "cgroup.freeze")) {
				return yes("v2")
			}
		}
		return Finding{Unknown, "no cgroup to look at"}
	}
	if exists("/sys/fs/cgroup/freezer/cgroup.procs") {
		return yes("v1")
	}
	return no("/sys/fs/cgroup/freezer is not mounted")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func namespaces() Finding {
	var missing []string
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if !exists("/proc/self/ns/" + ns) {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		return no("without %s", strings.Join(missing, ", "))
	}
	return yes("mnt, pid, net, ipc, uts, cgroup")
}

func userNamespaces() Finding {
	if !exists("/proc/self/ns/user") {
		return no("not in this kernel")
	}
	if most, err := os.ReadFile("/proc/sys/user/max_user_namespaces"); err == nil && strings.TrimSpace(string(most)) == "0" {
		return no("user.max_user_namespaces is 0")
	}
	return yes("")
}

func timeNamespaces() Finding {
	if !exists("/proc/self/ns/time") {
		return no("not in this kernel")
	}
	return yes("")
}

func overlayfs() Finding {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return Finding{Unknown, err.Error()}
	}
	for line := range bytes.Lines(known) {
		if fields := strings.Fields(string(line)); len(fields) > 0 && fields[len(fields)-1] == "overlay" {
			return yes("")
		}
	}
	return no("not loaded")
}

func seccomp() Finding {
	// SECCOMP_GET_ACTION_AVAIL (seccomp(2)) answers without installing anything.
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return no("seccomp: %v", errno)
	}
	return yes("")
}

func openat2() Finding {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err == nil {
		unix.Close(fd)
	}
	return bySyscall("openat2", err)
}

func detachedMounts() Finding {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return bySyscall("open_tree", err)
	}
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return bySyscall("mount_setattr", err)
}
