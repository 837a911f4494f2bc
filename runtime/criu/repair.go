//go:build linux && amd64

package criu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A CRIU that is killed in the middle of a dump leaves the processes as they are at that
// moment: with registers that point into code of CRIU's, signals blocked, their own code
// overwritten for a system call. As soon as the kernel takes them from it they would run on
// like that, most of them into a trap. So:
//
//  1. CRIU notes what it changes before it does (preload/journal.h);
//  2. it is stopped on its way out (watch.go), and the container is frozen then: when CRIU is
//     gone, none of its processes executes an instruction;
//  3. every thread of the container is seized and, when that is thawed, caught before it is back
//     in its code: one that CRIU has not changed could run into what it changed in another, or
//     signal it;
//  4. what the journal says is undone, and what CRIU put into the process, a mapping and a
//     descriptor, is taken out.

const (
	// journalBytes bounds the journal; what is not written to is no memory.
	journalBytes = 32 << 20
	// repairTimeout bounds the wait for one thread to be caught.
	repairTimeout = 5 * time.Second
	// idleTimeout is that of a thread that CRIU has not changed.
	idleTimeout = 100 * time.Millisecond
	// parasiteName is what CRIU calls the file in memory that it maps its code from.
	parasiteName = "/memfd:CRIUMFD"
)

// The kinds of preload/journal.h's entries.
const (
	undoRegs = iota + 1
	undoMask
	undoWord
	undoDetached
	undoFPRegs
)

// undo is struct undo of preload/journal.h.
type undo struct {
	Kind uint32
	Pid  int32
	Addr uint64
	Data [512]byte
}

type journal struct {
	file   *os.File
	group  cgroup
	killed bool // CRIU was, and the container is frozen

	// before are the descriptors of each process at the beginning, while the container was
	// frozen, else nil; known when looked is closed.
	before map[int]map[string]bool
	looked chan struct{}
}

// keepJournal has CRIU note what it changes in the processes of the cgroup; without one
// there is no repair.
func (s *session) keepJournal(folder *os.File) (*journal, error) {
	if folder == nil {
		return nil, nil
	}
	group, err := openFreezer(folder)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("fastmig-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the journal of a dump: %w", err)
	}
	j := &journal{file: os.NewFile(uintptr(fd), "journal"), group: group, looked: make(chan struct{})}
	go j.look() // CRIU takes much longer to come to the processes
	if err := j.file.Truncate(journalBytes); err != nil {
		j.close()
		return nil, fmt.Errorf("make the journal of a dump: %w", err)
	}
	if _, err := s.tell("FASTMIG_JOURNAL_FD", j.file); err != nil {
		j.close()
		return nil, err
	}
	s.dying = func() {
		j.killed = true
		_ = j.group.freeze() // without it the repair may come too late, and is tried all the same
	}
	return j, nil
}

// look notes which descriptors the processes have.
func (j *journal) look() {
	defer close(j.looked)
	if frozen, err := j.group.frozen(); err != nil || !frozen {
		return
	}
	procs, err := j.group.read("cgroup.procs")
	if err != nil {
		return
	}
	before := map[int]map[string]bool{}
	for _, word := range strings.Fields(procs) {
		pid, err := strconv.Atoi(word)
		if err != nil || pid <= 0 {
			continue
		}
		entries, err := os.ReadDir("/proc/" + word + "/fd")
		if err != nil {
			continue
		}
		before[pid] = map[string]bool{}
		for _, e := range entries {
			before[pid][e.Name()] = true
		}
	}
	j.before = before
}

func (j *journal) close() {
	if j != nil {
		<-j.looked
		_ = j.file.Close()
	}
}

// repair brings the processes back to what they were, if CRIU was killed. It must be gone.
// The container is thawed for it; settle brings it to the state in which it is to be, and is
// called before the processes can go on.
func (j *journal) repair(settle func() error) (err error) {
	if j == nil || !j.killed {
		return nil
	}
	<-j.looked
	entries, rerr := j.read()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // of ptrace; the thread ends with the goroutine
		err = j.repairAll(entries, settle)
	}()
	<-done
	if err = errors.Join(rerr, err); err != nil {
		return fmt.Errorf("repair the processes that CRIU was killed over: %w", err)
	}
	return nil
}

// read gives each thread's entries, the newest first, by its number in CRIU's pid namespace.
func (j *journal) read() (map[int][]undo, error) {
	const size = int(unsafe.Sizeof(undo{}))
	threads := map[int][]undo{}
	var all []undo
	buf := make([]byte, size)
	for at := 0; at+size <= journalBytes; at += size {
		if _, err := j.file.ReadAt(buf, int64(at)); err != nil {
			return nil, err
		}
		var u undo
		if err := binary.Read(bytes.NewReader(buf), binary.LittleEndian, &u); err != nil {
			return nil, err
		}
		if u.Kind == 0 {
			break
		}
		all = append(all, u)
	}
	free := map[int]bool{}
	for i := len(all) - 1; i >= 0; i-- {
		pid := int(all[i].Pid)
		if all[i].Kind == undoDetached {
			free[pid] = true
		}
		if !free[pid] {
			threads[pid] = append(threads[pid], all[i])
		}
	}
	return threads, nil
}

func (j *journal) repairAll(entries map[int][]undo, settle func() error) error {
	threads, err := j.seize(entries)
	if err == nil {
		// Each is caught before it is back in its own code.
		err = j.group.thaw()
	}
	errs := []error{err}
	for _, t := range threads {
		if cerr := t.catch(); t.undo != nil {
			errs = append(errs, cerr)
		}
	}
	for _, t := range threads {
		errs = append(errs, t.restore())
	}
	cleaned := map[int]bool{}
	for _, t := range threads {
		if t.stopped && t.undo != nil && !cleaned[t.leader] {
			cleaned[t.leader] = true
			errs = append(errs, t.clean(j.before[t.leader]))
		}
	}
	errs = append(errs, settle())
	for _, t := range threads {
		if t.stopped {
			errs = append(errs, gone(ptrace(unix.PTRACE_DETACH, t.tid, 0, 0)))
		}
	}
	return errors.Join(errs...)
}

// seize finds the threads in the cgroup, which is frozen, and asks them to stop.
func (j *journal) seize(entries map[int][]undo) ([]*thread, error) {
	var threads []*thread
	var errs []error
	err := filepath.WalkDir(selfFolder(j.group), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		tids, err := os.ReadFile(filepath.Join(path, j.group.threadsFile()))
		if err != nil {
			return err
		}
		for _, word := range strings.Fields(string(tids)) {
			tid, err := strconv.Atoi(word)
			if err != nil || tid <= 0 {
				continue
			}
			t := &thread{tid: tid, leader: leaderOf(tid)}
			if inside := namespacePids(tid); len(inside) > 0 {
				t.undo = entries[inside[len(inside)-1]]
			}
			if err := ptrace(unix.PTRACE_SEIZE, tid, 0, unix.PTRACE_O_TRACESYSGOOD); err != nil {
				if t.undo != nil {
					errs = append(errs, gone(fmt.Errorf("seize thread %d: %w", tid, err)))
				}
				continue
			}
			threads = append(threads, t)
			errs = append(errs, gone(ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0)))
		}
		return nil
	})
	return threads, errors.Join(append(errs, err)...)
}

// restore undoes what was changed, the newest first.
func (t *thread) restore() error {
	if !t.stopped {
		return nil
	}
	var errs []error
	if t.undo != nil {
		// A breakpoint of CRIU's, which is in no register that the journal has.
		errs = append(errs, gone(ptrace(unix.PTRACE_POKEUSR, t.tid, debugControl, 0)))
	}
	for _, u := range t.undo {
		switch u.Kind {
		case undoWord:
			_, err := unix.PtracePokeData(t.tid, uintptr(u.Addr), u.Data[:8])
			errs = append(errs, gone(err))
		case undoMask:
			mask := binary.LittleEndian.Uint64(u.Data[:8])
			errs = append(errs, t.setMask(mask))
		case undoFPRegs:
			errs = append(errs, gone(ptrace(unix.PTRACE_SETFPREGS, t.tid, 0, uintptr(unsafe.Pointer(&u.Data)))))
		case undoRegs:
			regs := restarted(*(*unix.PtraceRegs)(unsafe.Pointer(&u.Data)))
			errs = append(errs, gone(unix.PtraceSetRegs(t.tid, &regs)))
		}
	}
	return errors.Join(errs...)
}

// debugControl is where struct user (sys/user.h) has u_debugreg[7].
const debugControl = 848 + 7*8

// restarted makes a thread that was in a system call begin that again, as the kernel would do
// if the registers were still those with which it was interrupted (errno ERESTART*).
func restarted(r unix.PtraceRegs) unix.PtraceRegs {
	if int64(r.Orig_rax) < 0 {
		return r
	}
	switch -int64(r.Rax) {
	case 512, 513, 514: // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND
		r.Rax = r.Orig_rax
		r.Rip -= 2
	case 516: // ERESTART_RESTARTBLOCK
		r.Rax = ^uint64(unix.EINTR) + 1
	default:
		return r
	}
	r.Orig_rax = ^uint64(0)
	return r
}

// gone makes nothing of the error that the process has ended.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ECHILD) {
		return nil
	}
	return err
}

func selfFolder(c cgroup) string { return "/proc/self/fd/" + fdName(c.folder) + "/" }

func (c cgroup) threadsFile() string {
	if c.v2 {
		return "cgroup.threads"
	}
	return "tasks"
}
