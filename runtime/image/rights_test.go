package image

import (
	"os"
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

func TestCheckRights(t *testing.T) {
	const allowed = uint64(1)<<40 | 0xff
	words := func(set uint64) []uint32 { return []uint32{uint32(set), uint32(set >> 32)} }
	confined := Rights{Bounding: allowed, Seccomp: true, NoNewPrivs: true}
	fixed := Rights{Bounding: allowed, User: proto.Uint32(0), Groups: []uint32{0, 20}}
	for _, tc := range []struct {
		name    string
		spoil   func(*criucore.ThreadCoreEntry)
		allowed Rights
		says    string
	}{
		{"as the spec says", func(*criucore.ThreadCoreEntry) {}, confined, ""},
		{"less", func(c *criucore.ThreadCoreEntry) { c.Creds.CapBnd, c.Creds.CapPrm = nil, nil }, confined, ""},
		{"no credentials", func(c *criucore.ThreadCoreEntry) { c.Creds = nil }, confined, "no credentials"},
		{"another user", func(c *criucore.ThreadCoreEntry) { c.Creds.Suid = proto.Uint32(7) }, fixed, "is user 7"},
		{"another group", func(c *criucore.ThreadCoreEntry) { c.Creds.Fsgid = proto.Uint32(7) }, fixed, "group 7"},
		{"one of its groups", func(c *criucore.ThreadCoreEntry) { c.Creds.Groups = []uint32{20} }, fixed, ""},
		{"one group more", func(c *criucore.ThreadCoreEntry) { c.Creds.Groups = []uint32{20, 21} }, fixed, "in group 21"},
		{"a capability", func(c *criucore.ThreadCoreEntry) { c.Creds.CapPrm = words(1 << 21) }, confined, "permitted set, bits 0x200000"},
		{"a high capability", func(c *criucore.ThreadCoreEntry) { c.Creds.CapBnd = words(1 << 39) }, confined, "bounding set"},
		{"no filter", func(c *criucore.ThreadCoreEntry) { c.SeccompMode = criucore.SeccompMode_disabled.Enum() }, confined, "no seccomp filter"},
		{"may gain", func(c *criucore.ThreadCoreEntry) { c.Creds.NoNewPrivs = nil }, confined, "no_new_privs"},
		{"an unconfined container takes them", func(c *criucore.ThreadCoreEntry) {
			c.Creds.NoNewPrivs = nil
			c.SeccompMode = criucore.SeccompMode_disabled.Enum()
		}, Rights{Bounding: allowed}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			zero := proto.Uint32(0)
			core := &criucore.CoreEntry{Mtype: criucore.CoreEntry_X86_64.Enum(), ThreadCore: &criucore.ThreadCoreEntry{
				FutexRla: proto.Uint64(0), FutexRlaLen: proto.Uint32(0),
				SeccompMode: criucore.SeccompMode_filter.Enum(), SeccompFilter: zero,
				Creds: &creds.CredsEntry{
					Uid: zero, Gid: zero, Euid: zero, Egid: zero, Suid: zero, Sgid: zero, Fsuid: zero, Fsgid: zero, Secbits: zero,
					CapBnd: words(allowed), CapPrm: words(allowed), CapEff: words(1), NoNewPrivs: proto.Uint32(1),
				},
			}}
			tc.spoil(core.ThreadCore)
			writeImage(t, dir, "core-1007.img", "CORE", core)
			writeImage(t, dir, "pstree.img", "PSTREE", &pstree.PstreeEntry{
				Pid: proto.Uint32(1007), Ppid: zero, Pgid: zero, Sid: zero, Threads: []uint32{1007},
			})
			writeImage(t, dir, "seccomp.img", "SECCOMP", &seccomp.SeccompEntry{
				SeccompFilters: []*seccomp.SeccompFilter{{Filter: []byte{1}}},
			})
			d, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			err = (&Checkpoint{dir: d}).CheckRights(tc.allowed)
			if tc.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "1007") {
				t.Fatal(err)
			}
		})
	}
}

// filterCase is a process with one more thread, and the filters in its image.
type filterCase struct {
	name    string
	filters []*seccomp.SeccompFilter
	spoil   func(leader, other *criucore.CoreEntry)
	says    string // "" if the checkpoint fits
}

func filter(content string, flags uint32, prev ...uint32) *seccomp.SeccompFilter {
	f := &seccomp.SeccompFilter{Filter: []byte(content), Flags: &flags}
	if len(prev) > 0 {
		f.Prev = &prev[0]
	}
	return f
}

// TestCheckFilters: the container has the filters "one" and "two", in this order.
func TestCheckFilters(t *testing.T) {
	const all = unix.SECCOMP_FILTER_FLAG_TSYNC
	nothing := func(_, _ *criucore.CoreEntry) {}
	own := func(at uint32) func(_, _ *criucore.CoreEntry) {
		return func(_, other *criucore.CoreEntry) {
			other.ThreadCore.SeccompMode = criucore.SeccompMode_filter.Enum()
			other.ThreadCore.SeccompFilter = &at
		}
	}
	for _, tc := range []filterCase{
		{"for all threads", []*seccomp.SeccompFilter{filter("two", all), filter("one", all, 0)}, nothing, ""},
		{"one more of its own", []*seccomp.SeccompFilter{filter("mine", all), filter("two", all, 0), filter("one", all, 1)},
			func(l, _ *criucore.CoreEntry) { l.ThreadCore.SeccompFilter = proto.Uint32(2) }, ""},
		{"each its own", []*seccomp.SeccompFilter{filter("two", 0), filter("one", 0, 0)}, own(1), ""},
		{"for the first only", []*seccomp.SeccompFilter{filter("two", 0), filter("one", 0, 0)}, nothing, "1001 has no seccomp filter"},
		{"half of them for all", []*seccomp.SeccompFilter{filter("two", 0), filter("one", all, 0)}, nothing, "1001 has 1 seccomp filters"},
		{"other order", []*seccomp.SeccompFilter{filter("one", all), filter("two", all, 0)}, nothing, "1000 has another seccomp filter"},
		{"changed", []*seccomp.SeccompFilter{filter("two", all), filter("One", all, 0)}, nothing, "1000 has another seccomp filter"},
		{"too few", []*seccomp.SeccompFilter{filter("two", all), filter("one", all)}, nothing, "1000 has 1 seccomp filters"},
		{"another thread's differ", []*seccomp.SeccompFilter{filter("two", 0), filter("one", 0, 0), filter("two", 0)}, own(2), "1001 has 1 seccomp filters"},
		// The kernel would refuse to install the first thread's.
		{"for all, but one has its own", []*seccomp.SeccompFilter{filter("two", all), filter("one", all, 0), filter("two", 0), filter("one", 0, 2)},
			own(3), "cannot be put on all threads"},
		{"for all, from another thread", []*seccomp.SeccompFilter{filter("two", 0), filter("one", 0, 0), filter("two", all), filter("one", all, 2)},
			own(3), "cannot be put on all threads"},
		{"a listener", []*seccomp.SeccompFilter{filter("two", unix.SECCOMP_FILTER_FLAG_NEW_LISTENER), filter("one", all, 0)}, nothing, "flags 0x8"},
		{"a ring", []*seccomp.SeccompFilter{filter("two", all, 1), filter("one", all, 0)}, nothing, "not there"},
		{"out of range", []*seccomp.SeccompFilter{filter("two", all)}, nothing, "not there"},
		{"no list", nil, nothing, "not there"},
		{"disabled", []*seccomp.SeccompFilter{filter("two", all), filter("one", all, 0)},
			func(l, _ *criucore.CoreEntry) { l.ThreadCore.SeccompMode = nil }, "1000 has no seccomp filter"},
		{"strict", nil, func(l, _ *criucore.CoreEntry) { l.ThreadCore.SeccompMode = criucore.SeccompMode_strict.Enum() }, "strict mode"},
		// CRIU would take these before the others.
		{"old form", []*seccomp.SeccompFilter{filter("two", all), filter("one", all, 0)},
			func(l, _ *criucore.CoreEntry) { l.Tc.OldSeccompMode = criucore.SeccompMode_disabled.Enum() }, "old CRIU"},
		{"ended", nil, func(l, o *criucore.CoreEntry) {
			l.Tc.TaskState, l.ThreadCore = proto.Uint32(taskDead), nil
			o.Tc, o.ThreadCore = l.Tc, nil
		}, ""},
		{"ended or not", nil, func(l, _ *criucore.CoreEntry) { l.ThreadCore = nil }, "1000 has no credentials"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := tc.checkpoint(t)
			err := c.CheckRights(Rights{Seccomp: true, Filters: [][]byte{[]byte("one"), []byte("two")}})
			if tc.says == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.says) {
				t.Fatal(err)
			}
		})
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
	writeImage(t, dir, "core-1000.img", "CORE", leader)
	writeImage(t, dir, "core-1001.img", "CORE", other)
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
	return &Checkpoint{dir: d}
}
