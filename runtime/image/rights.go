package image

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Rights are what bounds a process, as in /proc/PID/status.
type Rights struct {
	// Bounding is the capability bounding set (capabilities(7)).
	Bounding uint64
	// Seccomp says that a seccomp filter is in force.
	Seccomp bool
	// NoNewPrivs is prctl(2)'s PR_SET_NO_NEW_PRIVS.
	NoNewPrivs bool
}

// CheckRights refuses a checkpoint in which a thread has more rights than
// allowed: CRIU gives it back what it had, not what its new container's spec
// says. It reads the images, which must have been verified.
//
// Errors: FailedPrecondition, naming the first thread and what it has; DataLoss.
func (c *Checkpoint) CheckRights(allowed Rights) error {
	entries, err := list(c.dir)
	if err != nil {
		return err
	}
	filtered := map[string]bool{}
	if allowed.Seccomp {
		if filtered, err = c.filteredByLeader(); err != nil {
			return fmt.Errorf("check the rights in the checkpoint: %w", err)
		}
	}
	for _, e := range entries {
		tid, found := strings.CutPrefix(e.name, "core-")
		tid, isImage := strings.CutSuffix(tid, ".img")
		if !found || !isImage {
			continue
		}
		core, err := readOne(c.dir, e.name, &criucore.CoreEntry{})
		if err != nil {
			return fmt.Errorf("check the rights in the checkpoint: %w", err)
		}
		bounds := allowed
		// A thread with a mode of its own is judged by that.
		if filtered[tid] && core.GetThreadCore().SeccompMode == nil {
			bounds.Seccomp = false
		}
		if more := excess(core, bounds); more != "" {
			return fmt.Errorf("restore the checkpoint into this container: thread %s %s: create the container with the spec of the one that was checkpointed: %w", tid, more, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// filteredByLeader are the threads that get their seccomp filter with their
// process: when all threads of one have the same filters, CRIU notes them for
// the first thread only, with the flag that puts them on all
// (SECCOMP_FILTER_FLAG_TSYNC, seccomp(2)).
func (c *Checkpoint) filteredByLeader() (map[string]bool, error) {
	var flags []uint32
	err := readImage(c.dir, "seccomp.img", &seccomp.SeccompEntry{}, func(e *seccomp.SeccompEntry) error {
		for _, f := range e.GetSeccompFilters() {
			flags = append(flags, f.GetFlags())
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no process has a filter
	}
	if err != nil {
		return nil, err
	}
	threads := map[string]bool{}
	err = readImage(c.dir, "pstree.img", &pstree.PstreeEntry{}, func(e *pstree.PstreeEntry) error {
		if len(e.GetThreads()) < 2 {
			return nil
		}
		leader, err := readOne(c.dir, fmt.Sprintf("core-%d.img", e.GetPid()), &criucore.CoreEntry{})
		if err != nil {
			return err
		}
		last := int64(leader.GetThreadCore().GetSeccompFilter())
		if leader.GetThreadCore().GetSeccompMode() != criucore.SeccompMode_filter ||
			last >= int64(len(flags)) || flags[last]&unix.SECCOMP_FILTER_FLAG_TSYNC == 0 {
			return nil
		}
		for _, tid := range e.GetThreads() {
			if tid != e.GetPid() {
				threads[strconv.Itoa(int(tid))] = true
			}
		}
		return nil
	})
	return threads, err
}

// excess says what a thread has beyond what is allowed. One without credentials
// has ended already.
func excess(core *criucore.CoreEntry, allowed Rights) string {
	thread := core.GetThreadCore()
	creds := thread.GetCreds()
	if creds == nil {
		return ""
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
	mode := thread.GetSeccompMode()
	if thread.SeccompMode == nil {
		mode = core.GetTc().GetOldSeccompMode()
	}
	if allowed.Seccomp && mode == criucore.SeccompMode_disabled {
		return "has no seccomp filter, and the container's spec sets one"
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
