package main

import "unsafe"

// lookupError is why the application's executable cannot be run, in the words that users of other runtimes know.
type lookupError struct {
	code errno
	text string
}

// lookPath finds the executable for name as a shell does: name itself if it has a slash, else the first match
// in the folders of path. The checks are made by the kernel with this process's rights.
func lookPath(name, path string) (string, *lookupError) {
	quoted := "exec: \"" + name + "\": "
	if index(name, '/') >= 0 {
		step, e := executable(name)
		if e == 0 {
			return name, nil
		}
		return "", &lookupError{e, quoted + step + e.Error()}
	}
	notFound := &lookupError{eNOENT, quoted + "executable file not found in $PATH"}
	if name == "" || name == "." || name == ".." {
		return "", notFound
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
		file := dir + "/" + name
		switch dir {
		case "":
			file = "./" + name
		case "/":
			file = "/" + name
		}
		if _, e := executable(file); e != 0 {
			continue
		}
		if file[0] != '/' {
			return "", &lookupError{eNOENT, quoted + "cannot run executable found relative to current directory"}
		}
		return file, nil
	}
	return "", notFound
}

// executable says whether file can be executed; if not, the words for the step that failed and the reason.
func executable(file string) (string, errno) {
	name := newCstring(file)
	cwd := atFdcwd
	stat := new([256]byte)
	if _, e := sys4(sysNewfstatat, uintptr(cwd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(stat)), 0); e != 0 {
		return "stat " + file + ": ", e
	}
	mode := *(*uint32)(unsafe.Pointer(&stat[statModeOffset]))
	if mode&sIfmt == sIfdir {
		return "", eISDIR
	}
	_, e := sys4(sysFaccessat2, uintptr(cwd), uintptr(unsafe.Pointer(name)), xOK, atEaccess)
	if e == eNOSYS || e == ePERM {
		// Old kernels and old seccomp profiles do not have the call: the permission bits are the next best.
		if e = 0; mode&0o111 == 0 {
			e = eACCES
		}
	}
	return "", e
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
