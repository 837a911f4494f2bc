package image

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/containerd/errdefs"
)

// Rights are what bounds a process, as in /proc/PID/status.
type Rights struct {
	// Bounding is the capability bounding set (capabilities(7)).
	Bounding uint64
	// Seccomp says that seccomp filters are in force, which are Filters, the first
	// installed first.
	Seccomp bool
	Filters []Filter
	// NoNewPrivs is prctl(2)'s PR_SET_NO_NEW_PRIVS.
	NoNewPrivs bool
	// User and Group are those that no process can leave, or nil.
	User, Group *uint32
	// Groups are the only ones that can be supplementary; empty: any can.
	Groups []uint32
	// LSM is the profile of the security module (/proc/PID/attr/current), without
	// its mode; "": none.
	LSM string
}

// Confine refuses a checkpoint in which a thread has more rights than allowed:
// CRIU gives it back what it had, not what its new container's spec says. It
// reads the images, which must have been verified.
//
// The seccomp filters are not compared but replaced, since two containers with
// one spec have different programs: the result is an image of filters that CRIU
// is to read in place of the checkpoint's seccomp.img, for the caller to close;
// nil: the checkpoint's own will do.
//
// Errors: FailedPrecondition, naming the first thread and what it has; DataLoss.
func (c *Checkpoint) Confine(allowed Rights) (*os.File, error) {
	if allowed.Seccomp != (len(allowed.Filters) > 0) {
		return nil, fmt.Errorf("check the rights in the checkpoint: the container's seccomp filters are not known: %w", errdefs.ErrInternal)
	}
	threads, err := c.readThreads()
	if err != nil {
		return nil, fmt.Errorf("check the rights in the checkpoint: %w", err)
	}
	var table *filterTable
	if allowed.Seccomp {
		if table, err = c.readFilterTable(threads); err != nil {
			return nil, fmt.Errorf("check the rights in the checkpoint: %w", err)
		}
	}
	for _, tid := range slices.Sorted(maps.Keys(threads)) {
		if ended(threads[tid]) {
			continue
		}
		more := excess(threads[tid], allowed)
		if more == "" && table != nil {
			more = table.lacks(tid)
		}
		if more != "" {
			return nil, fmt.Errorf("restore the checkpoint into this container: thread %s %s: create the container with the spec of the one that was checkpointed: %w", tid, more, errdefs.ErrFailedPrecondition)
		}
	}
	if table == nil {
		return nil, nil
	}
	filters, err := table.rebase(allowed.Filters, c.Manifest.baseFilters())
	if err != nil {
		return nil, fmt.Errorf("put the container's seccomp filters in place of the checkpoint's: %w", err)
	}
	return filters, nil
}

// readThreads reads what CRIU noted of each thread, by its number.
func (c *Checkpoint) readThreads() (map[string]*criucore.CoreEntry, error) {
	entries, err := list(c.dir)
	if err != nil {
		return nil, err
	}
	threads := map[string]*criucore.CoreEntry{}
	for _, e := range entries {
		tid, found := strings.CutPrefix(e.name, "core-")
		tid, isImage := strings.CutSuffix(tid, ".img")
		if !found || !isImage {
			continue
		}
		if threads[tid], err = readOne(c.dir, e.name, &criucore.CoreEntry{}); err != nil {
			return nil, err
		}
	}
	return threads, nil
}

// ended tells a process that is not restored but as a zombie, without rights.
func ended(core *criucore.CoreEntry) bool {
	switch core.GetTc().GetTaskState() {
	case taskDead, taskZombie:
		return true
	}
	return false
}

// excess says what a thread has beyond what is allowed, its seccomp filters
// apart.
func excess(core *criucore.CoreEntry, allowed Rights) string {
	creds := core.GetThreadCore().GetCreds()
	if creds == nil {
		// CRIU would take them from elsewhere, or give it all of its own.
		return "has no credentials noted"
	}
	for _, set := range []struct {
		name  string
		words []uint32
	}{
		{"bounding", creds.GetCapBnd()},
		{"permitted", creds.GetCapPrm()},
		{"effective", creds.GetCapEff()},
		{"inheritable", creds.GetCapInh()},
		{"ambient", creds.GetCapAmb()},
	} {
		if more := capabilities(set.words) &^ allowed.Bounding; more != 0 {
			return fmt.Sprintf("has capabilities (%s set, bits %#x) that the container's spec does not give", set.name, more)
		}
	}
	if allowed.NoNewPrivs && creds.GetNoNewPrivs() == 0 {
		return "may gain privileges, and the container's spec sets no_new_privs"
	}
	if allowed.User != nil {
		for _, id := range []uint32{creds.GetUid(), creds.GetEuid(), creds.GetSuid(), creds.GetFsuid()} {
			if id != *allowed.User {
				return fmt.Sprintf("is user %d, which user %d of the container's spec cannot become", id, *allowed.User)
			}
		}
	}
	if allowed.Group != nil {
		for _, id := range []uint32{creds.GetGid(), creds.GetEgid(), creds.GetSgid(), creds.GetFsgid()} {
			if id != *allowed.Group {
				return fmt.Sprintf("has group %d, which group %d of the container's spec cannot become", id, *allowed.Group)
			}
		}
	}
	if len(allowed.Groups) > 0 {
		for _, id := range creds.GetGroups() {
			if !slices.Contains(allowed.Groups, id) {
				return fmt.Sprintf("is in group %d, in which the container's spec puts nobody", id)
			}
		}
	}
	// CRIU notes none where it sees no security module, as inside most containers; what
	// it restores then has its own profile, which is the host's.
	if allowed.LSM != "" && creds.GetLsmProfile() == "" {
		return fmt.Sprintf("has no security profile, and would run without the container's %q", allowed.LSM)
	}
	for _, profile := range []string{creds.GetLsmProfile(), creds.GetLsmSockcreate()} {
		if profile != "" && profile != allowed.LSM {
			return fmt.Sprintf("has the security profile %q, and the container has %q", profile, allowed.LSM)
		}
	}
	return ""
}

func capabilities(words []uint32) (set uint64) {
	for i, w := range words {
		if i < 2 {
			set |= uint64(w) << (32 * i)
		}
	}
	return set
}
