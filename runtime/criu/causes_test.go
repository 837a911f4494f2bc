//go:build linux

package criu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// The logs in testdata are excerpts of what CRIU 4.1.1 wrote when each failure was provoked
// (dump-criu-too-old: CRIU 3.17.1 on Linux 6.18).
func TestExplain(t *testing.T) {
	for name, want := range map[string]struct {
		cause string
		kind  error
	}{
		"dump-criu-too-old":         {"this CRIU is too old for the running kernel", errdefs.ErrFailedPrecondition},
		"dump-disk-full":            {"no space is left on the device of the checkpoint's folder", errdefs.ErrResourceExhausted},
		"dump-file-lock":            {"a process of the application holds file locks", errdefs.ErrFailedPrecondition},
		"dump-foreign-terminal":     {"a process of the application has a terminal open whose other side is outside of the application", errdefs.ErrFailedPrecondition},
		"dump-frozen-elsewhere":     {"process 1000 does not stop: it waits in the kernel, or its cgroup is frozen from elsewhere", errdefs.ErrFailedPrecondition},
		"dump-init":                 {"process 1 (testapp) runs or maps /x/testapp, which is not in the container's file system", errdefs.ErrFailedPrecondition},
		"dump-io_uring":             {"process 1000 has an open io_uring, or another descriptor that cannot be passed on, which CRIU cannot dump", errdefs.ErrFailedPrecondition},
		"dump-leaked-descriptor":    {"process 1000 (app) has /etc/passwd open as descriptor 2, which is not in the container's file system", errdefs.ErrFailedPrecondition},
		"dump-mptcp":                {"process 1000 (app) has a socket of Multipath TCP, which CRIU cannot dump (descriptor 3)", errdefs.ErrFailedPrecondition},
		"dump-nested-pid-namespace": {"process 1006 is in a pid namespace of its own, which CRIU cannot dump", errdefs.ErrFailedPrecondition},
		"dump-no-process":           {"there is no process 77 in the container", errdefs.ErrNotFound},
		"dump-no-session-leader":    {"process 1000 is not the leader of its session", errdefs.ErrFailedPrecondition},
		"dump-perf_event":           {"process 1000 (app) has an open anon_inode:[perf_event], which CRIU cannot dump (descriptor 3)", errdefs.ErrFailedPrecondition},
		"dump-read-only-folder":     {"the checkpoint's folder is read-only", errdefs.ErrFailedPrecondition},
		"dump-renamed-file":         {"process 1000 (app) has the file /tmp/x open, whose name was removed while it has another name (descriptor 3)", errdefs.ErrFailedPrecondition},
		"dump-traced":               {"process 1005 is traced by another one (a debugger or strace)", errdefs.ErrFailedPrecondition},
		"dump-unix-peer-outside":    {"a process of the application is connected over a unix socket to a process outside of the application", errdefs.ErrFailedPrecondition},
		"dump-userfaultfd":          {"process 1000 (app) has an open anon_inode:[userfaultfd], which CRIU cannot dump (descriptor 3)", errdefs.ErrFailedPrecondition},
		"dump-vsock":                {"process 1000 (app) has a socket of the address family number 40, which CRIU cannot dump (descriptor 3)", errdefs.ErrFailedPrecondition},
		"dump-watch-of-deleted":     {"process 1000 (app) watches (inotify or fanotify) a file that has no name any more (descriptor 4)", errdefs.ErrFailedPrecondition},

		"restore-empty-folder":         {"a file of the checkpoint is missing or damaged", errdefs.ErrDataLoss},
		"restore-missing-file":         {"process 1000 had the file /tmp/x open, which cannot be opened now: No such file or directory", errdefs.ErrFailedPrecondition},
		"restore-no-folder-for-socket": {"the unix socket /tmp/sock of process 1000 cannot be made again: No such file or directory", errdefs.ErrFailedPrecondition},
		"restore-other-binary":         {"process 1000 has the file /app open, which had 4319004 bytes at the checkpoint and has 5 now", errdefs.ErrFailedPrecondition},
		"restore-other-mode":           {"process 1000 has the file /tmp/x open, which had mode 0100600 at the checkpoint and has 0100644 now", errdefs.ErrFailedPrecondition},
		"restore-other-size":           {"process 1000 has the file /tmp/x open, which had 4 bytes at the checkpoint and has 6 now", errdefs.ErrFailedPrecondition},
		"restore-out-of-memory":        {"process 1000 was killed while it was restored", errdefs.ErrResourceExhausted},
		"restore-pid-taken":            {"the process number 1000 is taken in the container", errdefs.ErrFailedPrecondition},
		"restore-pids-limit":           {"the container's limit of processes is too low for the checkpoint (at process 1028)", errdefs.ErrResourceExhausted},
		"restore-port-taken":           {"the port that process 1000 listened on is taken in the container", errdefs.ErrFailedPrecondition},
		"restore-truncated":            {"a file of the checkpoint is missing or damaged", errdefs.ErrDataLoss},
	} {
		t.Run(name, func(t *testing.T) {
			log, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			e := explain(string(log))
			expect(t, "cause", e.cause, want.cause)
			if !errors.Is(e.kind, want.kind) {
				t.Errorf("kind: %v, want %v", e.kind, want.kind)
			}
			if len(e.lines) == 0 || len(e.lines) > maxLines {
				t.Errorf("lines: %q", e.lines)
			}
			for _, l := range e.lines {
				if strings.Contains(l, "FAILED") || strings.Contains(l, "RLIMIT") {
					t.Errorf("noise: %s", l)
				}
			}
			if e.remedy == "" && name != "dump-no-process" {
				t.Error("no remedy")
			}
		})
	}
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) != 31 {
		t.Errorf("%d logs in testdata (%v): is each in the table?", len(files), err)
	}
}

func TestExplainUnknown(t *testing.T) {
	e := explain("(00.1) Dumping task (pid: 7 comm: x)\n(00.2) Error (criu/new.c:1): a new trouble\n")
	expect(t, "cause", e.cause, "process 7 (x): a new trouble")
	if e.kind != nil {
		t.Errorf("kind: %v", e.kind)
	}
	if e := explain("nothing of interest\n"); e.cause != "" || e.lines != nil {
		t.Errorf("out of nothing: %+v", e)
	}
}

func TestErrorText(t *testing.T) {
	e := &Error{Step: "dump", Cause: "why", Remedy: "what to do", Lines: []string{"one", "two"}, Log: "/log", Kind: errdefs.ErrNotFound, Err: context.Canceled}
	expect(t, "message", e.Error(), "dump: why; what to do [CRIU: one | two] (log: /log)")
	if !errdefs.IsNotFound(e) || !errors.Is(e, context.Canceled) {
		t.Error("kind and cause do not show")
	}
	expect(t, "short message", (&Error{Step: "dump", Cause: "why"}).Error(), "dump: why")
}

func FuzzExplain(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, log string) {
		if e := explain(log); len(e.lines) > maxLines {
			t.Errorf("%d lines", len(e.lines))
		}
	})
}

func TestExplainSetup(t *testing.T) {
	for line, want := range map[string]struct {
		remedy string
		kind   error
	}{
		"save the container's /run/x: No space left on device":                {"checkpoint's folder", errdefs.ErrResourceExhausted},
		"put back the container's /run/x: No space left on device":            {"size=", errdefs.ErrResourceExhausted},
		"put back the container's /run/x: Cannot allocate memory":             {"memory limit", errdefs.ErrResourceExhausted},
		"read the archive of the container's /run/x: Bad message":             {"another checkpoint", errdefs.ErrDataLoss},
		"replace the container's /run/proc: Directory not empty":              {"", errdefs.ErrFailedPrecondition},
		"look at the container's /proc: No such file or directory":            {"/proc of its own", errdefs.ErrFailedPrecondition},
		"the container's /proc belongs to another pid namespace: Bad message": {"/proc of its own", errdefs.ErrFailedPrecondition},
	} {
		e := explain("fastmig: " + line + "\n")
		if e.cause != line || !errors.Is(e.kind, want.kind) || !strings.Contains(e.remedy, want.remedy) || (want.remedy == "") != (e.remedy == "") {
			t.Errorf("%s: got %+v", line, e)
		}
	}
}
