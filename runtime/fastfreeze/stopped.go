//go:build linux

package fastfreeze

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const (
	// stuckInterval is how often a dump is looked at; one that is stuck is
	// seen so twice before anything is done.
	stuckInterval = 50 * time.Millisecond
	ptraceSeize   = 0x4206 // ptrace(2), PTRACE_SEIZE
)

// releaseStopped helps CRIU with threads that a signal has stopped (job control,
// SIGSTOP) in a container that cgroup v1's freezer holds: seizing one waits for
// the thread to go from the one stop into the other, and a frozen one never
// does. The thread is moved out of the freezer and back; it stays stopped, and
// nothing else of the container runs. It works until ctx ends.
func releaseStopped(ctx context.Context, freezer *os.File) {
	if _, err := os.Stat(filepath.Join(freezer.Name(), "freezer.state")); err != nil {
		return // v2 freezes without this trap
	}
	tick := time.NewTicker(stuckInterval)
	defer tick.Stop()
	suspect := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		tid := awaited(freezer)
		if tid == 0 || tid != suspect {
			suspect = tid
			continue
		}
		suspect = 0
		if err := bounce(freezer, tid); err != nil {
			log.G(ctx).WithError(err).Warnf("release the stopped thread %d to CRIU", tid)
		}
	}
}

// awaited finds the thread of the cgroup that its tracer is waiting for in
// PTRACE_SEIZE; 0 if there is none.
func awaited(freezer *os.File) int {
	data, err := os.ReadFile(filepath.Join(freezer.Name(), "tasks"))
	if err != nil {
		return 0
	}
	for _, word := range strings.Fields(string(data)) {
		status, err := os.ReadFile("/proc/" + word + "/status")
		if err != nil {
			continue
		}
		tracer, own := statusLine(status, "TracerPid:"), strings.Fields(statusLine(status, "NSpid:"))
		if tracer == "" || tracer == "0" || len(own) == 0 {
			continue
		}
		// The tracer knows the thread by its number in the container.
		inside, err := strconv.Atoi(own[len(own)-1])
		if err != nil {
			continue
		}
		call, err := os.ReadFile("/proc/" + tracer + "/syscall")
		if err == nil && strings.HasPrefix(string(call), fmt.Sprintf("%d %#x %#x ", unix.SYS_PTRACE, ptraceSeize, inside)) {
			tid, _ := strconv.Atoi(word)
			return tid
		}
	}
	return 0
}

func statusLine(status []byte, key string) string {
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, key); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// bounce moves a thread out of the frozen cgroup and back.
func bounce(freezer *os.File, tid int) error {
	outside, err := ownFreezer()
	if err != nil {
		return err
	}
	defer outside.Close()
	for _, folder := range []string{outside.Name(), freezer.Name()} {
		if err := os.WriteFile(filepath.Join(folder, "tasks"), []byte(strconv.Itoa(tid)), 0); err != nil {
			return err
		}
	}
	return nil
}
