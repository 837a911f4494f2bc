//go:build linux

package criu

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The parts of an archive, as in preload/tmpfs.h.
const (
	aFolder = iota + 1
	aEnd
	aRegular
	aHardLink
	aSymlink
	aFifo
)

func archiveHead(mount string) string {
	return tmpfsMagic + mount + strings.Repeat("\x00", unix.PathMax-len(mount))
}

func entry(kind, mode, size int, name, rest string) string {
	var b bytes.Buffer
	for _, v := range []any{uint32(kind), uint32(mode), uint32(0), uint32(0), int64(7), uint32(0), uint32(len(name)), uint64(size)} {
		_ = binary.Write(&b, binary.NativeEndian, v)
	}
	return b.String() + name + rest
}

func extent(at uint64, size int, text string) string {
	b := binary.NativeEndian.AppendUint64(nil, at)
	b = binary.NativeEndian.AppendUint32(b, uint32(size))
	return string(binary.NativeEndian.AppendUint32(b, 0)) + text
}

// Archives are not trusted to name files of that file system only, nor to be what they say.
func TestForgedTmpfs(t *testing.T) {
	tool := realTool(t)
	a, b := newContainer(t), newContainer(t)
	app := a.start(1000)
	b.start(500).ask("mount /run/secrets")
	end := entry(aEnd, 0o755, 0, "", "")
	last := extent(0, 0, "")
	forged := func(name string) string { return entry(aRegular, 0o600, 4, name, extent(0, 4, "text")+last) }
	link := func(kind int, name, target string) string { return entry(kind, 0o777, len(target), name, target) }
	run := archiveHead("/run")
	for name, test := range map[string]struct{ archive, want string }{
		"traversal":              {run + forged("..") + end, "Bad message"},
		"itself":                 {run + forged(".") + end, "Bad message"},
		"two components":         {run + forged("../etc/forged") + end, "Bad message"},
		"absolute":               {run + forged("/etc/forged") + end, "Bad message"},
		"no name":                {run + forged("") + end, "Bad message"},
		"zero in a name":         {run + forged("a\x00b") + end, "Bad message"},
		"endless name":           {run + forged(strings.Repeat("x", 300)) + end, "Bad message"},
		"folder that goes up":    {run + entry(aFolder, 0o755, 0, "..", forged("x")+end) + end, "Bad message"},
		"through a link":         {run + link(aSymlink, "gate", "/etc") + entry(aFolder, 0o755, 0, "gate", forged("forged")+end) + end, ""},
		"over a link":            {run + link(aSymlink, "out", "/etc/forged") + forged("out") + end, ""},
		"link to an outer file":  {run + link(aHardLink, "out", "../app") + end, "find the other name"},
		"link to a path":         {run + link(aHardLink, "out", "/app") + end, "find the other name"},
		"link to a link":         {run + link(aSymlink, "in", "/app") + link(aHardLink, "out", "in") + end, "Bad message"},
		"link into a mount":      {run + link(aHardLink, "out", "secrets/x") + end, "find the other name"},
		"into a mount":           {run + entry(aFolder, 0o777, 0, "secrets", forged("forged")+end) + end, ""},
		"over a mount":           {run + forged("secrets") + end, ""},
		"device":                 {run + entry(7, 0o600, 0, "null", "") + end, "Bad message"},
		"extent out of the file": {run + entry(aRegular, 0o600, 4, "x", extent(2, 4, "text")+last) + end, "Bad message"},
		"extent far out":         {run + entry(aRegular, 0o600, 4, "x", extent(1<<63+2, 4, "text")+last) + end, "Bad message"},
		"huge extent":            {run + entry(aRegular, 0o600, 1<<30, "x", extent(0, 1<<29, "text")+last) + end, "Bad message"},
		"size that is none":      {run + entry(aRegular, 0o600, -1, "x", last) + end, "File too large"},
		"larger than the mount":  {run + entry(aRegular, 0o600, 2<<20, "x", strings.Repeat(extent(0, 65536, strings.Repeat("x", 65536)), 3)+fill(2<<20)+last) + end, "No space left on device"},
		"time that is none":      {run + end[:24] + "\xff\xff\xff\xff" + end[28:], "Bad message"},
		"more after the end":     {run + end + "more", "Bad message"},
		"end with a size":        {run + entry(aEnd, 0o755, 1, "", ""), "Bad message"},
		"too deep":               {run + strings.Repeat(entry(aFolder, 0o755, 0, "d", ""), 300), "Bad message"},
		"no end":                 {run + forged("x"), "Bad message"},
		"truncated contents":     {run + entry(aRegular, 0o600, 4, "x", extent(0, 4, "te")), "Bad message"},
		"truncated head":         {run[:100], "too short"},
		"foreign":                {strings.Repeat("\x00", 8192), "does not begin as one"},
		"mount point of another": {archiveHead("/etc") + forged("forged") + end, `a tmpfs at "/etc"`},
		"mount point to clean":   {archiveHead("/run/../etc") + forged("forged") + end, "does not begin as one"},
		"relative mount point":   {archiveHead("run") + forged("forged") + end, "does not begin as one"},
		"endless mount point":    {tmpfsMagic + strings.Repeat("/", unix.PathMax) + end, "does not begin as one"},
	} {
		t.Run(name, func(t *testing.T) {
			cp := a.dump(tool, app)
			if err := os.WriteFile(filepath.Join(cp.images.Name(), "tmpfs-0.img"), []byte(test.archive), 0o600); err != nil {
				t.Fatal(err)
			}
			before := b.outside()
			o := b.restoreOf(cp, app, newService(t))
			o.Tmpfs = ownTmpfs
			r, err := tool.Restore(testContext(t), o)
			if err == nil {
				b.end(r)
			}
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("restore: %v, want %q", err, test.want)
			}
			if strings.Contains(test.want, "space") && !errdefs.IsResourceExhausted(err) || test.want == "Bad message" && !errdefs.IsDataLoss(err) {
				t.Errorf("kind of the error: %v", err)
			}
			expect(t, "files elsewhere", b.outside(), before)
			// One of them fills the file system.
			if err := os.RemoveAll(b.root() + "/run/x"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// fill is what makes a file of that many bytes.
func fill(size int) string {
	var b strings.Builder
	for at := 0; at < size; at += 65536 {
		b.WriteString(extent(uint64(at), 65536, strings.Repeat("x", 65536)))
	}
	return b.String()
}

// outside lists the container's files that are not in its /run, and those mounted below it.
func (c *container) outside() string {
	c.t.Helper()
	var b strings.Builder
	for line := range strings.Lines(c.files()) {
		if !strings.HasPrefix(line, "run/") && !strings.HasPrefix(line, "run ") || strings.HasPrefix(line, "run/secrets") {
			_, _ = io.WriteString(&b, line)
		}
	}
	return b.String()
}
