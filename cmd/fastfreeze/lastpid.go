package main

import "unsafe"

// lastPid sets the last used pid of this process's pid namespace (proc_sys_kernel(5), ns_last_pid) and exits.
// Between the write and the end it makes no thread: that would take the pid which was asked for.
func lastPid(arg string) {
	const file = "/proc/sys/kernel/ns_last_pid"
	n, ok := atoi(arg)
	if !ok {
		writeAll(2, "fastfreeze: last-pid "+arg+": not a pid; give a decimal number\n")
		exit(exitUsage)
	}
	put(file, itoa(n), "run it as root of the host, in the container's pid namespace, with the host's /proc")
}

// warm moves this process to the cgroup that it is in already (cgroup.procs takes 0 for the writer) and exits.
// The first move between cgroups after a while waits for a grace period of the kernel's, some 10 ms; the next
// ones, of a container that is being made meanwhile, do not.
func warm(procs string) {
	put(procs, "0", "give the cgroup.procs file of this process's own cgroup")
}

// put writes text to a file and exits.
func put(file, text, remedy string) {
	b := newCstring(text)
	name := newCstring(file)
	cwd := atFdcwd
	fd, e := sys4(sysOpenat, uintptr(cwd), uintptr(unsafe.Pointer(name)), oWronly|oCloexec, 0)
	if e != 0 {
		die("opening "+file, e, remedy)
	}
	if _, e = sys3(sysWrite, uintptr(fd), uintptr(unsafe.Pointer(b)), uintptr(len(text))); e != 0 {
		die("writing "+text+" to "+file, e, remedy)
	}
	exit(0)
}
