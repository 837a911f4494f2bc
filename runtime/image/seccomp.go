package image

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// CRIU notes the filters of all threads in one list. A thread names the one of
// its own that was installed first; that one's "prev" is the one installed after
// it, and so on: this is the order in which CRIU installs them again. When all
// threads of a process have the same filters, CRIU notes them for the first
// thread only, with the flag that puts them on all (SECCOMP_FILTER_FLAG_TSYNC,
// seccomp(2)).

// harmlessFlags do not change what a filter allows. TSYNC is looked at.
const harmlessFlags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW

// maxChain is more filters than the kernel takes for one thread: it counts their
// instructions, and allows 32768.
const maxChain = 8192

// filterTable is what a checkpoint tells of its threads' seccomp filters.
type filterTable struct {
	threads map[string]*criucore.CoreEntry
	process map[string][]string // a thread's process: all its threads, the first first
	filters []*seccomp.SeccompFilter
	blocked map[string]bool // what isBlocked said, by the process's first thread
}

func (c *Checkpoint) readFilterTable(threads map[string]*criucore.CoreEntry) (*filterTable, error) {
	filters, err := c.readFilters()
	if err != nil {
		return nil, err
	}
	t := &filterTable{threads: threads, process: map[string][]string{}, filters: filters, blocked: map[string]bool{}}
	err = readImage(c.dir, "pstree.img", &pstree.PstreeEntry{}, func(e *pstree.PstreeEntry) error {
		all := []string{strconv.Itoa(int(e.GetPid()))}
		for _, tid := range e.GetThreads() {
			if tid != e.GetPid() {
				all = append(all, strconv.Itoa(int(tid)))
			}
		}
		for _, tid := range all {
			if t.process[tid] != nil {
				return fmt.Errorf("pstree.img: thread %s is there twice: %w", tid, errdefs.ErrDataLoss)
			}
			t.process[tid] = all
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// lacks says what is wrong with a thread's filters, in a container that has
// some: "" if it will have at least one.
func (t *filterTable) lacks(tid string) string {
	all := t.process[tid]
	if all == nil {
		return "belongs to no process"
	}
	if _, known := t.blocked[all[0]]; !known {
		t.blocked[all[0]] = isBlocked(all, t.threads, t.filters)
	}
	if t.blocked[all[0]] {
		return "has a seccomp filter that cannot be put on all threads of its process"
	}
	chain, problem := chainOf(t.threads[tid], t.filters)
	if problem == "" && chain == nil && tid != all[0] {
		// It gets all up to the last that reaches it.
		chain, problem = chainOf(t.threads[all[0]], t.filters)
		if !slices.ContainsFunc(chain, reachesAll) {
			chain = nil
		}
	}
	if problem == "" && len(chain) == 0 {
		problem = "has no seccomp filter, and the container's spec sets one"
	}
	return problem
}

func (c *Checkpoint) readFilters() (filters []*seccomp.SeccompFilter, err error) {
	entry, err := readOne(c.dir, "seccomp.img", &seccomp.SeccompEntry{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no process has a filter
	}
	return entry.GetSeccompFilters(), err
}

// isBlocked tells a process in which a filter that shall reach all threads meets
// a thread that has its own: the kernel installs nothing then, and CRIU takes
// that for done.
func isBlocked(all []string, threads map[string]*criucore.CoreEntry, filters []*seccomp.SeccompFilter) bool {
	return slices.ContainsFunc(all, func(tid string) bool {
		chain, _ := chainOf(threads[tid], filters)
		return slices.ContainsFunc(chain, reachesAll) && (tid != all[0] || ownFilters(threads, all[1:]))
	})
}

func reachesAll(f *seccomp.SeccompFilter) bool {
	return f.GetFlags()&unix.SECCOMP_FILTER_FLAG_TSYNC != 0
}

// ownFilters tells whether one of the threads has filters noted for itself.
func ownFilters(threads map[string]*criucore.CoreEntry, tids []string) bool {
	return slices.ContainsFunc(tids, func(tid string) bool {
		return threads[tid].GetThreadCore().GetSeccompMode() != criucore.SeccompMode_disabled
	})
}

// chainOf lists the filters that are noted for a thread, the first installed
// first; nil if it has none of its own. The problem says what is wrong with
// them.
func chainOf(core *criucore.CoreEntry, filters []*seccomp.SeccompFilter) (chain []*seccomp.SeccompFilter, problem string) {
	if tc := core.GetTc(); tc != nil && (tc.OldSeccompMode != nil || tc.OldSeccompFilter != nil) {
		return nil, "has its seccomp mode noted as an old CRIU does"
	}
	thread := core.GetThreadCore()
	switch thread.GetSeccompMode() {
	case criucore.SeccompMode_disabled:
		return nil, ""
	case criucore.SeccompMode_filter:
	default:
		return nil, "is in seccomp's strict mode, which is not the container's filter"
	}
	next := thread.SeccompFilter
	if next == nil {
		return nil, "has no seccomp filter noted"
	}
	for next != nil {
		if int64(*next) >= int64(len(filters)) || len(chain) >= maxChain {
			return nil, "has a seccomp filter noted that is not there"
		}
		f := filters[*next]
		if f.GetFlags()&^harmlessFlags != 0 {
			return nil, fmt.Sprintf("has a seccomp filter with flags %#x", f.GetFlags())
		}
		chain = append(chain, f)
		next = f.Prev
	}
	return chain, ""
}
