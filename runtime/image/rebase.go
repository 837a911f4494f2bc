package image

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"slices"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Filter is a seccomp filter as it was installed.
type Filter struct {
	// Program is its instructions, of 8 bytes each.
	Program []byte
	// Log is SECCOMP_FILTER_FLAG_LOG.
	Log bool
}

const (
	instructionBytes = 8
	// maxProgram is how many instructions a filter may have (BPF_MAXINSNS), and
	// maxPath a thread's filters together, with pathCost more for each
	// (MAX_INSNS_PER_PATH; the kernel counts them after a translation that can make
	// them more, and so refuses some that pass here).
	maxProgram = 4096
	maxPath    = 32768
	pathCost   = 4
)

// rebase returns the image of the filters in which each thread's begin with base,
// in place of as many as known: those that the container gave it where it was
// checkpointed. What follows, the application put on top. All filters of a thread
// are asked and the strictest answer holds (seccomp(2)), so whatever is in the
// checkpoint, and whatever number its manifest tells, nothing is allowed that
// base forbids. For the same reason no more are left out than base has.
func (t *filterTable) rebase(base []Filter, known int) (*os.File, error) {
	drop := max(0, min(known, len(base)))
	out := slices.Clone(t.filters)
	owner := map[uint32]uint32{} // a filter's chain, by where that begins
	for _, tid := range slices.Sorted(maps.Keys(t.threads)) {
		start, ok := chainStart(t.threads[tid])
		if !ok {
			continue
		}
		if first, seen := owner[start]; seen && first == start {
			continue // another thread names the same ones
		}
		var chain []uint32
		for next := &start; next != nil; next = t.filters[*next].Prev {
			// CRIU writes each thread's own. Changed for one thread, they would not be
			// what the other's check saw.
			if _, taken := owner[*next]; taken {
				return nil, fmt.Errorf("thread %s shares some seccomp filters with another: %w", tid, errdefs.ErrFailedPrecondition)
			}
			owner[*next] = start
			chain = append(chain, *next)
		}
		out = rebaseChain(out, chain, base, drop)
		if err := checkPath(out, start); err != nil {
			return nil, fmt.Errorf("thread %s: %w", tid, err)
		}
	}
	return writeFilters(out)
}

// chainStart is where the filters of a thread begin that is restored with some.
// The chain has been found whole (chainOf).
func chainStart(core *criucore.CoreEntry) (uint32, bool) {
	thread := core.GetThreadCore()
	if ended(core) || thread.GetSeccompMode() != criucore.SeccompMode_filter {
		return 0, false
	}
	return thread.GetSeccompFilter(), true
}

// rebaseChain replaces the first so many filters of a chain. The first stays
// where it is in the list, since the threads name it.
func rebaseChain(list []*seccomp.SeccompFilter, chain []uint32, base []Filter, drop int) []*seccomp.SeccompFilter {
	start := chain[0]
	var flags uint32
	for _, at := range chain {
		flags |= list[at].GetFlags() & unix.SECCOMP_FILTER_FLAG_TSYNC
	}
	var rest *uint32 // the first that stays
	switch {
	case drop == 0:
		moved := uint32(len(list))
		list = append(list, list[start])
		rest = &moved
	case drop < len(chain):
		rest = &chain[drop]
	}
	for _, at := range chain[:min(drop, len(chain))] {
		list[at] = &seccomp.SeccompFilter{Filter: []byte{}} // nobody's any more
	}
	at := start
	for i, f := range base {
		entry := &seccomp.SeccompFilter{Filter: f.Program, Flags: proto.Uint32(flags)}
		if f.Log {
			*entry.Flags |= unix.SECCOMP_FILTER_FLAG_LOG
		}
		list[at] = entry
		if i == len(base)-1 {
			entry.Prev = rest
			break
		}
		at = uint32(len(list))
		list = append(list, nil)
		entry.Prev = proto.Uint32(at)
	}
	return list
}

// checkPath refuses filters that no thread can have.
func checkPath(list []*seccomp.SeccompFilter, start uint32) error {
	total := 0
	for next := &start; next != nil; next = list[*next].Prev {
		n := len(list[*next].GetFilter())
		if n == 0 || n%instructionBytes != 0 || n > maxProgram*instructionBytes {
			return fmt.Errorf("a seccomp filter of %d bytes is none: %w", n, errdefs.ErrDataLoss)
		}
		total += n/instructionBytes + pathCost
		if total > maxPath {
			return fmt.Errorf("its seccomp filters and the container's have more than the %d instructions that the kernel takes: %w", maxPath, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// writeFilters writes an image as CRIU does (see readImage) to memory that
// nobody can change any more.
func writeFilters(list []*seccomp.SeccompFilter) (_ *os.File, err error) {
	entry := &seccomp.SeccompEntry{SeccompFilters: list}
	size := proto.Size(entry)
	if size > maxImage {
		return nil, fmt.Errorf("the seccomp filters of all threads take %d bytes, more than %d: %w", size, maxImage, errdefs.ErrFailedPrecondition)
	}
	var head []byte
	for _, n := range []uint64{magics().ByName["IMG_COMMON"], magics().ByName["SECCOMP"], uint64(size)} {
		head = binary.LittleEndian.AppendUint32(head, uint32(n))
	}
	text, err := proto.MarshalOptions{}.MarshalAppend(head, entry)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("seccomp.img", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "seccomp.img")
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if _, err := f.WriteAt(text, 0); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal a file in memory: %w", err)
	}
	return f, nil
}
