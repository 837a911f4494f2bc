//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// resources are the commands that hold something CRIU must carry over, or cannot.
var resources = map[string]func(a *app, args []string) (string, error){
	"memory": memory,
	"maps":   maps,
	"clock":  clock,
}

// memory N: holds N MiB of pages that are not zero.
func memory(a *app, args []string) (string, error) {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return "", err
	}
	b := make([]byte, n<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = byte(i>>12) | 1
	}
	a.held = append(a.held, b)
	return "", nil
}

// maps: how many mappings the process has.
func maps(*app, []string) (string, error) {
	b, err := os.ReadFile("/proc/self/maps")
	return strconv.Itoa(strings.Count(string(b), "\n")), err
}

// clock: CLOCK_MONOTONIC in nanoseconds.
func clock(*app, []string) (string, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return fmt.Sprint(ts.Nano()), err
}
