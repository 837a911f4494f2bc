//go:build linux

// Package node finds out what a node can do: it probes the kernel, the rights
// of the caller and CRIU, and judges from that whether containers can be run,
// checkpointed and restored here.
//
// Probing (Probe) and judging (Judge) are apart: a judgement is a pure function
// of what was probed.
package node

// Name names a feature. The names are stable: machines read them.
type Name string

// The features that are probed.
const (
	Root           Name = "root"
	Capabilities   Name = "capabilities"
	CgroupFeature  Name = "cgroup"
	Freezer        Name = "freezer"
	Namespaces     Name = "namespaces"
	UserNS         Name = "user_namespaces"
	TimeNS         Name = "time_namespaces"
	Overlayfs      Name = "overlayfs"
	Seccomp        Name = "seccomp"
	Openat2        Name = "openat2"
	DetachedMounts Name = "detached_mounts"
	Kcmp           Name = "kcmp"
	PrSetMM        Name = "pr_set_mm"
	NsLastPid      Name = "ns_last_pid"
	SetTid         Name = "clone3_set_tid"
	Ptrace         Name = "ptrace"
	Userfaultfd    Name = "userfaultfd"
	SoftDirty      Name = "soft_dirty"
	Configuration  Name = "configuration"
	Toolkit        Name = "toolkit"
	Criu           Name = "criu"
	CriuCheck      Name = "criu_check"
	CriuMemTrack   Name = "criu_mem_dirty_track"
	CriuUffd       Name = "criu_uffd_noncoop"
	CriuPidfdStore Name = "criu_pidfd_store"
	CriuPagemap    Name = "criu_pagemap_scan"
	CriuTimeNS     Name = "criu_timens"
)

// Status is what a probe found.
type Status string

const (
	Yes     Status = "yes"
	No      Status = "no"
	Limited Status = "limited" // works, with exceptions that Detail names
	Unknown Status = "unknown" // could not be probed, Detail says why
)

// Finding is the result of one probe.
type Finding struct {
	Status Status
	Detail string // what was seen; may be empty
}

// Probed is all that Judge judges.
type Probed struct {
	Kernel   string // release, as uname(2) has it
	Arch     string // as in Go's GOARCH
	Findings map[Name]Finding
}

// Verb is something that a node should be able to do.
type Verb string

const (
	Run        Verb = "run"
	Checkpoint Verb = "checkpoint"
	Restore    Verb = "restore"
)

// Verbs in the order in which they are reported.
var Verbs = []Verb{Run, Checkpoint, Restore}

// need is how much a verb depends on a feature.
type need int

const (
	helps    need = iota + 1 // without it the verb is limited
	required                 // without it the verb cannot work
)

// feature is what is known about a feature beforehand.
type feature struct {
	name        Name
	title       string
	needs       map[Verb]need
	consequence string // of its absence
	remedy      string
}

func all(n need) map[Verb]need { return map[Verb]need{Run: n, Checkpoint: n, Restore: n} }

// features are reported in this order.
var features = []feature{
	{Root, "rights of root", all(required),
		"nothing can be judged or run without it", "run as root: sudo fastmig check"},
	{Capabilities, "capabilities of root", all(required),
		"what needs the missing ones fails with EPERM", "give root the missing ones: on the host, in the container or virtual machine that this node is, or in the unit that starts containerd"},
	{CgroupFeature, "cgroups", all(required),
		"no container can be limited or found again", "mount the cgroup file system: mount -t cgroup2 none /sys/fs/cgroup"},
	{Freezer, "cgroup freezer", map[Verb]need{Run: helps, Checkpoint: required},
		"containers cannot be paused, and containerd pauses them for a checkpoint", "use cgroup v2, or mount the freezer of v1: mount -t cgroup -o freezer none /sys/fs/cgroup/freezer"},
	{Namespaces, "namespaces", all(required),
		"no container can be made", "boot a kernel with CONFIG_NAMESPACES and CONFIG_{PID,NET,IPC,UTS}_NS, as distributions build it"},
	{UserNS, "user namespaces", nil,
		"containers with a user namespace of their own cannot run", "raise it: sysctl user.max_user_namespaces=15000; otherwise boot a kernel with CONFIG_USER_NS"},
	{TimeNS, "time namespaces", map[Verb]need{Restore: helps},
		"the monotonic clock of a restored service jumps when the node has another uptime", "boot a kernel from 5.6 on with CONFIG_TIME_NS"},
	{Overlayfs, "overlayfs", map[Verb]need{Run: helps},
		"containerd has to copy images (its native snapshotter)", "load it: modprobe overlay"},
	{Seccomp, "seccomp", map[Verb]need{Run: helps},
		"containers with a seccomp profile, the default of most clients, do not start", "boot a kernel with CONFIG_SECCOMP_FILTER, or run containers with seccomp=unconfined"},
	{Openat2, "openat2", all(required),
		"paths cannot be resolved safely inside a container", "boot a kernel from 5.6 on"},
	{DetachedMounts, "read-only detached mounts", all(required),
		"the toolkit cannot be shown to a container read-only", "boot a kernel from 5.12 on"},
	{Kcmp, "kcmp", map[Verb]need{Checkpoint: required},
		"CRIU cannot tell which processes share what", "boot a kernel with CONFIG_CHECKPOINT_RESTORE, as distributions build it"},
	{PrSetMM, "prctl(PR_SET_MM)", map[Verb]need{Restore: required},
		"CRIU cannot restore a process's memory layout", "boot a kernel with CONFIG_CHECKPOINT_RESTORE, as distributions build it"},
	{NsLastPid, "ns_last_pid", map[Verb]need{Run: helps},
		"a service starts at a low pid, which may be taken where it is restored", "boot a kernel with CONFIG_CHECKPOINT_RESTORE and make /proc/sys writable for root"},
	{SetTid, "clone3(set_tid)", map[Verb]need{Restore: helps},
		"CRIU restores pids one after the other through ns_last_pid, and may lose the race for one", "boot a kernel from 5.5 on; under a seccomp filter allow clone3"},
	{Ptrace, "ptrace", map[Verb]need{Checkpoint: required, Restore: required},
		"CRIU cannot enter the processes", "allow it to root: sysctl kernel.yama.ptrace_scope=1 (3 can only be left by a reboot)"},
	{Userfaultfd, "userfaultfd", nil,
		"memory cannot follow after a restore (lazy pages)", "boot a kernel with CONFIG_USERFAULTFD, as distributions build it"},
	{SoftDirty, "soft-dirty tracking", nil,
		"no incremental pre-dump: each checkpoint writes all of the memory", "boot a kernel with CONFIG_MEM_SOFT_DIRTY, as distributions build it"},
	{Configuration, "configuration", all(required),
		"the shim makes no containers", "correct or remove the file"},
	{Toolkit, "toolkit", all(required),
		"there is no PID 1 for containers and no CRIU", "install it: sudo fastmig install"},
	{Criu, "CRIU", map[Verb]need{Checkpoint: required, Restore: required},
		"nothing can be checkpointed or restored", "install it: sudo fastmig install, or with a CRIU of your own: sudo fastmig install --criu PATH"},
	{CriuCheck, "criu check", map[Verb]need{Checkpoint: required, Restore: required},
		"this CRIU does not work on this kernel", "install a newer CRIU (kernels from 6.13 on need 4.1): sudo fastmig install, or with --criu PATH"},
	{CriuMemTrack, "CRIU: mem_dirty_track", nil,
		"no incremental pre-dump", "it needs soft-dirty tracking, see there"},
	{CriuUffd, "CRIU: uffd-noncoop", nil,
		"memory cannot follow after a restore (lazy pages)", "boot a kernel with CONFIG_USERFAULTFD"},
	{CriuPidfdStore, "CRIU: pidfd_store", nil,
		"a pid that is used again between two pre-dumps is noticed late", "boot a kernel from 5.6 on"},
	{CriuPagemap, "CRIU: pagemap_scan", nil,
		"finding a process's pages takes longer", "boot a kernel from 6.7 on; use CRIU 4.0 or newer"},
	{CriuTimeNS, "CRIU: timens", map[Verb]need{Restore: helps},
		"the monotonic clock of a restored service jumps", "boot a kernel from 5.6 on with CONFIG_TIME_NS"},
}
