//go:build linux

package fastfreeze

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// progressInterval is how often a dump's progress is looked at.
const progressInterval = 200 * time.Millisecond

// watchDump tells how much memory CRIU has written, until the returned function
// is called; that waits for the last word, if it comes soon.
func watchDump(progress Progress, images, freezer *os.File) (stop func()) {
	if progress == nil {
		return func() {}
	}
	total := residentBytes(freezer.Name())
	progress("dump", 0, total)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				bytes := folderBytes(images, "pages-")
				select {
				case <-done:
				default:
					progress("dump", bytes, total)
				}
			}
		}
	}()
	return func() {
		close(done)
		select {
		case <-ended:
		case <-time.After(progressInterval): // the folder's file system hangs
		}
	}
}

// folderBytes adds up the sizes of the files whose names begin with prefix.
func folderBytes(folder *os.File, prefix string) (bytes int64) {
	// A descriptor of its own: the position in a folder is the open file's.
	fd, err := unix.Openat(int(folder.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	dir := os.NewFile(uintptr(fd), folder.Name())
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0
	}
	for _, name := range names {
		var st unix.Stat_t
		if strings.HasPrefix(name, prefix) && unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			bytes += st.Size
		}
	}
	return bytes
}

// residentBytes is an estimate of what a dump of the cgroup's processes writes;
// what several of them share is counted for each. 0: not known.
func residentBytes(cgroup string) (bytes int64) {
	procs, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return 0
	}
	for _, pid := range strings.Fields(string(procs)) {
		statm, err := os.ReadFile("/proc/" + pid + "/statm")
		if err != nil {
			continue
		}
		// proc_pid_statm(5): size, resident, shared, in pages.
		if words := strings.Fields(string(statm)); len(words) > 2 {
			pages, _ := strconv.ParseInt(words[1], 10, 64)
			bytes += pages * int64(os.Getpagesize())
		}
	}
	return bytes
}
