//go:build linux

package preserve

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileCapabilities are those that concern files (capabilities(7)); no others are
// taken over.
const fileCapabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH |
	1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID | 1<<unix.CAP_SETFCAP

// noID means to chown(2) that nothing changes.
const noID = 1<<32 - 1

// Rights are what a process may do with files.
type Rights struct {
	uid, gid   uint32 // the file system's, as the host numbers them
	groups     []uint32
	caps       uint64
	mapped     bool // it is in a user namespace of its own
	uids, gids idMap
}

// idMap is a user namespace's, as in /proc/PID/uid_map.
type idMap []struct{ inside, outside, count uint32 }

// RightsOf are those of the process pid, which may be frozen.
func RightsOf(pid int) (*Rights, error) {
	r, err := rightsOf(pid)
	if err != nil {
		return nil, fmt.Errorf("read the rights of the container's first process: %w", err)
	}
	return r, nil
}

func rightsOf(pid int) (*Rights, error) {
	r := new(Rights)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	if err := r.parse(string(text)); err != nil {
		return nil, err
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return nil, err
	}
	ours, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return nil, err
	}
	if r.mapped = theirs != ours; !r.mapped {
		r.uids = idMap{{0, 0, noID}}
		r.gids = r.uids
		return r, nil
	}
	if r.uids, err = readMap(pid, "uid_map"); err != nil {
		return nil, err
	}
	r.gids, err = readMap(pid, "gid_map")
	return r, err
}

// parse reads what /proc/PID/status says (proc_pid_status(5)).
func (r *Rights) parse(status string) error {
	found := 0
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		words := strings.Fields(value)
		switch name {
		case "Uid", "Gid": // real, effective, saved, file system
			ids, err := parseIDs(words)
			if err != nil || len(ids) != 4 {
				return fmt.Errorf("%s: %q", name, value)
			}
			if name == "Uid" {
				r.uid = ids[3]
			} else {
				r.gid = ids[3]
			}
			found++
		case "Groups":
			ids, err := parseIDs(words)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			r.groups = ids
			found++
		case "CapEff":
			caps, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			r.caps = caps & fileCapabilities
			found++
		}
	}
	if found != 4 {
		return fmt.Errorf("its status lacks ids or capabilities")
	}
	return nil
}

func parseIDs(words []string) (ids []uint32, err error) {
	for _, w := range words {
		id, err := strconv.ParseUint(w, 10, 32)
		if err != nil {
			return nil, err
		}
		ids = append(ids, uint32(id))
	}
	return ids, nil
}

func readMap(pid int, name string) (m idMap, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		ids, err := parseIDs(strings.Fields(line))
		if err != nil || len(ids) != 3 {
			return nil, fmt.Errorf("%s: %q", name, line)
		}
		m = append(m, struct{ inside, outside, count uint32 }{ids[0], ids[1], ids[2]})
	}
	return m, nil
}

// toInside is a host's id as the container numbers it.
func (m idMap) toInside(id uint32) (uint32, bool) {
	for _, s := range m {
		if id >= s.outside && id-s.outside < s.count && id != noID {
			return s.inside + (id - s.outside), true
		}
	}
	return 0, false
}

// toOutside is a container's id as the host numbers it.
func (m idMap) toOutside(id uint32) (uint32, bool) {
	for _, s := range m {
		if id >= s.inside && id-s.inside < s.count && id != noID {
			return s.outside + (id - s.inside), true
		}
	}
	return 0, false
}

// actor is a thread that has these rights, and no others.
type actor struct {
	*Rights
	now uint64 // the capabilities in force
}

// do runs f with the rights, on a thread that is thrown away afterwards.
func (r *Rights) do(f func(*actor) error) error {
	done := make(chan error, 1)
	go r.onThread(done, f)
	return <-done
}

func (r *Rights) onThread(done chan<- error, f func(*actor) error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The first thread cannot be thrown away. While it is held, another one runs it.
		inner := make(chan error, 1)
		go r.onThread(inner, f)
		done <- <-inner
		runtime.UnlockOSThread()
		return
	}
	// It is never unlocked: the thread ends with the goroutine. The runtime makes no
	// thread from a locked one, so that nobody inherits the credentials.
	a, err := r.take()
	if err != nil {
		done <- fmt.Errorf("take over the rights of the container's user: %w", err)
		return
	}
	done <- f(a)
}

// take gives the calling thread the rights. Only the ids for files are changed: by
// the others, a process of that user on the host could signal the thread.
func (r *Rights) take() (*actor, error) {
	var list unsafe.Pointer
	if len(r.groups) > 0 {
		list = unsafe.Pointer(&r.groups[0])
	}
	// These system calls are the thread's own; package syscall's are the process's.
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(r.groups)), uintptr(list), 0); errno != 0 {
		return nil, os.NewSyscallError("setgroups", errno)
	}
	for _, id := range []struct {
		call uintptr
		name string
		id   uint32
	}{{unix.SYS_SETFSGID, "setfsgid", r.gid}, {unix.SYS_SETFSUID, "setfsuid", r.uid}} {
		unix.RawSyscall(id.call, uintptr(id.id), 0, 0)
		// It tells a failure only by what is so afterwards (setfsuid(2)).
		if now, _, _ := unix.RawSyscall(id.call, noID, 0, 0); uint32(now) != id.id {
			return nil, fmt.Errorf("%s %d: it stays %d", id.name, id.id, now)
		}
	}
	a := &actor{Rights: r}
	first := r.caps
	if r.mapped {
		first = 0
	}
	return a, a.capset(first)
}

func (a *actor) capset(effective uint64) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(a.caps)},
		{Effective: uint32(effective >> 32), Permitted: uint32(a.caps >> 32)},
	}
	if err := unix.Capset(&head, &data[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	a.now = effective
	return nil
}

// over readies the thread for work on these files. A thread cannot enter a user
// namespace; but the capabilities of one hold only over files whose ids are both in
// it (capabilities(7)), so that they are put aside for all others.
func (a *actor) over(files ...*unix.Stat_t) error {
	if !a.mapped {
		return nil
	}
	want := a.caps
	for _, st := range files {
		_, user := a.uids.toInside(st.Uid)
		_, group := a.gids.toInside(st.Gid)
		if !user || !group {
			want = 0
		}
	}
	if want == a.now {
		return nil
	}
	return a.capset(want)
}
