package image

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"slices"
	"strings"

	criucore "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/tty"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// Contents is what CRIU's images say about a dump.
type Contents struct {
	Processes []Process   // in CRIU's order: the root first
	Files     []FileCheck // regular files whose size CRIU compares on a restore, by path
	Pipes     []Pipe
	TTYs      []TTY
	// TCPClosed: established TCP connections were dumped to be closed.
	TCPClosed bool
}

// Process returns the process with this pid, or nil.
func (c *Contents) Process(pid int) *Process {
	for i := range c.Processes {
		if c.Processes[i].Pid == pid {
			return &c.Processes[i]
		}
	}
	return nil
}

// Pipe is a pipe of which a process held an end. CRIU's images do not say which
// of them were external: compare the inode.
type Pipe struct {
	Inode uint64
	Read  bool // the reading end is in the dump
	Write bool // the writing end is
}

// TTY is a terminal that a process held.
type TTY struct {
	TTYID
	External bool // declared so at the dump
}

// maxImage bounds an image file that is read into memory, in bytes. Those read
// here take about 100 bytes for each descriptor, process or terminal.
const maxImage = 256 << 20

// Inspect reads CRIU's images in the folder dir.
//
// Errors: DataLoss if an image is missing or damaged.
func Inspect(dir *os.File) (*Contents, error) {
	c, err := inspect(dir)
	if err != nil {
		return nil, fmt.Errorf("read CRIU's images in %s: %w", dir.Name(), err)
	}
	return c, nil
}

func inspect(dir *os.File) (*Contents, error) {
	c := &Contents{}
	entry, err := readOne(dir, criuInventory, &inventory.InventoryEntry{})
	if err != nil {
		return nil, err
	}
	c.TCPClosed = entry.GetTcpClose()
	if c.Processes, err = readProcesses(dir); err != nil {
		return nil, err
	}
	remapped, err := readRemapped(dir)
	if err != nil {
		return nil, err
	}
	infos, err := readTTYs(dir)
	if err != nil {
		return nil, err
	}
	files := map[FileCheck]bool{}
	pipes := map[uint32]*Pipe{}
	ttys := map[TTY]bool{}
	err = readImage(dir, "files.img", &fdinfo.FileEntry{}, func(e *fdinfo.FileEntry) error {
		switch e.GetType() {
		case fdinfo.FdTypes_REG:
			if check, ok := sizeChecked(e.GetReg(), remapped); ok {
				files[check] = true
			}
		case fdinfo.FdTypes_PIPE:
			notePipe(pipes, e.GetPipe().GetPipeId(), e.GetPipe().GetFlags())
		case fdinfo.FdTypes_TTY:
			if info, ok := infos[e.GetTty().GetTtyInfoId()]; ok {
				ttys[info] = true
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for f := range files {
		c.Files = append(c.Files, f)
	}
	slices.SortFunc(c.Files, func(a, b FileCheck) int { return strings.Compare(a.Path, b.Path) })
	for _, p := range pipes {
		c.Pipes = append(c.Pipes, *p)
	}
	slices.SortFunc(c.Pipes, func(a, b Pipe) int { return int(int64(a.Inode) - int64(b.Inode)) })
	for t := range ttys {
		c.TTYs = append(c.TTYs, t)
	}
	slices.SortFunc(c.TTYs, func(a, b TTY) int { return int(int64(a.Rdev) - int64(b.Rdev)) })
	return c, nil
}

// readProcesses reads the tree, and of each process its name and state.
func readProcesses(dir *os.File) ([]Process, error) {
	var list []Process
	err := readImage(dir, "pstree.img", &pstree.PstreeEntry{}, func(e *pstree.PstreeEntry) error {
		list = append(list, Process{Pid: int(e.GetPid()), PPid: int(e.GetPpid()), Threads: len(e.GetThreads())})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("pstree.img: no process in it: %w", errdefs.ErrDataLoss)
	}
	for i := range list {
		p := &list[i]
		core, err := readOne(dir, fmt.Sprintf("core-%d.img", p.Pid), &criucore.CoreEntry{})
		if err != nil {
			return nil, err
		}
		p.Comm = core.GetTc().GetComm()
		switch core.GetTc().GetTaskState() {
		case taskStopped:
			p.State = StateStopped
		case taskDead, taskZombie:
			p.State = StateZombie
		default:
			p.State = StateRunning
		}
	}
	return list, nil
}

// readRemapped returns the ids of files that CRIU brings back under another
// name or with their contents: they were deleted, or belong to a process that
// ended.
func readRemapped(dir *os.File) (map[uint32]bool, error) {
	ids := map[uint32]bool{}
	err := readImage(dir, "remap-fpath.img", &remap.RemapFilePathEntry{}, func(e *remap.RemapFilePathEntry) error {
		ids[e.GetOrigId()] = true
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // nothing was remapped
	}
	return ids, err
}

// sizeChecked tells whether a restore will find the file in the container by
// its path and compare its size; CRIU does so for those that have one.
func sizeChecked(reg *regfile.RegFileEntry, remapped map[uint32]bool) (FileCheck, bool) {
	name := path.Clean(reg.GetName())
	switch {
	case reg == nil || reg.Size == nil || reg.GetExt() || remapped[reg.GetId()],
		!path.IsAbs(name) || strings.ContainsRune(name, 0) || reg.GetSize() > math.MaxInt64,
		// The kernel's own files come with the kernel and the process.
		strings.HasPrefix(name, "/proc/"), strings.HasPrefix(name, "/sys/"):
		return FileCheck{}, false
	}
	return FileCheck{Path: name, Size: int64(reg.GetSize())}, true
}

func notePipe(pipes map[uint32]*Pipe, id, flags uint32) {
	p := pipes[id]
	if p == nil {
		p = &Pipe{Inode: uint64(id)}
		pipes[id] = p
	}
	switch int(flags) & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR) {
	case os.O_RDONLY:
		p.Read = true
	case os.O_WRONLY:
		p.Write = true
	default:
		p.Read, p.Write = true, true
	}
}

// readTTYs returns the terminals by CRIU's id.
func readTTYs(dir *os.File) (map[uint32]TTY, error) {
	ttys := map[uint32]TTY{}
	err := readImage(dir, "tty-info.img", &tty.TtyInfoEntry{}, func(e *tty.TtyInfoEntry) error {
		ttys[e.GetId()] = TTY{
			TTYID:    TTYID{Rdev: uint64(e.GetRdev()), Dev: uint64(e.GetDev())},
			External: e.GetType() == tty.TtyType_EXT_TTY,
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // no terminal
	}
	return ttys, err
}

// readOne reads an image that begins with the one entry of interest.
func readOne[M proto.Message](dir *os.File, name string, entry M) (M, error) {
	found := false
	err := readImage(dir, name, entry, func(e M) error {
		entry, found = e, true
		return io.EOF
	})
	if err == nil && !found {
		err = fmt.Errorf("%s: it is empty: %w", name, errdefs.ErrDataLoss)
	}
	return entry, err
}

// readImage calls fn for each entry of an image of CRIU's, until fn returns
// io.EOF or an error. An image is two magic numbers (the inventory has one) and
// entries, each a 32-bit length and a protobuf message. crit's own decoder
// allocates whatever the length says; this one believes the file's size.
func readImage[M proto.Message](dir *os.File, name string, entry M, fn func(M) error) error {
	f, st, err := openBeneath(dir, name)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrDataLoss)
	}
	defer f.Close()
	damaged := func(err error) error { return fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrDataLoss) }
	if st.Size() > maxImage {
		return damaged(fmt.Errorf("%d bytes are more than the %d that are read", st.Size(), maxImage))
	}
	if err := skipMagic(f); err != nil {
		return damaged(fmt.Errorf("it is no image of CRIU: %w", err))
	}
	pos, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return damaged(err)
	}
	left := st.Size() - pos
	r := bufio.NewReader(f)
	for left > 0 {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return damaged(err)
		}
		length := int64(binary.LittleEndian.Uint32(head[:]))
		left -= int64(len(head)) + length
		if left < 0 {
			return damaged(fmt.Errorf("an entry of %d bytes is cut off: %w", length, io.ErrUnexpectedEOF))
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(r, body); err != nil {
			return damaged(err)
		}
		e := entry.ProtoReflect().New().Interface().(M)
		if err := proto.Unmarshal(body, e); err != nil {
			return damaged(err)
		}
		if err := fn(e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}
