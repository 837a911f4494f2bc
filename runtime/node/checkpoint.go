//go:build linux

package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kcmp compares this process with itself (kcmp(2)).
func kcmp() Finding {
	const kcmpVM = 1
	pid := uintptr(os.Getpid())
	_, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpVM, 0, 0, 0)
	if errno != 0 {
		return bySyscall("kcmp", errno)
	}
	return yes("")
}

// prSetMM asks for the size of the structure that PR_SET_MM_MAP takes, which
// sets nothing (PR_SET_MM_MAP_SIZE, prctl(2)).
func prSetMM() Finding {
	var size uint32
	return bySyscall("prctl(PR_SET_MM)", unix.Prctl(unix.PR_SET_MM, unix.PR_SET_MM_MAP_SIZE, uintptr(unsafe.Pointer(&size)), 0, 0))
}

// nsLastPid only opens the file: a write would change the next process's pid.
func nsLastPid() Finding {
	f, err := os.OpenFile("/proc/sys/kernel/ns_last_pid", os.O_WRONLY, 0)
	switch {
	case err == nil:
		f.Close()
		return yes("")
	case errors.Is(err, os.ErrNotExist):
		return no("not in this kernel")
	case errors.Is(err, os.ErrPermission):
		return Finding{Unknown, "not permitted: not root"}
	}
	return no("%v", err)
}

// cloneArgs is struct clone_args of clone(2) up to the fields of Linux 5.5.
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls uint64
	setTid, setTidSize                                                   uint64
}

// setTid asks for a process with this process's own pid. That is taken, so
// nothing is created: a kernel that knows set_tid says EEXIST.
func setTid() Finding {
	tid := uint32(os.Getpid())
	args := cloneArgs{exitSignal: uint64(unix.SIGCHLD), setTid: uint64(uintptr(unsafe.Pointer(&tid))), setTidSize: 1}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno == 0 && pid == 0 {
		// Cannot be; if it is, this is a second process, which must not go on.
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	switch errno {
	case unix.EEXIST:
		return yes("")
	case unix.E2BIG, unix.EINVAL, unix.ENOSYS:
		return no("clone3: %v", errno)
	}
	return bySyscall("clone3", errno)
}

// ptrace looks at what Yama allows: 3 allows it to nobody, root included.
func ptrace() Finding {
	scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if err != nil {
		return yes("") // no Yama
	}
	text := strings.TrimSpace(string(scope))
	if text == "3" {
		return no("kernel.yama.ptrace_scope is 3")
	}
	return yes("kernel.yama.ptrace_scope is %s", text)
}

func userfaultfd() Finding {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return bySyscall("userfaultfd", errno)
	}
	unix.Close(int(fd))
	return yes("")
}

// softDirty writes to a page of its own and looks for the mark: bit 55 of the
// page's entry in pagemap (Documentation/admin-guide/mm/soft-dirty). Without
// CONFIG_MEM_SOFT_DIRTY the bit is never set.
func softDirty() Finding {
	size := os.Getpagesize()
	page, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return Finding{Unknown, "mmap: " + err.Error()}
	}
	defer func() { _ = unix.Munmap(page) }()
	page[0] = 1
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return no("%v", err)
	}
	defer pagemap.Close()
	var entry [8]byte
	offset := int64(uintptr(unsafe.Pointer(&page[0]))) / int64(size) * int64(len(entry))
	if _, err := pagemap.ReadAt(entry[:], offset); err != nil {
		return Finding{Unknown, err.Error()}
	}
	const softDirtyBit = 1 << 55
	if binary.NativeEndian.Uint64(entry[:])&softDirtyBit == 0 {
		return no("not in this kernel (CONFIG_MEM_SOFT_DIRTY)")
	}
	return yes("")
}

// criuTimeout bounds each question to CRIU; one takes some 40 ms.
const criuTimeout = 30 * time.Second

// criuFeatures are asked for by `criu check --feature`.
var criuFeatures = map[Name]string{
	CriuMemTrack: "mem_dirty_track", CriuUffd: "uffd-noncoop", CriuPidfdStore: "pidfd_store",
	CriuPagemap: "pagemap_scan", CriuTimeNS: "timens",
}

// probeCriu fills in the findings about CRIU. What depends on a CRIU that works
// is unknown without one.
func probeCriu(ctx context.Context, criu func(context.Context, ...string) (string, error), found map[Name]Finding) {
	ask := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, criuTimeout)
		defer cancel()
		return criu(ctx, args...)
	}
	unknown := func(why string, names ...Name) {
		for _, name := range names {
			found[name] = Finding{Unknown, why}
		}
	}
	var names []Name
	for name := range criuFeatures {
		names = append(names, name)
	}
	if criu == nil {
		found[Criu] = no("not installed")
		unknown("there is no CRIU", append(names, CriuCheck)...)
		return
	}
	text, err := ask("--version")
	if err != nil {
		found[Criu] = no("it does not start: %v", err)
		unknown("CRIU does not start", append(names, CriuCheck)...)
		return
	}
	found[Criu] = yes("%s", criuVersion(text))
	if os.Geteuid() != 0 {
		unknown("CRIU needs root", append(names, CriuCheck)...)
		return
	}
	if text, err := ask("check"); err != nil {
		found[CriuCheck] = no("%s", firstError(text, err))
	} else {
		found[CriuCheck] = yes("")
	}
	for name, feature := range criuFeatures {
		text, err := ask("check", "--feature", feature)
		switch {
		case err == nil:
			found[name] = yes("")
		case strings.Contains(text, "Unknown feature"):
			found[name] = no("this CRIU does not know it")
		default:
			found[name] = no("%s", firstError(text, err))
		}
	}
}

// criuVersion reads "Version: 4.1.1" out of what `criu --version` prints.
func criuVersion(text string) string {
	for line := range strings.Lines(text) {
		if version, ok := strings.CutPrefix(strings.TrimSpace(line), "Version: "); ok {
			return version
		}
	}
	return fmt.Sprintf("of unknown version (%q)", strings.TrimSpace(text))
}

// firstError is CRIU's first complaint, without the place in its source.
func firstError(text string, err error) string {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		for _, level := range []string{"Error ", "Warn "} {
			rest, ok := strings.CutPrefix(line, level)
			if !ok {
				continue
			}
			if _, message, ok := strings.Cut(rest, "): "); ok {
				return message
			}
			return rest
		}
	}
	return err.Error()
}
