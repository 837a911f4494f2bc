//go:build linux

package fastfreeze

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterSteps are the instructions of the filters that the confined process
// installs: each allows all, in so many steps.
var filterSteps = []int{1, 3}

// confinedMarker in the environment makes the test program the confined process.
const confinedMarker = "FASTMIG_TEST_CONFINED"

func init() {
	if os.Getenv(confinedMarker) == "" {
		return
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	for i, n := range filterSteps {
		flags := unix.SECCOMP_FILTER_FLAG_TSYNC // on all threads, since any may be the one that is looked at
		if i == 1 {
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		}
		steps := allowAll(n)
		prog := unix.SockFprog{Len: uint16(n), Filter: &steps[0]}
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
		if errno != 0 {
			panic(errno)
		}
	}
	fmt.Println("confined")
	_, _ = io.Copy(os.Stdout, os.Stdin)
	os.Exit(0)
}

func allowAll(n int) []unix.SockFilter {
	steps := make([]unix.SockFilter, n)
	for i := range steps {
		steps[i] = unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}
	}
	steps[n-1] = unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	return steps
}

func TestSeccompFilters(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), confinedMarker+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the process that was looked at: %v", err)
		}
	}()
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); line != "confined\n" {
		t.Fatal(line, err)
	}
	pidfd := openPidfd(t, cmd.Process.Pid)
	for range 3 {
		filters, err := seccompFilters(cmd.Process.Pid, pidfd)
		if err != nil {
			t.Fatal(err)
		}
		if len(filters) != len(filterSteps) {
			t.Fatalf("%d filters", len(filters))
		}
		for i, n := range filterSteps {
			steps := allowAll(n)
			want := unsafe.Slice((*byte)(unsafe.Pointer(&steps[0])), n*instructionBytes)
			if !bytes.Equal(filters[i].Program, want) {
				t.Errorf("filter %d: %x, want %x", i, filters[i].Program, want)
			}
			if want := i == 1; filters[i].Log != want {
				t.Errorf("filter %d logs: %v", i, !want)
			}
		}
		// It goes on, and nobody traces it.
		fmt.Fprintln(in, "hello")
		if line, err := said.ReadString('\n'); line != "hello\n" {
			t.Fatal(line, err)
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err != nil || !strings.Contains(string(text), "TracerPid:\t0\n") {
			t.Errorf("somebody traces it (%v)", err)
		}
	}
}

func TestSeccompFiltersOfNoProcess(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd := openPidfd(t, cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if f, err := seccompFilters(cmd.Process.Pid, pidfd); err == nil {
		t.Errorf("filters of a process that ended: %v", f)
	}
	if took := time.Since(begun); took > 10*filterTimeout {
		t.Errorf("it took %s", took)
	}
}

func openPidfd(t *testing.T, pid int) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return f
}
