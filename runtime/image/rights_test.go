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
	for _, tc := range []struct {
		name    string
		spoil   func(*criucore.ThreadCoreEntry)
		allowed Rights
		says    string
	}{
		{"as the spec says", func(*criucore.ThreadCoreEntry) {}, confined, ""},
		{"less", func(c *criucore.ThreadCoreEntry) { c.Creds.CapBnd, c.Creds.CapPrm = nil, nil }, confined, ""},
		{"no credentials: ended", func(c *criucore.ThreadCoreEntry) { c.Creds = nil }, confined, ""},
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
				SeccompMode: criucore.SeccompMode_filter.Enum(),
				Creds: &creds.CredsEntry{
					Uid: zero, Gid: zero, Euid: zero, Egid: zero, Suid: zero, Sgid: zero, Fsuid: zero, Fsgid: zero, Secbits: zero,
					CapBnd: words(allowed), CapPrm: words(allowed), CapEff: words(1), NoNewPrivs: proto.Uint32(1),
				},
			}}
			tc.spoil(core.ThreadCore)
			writeImage(t, dir, "core-1007.img", "CORE", core)
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

// CRIU notes a filter that all threads of a process have for the first only.
func TestCheckRightsOfThreads(t *testing.T) {
	for _, tc := range []struct {
		name  string
		flags uint32
		mode  criucore.SeccompMode
		fits  bool
	}{
		{"for all threads", unix.SECCOMP_FILTER_FLAG_TSYNC, criucore.SeccompMode_filter, true},
		{"for the first only", 0, criucore.SeccompMode_filter, false},
		{"strict", unix.SECCOMP_FILTER_FLAG_TSYNC, criucore.SeccompMode_strict, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			zero := proto.Uint32(0)
			core := func(mode *criucore.SeccompMode) *criucore.CoreEntry {
				return &criucore.CoreEntry{Mtype: criucore.CoreEntry_X86_64.Enum(), ThreadCore: &criucore.ThreadCoreEntry{
					FutexRla: proto.Uint64(0), FutexRlaLen: zero, SeccompMode: mode, SeccompFilter: zero,
					Creds: &creds.CredsEntry{
						Uid: zero, Gid: zero, Euid: zero, Egid: zero, Suid: zero, Sgid: zero, Fsuid: zero, Fsgid: zero, Secbits: zero,
					},
				}}
			}
			writeImage(t, dir, "core-1000.img", "CORE", core(tc.mode.Enum()))
			writeImage(t, dir, "core-1001.img", "CORE", core(nil))
			writeImage(t, dir, "pstree.img", "PSTREE", &pstree.PstreeEntry{
				Pid: proto.Uint32(1000), Ppid: zero, Pgid: zero, Sid: zero, Threads: []uint32{1000, 1001},
			})
			writeImage(t, dir, "seccomp.img", "SECCOMP", &seccomp.SeccompEntry{
				SeccompFilters: []*seccomp.SeccompFilter{{Filter: []byte{1}, Flags: proto.Uint32(tc.flags)}},
			})
			d, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			err = (&Checkpoint{dir: d}).CheckRights(Rights{Seccomp: true})
			if tc.fits != (err == nil) || err != nil && !strings.Contains(err.Error(), "thread 1001 has no seccomp filter") {
				t.Fatal(err)
			}
		})
	}
}
