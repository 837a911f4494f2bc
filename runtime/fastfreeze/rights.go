//go:build linux

package fastfreeze

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/runtime/image"
)

// rights are those of the container's first process, which are its spec's, but
// for its seccomp filters (see learnFilters). They are looked at before anything
// else runs in the container. The number of those filters is what a manifest
// notes.
func (e *Engine) rights() (r image.Rights, filters *int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.pid))
	if err != nil {
		return r, nil, fmt.Errorf("read the rights of the container's first process: %w", err)
	}
	status, err := parseStatus(string(text))
	if err != nil {
		return r, nil, err
	}
	r = status.rights()
	if r.User != nil {
		if *r.User, err = inNamespace(e.pid, "uid_map", *r.User); err != nil {
			return r, nil, err
		}
	}
	if r.Group != nil {
		if *r.Group, err = inNamespace(e.pid, "gid_map", *r.Group); err != nil {
			return r, nil, err
		}
	}
	for i := range r.Groups {
		if r.Groups[i], err = inNamespace(e.pid, "gid_map", r.Groups[i]); err != nil {
			return r, nil, err
		}
	}
	r.LSM, err = lsmProfile(e.pid)
	return r, status.baseFilters(), err
}

// lsmProfile is a process's profile of the kernel's security module, as CRIU notes
// it; "": none, or it is confined by none.
func lsmProfile(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", pid))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, os.ErrNotExist) {
		return "", nil // no module has any
	}
	if err != nil {
		return "", fmt.Errorf("read the security profile of the container's first process: %w", err)
	}
	return parseProfile(string(text)), nil
}

// parseProfile leaves AppArmor's mode out: "docker-default (enforce)".
func parseProfile(text string) string {
	profile, _, _ := strings.Cut(strings.TrimRight(text, "\x00\n"), " ")
	if profile == "unconfined" {
		return ""
	}
	return profile
}

// status is what /proc/PID/status says of a process's rights
// (proc_pid_status(5)).
type status struct {
	bounding, permitted uint64
	noNewPrivs, seccomp bool
	filters             int      // how many seccomp filters, 0: the kernel (before 5.9) does not tell, or there are none
	uid, gid            []uint32 // real, effective, saved, file system
	groups              []uint32
}

// rights are those of a process and of all that it may become.
//
// A process changes its user and its group in two ways: with CAP_SETUID and
// CAP_SETGID, and by executing a setuid or setgid program. Any id may own one of
// those, and they need no capability. So ids say nothing, unless no_new_privs is
// set: then neither such programs nor file capabilities nor being root give a
// program more than what executes it is permitted (execve(2), capabilities(7)), and
// whoever is not permitted to change an id now never will be.
//
// Supplementary groups have only the first way, and the bounding set ends it: no
// program gets CAP_SETGID that is not in there.
func (s status) rights() image.Rights {
	r := image.Rights{Bounding: s.bounding, Seccomp: s.seccomp, NoNewPrivs: s.noNewPrivs}
	if s.noNewPrivs && s.permitted&bit(unix.CAP_SETUID) == 0 {
		r.User = &s.uid[0]
	}
	setgid := s.bounding
	if s.noNewPrivs {
		setgid = s.permitted
	}
	if setgid&bit(unix.CAP_SETGID) == 0 {
		r.Groups = append([]uint32{s.gid[0]}, s.groups...)
		if s.noNewPrivs {
			r.Group = &s.gid[0]
		}
	}
	return r
}

// baseFilters is the number of filters as a manifest notes it.
func (s status) baseFilters() *int {
	if s.filters == 1 || s.seccomp && s.filters == 0 {
		return nil
	}
	return &s.filters
}

func bit(capability int) uint64 { return 1 << capability }

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
		case "Seccomp_filters":
			s.filters, err = strconv.Atoi(value)
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
