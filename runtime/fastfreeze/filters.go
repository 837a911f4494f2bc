//go:build linux

package fastfreeze

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

const (
	// filterTimeout bounds the wait for a process to stop for ptrace(2). It takes
	// some 20 µs, unless the process is frozen or in an uninterruptible wait.
	filterTimeout = 200 * time.Millisecond

	// maxInstructions of one seccomp filter (BPF_MAXINSNS), of 8 bytes each.
	maxInstructions  = 4096
	instructionBytes = 8
)

// learnFilters reads the seccomp filters of the container's first process, once:
// before it is frozen, when ptrace(2) does not reach it. It takes less than a
// millisecond, and is done only where something is to be restored. The reader
// must have CAP_SYS_ADMIN and no filter itself.
func (e *Engine) learnFilters() error {
	e.mu.Lock()
	wanted := e.bounds.Seccomp && e.bounds.Filters == nil
	e.mu.Unlock()
	if !wanted {
		return nil
	}
	filters, err := seccompFilters(e.pid, e.pidfd)
	if err == nil && len(filters) == 0 {
		err = errors.New("none is there")
	}
	if err != nil {
		return fmt.Errorf("restored processes get the seccomp filters of the container's first process: %w: see that the shim itself runs as root without a seccomp filter, and that the container is not paused: %w", err, errdefs.ErrFailedPrecondition)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bounds.Filters = filters
	return nil
}

// seccompFilters reads the filters that are in force for a process, the first
// installed first. The process stands still meanwhile, for some 50 µs. pidfd
// proves that pid is still the process that was meant.
func seccompFilters(pid int, pidfd *os.File) (filters []image.Filter, err error) {
	onDyingThread(func() { filters, err = readFilters(pid, pidfd) })
	if err != nil {
		return nil, fmt.Errorf("read the seccomp filters of process %d: %w", pid, err)
	}
	return filters, nil
}

// onDyingThread runs f on a thread that ends afterwards, and with it all that it
// traces. It is never the process's first thread, which does not end.
func onDyingThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			onDyingThread(f) // while this goroutine holds the first thread
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

// readFilters is for a thread that ends afterwards.
func readFilters(pid int, pidfd *os.File) ([]image.Filter, error) {
	if err := unix.PtraceSeize(pid); err != nil {
		return nil, fmt.Errorf("seize it: %w", err)
	}
	defer unix.PtraceDetach(pid) // fails only where the thread's end does it
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err != nil {
		return nil, fmt.Errorf("it has ended: %w", err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		return nil, fmt.Errorf("interrupt it: %w", err)
	}
	var filters []image.Filter
	deadline := time.Now().Add(filterTimeout)
	for wait := 10 * time.Microsecond; ; {
		content, err := ptraceFilter(pid, len(filters))
		switch {
		case err == nil:
			filters = append(filters, image.Filter{Program: content, Log: isLogged(pid, len(filters))})
		case errors.Is(err, unix.ENOENT):
			return filters, nil
		case errors.Is(err, unix.ESRCH) && time.Now().Before(deadline):
			// Not stopped yet. Its stop is not waited for by wait(2): that is whose
			// child it is to do.
			time.Sleep(wait)
			wait = min(2*wait, time.Millisecond)
		case errors.Is(err, unix.ESRCH):
			return nil, fmt.Errorf("it did not stop within %s", filterTimeout)
		default:
			return nil, err
		}
	}
}

// isLogged tells whether the filter that was installed as number index has
// SECCOMP_FILTER_FLAG_LOG. A kernel before 4.16 does not tell.
func isLogged(pid, index int) bool {
	metadata := struct{ index, flags uint64 }{index: uint64(index)} // struct seccomp_metadata
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_METADATA, uintptr(pid), unsafe.Sizeof(metadata), uintptr(unsafe.Pointer(&metadata)), 0, 0)
	return errno == 0 && metadata.flags&unix.SECCOMP_FILTER_FLAG_LOG != 0
}

// ptraceFilter reads the filter that was installed as number index.
func ptraceFilter(pid, index int) ([]byte, error) {
	ptrace := func(buf unsafe.Pointer) (int, error) {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(index), uintptr(buf), 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
	n, err := ptrace(nil)
	if err != nil {
		return nil, err
	}
	if n <= 0 || n > maxInstructions {
		return nil, fmt.Errorf("filter %d has %d instructions", index, n)
	}
	buf := make([]byte, n*instructionBytes)
	again, err := ptrace(unsafe.Pointer(&buf[0]))
	if err != nil {
		return nil, err
	}
	if again != n {
		return nil, fmt.Errorf("filter %d changed from %d instructions to %d", index, n, again)
	}
	return buf, nil
}
