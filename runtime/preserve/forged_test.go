//go:build linux

package preserve

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What Pack does not write is refused, whatever it would do.
func TestForged(t *testing.T) {
	link := func(kind byte, name, to string) tar.Header {
		return tar.Header{Typeflag: kind, Name: name, Linkname: to}
	}
	records := func(key, value string) tar.Header {
		h := file("data/a", "x")
		h.PAXRecords = map[string]string{key: value}
		return h
	}
	large := file("data/a", "x")
	for name, entries := range map[string][]tar.Header{
		"climbing":          {file("data/../etc/passwd", "x")},
		"climbing far":      {file("../../../etc/passwd", "x")},
		"absolute":          {file("/data/a", "x")},
		"dots":              {file("data/./a", "x")},
		"double slash":      {file("data//a", "x")},
		"elsewhere":         {file("etc/passwd", "x")},
		"beside":            {file("data2", "x")},
		"the root":          {folder(".")},
		"no name":           {{Typeflag: tar.TypeDir, Name: "/"}},
		"character device":  {{Typeflag: tar.TypeChar, Name: "data/null", Devmajor: 1, Devminor: 3}},
		"block device":      {{Typeflag: tar.TypeBlock, Name: "data/disk", Devmajor: 8}},
		"contiguous":        {{Typeflag: tar.TypeCont, Name: "data/a"}},
		"hard link out":     {link(tar.TypeLink, "data/a", "etc/passwd")},
		"hard link up":      {link(tar.TypeLink, "data/a", "data/../etc/passwd")},
		"hard link abs":     {link(tar.TypeLink, "data/a", "/etc/passwd")},
		"hard link self":    {link(tar.TypeLink, "data/a", "data/a")},
		"empty link":        {link(tar.TypeSymlink, "data/a", "")},
		"trusted attribute": {records(xattrRecord+"trusted.overlay.opaque", "y")},
		"label":             {records(xattrRecord+"security.selinux", "y")},
		"long attributes":   {records(xattrRecord+"user.a", strings.Repeat("x", maxXattrs))},
		"negative user":     {{Typeflag: tar.TypeReg, Name: "data/a", Uid: -1}},
		"no user":           {{Typeflag: tar.TypeReg, Name: "data/a", Uid: 1<<32 - 1}},
		"no group":          {{Typeflag: tar.TypeReg, Name: "data/a", Gid: 1<<32 - 1}},
		"huge group":        {{Typeflag: tar.TypeReg, Name: "data/a", Gid: 1 << 40}},
		"mode":              {{Typeflag: tar.TypeReg, Name: "data/a", Mode: 0o100755}},
		"deep":              {file("data"+strings.Repeat("/d", 2*maxDepth), "x")},
		"nothing":           {},
		"not the path":      {large},
	} {
		c := newContainer(t, os.Getpid())
		c.write("etc/passwd", "root's")
		c.mkdir("data", 0o755)
		if name != "not the path" && name != "nothing" {
			entries = append([]tar.Header{folder("data")}, entries...)
		}
		err := c.unpack(forge(t, entries...), "/data")
		if !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v", name, err)
		}
		if c.read("etc/passwd") != "root's" {
			t.Errorf("%s: it was changed", name)
		}
		c.missing("data/null")
		c.missing("data2")
	}
}

// Links, in the archive or in the container, lead nowhere.
func TestForgedLinks(t *testing.T) {
	c := newContainer(t, os.Getpid())
	c.mkdir("etc", 0o755)
	c.write("etc/passwd", "root's")
	c.mkdir("data", 0o755)
	outside := t.TempDir()
	for name, entries := range map[string][]tar.Header{
		"through":      {folder("data"), {Typeflag: tar.TypeSymlink, Name: "data/l", Linkname: "/etc"}, file("data/l/passwd", "forged")},
		"as a folder":  {folder("data"), {Typeflag: tar.TypeSymlink, Name: "data/m", Linkname: "/etc"}, folder("data/m"), file("data/m/passwd", "forged")},
		"hard through": {folder("data"), {Typeflag: tar.TypeSymlink, Name: "data/n", Linkname: "/etc"}, {Typeflag: tar.TypeLink, Name: "data/h", Linkname: "data/n/passwd"}},
		"hard to it":   {folder("data"), {Typeflag: tar.TypeSymlink, Name: "data/o", Linkname: "/etc/passwd"}, {Typeflag: tar.TypeLink, Name: "data/h", Linkname: "data/o"}},
		"no folder":    {folder("data"), file("data/none/x", "forged")},
	} {
		if err := c.unpack(forge(t, entries...), "/data"); err == nil {
			t.Errorf("%s: no error", name)
		}
		if c.read("etc/passwd") != "root's" {
			t.Errorf("%s: it was changed", name)
		}
		c.missing("data/h")
	}
	// A file is put in the place of a link, not of what it leads to.
	must(t, os.Symlink("/etc/passwd", c.path("data/p")))
	must(t, c.unpack(forge(t, folder("data"), file("data/p", "mine")), "/data"))
	if c.read("etc/passwd")+c.read("data/p") != "root'smine" {
		t.Error("written through a link")
	}
	// Above a path links are followed, inside the root.
	c.mkdir(filepath.Dir(outside), 0o755)
	must(t, os.Symlink(outside, c.path("out")))
	must(t, c.unpack(forge(t, file("out/x", "in")), "/out/x"))
	if names, err := os.ReadDir(outside); err != nil || len(names) > 0 {
		t.Errorf("outside: %v, %v", names, err)
	}
	if c.read(outside+"/x") != "in" {
		t.Error("it is nowhere")
	}
	// A folder does not give way to a file, nor a file to a folder.
	c.mkdir("data/d", 0o755)
	c.write("data/f", "stays")
	for _, h := range []tar.Header{file("data/d", "x"), folder("data/f")} {
		if err := c.unpack(forge(t, folder("data"), h), "/data"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", h.Name, err)
		}
	}
	if c.read("data/f") != "stays" {
		t.Error("it was replaced")
	}
	// The kernel's files are no place for ours.
	c.mkdir("data/proc", 0o755)
	must(t, unix.Mount("proc", c.path("data/proc"), "proc", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(c.path("data/proc"), unix.MNT_DETACH) })
	err := c.unpack(forge(t, folder("data"), folder("data/proc"), file("data/proc/x", "x")), "/data")
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "kernel") {
		t.Errorf("into /proc: %v", err)
	}
}

// Damage is told, wherever it is; it never does more than the archive's own files.
func TestDamaged(t *testing.T) {
	from := newContainer(t, os.Getpid())
	from.write("data/a", strings.Repeat("content ", 200))
	from.write("data/b", "b")
	archive, err := from.pack("/data")
	must(t, err)
	broken := func(name string, damaged []byte) {
		t.Helper()
		c := newContainer(t, os.Getpid())
		if err := c.unpack(damaged, "/data"); err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range len(archive) / 64 {
		broken("cut", archive[:64*n])
		flipped := bytes.Clone(archive)
		flipped[64*n+n%64] ^= 0x11
		broken("flipped", flipped)
	}
	c := newContainer(t, os.Getpid())
	sum := bytes.Clone(archive)
	sum[148]++ // the checksum's first digit
	huge := bytes.Clone(forge(t, folder("data"), file("data/a", "")))
	copy(huge[512+124:], "77777777777\x00")
	resum(huge[512:1024])
	sparse := forge(t, folder("data"), file("data/a", strings.Repeat("x", 1024)))
	sparse[512+156] = tar.TypeGNUSparse
	copy(sparse[512+257:], "ustar  \x00")
	resum(sparse[512:1024])
	for name, a := range map[string][]byte{
		"checksum": sum, "huge": huge, "sparse": sparse, "empty": nil, "zeros": make([]byte, 4096), "no archive": bytes.Repeat([]byte("x"), 4096), "cut": archive[:len(archive)-1500],
	} {
		if err := c.unpack(a, "/data"); !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// resum makes a forged header's checksum right.
func resum(h []byte) {
	copy(h[148:156], "        ")
	sum := 0
	for _, b := range h[:512] {
		sum += int(b)
	}
	copy(h[148:156], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
}

// broken is a disk that fails.
type brokenDisk struct{}

func (brokenDisk) Read([]byte) (int, error) { return 0, unix.EIO }

func TestDiskFails(t *testing.T) {
	c := newContainer(t, os.Getpid())
	err := Unpack(t.Context(), c.root, []string{"/data"}, brokenDisk{}, 1<<20, c.options())
	if errdefs.IsDataLoss(err) || !errors.Is(err, unix.EIO) {
		t.Errorf("a disk that fails is taken for a damaged archive: %v", err)
	}
}

// FuzzUnpack: whatever an archive holds, nothing outside of the preserved path changes.
func FuzzUnpack(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{folder("data"), {Typeflag: tar.TypeSymlink, Name: "data/l", Linkname: "../etc"}, {Typeflag: tar.TypeFifo, Name: "data/p"}} {
		h.Mode = 0o755
		must(f, w.WriteHeader(&h))
	}
	must(f, w.Close())
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, archive []byte) {
		c := newContainer(t, os.Getpid())
		c.write("etc/passwd", "root's")
		before := c.describe("etc/passwd") + c.describe("etc")
		archive = bytes.Clone(archive)
		for at := 0; at+512 <= len(archive); at += 512 {
			resum(archive[at : at+512 : at+512])
		}
		_ = c.unpack(archive, "/data")
		if after := c.describe("etc/passwd") + c.describe("etc"); after != before {
			t.Fatalf("%s became %s", before, after)
		}
		if names, err := os.ReadDir(c.dir); err != nil || len(names) > 2 {
			t.Fatalf("%v, %v", names, err)
		}
	})
}
