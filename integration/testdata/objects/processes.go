package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	objects["threads"] = threads
	objects["children"] = children
	objects["zombie"] = zombie
	objects["stopped-child"] = stoppedChild
	objects["shared-anonymous"] = sharedAnonymous
	objects["umask-nice-rlimits"] = attributes
	objects["own-seccomp"] = ownSeccomp
	objects["name"] = name
	objects["sub-reaper"] = subReaper
	objects["robust-futex"] = robustFutex
	objects["io_uring"] = ioUring
	objects["userfaultfd"] = userfaultfd
	objects["vsock"] = vsock
}

func threads() (check, error) {
	const count = 64
	var counts, ids [count]atomic.Int64
	for i := range count {
		go func() {
			runtime.LockOSThread()
			ids[i].Store(int64(unix.Gettid()))
			for {
				pause()
				if int64(unix.Gettid()) != ids[i].Load() {
					return // counts no more
				}
				counts[i].Add(1)
			}
		}()
	}
	return func(bool) error {
		for i := range count {
			old := counts[i].Load()
			if err := until(fmt.Sprintf("thread %d", ids[i].Load()), func() bool { return counts[i].Load() > old }); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

func spawn(kind string) (int, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	return syscall.ForkExec(exe, []string{exe, "child", kind}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
}

// processState is the third and fourth field of /proc/PID/stat.
func processState(pid int) (state string, parent int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "none", 0
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	fmt.Sscan(rest, &state, &parent)
	return state, parent
}

func children() (check, error) {
	pid, err := spawn("parent")
	if err != nil {
		return nil, err
	}
	leaf := 0
	err = until("the grandchild", func() bool {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for _, task := range taskFiles(pid, "children") {
			data = append(data, task...)
		}
		_, err := fmt.Sscan(string(data), &leaf)
		return err == nil
	})
	return func(bool) error {
		for p, parent := range map[int]int{pid: os.Getpid(), leaf: pid} {
			state, now := processState(p)
			if state == "none" || state == "Z" || now != parent {
				return fmt.Errorf("process %d is in state %s, its parent is %d, not %d", p, state, now, parent)
			}
		}
		return nil
	}, err
}

// taskFiles reads a file of each thread.
func taskFiles(pid int, name string) [][]byte {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	entries, _ := os.ReadDir(dir)
	var all [][]byte
	for _, e := range entries {
		data, _ := os.ReadFile(dir + "/" + e.Name() + "/" + name)
		all = append(all, data)
	}
	return all
}

func zombie() (check, error) {
	pid, err := spawn("zombie")
	if err != nil {
		return nil, err
	}
	err = until("the child to end", func() bool { s, _ := processState(pid); return s == "Z" })
	return func(bool) error {
		if state, parent := processState(pid); state != "Z" || parent != os.Getpid() {
			return fmt.Errorf("it is in state %s, its parent is %d", state, parent)
		}
		// The way it ended is there, and is left there.
		var info struct {
			signo, errno, code, _ int32
			pid, uid, status      int32
			_                     [100]byte
		}
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_PID, uintptr(pid), uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, 0, 0)
		if errno != 0 {
			return errno
		}
		return want("the exit code", info.status, 3)
	}, err
}

func stoppedChild() (check, error) {
	pid, err := spawn("leaf")
	if err != nil {
		return nil, err
	}
	stop := func() error {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			return err
		}
		return until("the child to stop", func() bool { s, _ := processState(pid); return s == "T" })
	}
	if err := stop(); err != nil {
		return nil, err
	}
	return func(bool) error {
		state, _ := processState(pid)
		if err := want("the state", state, "T"); err != nil {
			return err
		}
		if err := unix.Kill(pid, unix.SIGCONT); err != nil {
			return err
		}
		if err := until("the child to go on", func() bool { s, _ := processState(pid); return s == "S" || s == "R" }); err != nil {
			return err
		}
		return stop()
	}, nil
}

// sharedAnonymous shares memory with a child that was forked without an exec.
// The child of a program with threads may only make plain system calls.
func sharedAnonymous() (check, error) {
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	counter, step := (*int64)(unsafe.Pointer(&mem[0])), (*int64)(unsafe.Pointer(&mem[8]))
	*step = 1
	nap := &unix.Timespec{Nsec: 5e6}
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	if pid == 0 {
		for {
			*counter += *step
			unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(nap)), 0, 0)
		}
	}
	return func(bool) error {
		// Both directions: the child counts in our steps.
		atomic.AddInt64(step, 1000)
		old := atomic.LoadInt64(counter)
		return until("the child to count in new steps", func() bool { return atomic.LoadInt64(counter) >= old+1000 })
	}, nil
}

func attributes() (check, error) {
	unix.Umask(0o027)
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, 7); err != nil {
		return nil, err
	}
	limit := unix.Rlimit{Cur: 123, Max: 456}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	return func(bool) error {
		mask := unix.Umask(0o027)
		if err := want("the umask", mask, 0o027); err != nil {
			return err
		}
		// The system call returns 20 minus the nice value.
		nice, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err := errors.Join(err, want("nice", 20-nice, 7)); err != nil {
			return err
		}
		var now unix.Rlimit
		err = unix.Getrlimit(unix.RLIMIT_NOFILE, &now)
		return errors.Join(err, want("the limit of open files", now, limit))
	}, nil
}

// ownSeccomp lets uname(2) fail with EXFULL in all threads.
func ownSeccomp() (check, error) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_UNAME, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EXFULL)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return nil, errno
	}
	return func(bool) error {
		var u unix.Utsname
		if err := want("uname's error", unix.Uname(&u), error(unix.EXFULL)); err != nil {
			return err
		}
		for _, data := range taskFiles(os.Getpid(), "status") {
			if !strings.Contains(string(data), "Seccomp:\t2\n") {
				return fmt.Errorf("a thread has no filter:\n%s", data)
			}
		}
		return nil
	}, nil
}

func name() (check, error) {
	if err := os.WriteFile("/proc/self/comm", []byte("liquid name"), 0); err != nil {
		return nil, err
	}
	return func(bool) error {
		data, err := os.ReadFile("/proc/self/comm")
		return errors.Join(err, want("the name", string(data), "liquid name\n"))
	}, nil
}

func subReaper() (check, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, err
	}
	return func(bool) error {
		var value int32
		err := unix.Prctl(unix.PR_GET_CHILD_SUBREAPER, uintptr(unsafe.Pointer(&value)), 0, 0, 0)
		return errors.Join(err, want("the setting", value, 1))
	}, nil
}

func robustFutex() (check, error) {
	// struct robust_list_head of the kernel, empty.
	head := &struct{ next, offset, pending uintptr }{}
	head.next = uintptr(unsafe.Pointer(head))
	runtimePins = append(runtimePins, head)
	if _, _, errno := unix.Syscall(unix.SYS_SET_ROBUST_LIST, uintptr(unsafe.Pointer(head)), unsafe.Sizeof(*head), 0); errno != 0 {
		return nil, errno
	}
	return func(bool) error {
		var now, size uintptr
		if _, _, errno := unix.Syscall(unix.SYS_GET_ROBUST_LIST, 0, uintptr(unsafe.Pointer(&now)), uintptr(unsafe.Pointer(&size))); errno != 0 {
			return errno
		}
		return want("the list's head", now, uintptr(unsafe.Pointer(head)))
	}, nil
}

// runtimePins keeps what only the kernel points to.
var runtimePins []any

// What follows CRIU cannot dump.

func ioUring() (check, error) {
	params := make([]byte, 120)
	_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		return nil, errno
	}
	return func(bool) error { return nil }, nil
}

func userfaultfd() (check, error) {
	_, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1, 0, 0)
	if errno != 0 {
		return nil, errno
	}
	return func(bool) error { return nil }, nil
}

func vsock() (check, error) {
	_, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	return func(bool) error { return nil }, err
}
