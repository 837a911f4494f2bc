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
	"google.golang.org/protobuf/proto"
)

func TestConfine(t *testing.T) {
	const allowed = uint64(1)<<40 | 0xff
	words := func(set uint64) []uint32 { return []uint32{uint32(set), uint32(set >> 32)} }
	confined := Rights{Bounding: allowed, Seccomp: true, Filters: base("base"), NoNewPrivs: true}
	fixed := Rights{Bounding: allowed, User: proto.Uint32(0), Group: proto.Uint32(0), Groups: []uint32{0, 20}, LSM: "mine"}
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
		{"one of its groups", func(c *criucore.ThreadCoreEntry) {
			c.Creds.Groups, c.Creds.LsmProfile = []uint32{20}, proto.String("mine")
		}, fixed, ""},
		{"one group more", func(c *criucore.ThreadCoreEntry) { c.Creds.Groups = []uint32{20, 21} }, fixed, "in group 21"},
		{"any group that it becomes", func(c *criucore.ThreadCoreEntry) { c.Creds.Uid, c.Creds.Gid = proto.Uint32(7), proto.Uint32(7) },
			Rights{Bounding: allowed, Groups: []uint32{20}}, ""},
		{"the container's profile", func(c *criucore.ThreadCoreEntry) { c.Creds.LsmProfile = proto.String("mine") }, fixed, ""},
		{"another profile", func(c *criucore.ThreadCoreEntry) { c.Creds.LsmProfile = proto.String("lax") }, fixed, `the security profile "lax", and the container has "mine"`},
		{"no profile", func(*criucore.ThreadCoreEntry) {}, fixed, `without the container's "mine"`},
		{"a profile for sockets", func(c *criucore.ThreadCoreEntry) {
			c.Creds.LsmProfile, c.Creds.LsmSockcreate = proto.String("mine"), proto.String("lax")
		}, fixed, `"lax"`},
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
				SeccompFilters: []*seccomp.SeccompFilter{filter("any", 0)},
			})
			d, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			filters, err := (&Checkpoint{dir: d, Manifest: &Manifest{}}).Confine(tc.allowed)
			if tc.says == "" {
				if err != nil || (filters != nil) != tc.allowed.Seccomp {
					t.Fatal(filters, err)
				}
				filters.Close()
				return
			}
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "1007") {
				t.Fatal(err)
			}
		})
	}
}
