package image

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/creds"
	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// program is one instruction that looks like its name.
func program(name string) []byte { return fmt.Appendf(nil, "%-8s", name) }

func base(names ...string) (filters []Filter) {
	for _, n := range names {
		filters = append(filters, Filter{Program: program(n)})
	}
	return filters
}

func filter(name string, flags uint32, prev ...uint32) *seccomp.SeccompFilter {
	f := &seccomp.SeccompFilter{Filter: program(name), Flags: &flags}
	if len(prev) > 0 {
		f.Prev = &prev[0]
	}
	return f
}

// filterCase is a process, 1000, with one more thread, and the filters in its
// image. The first thread's begin with the image's second.
type filterCase struct {
	name    string
	filters []*seccomp.SeccompFilter
	spoil   func(leader, other *criucore.CoreEntry)
	known   *int   // by the manifest
	base    string // the container's, "a b" if empty
	first   string // the first thread's filters afterwards; those for all threads with a "+"
	second  string // the other's own
	says    string // why it is refused
}

func TestRebase(t *testing.T) {
	const all = unix.SECCOMP_FILTER_FLAG_TSYNC
	nothing := func(_, _ *criucore.CoreEntry) {}
	own := func(at uint32) func(_, _ *criucore.CoreEntry) {
		return func(_, other *criucore.CoreEntry) {
			other.ThreadCore.SeccompMode = criucore.SeccompMode_filter.Enum()
			other.ThreadCore.SeccompFilter = &at
		}
	}
	at := func(n uint32) func(_, _ *criucore.CoreEntry) {
		return func(l, _ *criucore.CoreEntry) { l.ThreadCore.SeccompFilter = &n }
	}
	number := func(n int) *int { return &n }
	pair := func(flags uint32) []*seccomp.SeccompFilter {
		return []*seccomp.SeccompFilter{filter("two", flags), filter("one", flags, 0)}
	}
	many := func(n, flags int) (list []*seccomp.SeccompFilter) {
		list = append(list, filter("last", uint32(flags)))
		for i := range n {
			list = append(list, filter("some", uint32(flags), uint32(i)))
		}
		return list
	}
	for _, tc := range []filterCase{
		{name: "for all threads", filters: pair(all), known: number(2), first: "a+ b+"},
		{name: "one, as an old manifest means", filters: pair(all), first: "a+ b+ two+"},
		{name: "as many as before", filters: pair(all), base: "a", first: "a+ two+"},
		{name: "more than before", filters: []*seccomp.SeccompFilter{filter("x", 0), filter("one", all)}, base: "a b c", first: "a+ b+ c+"},
		{name: "one more of its own", filters: []*seccomp.SeccompFilter{filter("mine", all), filter("two", all, 0), filter("one", all, 1)},
			known: number(2), spoil: at(2), first: "a+ b+ mine+"},
		{name: "own ones of one thread", filters: []*seccomp.SeccompFilter{filter("mine", 0), filter("two", all, 0), filter("one", all, 1)},
			known: number(2), spoil: at(2), first: "a+ b+ mine"},
		{name: "each its own", filters: append(pair(0), filter("mine", 0), filter("two", 0, 2), filter("one", 0, 3)),
			known: number(2), spoil: own(4), first: "a b", second: "a b mine"},
		{name: "both the same", filters: pair(0), known: number(2), spoil: own(1), first: "a b", second: "a b"},
		{name: "a filter that logs", filters: pair(all | unix.SECCOMP_FILTER_FLAG_LOG), base: "a", first: "a+ two+"},

		// Whatever the manifest says, the container's are there.
		{name: "none known", filters: pair(all), known: number(0), first: "a+ b+ one+ two+"},
		{name: "too many known", filters: []*seccomp.SeccompFilter{filter("m", all), filter("l", all, 0), filter("k", all, 1), filter("j", all, 2)},
			known: number(1 << 40), spoil: at(3), first: "a+ b+ l+ m+"},
		{name: "fewer there than known", filters: []*seccomp.SeccompFilter{filter("x", 0), filter("lax", all)}, known: number(9), first: "a+ b+"},
		// The base is for all threads that had no other.
		{name: "half of them for all", filters: []*seccomp.SeccompFilter{filter("two", 0), filter("one", all, 0)}, known: number(2), first: "a+ b+"},
		{name: "the latter half for all", filters: []*seccomp.SeccompFilter{filter("two", all), filter("one", 0, 0)}, base: "a", first: "a+ two+"},

		{name: "for the first only", filters: pair(0), says: "1001 has no seccomp filter"},
		{name: "shared in part", filters: append(pair(0), filter("lax", 0, 0)), spoil: own(2), says: "1001 shares"},
		{name: "shared from its middle on", filters: pair(0), spoil: own(0), says: "1001 shares"},
		// The kernel would refuse to install the first thread's.
		{name: "for all, but one has its own", filters: append(pair(all), filter("two", 0), filter("one", 0, 2)), spoil: own(3), says: "cannot be put on all threads"},
		{name: "for all, from another thread", filters: append(pair(0), filter("two", all), filter("one", all, 2)), spoil: own(3), says: "cannot be put on all threads"},
		{name: "a listener", filters: []*seccomp.SeccompFilter{filter("two", unix.SECCOMP_FILTER_FLAG_NEW_LISTENER), filter("one", all, 0)}, says: "flags 0x8"},
		{name: "a ring", filters: []*seccomp.SeccompFilter{filter("two", all, 1), filter("one", all, 0)}, says: "not there"},
		{name: "out of range", filters: []*seccomp.SeccompFilter{filter("two", all)}, says: "not there"},
		{name: "no list", says: "not there"},
		{name: "disabled", filters: pair(all), spoil: func(l, _ *criucore.CoreEntry) { l.ThreadCore.SeccompMode = nil }, says: "1000 has no seccomp filter"},
		{name: "strict", spoil: func(l, _ *criucore.CoreEntry) { l.ThreadCore.SeccompMode = criucore.SeccompMode_strict.Enum() }, says: "strict mode"},
		// CRIU would take these before the others.
		{name: "old form", filters: pair(all), says: "old CRIU",
			spoil: func(l, _ *criucore.CoreEntry) { l.Tc.OldSeccompMode = criucore.SeccompMode_disabled.Enum() }},
		{name: "half an instruction", filters: []*seccomp.SeccompFilter{{Filter: []byte("half")}, filter("one", all, 0)}, base: "a", says: "4 bytes"},
		{name: "a long filter", filters: []*seccomp.SeccompFilter{{Filter: make([]byte, 8*4097)}, filter("one", all, 0)}, base: "a", says: "32776 bytes"},
		{name: "more than the kernel takes", filters: many(7000, all), spoil: at(7000), says: "more than the 32768"},
		{name: "ended", spoil: func(l, o *criucore.CoreEntry) {
			l.Tc.TaskState, l.ThreadCore = proto.Uint32(taskDead), nil
			o.Tc, o.ThreadCore = l.Tc, nil
		}},
		{name: "ended or not", spoil: func(l, _ *criucore.CoreEntry) { l.ThreadCore = nil }, says: "1000 has no credentials"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.spoil == nil {
				tc.spoil = nothing
			}
			if tc.base == "" {
				tc.base = "a b"
			}
			c := tc.checkpoint(t)
			f, err := c.Confine(Rights{Seccomp: true, Filters: base(strings.Fields(tc.base)...)})
			if tc.says != "" {
				if err == nil || !errdefs.IsFailedPrecondition(err) && !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), tc.says) {
					t.Fatal(err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			threads, err := c.readThreads()
			if err != nil {
				t.Fatal(err)
			}
			list := readBack(t, f)
			for tid, want := range map[string]string{"1000": tc.first, "1001": tc.second} {
				if ended(threads[tid]) {
					continue
				}
				chain, problem := chainOf(threads[tid], list)
				if got := spell(chain); problem != "" || got != want {
					t.Errorf("thread %s has %q (%s), want %q", tid, got, problem, want)
				}
			}
		})
	}
}

func spell(chain []*seccomp.SeccompFilter) string {
	var words []string
	for _, f := range chain {
		word := strings.TrimSpace(string(f.GetFilter()))
		if reachesAll(f) {
			word += "+"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// readBack reads the filters as CRIU does, from a file that must be sealed.
func readBack(t *testing.T, f *os.File) []*seccomp.SeccompFilter {
	t.Helper()
	if _, err := f.WriteAt([]byte{1}, 0); err == nil {
		t.Error("the file can be changed")
	}
	data, err := os.ReadFile(self(f))
	if err != nil || len(data) < 12 {
		t.Fatal(len(data), err)
	}
	number := func(i int) uint32 { return binary.LittleEndian.Uint32(data[4*i:]) }
	if number(0) != 0x54564319 || number(1) != 0x64413049 || int(number(2)) != len(data)-12 {
		t.Errorf("the file begins with %x", data[:12])
	}
	dir := t.TempDir()
	writeFile(t, dir, "seccomp.img", string(data))
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	list, err := (&Checkpoint{dir: d}).readFilters()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A filter that allows everything, as somebody would forge it, comes back below
// the container's.
func TestRebaseFlags(t *testing.T) {
	tc := filterCase{filters: []*seccomp.SeccompFilter{filter("x", 0), filter("allow", unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)},
		spoil: func(_, _ *criucore.CoreEntry) {}, known: new(int)}
	container := base("a", "b")
	container[1].Log = true
	f, err := tc.checkpoint(t).Confine(Rights{Seccomp: true, Filters: container})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list := readBack(t, f)
	var flags []uint32
	for next := proto.Uint32(1); next != nil; next = list[*next].Prev {
		flags = append(flags, list[*next].GetFlags())
	}
	const all = unix.SECCOMP_FILTER_FLAG_TSYNC
	if want := []uint32{all, all | unix.SECCOMP_FILTER_FLAG_LOG, all | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW}; !slices.Equal(flags, want) {
		t.Errorf("flags %#x, want %#x", flags, want)
	}
}

func TestConfineUnknown(t *testing.T) {
	tc := filterCase{filters: []*seccomp.SeccompFilter{filter("x", 0), filter("y", 0)}, spoil: func(_, _ *criucore.CoreEntry) {}}
	if _, err := tc.checkpoint(t).Confine(Rights{Seccomp: true}); !errdefs.IsInternal(err) {
		t.Errorf("filters that are not known: %v", err)
	}
	// Without a filter in the container the application's own stay what they are.
	if f, err := tc.checkpoint(t).Confine(Rights{}); f != nil || err != nil {
		t.Error(f, err)
	}
}

func TestThreadTwice(t *testing.T) {
	tc := filterCase{filters: []*seccomp.SeccompFilter{filter("x", 0), filter("y", 0)}, spoil: func(_, _ *criucore.CoreEntry) {}}
	c := tc.checkpoint(t)
	process := func(pid uint32) proto.Message {
		return &pstree.PstreeEntry{Pid: &pid, Ppid: proto.Uint32(0), Pgid: &pid, Sid: &pid, Threads: []uint32{pid, 1001}}
	}
	writeImage(t, c.dir.Name(), "pstree.img", "PSTREE", process(1000), process(1002))
	if _, err := c.Confine(Rights{Seccomp: true, Filters: base("a")}); !errdefs.IsDataLoss(err) {
		t.Error(err)
	}
}

func (tc filterCase) checkpoint(t *testing.T) *Checkpoint {
	t.Helper()
	dir := t.TempDir()
	zero := proto.Uint32(0)
	core := func() *criucore.CoreEntry {
		return &criucore.CoreEntry{Mtype: criucore.CoreEntry_X86_64.Enum(), ThreadCore: &criucore.ThreadCoreEntry{
			FutexRla: proto.Uint64(0), FutexRlaLen: zero,
			Creds: &creds.CredsEntry{
				Uid: zero, Gid: zero, Euid: zero, Egid: zero, Suid: zero, Sgid: zero, Fsuid: zero, Fsgid: zero, Secbits: zero,
			},
		}}
	}
	leader, other := core(), core()
	leader.ThreadCore.SeccompMode = criucore.SeccompMode_filter.Enum()
	leader.ThreadCore.SeccompFilter = proto.Uint32(1)
	leader.Tc = &criucore.TaskCoreEntry{
		TaskState: proto.Uint32(1), ExitCode: zero, Personality: zero, Flags: zero, BlkSigset: proto.Uint64(0), Comm: proto.String("x"),
	}
	tc.spoil(leader, other)
	for i, c := range []*criucore.CoreEntry{leader, other} {
		writeImage(t, dir, "core-"+strconv.Itoa(1000+i)+".img", "CORE", c)
	}
	writeImage(t, dir, "pstree.img", "PSTREE", &pstree.PstreeEntry{
		Pid: proto.Uint32(1000), Ppid: zero, Pgid: zero, Sid: zero, Threads: []uint32{1000, 1001},
	})
	if tc.filters != nil {
		writeImage(t, dir, "seccomp.img", "SECCOMP", &seccomp.SeccompEntry{SeccompFilters: tc.filters})
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return &Checkpoint{dir: d, Manifest: &Manifest{SeccompFilters: tc.known}}
}
