//go:build linux

package criu

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestOpenNamespaces(t *testing.T) {
	cmd := exec.Command(testApp, "hang")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	closeOnCleanup(t, pidfd)
	ns, err := OpenNamespaces(pid, pidfd)
	if err != nil {
		t.Fatal(err)
	}
	// They are our own, so there is nothing to join.
	if joins, err := ns.joins(); err != nil || len(joins) != 0 {
		t.Errorf("to join: %v %v", joins, err)
	}
	ns.Close()

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
	if _, err := OpenNamespaces(pid, nil); !errdefs.IsNotFound(err) {
		t.Errorf("namespaces of a process that is gone: %v", err)
	}
	// The number belongs to somebody else now.
	if _, err := OpenNamespaces(os.Getpid(), pidfd); !errdefs.IsNotFound(err) {
		t.Errorf("namespaces of another process than the pidfd's: %v", err)
	}
}

func TestSetLastPid(t *testing.T) {
	c := newContainer(t)
	if err := SetLastPid(c.ns.PID, openTestApp(t), 4000); err != nil {
		t.Fatal(err)
	}
	b, err := exec.Command("nsenter", "--pid="+c.ns.PID.Name(), "cat", "/proc/sys/kernel/ns_last_pid").Output()
	if err != nil {
		t.Fatal(err)
	}
	// cat itself, and threads of the program that wrote, have taken numbers since.
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || n < 4000 || n > 4100 {
		t.Errorf("last pid: %d %v", n, err)
	}
	if err := SetLastPid(c.ns.PID, openTestApp(t), -5); !errdefs.IsInternal(err) {
		t.Errorf("a number that the kernel refuses: %v", err)
	}
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	closeOnCleanup(t, folder)
	if err := SetLastPid(c.ns.PID, folder, 4000); err == nil || !strings.Contains(err.Error(), "choose the next process number") {
		t.Errorf("no program: %v", err)
	}
}

// The process itself never shows what its spare threads joined.
func TestSpareThreadsLeaveNoTrace(t *testing.T) {
	c := newContainer(t)
	before := nsOf(t, os.Getpid(), "pid_for_children")
	for range 50 {
		if err := SetLastPid(c.ns.PID, openTestApp(t), 4000); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "pid namespace for children", nsOf(t, os.Getpid(), "pid_for_children"), before)
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		link, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/pid_for_children")
		if err == nil && link != before {
			t.Errorf("thread %s still makes children in %s", task.Name(), link)
		}
	}
}
