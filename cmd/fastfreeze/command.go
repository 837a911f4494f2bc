package main

import (
	"unsafe"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// command is a command that came with START. It lies in memory of its own, which goes back to the kernel as soon
// as the application runs: PID 1's heap would keep it, and bring the collector to work.
type command struct {
	spawn    spawner
	searchIn string         // PATH of the command's environment
	text     unsafe.Pointer // the file that came, nil if there is none
	textLen  int
	list     unsafe.Pointer // the vectors of execve
	listLen  int
}

// load takes the command from the file fd. The answer is not zero if that fails, with the words for it.
func (c *command) load(fd int, own *spawner) (errno, string) {
	const step = "starting the application: reading its command: "
	n, e := sys3(sysLseek, uintptr(fd), 0, seekEnd)
	if e != 0 {
		return e, step + e.Error()
	}
	if n <= 0 || n > initproto.MaxCommand {
		return e2BIG, step + "it has " + itoa(max(n, 0)) + " bytes, it must have 1 to " + itoa(initproto.MaxCommand)
	}
	if c.text, e = mmap(n, protRead, mapPrivate, fd); e != 0 {
		return e, step + e.Error()
	}
	c.textLen = n
	line, err := initproto.DecodeCommand(unsafe.Slice((*byte)(c.text), n))
	if err != nil {
		return eINVAL, step + initproto.ErrCommand.Error()
	}
	pointers := line.Args + 1 + line.Env + 1
	size := pointers * int(unsafe.Sizeof(c.text))
	if c.list, e = mmap(size, protRead|protWrite, mapPrivate|mapAnonymous, -1); e != 0 {
		return e, step + e.Error()
	}
	c.listLen = size
	list := unsafe.Slice((**byte)(c.list), pointers)
	c.spawn = spawner{argv: list[: line.Args+1 : line.Args+1], envp: list[line.Args+1:], mask: own.mask, thpFixed: own.thpFixed}
	c.searchIn = ""
	for i := range line.Args {
		s := line.Next()
		if c.spawn.argv[i] = &s[0]; i == 0 {
			c.spawn.name = unsafe.String(&s[0], len(s)-1)
		}
	}
	found := false
	for i := range line.Env {
		s := line.Next()
		c.spawn.envp[i] = &s[0]
		const path = "PATH="
		if v := unsafe.String(&s[0], len(s)-1); !found && len(v) >= len(path) && v[:len(path)] == path {
			c.searchIn, found = v[len(path):], true
		}
	}
	return 0, ""
}

// find looks the command's executable up.
func (c *command) find() *lookupError {
	_, err := lookPath(c.spawn.name, c.searchIn)
	// It stays where it was put together until the next one is looked up.
	c.spawn.path = &candidate[0]
	return err
}

// free gives the memory back; nothing of the command may be used any more.
func (c *command) free() {
	for _, m := range [...]struct {
		at   unsafe.Pointer
		size int
	}{{c.text, c.textLen}, {c.list, c.listLen}} {
		if m.at != nil {
			sys3(sysMunmap, uintptr(m.at), uintptr(m.size), 0)
		}
	}
	*c = command{}
}

// mmap maps a file, or with fd -1 fresh memory.
func mmap(size int, prot, flags uintptr, fd int) (unsafe.Pointer, errno) {
	r := rawSyscall6(sysMmap, 0, uintptr(size), prot, flags, uintptr(fd), 0)
	if _, e := result(r); e != 0 {
		return nil, e
	}
	// The address is the kernel's: nothing of Go's lies there.
	return *(*unsafe.Pointer)(unsafe.Pointer(&r)), 0
}
