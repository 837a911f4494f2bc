package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func init() {
	objects["memfd"] = memfd
	objects["flock"] = flock
	objects["fcntl-lock"] = fcntlLock
	objects["deleted-file"] = func() (check, error) { return deleted(100) }
	objects["deleted-10MiB"] = func() (check, error) { return deleted(10 << 20) }
	objects["inotify"] = inotify
	objects["append-log"] = appendLog
	objects["cwd"] = cwd
	objects["mapped-private"] = func() (check, error) { return mapped(unix.MAP_PRIVATE) }
	objects["mapped-shared"] = func() (check, error) { return mapped(unix.MAP_SHARED) }
	objects["mlock"] = mlock
}

// pattern is content that tells where it belongs.
func pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func memfd() (check, error) {
	fd, err := unix.MemfdCreate("objects", unix.MFD_ALLOW_SEALING|unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	content := pattern(100_000)
	if _, err := unix.Pwrite(fd, content, 0); err != nil {
		return nil, err
	}
	if _, err := unix.Seek(fd, 4711, unix.SEEK_SET); err != nil {
		return nil, err
	}
	seals := unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return nil, err
	}
	return func(bool) error {
		got := make([]byte, len(content)+1)
		n, err := unix.Pread(fd, got, 0)
		if err != nil || !bytes.Equal(got[:n], content) {
			return fmt.Errorf("content differs: %d bytes, %v", n, err)
		}
		now, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
		if err != nil {
			return err
		}
		if err := want("the seals", now, seals); err != nil {
			return err
		}
		at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
		return errors.Join(err, want("the position", at, 4711))
	}, nil
}

func flock() (check, error) {
	fd, err := unix.Open(dataDir+"/flock", unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(fd, unix.LOCK_EX); err != nil {
		return nil, err
	}
	return func(bool) error {
		other, err := unix.Open(dataDir+"/flock", unix.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer unix.Close(other)
		return want("another's attempt", unix.Flock(other, unix.LOCK_SH|unix.LOCK_NB), error(unix.EWOULDBLOCK))
	}, nil
}

func fcntlLock() (check, error) {
	fd, err := unix.Open(dataDir+"/fcntl", unix.O_CREAT|unix.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 20}); err != nil {
		return nil, err
	}
	return func(bool) error {
		// Another descriptor of the process, closed, would drop the lock:
		// the kernel's list of locks tells.
		data, err := os.ReadFile("/proc/locks")
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(data), "\n") {
			if strings.Contains(line, "POSIX") && strings.Contains(line, "WRITE") && strings.HasSuffix(line, " 10 29") &&
				strings.Contains(line, fmt.Sprintf(" %d ", os.Getpid())) {
				return nil
			}
		}
		return fmt.Errorf("no such lock in:\n%s", data)
	}, nil
}

func deleted(size int) (check, error) {
	f, err := os.Create(dataDir + "/deleted")
	if err != nil {
		return nil, err
	}
	content := pattern(size)
	if _, err := f.Write(content); err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, err
	}
	return func(bool) error {
		got := make([]byte, size+1)
		n, _ := f.ReadAt(got, 0)
		if !bytes.Equal(got[:n], content) {
			return fmt.Errorf("%d bytes of content, and not those", n)
		}
		if _, err := os.Lstat(f.Name()); !os.IsNotExist(err) {
			return fmt.Errorf("its name is back: %v", err)
		}
		return nil
	}, nil
}

func inotify() (check, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(dataDir+"/watched", 0o755); err != nil {
		return nil, err
	}
	if _, err := unix.InotifyAddWatch(fd, dataDir+"/watched", unix.IN_CREATE); err != nil {
		return nil, err
	}
	n := 0
	return func(bool) error {
		n++
		name := fmt.Sprintf("new-%d", n)
		if err := os.WriteFile(dataDir+"/watched/"+name, nil, 0o600); err != nil {
			return err
		}
		buf := make([]byte, 4096)
		if err := readable(fd); err != nil {
			return err
		}
		size, err := unix.Read(fd, buf)
		if err != nil || !bytes.Contains(buf[:size], []byte(name)) {
			return fmt.Errorf("the event is %q, %v", buf[:max(size, 0)], err)
		}
		return nil
	}, nil
}

func appendLog() (check, error) {
	f, err := os.OpenFile(dataDir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	all := ""
	return func(bool) error {
		line := fmt.Sprintf("line %d\n", len(all))
		all += line
		if _, err := f.WriteString(line); err != nil {
			return err
		}
		data, err := os.ReadFile(f.Name())
		return errors.Join(err, want("the log", string(data), all))
	}, nil
}

func cwd() (check, error) {
	dir := dataDir + "/a/b"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Chdir(dir); err != nil {
		return nil, err
	}
	return func(bool) error {
		now, err := unix.Getwd()
		if err := errors.Join(err, want("the folder", now, dir)); err != nil {
			return err
		}
		if err := os.WriteFile("here", nil, 0o600); err != nil {
			return err
		}
		_, err = os.Stat(dir + "/here")
		return err
	}, nil
}

func mapped(flags int) (check, error) {
	content := pattern(10_000)
	if err := os.WriteFile(dataDir+"/mapped", content, 0o600); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(dataDir+"/mapped", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		return nil, err
	}
	// The descriptor goes, the mapping stays.
	if err := f.Close(); err != nil {
		return nil, err
	}
	changed := bytes.Clone(content)
	copy(changed[5000:], "written through the mapping")
	copy(mem, changed)
	return func(bool) error {
		if !bytes.Equal(mem, changed) {
			return errors.New("the memory differs")
		}
		expected := content
		if flags&unix.MAP_SHARED != 0 {
			expected = changed
		}
		got, err := os.ReadFile(dataDir + "/mapped")
		if err != nil || !bytes.Equal(got, expected) {
			return fmt.Errorf("the file differs: %v", err)
		}
		return nil
	}, nil
}

func mlock() (check, error) {
	mem, err := unix.Mmap(-1, 0, 40<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	if err := unix.Mlock(mem); err != nil {
		return nil, err
	}
	return func(bool) error {
		return want("locked memory", statusField("VmLck"), "40 kB")
	}, nil
}

// statusField is a line of /proc/self/status.
func statusField(name string) string {
	data, _ := os.ReadFile("/proc/thread-self/status")
	for _, line := range strings.Split(string(data), "\n") {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
