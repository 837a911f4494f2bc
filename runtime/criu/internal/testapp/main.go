//go:build linux

// Command testapp is both sides of the containers that the tests of runtime/criu make by
// hand: their PID 1 and the application in them. It is static, so that a rootfs needs
// nothing else. It also stands in for CRIU where a test wants a failure at a given moment.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "criu":
		fail(standin(os.Args))
	case "sh", "ip", "iptables", "ip6tables", "nft", "tar":
		fail(trap(os.Args[0]))
	}
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: testapp init ROOT | last-pid N | app | hang"))
	}
	switch os.Args[1] {
	case "init":
		fail(runInit(os.Args[2]))
	case "last-pid":
		fail(lastPid(os.Args[2]))
	case "hang":
		rest()
	case "app":
		fail(runApp(os.Args[2:]))
	default:
		fail(fmt.Errorf("no such command: %s", os.Args[1]))
	}
}

func fail(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "testapp:", err)
	os.Exit(1)
}

// lastPid makes n+1 the next process number of the pid namespace it runs in.
func lastPid(n string) error {
	return os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(n), 0)
}

// rest does nothing until a signal ends the process.
func rest() {
	for {
		_ = unix.Pause()
	}
}
