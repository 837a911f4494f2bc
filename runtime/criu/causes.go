//go:build linux

package criu

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// explanation is what a log says.
type explanation struct {
	cause, remedy string
	lines         []string
	kind          error
	index         int // in the table
}

var (
	errorLine = lazily(`^(?:\(\d+\.\d+\) )?(?:pie: )?\s*(?:(\d+): )?Error \([^)]*\): (.*)$`)
	taskLine  = lazily(`Dumping task \(pid: (\d+) comm: ([^)]*)\)`)
	fdLine    = lazily(`^\(\d+\.\d+\) \d+ fdinfo (\d+): `)
	tasksOver = lazily(`Dumping (?:file-locks|pstree)|Unfreezing tasks`)
	setupLine = lazily(`^fastmig: (.*)$`)
)

// noise are errors that stand in the logs of successes too, or follow from others.
var noise = lazily(`RLIMIT_NOFILE|Dumping FAILED|Restoring FAILED|failed with -\d+$|` +
	`cgroupd: recv req error|Killing processes because of failure|execvp\("|Can't get 1:(?:16|34) opt|` +
	`Message reply from daemon|Error flushing image: No space|Unable to open fd=\d+ id=|` +
	"`- Can't open vma|Failed to fill self vdso|kerndat_|Could not initialize kernel features|IP tool failed")

// maxLines bounds what of a log goes into a message.
const maxLines = 3

// explain reads a log: its decisive lines, and what they mean.
func explain(log string) explanation {
	var e explanation
	var task, fd string
	for line := range strings.Lines(log) {
		line = strings.TrimRight(line, "\n")
		switch {
		case setupLine.MatchString(line):
			return explainSetup(setupLine.FindStringSubmatch(line)[1])
		case taskLine.MatchString(line):
			m := taskLine.FindStringSubmatch(line)
			task, fd = fmt.Sprintf("process %s (%s)", m[1], m[2]), ""
			continue
		case fdLine.MatchString(line):
			fd = fdLine.FindStringSubmatch(line)[1]
			continue
		case tasksOver.MatchString(line):
			task, fd = "", ""
			continue
		}
		m := errorLine.FindStringSubmatch(line)
		if m == nil || noise.MatchString(line) {
			continue
		}
		who := task
		if m[1] != "" {
			who = "process " + m[1]
		}
		if len(e.lines) < maxLines && (len(e.lines) == 0 || e.lines[len(e.lines)-1] != m[2]) {
			e.lines = append(e.lines, m[2])
		}
		e.match(who, fd, m[2])
	}
	if e.cause == "" && len(e.lines) > 0 {
		e.cause = e.lines[0]
	}
	return e
}

// explainSetup is about what preload/ says before CRIU begins.
func explainSetup(line string) explanation {
	e := explanation{cause: line, kind: errdefs.ErrFailedPrecondition}
	switch full := strings.HasSuffix(line, ": No space left on device"); {
	case full && strings.HasPrefix(line, "save "):
		e.kind, e.remedy = errdefs.ErrResourceExhausted, "free some space where the checkpoint's folder is, or choose another folder"
	case full:
		e.kind, e.remedy = errdefs.ErrResourceExhausted, "mount that file system with a larger size= in the container's spec"
	case strings.HasPrefix(line, "put back ") && strings.HasSuffix(line, ": Cannot allocate memory"):
		e.kind, e.remedy = errdefs.ErrResourceExhausted, "raise the container's memory limit"
	case strings.HasPrefix(line, "read the archive of ") && strings.HasSuffix(line, ": Bad message"):
		e.kind, e.remedy = errdefs.ErrDataLoss, "take another checkpoint"
	case strings.HasPrefix(line, "the container's /proc "), strings.HasPrefix(line, "look at the container's /proc:"):
		e.remedy = "a container whose processes are checkpointed or restored needs a /proc of its own"
	}
	return e
}

// match looks a line up in the table. What stands higher there wins over another line's match.
func (e *explanation) match(who, fd, line string) {
	for i, c := range causes {
		if e.kind != nil && i >= e.index {
			return
		}
		m := c.line.FindStringSubmatchIndex(line)
		if m == nil {
			continue
		}
		if who == "" {
			who = "a process of the application"
		}
		e.cause = string(c.line.ExpandString(nil, strings.ReplaceAll(c.cause, "WHO", who), line, m))
		if fd != "" && c.fd {
			e.cause += " (descriptor " + fd + ")"
		}
		e.kind, e.remedy, e.index = c.kind, c.remedy, i
		return
	}
	if e.cause == "" && e.kind == nil && who != "" {
		e.cause = who + ": " + line
	}
}

// cause is a line of CRIU's log that tells why it failed. WHO in the sentence stands for the
// process, $1 for the line's own parts.
type cause struct {
	line   *pattern
	cause  string
	remedy string
	kind   error
	fd     bool // the descriptor last looked at is the one
}

// cannot are resources that CRIU does not carry over.
func cannot(line, what, remedy string) cause {
	return cause{line: lazily(line), cause: what, remedy: remedy, kind: errdefs.ErrFailedPrecondition, fd: true}
}

func because(kind error, line, what, remedy string) cause {
	return cause{line: lazily(line), cause: what, remedy: remedy, kind: kind}
}

const (
	closeIt = "close it before the checkpoint"
	samePid = "restore into a container in which no other process has the application's numbers"
	noSysV  = "restore into a container whose IPC namespace has no such objects (ipcs lists them)"
	sameFS  = "restore with the file system that belongs to the checkpoint: the same image, and the container's changes to it"
)

// causes is in the order of how telling a line is.
var causes = []cause{
	// The dump.
	cannot(`Unsupported proto 262 `, "WHO has a socket of Multipath TCP, which CRIU cannot dump",
		"let the application use plain TCP: GODEBUG=multipathtcp=0 for programs in Go, or net.mptcp.enabled=0 in the container"),
	cannot(`Unsupported proto (\d+) `, "WHO has a socket of the IP protocol number $1, which CRIU cannot dump", closeIt),
	cannot(`Unknown socket collected \(family (\d+)\)`, "WHO has a socket of the address family number $1, which CRIU cannot dump", closeIt),
	cannot(`External socket is used`, "WHO is connected over a unix socket to a process outside of the application", "close the connection before the checkpoint"),
	cannot(`Can't dump file \d+ of that type \[\w+\] \(anon (\S+)\)`, "WHO has an open $1, which CRIU cannot dump", closeIt),
	cannot(`send_fds failed \(-22\)`, "WHO has an open io_uring, or another descriptor that cannot be passed on, which CRIU cannot dump",
		"let the application do without io_uring (Node.js: UV_USE_IO_URING=0)"),
	because(errdefs.ErrFailedPrecondition, `Can't lookup mount=\d+ for fd=(\d+) path=(.*)`, "WHO has $2 open as descriptor $1, which is not in the container's file system",
		"close it: only files of the container, and the standard streams, can be carried over"),
	because(errdefs.ErrFailedPrecondition, `Can't lookup mount=\d+ for fd=-\d+ path=(.*)`, "WHO runs or maps $1, which is not in the container's file system",
		"checkpoint only processes whose programs come from the container"),
	cannot(`fsnotify: Can't find suitable path for handle`, "WHO watches (inotify or fanotify) a file that has no name any more", "end the watch before the checkpoint"),
	cannot(`Can't dump nested (\w+) namespace for (\d+)`, "process $2 is in a $1 namespace of its own, which CRIU cannot dump", "end that process before the checkpoint"),
	cannot(`Unseizable non-zombie (\d+) found, state [tT]`, "process $1 is traced by another one (a debugger or strace)", "end the tracing before the checkpoint"),
	cannot(`Unseizable non-zombie (\d+) found, state D`, "process $1 does not stop: it waits in the kernel, or its cgroup is frozen from elsewhere",
		"see in /proc/PID/stack what it waits for, and try again"),
	cannot(`The root process (\d+) is not a session leader`, "process $1 is not the leader of its session", "start the application in a session of its own"),
	cannot(`Found dangling tty|Found slave peer index \d+ without correspond master`, "WHO has a terminal open whose other side is outside of the application",
		"close it before the checkpoint: only the container's own terminal can be carried over"),
	cannot(`Can't create link remap for (\S+)\.`, "WHO has the file $1 open, whose name was removed while it has another name", "close it, or remove the other name, before the checkpoint"),
	cannot(`Can't dump ghost file (\S*) of (\d+) size`, "WHO has the deleted file $1 of $2 bytes open, which is too large to be carried along", closeIt),
	cannot(`Some file locks are hold by dumping tasks`, "WHO holds file locks", "release them before the checkpoint"),
	cannot(`Zombies? (?:root task|with|thread)`, "WHO has ended", "start it again"),
	cannot(`fuse|FUSE`, "WHO uses a file system in user space (FUSE): $0", closeIt),
	cannot(`[Ss]eccomp: .*`, "WHO has a seccomp filter that CRIU cannot read: $0", "run the container with a seccomp profile without user notification"),
	because(errdefs.ErrFailedPrecondition, `Task (\d+) with SysVIPC shmem map`, "process $1 uses System V shared memory, and the container shares its IPC namespace with others",
		"give the container an IPC namespace of its own"),
	because(errdefs.ErrFailedPrecondition, `Can't stat map_files: Operation not permitted`, "the container has System V shared memory and a user namespace, which CRIU cannot dump together",
		"create it without uid and gid mappings, or remove the shared memory (ipcrm)"),
	because(errdefs.ErrNotFound, `^Unable to detach from (\d+): No such process`, "there is no process $1 in the container", ""),

	// Both.
	because(errdefs.ErrResourceExhausted, `No space left on device`, "no space is left on the device of the checkpoint's folder", "free some space there, or choose another folder"),
	because(errdefs.ErrResourceExhausted, `Disk quota exceeded`, "the disk quota of the checkpoint's folder is used up", "raise it, or choose another folder"),
	because(errdefs.ErrFailedPrecondition, `Unable to open (\S+\.img): Read-only file system`, "the checkpoint's folder is read-only", "choose another folder"),
	because(errdefs.ErrFailedPrecondition, `Unexpected rt vDSO area bounds`, "this CRIU is too old for the running kernel", "get CRIU 4.1 or newer with `fastmig install`"),
	because(errdefs.ErrFailedPrecondition, `Timeout reached`, "the application's processes did not stop in time", "see in /proc/PID/stack what they wait for, and try again"),
	because(errdefs.ErrPermissionDenied, `CRIU needs to have the CAP_SYS_ADMIN`, "CRIU was started without the rights of root", "run the shim as root of the host"),

	// The restore.
	because(errdefs.ErrFailedPrecondition, `Can't fork for (\d+): File exists`, "the process number $1 is taken in the container", samePid),
	because(errdefs.ErrResourceExhausted, `Can't fork for (\d+): Resource temporarily unavailable`, "the container's limit of processes is too low for the checkpoint (at process $1)", "raise the pids limit"),
	because(errdefs.ErrResourceExhausted, `Can't fork for (\d+): Cannot allocate memory`, "the container's memory limit is too low for the checkpoint (at process $1)", "raise the memory limit"),
	because(errdefs.ErrFailedPrecondition, `Failed to restore (shm|sem|msg) id \((-?\d+) instead of (\d+)\)`, "the identifier $3 of a System V object ($1) is taken in the container", noSysV),
	because(errdefs.ErrFailedPrecondition, `Failed to create (shm|sem|msg) set: File exists`, "the key of a System V object ($1) is taken in the container", noSysV),
	because(errdefs.ErrFailedPrecondition, `File (\S+) has bad size (\d+) \(expect (\d+)\)`, "WHO has the file /$1 open, which had $3 bytes at the checkpoint and has $2 now", sameFS),
	because(errdefs.ErrFailedPrecondition, `File (\S+) has bad build-ID`, "WHO runs code out of the file /$1, which is another build now", sameFS),
	because(errdefs.ErrFailedPrecondition, `File (\S+) has bad mode (\d+) \(expect (\d+)\)`, "WHO has the file /$1 open, which had mode $3 at the checkpoint and has $2 now", sameFS),
	because(errdefs.ErrFailedPrecondition, `Can't open file (\S+) on restore: (.*)`, "WHO had the file /$1 open, which cannot be opened now: $2", sameFS),
	because(errdefs.ErrFailedPrecondition, `Can't bind inet socket .*: Address already in use`, "the port that WHO listened on is taken in the container", "end the process that has it, or restore into a container of its own network"),
	because(errdefs.ErrFailedPrecondition, `Can't bind inet socket .*: Cannot assign requested address`, "WHO used an IP address that the container does not have now",
		"restore with the same address, or close the connections (io.fastmig.tcp: close)"),
	because(errdefs.ErrFailedPrecondition, `unix: Can't bind .* addr (\S+): (.*)`, "the unix socket $1 of WHO cannot be made again: $2", sameFS),
	because(errdefs.ErrResourceExhausted, `(\d+) killed by signal 9`, "process $1 was killed while it was restored", "look for the out-of-memory killer in the kernel's log, and raise the container's memory limit"),
	because(errdefs.ErrDataLoss, `Unexpected EOF on |Read \d+ bytes while \d+ expected|Magic doesn't match|Image version`, "a file of the checkpoint is missing or damaged", "take another checkpoint"),
	because(errdefs.ErrFailedPrecondition, `(?i)cpu.*(?:features?|capabilit)|xsave.*(?:size|mismatch)`, "this machine's CPU lacks what the application was using: $0", "restore on a machine with the same CPU features"),
	because(errdefs.ErrFailedPrecondition, `(?i)ptrace.*Operation not permitted`, "CRIU may not trace the application", "look for a security module (AppArmor, SELinux, Yama) that forbids ptrace to the shim"),
}
