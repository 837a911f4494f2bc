package image

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/checkpoint-restore/go-criu/v8/crit"
	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"google.golang.org/protobuf/proto"
)

// writeImages writes, with go-criu's encoder, what CRIU leaves of a small tree:
// a root with a stopped child and a zombie; libraries, a deleted file, a log, a
// pipe, an external terminal.
func writeImages(t testing.TB, dir string) {
	t.Helper()
	owner := &fown.FownEntry{Uid: proto.Uint32(0), Euid: proto.Uint32(0), Signum: proto.Uint32(0), PidType: proto.Uint32(0), Pid: proto.Uint32(0)}
	reg := func(id uint32, name string, size *uint64, ext bool) proto.Message {
		return &fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(id), Reg: &regfile.RegFileEntry{
			Id: proto.Uint32(id), Flags: proto.Uint32(0), Pos: proto.Uint64(0), Fown: owner,
			Name: proto.String(name), Size: size, Ext: proto.Bool(ext),
		}}
	}
	core := func(state crit.TaskState, comm string) proto.Message {
		return &criucore.CoreEntry{Mtype: criucore.CoreEntry_X86_64.Enum(), Tc: &criucore.TaskCoreEntry{
			TaskState: proto.Uint32(uint32(state)), ExitCode: proto.Uint32(0), Personality: proto.Uint32(0),
			Flags: proto.Uint32(0), BlkSigset: proto.Uint64(0), Comm: proto.String(comm),
		}}
	}
	process := func(pid, ppid uint32, threads ...uint32) proto.Message {
		return &pstree.PstreeEntry{Pid: &pid, Ppid: &ppid, Pgid: &pid, Sid: &pid, Threads: threads}
	}
	pipeEnd := func(id, inode, flags uint32) proto.Message {
		return &fdinfo.FileEntry{Type: fdinfo.FdTypes_PIPE.Enum(), Id: &id, Pipe: &pipe.PipeEntry{
			Id: &id, PipeId: &inode, Flags: &flags, Fown: owner,
		}}
	}
	writeImage(t, dir, "inventory.img", "INVENTORY", &inventory.InventoryEntry{ImgVersion: proto.Uint32(2), TcpClose: proto.Bool(true)})
	writeImage(t, dir, "pstree.img", "PSTREE", process(1000, 0, 1000, 1001), process(1002, 1000, 1002), process(1003, 1000, 1003))
	writeImage(t, dir, "core-1000.img", "CORE", core(crit.TaskAlive, "server"))
	writeImage(t, dir, "core-1002.img", "CORE", core(crit.TaskStopped, "worker"))
	writeImage(t, dir, "core-1003.img", "CORE", core(crit.TaskZombie, "gone"))
	writeImage(t, dir, "files.img", "FILES",
		reg(1, "/usr/lib/libx.so", proto.Uint64(140), false),
		reg(2, "/usr/lib/libx.so", proto.Uint64(140), false),
		reg(3, "/tmp/deleted", proto.Uint64(5), false),
		reg(4, "/var/log/append.log", nil, false),
		reg(5, "/proc/1000/status", proto.Uint64(0), false),
		reg(6, "file[1a:2b]", proto.Uint64(7), true),
		reg(7, "/bin/server", proto.Uint64(0), false),
		pipeEnd(8, 4711, uint32(os.O_WRONLY)),
		pipeEnd(9, 815, uint32(os.O_RDONLY)),
		pipeEnd(10, 815, uint32(os.O_WRONLY)),
		&fdinfo.FileEntry{Type: fdinfo.FdTypes_TTY.Enum(), Id: proto.Uint32(11), Tty: &tty.TtyFileEntry{
			Id: proto.Uint32(11), TtyInfoId: proto.Uint32(1), Flags: proto.Uint32(0), Fown: owner,
		}},
	)
	writeImage(t, dir, "remap-fpath.img", "REMAP_FPATH", &remap.RemapFilePathEntry{
		OrigId: proto.Uint32(3), RemapId: proto.Uint32(1), RemapType: remap.RemapType_GHOST.Enum(),
	})
	writeImage(t, dir, "tty-info.img", "TTY_INFO", &tty.TtyInfoEntry{
		Id: proto.Uint32(1), Type: tty.TtyType_EXT_TTY.Enum(), Locked: proto.Bool(false), Exclusive: proto.Bool(false),
		PacketMode: proto.Bool(false), Sid: proto.Uint32(1000), Pgrp: proto.Uint32(1000), Rdev: proto.Uint32(0x8801), Dev: proto.Uint32(0x1f),
	})
	writeFile(t, dir, "pages-1.img", string(make([]byte, 3*4096)))
}

func writeImage(t testing.TB, dir, name, magic string, entries ...proto.Message) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	img := &crit.CriuImage{Magic: magic}
	for _, e := range entries {
		img.Entries = append(img.Entries, &crit.CriuEntry{Message: e})
	}
	if err := crit.New(nil, f, "", false, false).Encode(img); err != nil {
		t.Fatal(err)
	}
}

func writeFile(t testing.TB, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func sampleManifest() *Manifest {
	return &Manifest{
		Application: Application{
			Args: []string{"server", "--name", "a<b&c", "\xff\xfe\\x41\\"},
			Pid:  1000, Terminal: true,
			Processes: []Process{{Pid: 1000, Comm: "se\x80rver", State: StateRunning, Threads: 2}},
		},
		Stdio:       [3]StdioEntry{{Kind: StdioPipe, Inode: 4711}, {Kind: StdioTTY, TTY: TTYID{Rdev: 0x8801, Dev: 0x1f}}, {Kind: StdioFile, Path: "/var/log/\xe9.log"}},
		TCP:         TCPClose,
		Image:       "docker.io/library/redis:7",
		RuntimeName: "io.containerd.fastmig.v2",
		ContainerID: "c1",
		Namespace:   "default",
		CPU:         CPU{Vendor: "GenuineIntel", Features: []string{"sse2", "avx2", "fpu"}},
		Kernel:      "6.18.0",
		CriuVersion: "4.1.1",
		Clocks:      Clocks{Monotonic: 12345678901, Boottime: 12345678902},
		MappedFiles: []FileCheck{{Path: "/usr/lib/\xffx.so", Size: 140}},
	}
}

// commitSample makes a whole checkpoint in dir.
func commitSample(t testing.TB, dir string) *Manifest {
	t.Helper()
	s, err := Stage(dir)
	if err != nil {
		t.Fatal(err)
	}
	writeImages(t, s.Dir())
	m := sampleManifest()
	if err := s.Commit(context.Background(), m); err != nil {
		t.Fatal(err)
	}
	return m
}

func openSample(t testing.TB, dir string) *Checkpoint {
	t.Helper()
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
