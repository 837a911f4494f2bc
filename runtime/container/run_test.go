//go:build linux

package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestRun(t *testing.T) {
	l := newLab(t).start()
	for _, tc := range []struct {
		script, stdin, want string
		limit, status       int
	}{
		{"echo out; echo err >&2", "", "out\nerr\n", 100, 0},
		{"cat; exit 3", "given", "given", 100, 3},
		{"kill -TERM $$", "", "", 100, 143},
		{"echo 0123456789", "", "789\n", 4, 0},
		{"i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done", "", "line 19999\n", 11, 0},
		{"echo x", "", "", 0, 0},
		{"echo to a path > /dev/stdout", "", "to a path\n", 100, 0},
		{"exit 0", strings.Repeat("unread", 1<<16), "", 100, 0},
	} {
		if strings.Contains(tc.script, "/dev/stdout") {
			l.sh("ln -sf /proc/self/fd/1 /dev/stdout")
		}
		var stdin io.Reader
		if tc.stdin != "" {
			stdin = strings.NewReader(tc.stdin)
		}
		out, status, err := l.c.Run(t.Context(), l.process("sh", "-c", tc.script), stdin, tc.limit)
		if err != nil || status != tc.status || string(out) != tc.want {
			t.Errorf("%s: %q, %d, %v", tc.script, out, status, err)
		}
	}
	if _, _, err := l.c.Run(t.Context(), l.process("/no/such/program"), nil, 100); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a program that is not there: %v", err)
	}
}

func TestRunThatHangs(t *testing.T) {
	l := newLab(t).start()
	for name, script := range map[string]string{
		"itself":        "echo begun; exec sleep 1000000",
		"child":         "echo begun; sleep 1000000; echo never",
		"deaf":          "trap '' TERM INT HUP; echo begun; while :; do sleep 1000000; done",
		"tree":          "(sleep 1000000 & sh -c 'sleep 1000000 & wait' & wait) & echo begun; wait",
		"stopped":       "echo begun; kill -STOP $$",
		"other session": "setsid --wait sh -c 'sleep 1000000 & wait' & echo begun; wait",
	} {
		begin := time.Now()
		out, status, err := l.c.Run(timeout(t, 400*time.Millisecond), l.process("sh", "-c", script), nil, 100)
		if !isTimeout(err) || status != 137 || string(out) != "begun\n" || time.Since(begin) > 8*time.Second {
			t.Errorf("%s: %q, %d, %v after %v", name, out, status, err, time.Since(begin))
		}
		eventually(t, name+": all of it is gone", func() bool {
			pids, err := l.c.Pids()
			return err == nil && len(pids) == 1 && pids[0] == l.init.Pid
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.c.Run(ctx, l.process("true"), nil, 100); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func TestRunDoesNotWaitForWhoHoldsThePipe(t *testing.T) {
	l := newLab(t).start()
	begin := time.Now()
	out, status, err := l.c.Run(t.Context(), l.process("sh", "-c", "setsid sleep 1000000 & echo done"), nil, 100)
	if err != nil || status != 0 || string(out) != "done\n" || time.Since(begin) > 8*time.Second {
		t.Errorf("%q, %d, %v after %v", out, status, err, time.Since(begin))
	}
	if pids, err := l.c.Pids(); err != nil || len(pids) != 2 {
		t.Errorf("processes %v, %v: what a hook leaves behind lives on", pids, err)
	}
}

// A reader that has nothing to give must not hold Run.
func TestRunWithAStdinThatHangs(t *testing.T) {
	l := newLab(t).start()
	r, w, err := os.Pipe()
	must(t, err)
	defer w.Close()
	defer r.Close()
	if _, status, err := l.c.Run(t.Context(), l.process("true"), r, 100); err != nil || status != 0 {
		t.Errorf("%d, %v", status, err)
	}
}

func TestRunLeavesNoDescriptor(t *testing.T) {
	l := newLab(t).start()
	all := func() {
		l.sh("cat /dev/null")
		_, _, _ = l.c.Run(t.Context(), l.process("cat"), bytes.NewReader(make([]byte, 1<<18)), 10)
		_, _, _ = l.c.Run(timeout(t, 100*time.Millisecond), l.process("sleep", "1000000"), nil, 10)
		_, _, _ = l.c.Run(t.Context(), l.process("/none"), nil, 10)
	}
	all()
	fds := descriptors(t)
	for range 3 {
		all()
	}
	settled(t, fds)
}

// family starts, in the container, a parent with children and a grandchild, and gives
// their numbers on the host.
func family(l *lab, name string) (root *Process, all []int) {
	l.t.Helper()
	p := l.background("sleep 1000000 & (sleep 1000000 & echo $! > /shared/" + name + ".new; mv /shared/" + name + ".new /shared/" + name + "; wait) & wait")
	l.t.Cleanup(func() {
		_ = l.c.Resume()
		_ = p.Signal(unix.SIGKILL)
		_, _ = p.Wait()
	})
	// The sh, its sleep, the sub-shell and its sleep: mv has ended.
	eventually(l.t, "the family is there", func() bool {
		_, err := os.Stat(l.dir + "/shared/" + name)
		pids, _ := l.c.Pids()
		parents := map[int]int{}
		for _, pid := range pids {
			parents[pid] = parent(pid)
		}
		all = nil
		for _, pid := range pids {
			if descends(pid, map[int]bool{p.Pid: true}, parents) {
				all = append(all, pid)
			}
		}
		return err == nil && len(all) == 4
	})
	return p, all
}

func running(list []int) (n int) {
	for _, pid := range list {
		if runs(pid) {
			n++
		}
	}
	return n
}

func TestKillOthers(t *testing.T) {
	l := newLab(t).start()
	kept, keptAll := family(l, "kept")
	_, others := family(l, "others")
	// Orphans belong to PID 1.
	l.sh("setsid sh -c 'sleep 1000000 & sleep 1000000' > /dev/null 2>&1 &")
	must(t, l.c.KillOthers(timeout(t, 20*time.Second), l.init.Pid, []int{kept.Pid}))
	if running(others) != 0 || running(keptAll) != 4 || !runs(l.init.Pid) {
		t.Errorf("of the others %d run, of the kept %d, PID 1: %v", running(others), running(keptAll), runs(l.init.Pid))
	}
	if pids, err := l.c.Pids(); err != nil || len(pids) != 5 {
		t.Errorf("processes %v, %v", pids, err)
	}
	if got := l.sh("echo runs"); got != "runs" {
		t.Error("it is not thawed")
	}
	must(t, l.c.KillOthers(timeout(t, 20*time.Second), l.init.Pid, nil))
	if running(keptAll) != 0 || !runs(l.init.Pid) {
		t.Errorf("of the kept %d run, PID 1: %v", running(keptAll), runs(l.init.Pid))
	}
}

func TestKillOthersOfAPausedContainer(t *testing.T) {
	l := newLab(t).start()
	kept, keptAll := family(l, "kept")
	_, others := family(l, "others")
	must(t, l.c.Pause())
	time0 := cpuTime(t, keptAll)
	must(t, l.c.KillOthers(timeout(t, 20*time.Second), l.init.Pid, []int{kept.Pid}))
	if running(others) != 0 || running(keptAll) != 4 {
		t.Errorf("of the others %d run, of the kept %d", running(others), running(keptAll))
	}
	if cpuTime(t, keptAll) != time0 {
		t.Error("what was paused has run")
	}
	if err := l.c.Resume(); err != nil {
		t.Errorf("it is no longer paused: %v", err)
	}
	if got := l.sh("echo runs"); got != "runs" {
		t.Error(got)
	}
}

// cpuTime is when processes were last given a CPU, all in one.
func cpuTime(t *testing.T, list []int) string {
	t.Helper()
	var all []string
	for _, pid := range list {
		data, err := os.ReadFile("/proc/" + itoa(pid) + "/status")
		must(t, err)
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "ctxt_switches") {
				all = append(all, line)
			}
		}
	}
	return strings.Join(all, "")
}

func TestKillOthersThatFork(t *testing.T) {
	l := newLab(t).start()
	for range 4 {
		p := l.background("while :; do sh -c 'sh -c \"sleep 0.02 & exec sleep 0.01\" & exec sleep 0.01' & sleep 0.003; done")
		t.Cleanup(func() {
			_ = p.Signal(unix.SIGKILL)
			_, _ = p.Wait()
		})
	}
	eventually(t, "they fork", func() bool {
		pids, err := l.c.Pids()
		return err == nil && len(pids) > 10
	})
	must(t, l.c.KillOthers(timeout(t, 30*time.Second), l.init.Pid, nil))
	if pids, err := l.c.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("processes %v, %v", pids, err)
	}
}

func TestKillOthersGivesUp(t *testing.T) {
	l := newLab(t).start()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.c.KillOthers(ctx, l.init.Pid, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if got := l.sh("echo runs"); got != "runs" {
		t.Error(got)
	}
}

func TestOOMKills(t *testing.T) {
	l := newLab(t, func(l *lab) {
		l.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: ptr(int64(48 << 20))}
	}).start()
	if n, err := l.c.OOMKills(); err != nil || n != 0 {
		t.Fatalf("%d, %v", n, err)
	}
	// tail keeps what has no line's end in it.
	_, status, err := l.c.Run(timeout(t, time.Minute), l.process("tail", "/dev/zero"), nil, 100)
	if err != nil || status != 137 {
		t.Errorf("%d, %v", status, err)
	}
	if n, err := l.c.OOMKills(); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	l.renew(l.pin())
	if n, err := l.c.OOMKills(); err != nil || n != 1 {
		t.Errorf("after renewal: %d, %v", n, err)
	}
}
