//go:build linux

package preserve

import (
	"archive/tar"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func denied(t *testing.T, what string, err error, path string) {
	t.Helper()
	if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), path) {
		t.Errorf("%s: %v", what, err)
	}
}

// A user without capabilities reads and writes what he may, and nothing else.
func TestUnprivileged(t *testing.T) {
	const uid = 4711
	c := newContainer(t, user(t, uid, 5000))
	c.mkdir("home", 0o755)
	c.own("home", uid, uid)
	c.mkdir("tmp", os.ModeSticky|0o777)
	c.mkdir("etc", 0o755)
	c.write("etc/passwd", "root's")
	c.write("etc/shadow", "secret")
	must(t, os.Chmod(c.path("etc/shadow"), 0o600))
	c.write("tmp/root", "root's")
	c.mkdir("grouped", 0o770)
	c.own("grouped", 0, 5000)

	_, err := c.pack("/etc/shadow")
	denied(t, "pack", err, "/etc/shadow")

	me := func(h tar.Header) tar.Header { h.Uid, h.Gid = uid, uid; return h }
	must(t, c.unpack(forge(t, me(file("home/a", "mine"))), "/home/a"))
	must(t, c.unpack(forge(t, me(file("grouped/a", "ours"))), "/grouped/a"))
	must(t, c.unpack(forge(t, me(file("tmp/a", "mine"))), "/tmp/a"))
	// A folder that is another's is merged into, its times apart.
	root := folder("tmp")
	root.Mode = 0o1777
	must(t, c.unpack(forge(t, root, me(file("tmp/b", "mine"))), "/tmp"))

	for name, h := range map[string]tar.Header{
		"replace":     me(file("etc/passwd", "forged")),
		"new":         me(file("etc/new", "forged")),
		"sticky":      me(file("tmp/root", "forged")),
		"root's own":  file("home/suid", "forged"),
		"other group": {Typeflag: tar.TypeReg, Name: "home/suid", Uid: uid, Gid: 6},
		"link":        {Typeflag: tar.TypeSymlink, Name: "etc/link", Linkname: "x", Uid: uid, Gid: uid},
		"fifo":        {Typeflag: tar.TypeFifo, Name: "etc/fifo", Uid: uid, Gid: uid},
		"capability":  {Typeflag: tar.TypeReg, Name: "home/caps", Uid: uid, Gid: uid, PAXRecords: map[string]string{xattrRecord + capabilityXattr: "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
	} {
		denied(t, name, c.unpack(forge(t, h), "/"+h.Name), "/"+h.Name)
	}
	other := folder("etc")
	other.Mode = 0o777
	denied(t, "other's folder", c.unpack(forge(t, other), "/etc"), "/etc")
	if c.read("etc/passwd")+c.read("tmp/root") != "root'sroot's" {
		t.Error("root's files were changed")
	}
	for _, p := range []string{"etc/new", "home/suid", "home/caps", "etc/link", "etc/fifo"} {
		c.missing(p)
	}
	// A group that he is not in: the kernel takes the bit off.
	h := me(file("home/setgid", "x"))
	h.Mode, h.Gid = 0o6755, uid
	must(t, c.unpack(forge(t, h), "/home/setgid"))
	h.Name, h.Gid = "home/group", 5000
	must(t, c.unpack(forge(t, h), "/home/group"))
	for p, want := range map[string]string{"home/setgid": "106755 4711:4711", "home/group": "106755 4711:5000"} {
		if got := c.describe(p); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %s, not %s", p, got, want)
		}
	}
	// He lets himself into his own folder.
	c.mkdir("home/closed", 0o500)
	c.own("home/closed", uid, uid)
	closed := me(folder("home/closed"))
	closed.Mode = 0o500
	must(t, c.unpack(forge(t, closed, me(file("home/closed/a", "in"))), "/home/closed"))
	if got := c.describe("home/closed"); !strings.HasPrefix(got, "40500 ") || c.read("home/closed/a") != "in" {
		t.Errorf("it is %s", got)
	}
}

// Root of a user namespace has its capabilities over the namespace's own files only,
// and the archive has its ids.
func TestUserNamespace(t *testing.T) {
	const first, other = 200000, 400000
	le := func(id int) string { return hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, uint32(id))) }
	from := newContainer(t, namespaced(t, first))
	from.own(".", first, first)
	names := from.sample(first + 10)
	from.own("data/plain", first, first)
	from.age("data/plain")
	must(t, unix.Removexattr(from.path("data/empty"), accessACL))
	must(t, unix.Removexattr(from.path("data/deep"), defaultACL))
	acl := strings.Replace(sampleACL, "d2040000", le(first+1234), 1)
	from.xattr("data/empty", accessACL, acl)
	caps := "01000003" + sampleCaps[8:]
	from.xattr("data/empty", capabilityXattr, caps+le(first))
	want := map[string]string{}
	for _, p := range names {
		from.age(p)
		want[p] = from.describe(p)
	}
	archive, err := from.pack("/data")
	must(t, err)
	same := newContainer(t, namespaced(t, first))
	same.own(".", first, first)
	must(t, same.unpack(archive, "/data"))
	for _, p := range names {
		if got := same.describe(p); got != want[p] {
			t.Errorf("%q is\n%.300s, not\n%.300s", p, got, want[p])
		}
	}
	moved := newContainer(t, namespaced(t, other))
	moved.own(".", other, other)
	must(t, moved.unpack(archive, "/data"))
	if got := moved.describe("data/setuid"); !strings.HasPrefix(got, fmt.Sprintf("106751 %d:%d ", other+17, other+117)) {
		t.Errorf("a set-id file is %s", got)
	}
	got := moved.describe("data/empty")
	if !strings.Contains(got, "capability="+caps+le(other)) || !strings.Contains(got, le(other+1234)) {
		t.Errorf("ids in attributes: %s", got)
	}

	// The host's files, of which a volume may be full, are out of its reach.
	c := newContainer(t, namespaced(t, first))
	c.mkdir("volume", 0o755)
	c.write("volume/host", "host's")
	c.write("volume/secret", "secret")
	must(t, os.Chmod(c.path("volume/secret"), 0o600))
	c.mkdir("open", os.ModeSticky|0o777)
	c.write("open/host", "host's")
	c.mkdir("closed", 0o700)
	c.mkdir("closed/world", 0o777)
	for _, p := range []string{"/volume/secret", "/closed/world"} {
		_, err := c.pack(p)
		if err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("pack %s: %v", p, err)
		}
	}
	for _, p := range []string{"volume/host", "volume/new", "open/host", "closed/world/x"} {
		denied(t, p, c.unpack(forge(t, file(p, "forged")), "/"+p), p)
	}
	f := folder("open")
	f.Mode = 0o777
	denied(t, "the host's folder", c.unpack(forge(t, f), "/open"), "/open")
	if c.read("volume/host")+c.read("open/host") != "host'shost's" {
		t.Error("the host's files were changed")
	}
	h := file("open/x", "x")
	h.Uid = 70000
	if err := c.unpack(forge(t, h), "/open/x"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an id that the namespace does not have: %v", err)
	}
	h = file("open/x", "x")
	h.PAXRecords = map[string]string{xattrRecord + capabilityXattr: "\x01\x00\x00\x03\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	if err := c.unpack(forge(t, h), "/open/x"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("capabilities of another root: %v", err)
	}
	c.missing("open/x")
}
