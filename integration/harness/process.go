package harness

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is a process of a node as seen from the host.
type Process struct {
	Pid  int
	Args string
}

func (p Process) String() string { return fmt.Sprintf("%d (%s)", p.Pid, p.Args) }

// Processes lists the node's processes: containerd, the shims with what they
// started, and everything in the node's containers.
func (n *Node) Processes() []Process { return processesOf(n.id) }

// Shims lists the node's shim processes.
func (n *Node) Shims() []Process {
	var shims []Process
	for _, p := range n.Processes() {
		exe, _, _ := strings.Cut(p.Args, " ")
		if strings.HasPrefix(filepath.Base(exe), "containerd-shim-") {
			shims = append(shims, p)
		}
	}
	return shims
}

// processesOf finds processes by the node's mark in their environment, which
// containerd hands down to all that runs outside a container, and by their
// cgroup. This process and its other children have neither. Dead processes
// that wait for their parent are not counted.
func processesOf(id string) []Process {
	mark := []byte("\x00" + nodeVariable + "=" + id + "\x00")
	group := "/" + namespacePrefix + id
	var found []Process
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		environ, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		groups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if !bytes.Contains(append([]byte{0}, environ...), mark) && !strings.Contains(string(groups), group) {
			continue
		}
		if state := statField(pid, 3); state == "" || state == "Z" || state == "X" {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		found = append(found, Process{pid, strings.TrimSpace(string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))})
	}
	return found
}

// startTime tells a process from a later one with the same pid; it is empty
// when there is no such process.
func startTime(pid int) string { return statField(pid, 22) }

// statField is a field of /proc/PID/stat, numbered as in proc_pid_stat(5).
func statField(pid, field int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field, the command, may hold anything; the last parenthesis
	// ends it.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if i := field - 3; i >= 0 && i < len(fields) {
		return fields[i]
	}
	return ""
}
