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
	b := newCstring(itoa(n))
	size := uintptr(len(itoa(n)))
	name := newCstring(file)
	cwd := atFdcwd
	fd, e := sys4(sysOpenat, uintptr(cwd), uintptr(unsafe.Pointer(name)), oWronly|oCloexec, 0)
	if e != 0 {
		die("opening "+file, e, "run it as root of the host, in the container's pid namespace, with the host's /proc")
	}
	if _, e = sys3(sysWrite, uintptr(fd), uintptr(unsafe.Pointer(b)), size); e != 0 {
		die("writing "+arg+" to "+file, e, "this needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE over the pid namespace")
	}
	exit(0)
}
