//go:build linux

package fastfreeze

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/fastmig/fastmig/runtime/image"
)

// rights are those of the container's first process, which are its spec's.
func (e *Engine) rights() (image.Rights, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", e.pid))
	if err != nil {
		return image.Rights{}, fmt.Errorf("read the rights of the container's first process: %w", err)
	}
	return parseRights(string(text))
}

// parseRights reads /proc/PID/status (proc_pid_status(5)).
func parseRights(status string) (r image.Rights, err error) {
	found := 0
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		var n uint64
		switch name {
		case "CapBnd":
			n, err = strconv.ParseUint(value, 16, 64)
			r.Bounding = n
		case "NoNewPrivs":
			n, err = strconv.ParseUint(value, 10, 8)
			r.NoNewPrivs = n != 0
		case "Seccomp":
			n, err = strconv.ParseUint(value, 10, 8)
			r.Seccomp = n != 0
		default:
			continue
		}
		if err != nil {
			return r, fmt.Errorf("read a process's rights: %s: %w", name, err)
		}
		found++
	}
	if found < 2 { // Seccomp is missing from kernels without it
		return r, fmt.Errorf("read a process's rights: CapBnd or NoNewPrivs is missing")
	}
	return r, nil
}
