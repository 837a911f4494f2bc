package main

import (
	"unsafe"

	"github.com/fastmig/fastmig/runtime/fastfreeze/initproto"
)

// lookupError is why the application's executable cannot be run, in the words that users of other runtimes know.
type lookupError struct {
	code errno
	text string
}

// candidate is where the file's name is put together, with a NUL byte behind it: PATH_MAX, the longest that the
// kernel takes. In global memory the lives of an application leave nothing behind.
var (
	candidate [4096]byte
	fileStat  [256]byte
)

// lookPath finds the executable for name as a shell does: name itself if it has a slash, else the first match
// in the folders of path. The checks are made by the kernel with this process's rights. The result stands in
// candidate, without its NUL byte n bytes long.
func lookPath(name, path string) (n int, _ *lookupError) {
	// More of a name would not fit into a message.
	quoted := name[:min(len(name), initproto.MaxText)]
	if index(name, '/') >= 0 {
		n, e := compose("", name)
		stat := true
		if e == 0 {
			stat, e = executable()
		}
		switch {
		case e == 0:
			return n, nil
		case stat:
			return 0, &lookupError{e, "exec: \"" + quoted + "\": stat " + quoted + ": " + e.Error()}
		}
		return 0, &lookupError{e, "exec: \"" + quoted + "\": " + e.Error()}
	}
	if name == "" || name == "." || name == ".." {
		path = ""
	}
	for rest, more := path, path != ""; more; {
		dir := rest
		if i := index(rest, ':'); i >= 0 {
			dir, rest = rest[:i], rest[i+1:]
		} else {
			more = false
		}
		for len(dir) > 1 && dir[len(dir)-1] == '/' {
			dir = dir[:len(dir)-1]
		}
		if dir == "" {
			dir = "."
		}
		n, e := compose(dir, name)
		if e == 0 {
			_, e = executable()
		}
		if e != 0 {
			continue
		}
		if candidate[0] != '/' {
			return 0, &lookupError{eNOENT, "exec: \"" + quoted + "\": cannot run executable found relative to current directory"}
		}
		return n, nil
	}
	return 0, &lookupError{eNOENT, "exec: \"" + quoted + "\": executable file not found in $PATH"}
}

// compose puts dir and name together in candidate, with a slash between them if dir needs one.
func compose(dir, name string) (int, errno) {
	if len(dir)+len(name)+2 > len(candidate) {
		return 0, eNAMETOO
	}
	n := copy(candidate[:], dir)
	if n > 0 && dir[n-1] != '/' {
		candidate[n] = '/'
		n++
	}
	n += copy(candidate[n:], name)
	candidate[n] = 0
	return n, 0
}

// executable says why the candidate cannot be executed, and whether there is no such file at all.
func executable() (stat bool, e errno) {
	name, cwd := &candidate, atFdcwd
	if _, e := sys4(sysNewfstatat, uintptr(cwd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&fileStat)), 0); e != 0 {
		return true, e
	}
	mode := *(*uint32)(unsafe.Pointer(&fileStat[statModeOffset]))
	if mode&sIfmt == sIfdir {
		return false, eISDIR
	}
	_, e = sys4(sysFaccessat2, uintptr(cwd), uintptr(unsafe.Pointer(name)), xOK, atEaccess)
	if e == eNOSYS || e == ePERM {
		// Old kernels and old seccomp profiles do not have the call: the permission bits are the next best.
		if e = 0; mode&0o111 == 0 {
			e = eACCES
		}
	}
	return false, e
}

// getenv gives the first value of a variable.
func getenv(env []string, name string) string {
	for _, v := range env {
		if len(v) > len(name) && v[len(name)] == '=' && v[:len(name)] == name {
			return v[len(name)+1:]
		}
	}
	return ""
}

func index(s string, c byte) int {
	for i := 0; i < len(s); i++ {
		if s[i] == c {
			return i
		}
	}
	return -1
}
