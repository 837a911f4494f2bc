//go:build linux

package fastfreeze

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// rights are those of the container's first process, which are its spec's. They
// are looked at before anything else runs in the container: later the process
// may be frozen, where ptrace(2) does not reach it.
func (e *Engine) rights() (image.Rights, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.pid))
	if err != nil {
		return image.Rights{}, fmt.Errorf("read the rights of the container's first process: %w", err)
	}
	status, err := parseStatus(string(text))
	if err != nil {
		return image.Rights{}, err
	}
	r := status.rights()
	if r.User != nil {
		if *r.User, err = inNamespace(e.pid, "uid_map", *r.User); err != nil {
			return r, err
		}
	}
	for i := range r.Groups {
		if r.Groups[i], err = inNamespace(e.pid, "gid_map", r.Groups[i]); err != nil {
			return r, err
		}
	}
	// The filters' content (seccompFilters) is not compared: libcontainer makes
	// another program of the same profile each time.
	return r, nil
}

// status is what /proc/PID/status says of a process's rights
// (proc_pid_status(5)).
type status struct {
	bounding, permitted uint64
	noNewPrivs, seccomp bool
	uid, gid            []uint32 // real, effective, saved, file system
	groups              []uint32
}

// rights are those of a process and of all that it may become.
func (s status) rights() image.Rights {
	r := image.Rights{Bounding: s.bounding, Seccomp: s.seccomp, NoNewPrivs: s.noNewPrivs}
	if !s.mayGet(unix.CAP_SETUID) {
		r.User = &s.uid[0]
	}
	if !s.mayGet(unix.CAP_SETGID) {
		r.Groups = append([]uint32{s.gid[0]}, s.groups...)
	}
	return r
}

// mayGet tells whether the process, or one that it executes, can have the
// capability. (With no_new_privs a user gets by an execve(2) none that it has
// not.)
func (s status) mayGet(capability int) bool {
	bit := uint64(1) << capability
	if s.noNewPrivs && s.uid[0] != 0 && s.uid[1] != 0 {
		return s.permitted&s.bounding&bit != 0
	}
	return s.bounding&bit != 0
}

func parseStatus(text string) (s status, err error) {
	missing := []string{"Uid", "Gid", "Groups", "CapPrm", "CapBnd", "NoNewPrivs"} // Seccomp is missing from kernels without it
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Uid":
			s.uid, err = parseIDs(value, 4)
		case "Gid":
			s.gid, err = parseIDs(value, 4)
		case "Groups":
			s.groups, err = parseIDs(value, 0)
		case "CapPrm":
			s.permitted, err = strconv.ParseUint(value, 16, 64)
		case "CapBnd":
			s.bounding, err = strconv.ParseUint(value, 16, 64)
		case "NoNewPrivs":
			s.noNewPrivs, err = parseFlag(value)
		case "Seccomp":
			s.seccomp, err = parseFlag(value)
		default:
			continue
		}
		if err != nil {
			return s, fmt.Errorf("read a process's rights: %s: %w", name, err)
		}
		missing = slices.DeleteFunc(missing, func(m string) bool { return m == name })
	}
	if len(missing) > 0 {
		return s, fmt.Errorf("read a process's rights: %s is missing", strings.Join(missing, ", "))
	}
	return s, nil
}

func parseFlag(text string) (bool, error) {
	n, err := strconv.ParseUint(text, 10, 8)
	return n != 0, err
}

// parseIDs reads numbers between blanks: so many, if n is not 0.
func parseIDs(text string, n int) (ids []uint32, err error) {
	for _, word := range strings.Fields(text) {
		id, err := strconv.ParseUint(word, 10, 32)
		if err != nil {
			return nil, err
		}
		ids = append(ids, uint32(id))
	}
	if n != 0 && len(ids) != n {
		return nil, fmt.Errorf("%d numbers instead of %d", len(ids), n)
	}
	return ids, nil
}

// inNamespace is an id of ours as the process's user namespace numbers it,
// which is how CRIU, being in there, notes it. name: uid_map or gid_map
// (user_namespaces(7)).
func inNamespace(pid int, name string, id uint32) (uint32, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return 0, fmt.Errorf("read the ids of the container's user namespace: %w", err)
	}
	return mapID(string(text), id)
}

func mapID(text string, id uint32) (uint32, error) {
	for line := range strings.Lines(text) {
		ids, err := parseIDs(line, 3)
		if err != nil {
			return 0, fmt.Errorf("read the ids of the container's user namespace: %w", err)
		}
		inside, outside, count := ids[0], ids[1], ids[2]
		if id >= outside && id-outside < count {
			return inside + (id - outside), nil
		}
	}
	// The kernel shows those without a number so (proc_sys_kernel(5)).
	const overflow = 65534
	return overflow, nil
}
