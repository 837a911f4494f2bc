// Command objects holds one kind of kernel object, named by its argument, and
// tells on request whether it is still what it was. It talks in lines: "ready"
// when it has made the object; then "ok N" or "bad N: why" for each line
// "check N" or "restored N", which is what a restored process is asked.
package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// check verifies an object. It leaves it as it was, to be asked again.
type check func(restored bool) error

var objects = map[string]func() (check, error){}

// Where the objects' files are: in the container's own layer.
const dataDir = "/data"

// Some objects belong to a thread, which is always the first.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) == 3 && os.Args[1] == "child" {
		child(os.Args[2])
	}
	make, found := objects[os.Args[1]]
	if !found {
		fatal(fmt.Errorf("no object %q", os.Args[1]))
	}
	if err := os.MkdirAll(dataDir, 0o755); err != nil {
		fatal(err)
	}
	verify, err := make()
	if err != nil {
		fatal(err)
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		verb, number, _ := strings.Cut(lines.Text(), " ")
		if err := verify(verb == "restored"); err != nil {
			fmt.Printf("bad %s: %v\n", number, err)
			continue
		}
		fmt.Printf("ok %s\n", number)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "cannot be made:", err)
	os.Exit(1)
}

// child is what the tree of processes is made of.
func child(kind string) {
	switch kind {
	case "zombie":
		os.Exit(3)
	case "parent":
		if _, err := spawn("leaf"); err != nil {
			fatal(err)
		}
	}
	for {
		time.Sleep(time.Hour)
	}
}

// until polls for at most ten seconds.
func until(what string, done func() bool) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if done() {
			return nil
		}
		pause()
	}
	return fmt.Errorf("waited in vain for %s", what)
}

// pause sleeps without the runtime's timers.
func pause() {
	ts := unix.Timespec{Nsec: 5e6}
	_ = unix.Nanosleep(&ts, nil)
}

func want[T comparable](what string, got, expected T) error {
	if got != expected {
		return fmt.Errorf("%s is %v, not %v", what, got, expected)
	}
	return nil
}

// readable waits until a descriptor has something to read.
func readable(fd int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		n, err := unix.Poll(fds, 1000)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("descriptor %d has nothing to read", fd)
}
