package harness

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// CRIUErrors returns the lines of errors and warnings in the CRIU logs of a
// container, as long as they exist: the stock shim's message has only a path
// to them, and FastMig's is compared with them.
func (n *Node) CRIUErrors(id string) string {
	var b strings.Builder
	err := n.InMachine(func() error {
		for _, top := range []string{n.stateDir(), filepath.Join(n.Dir, "root"), "/run/fastmig"} {
			_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				switch {
				case err != nil:
					return nil
				case d.IsDir() && (d.Name() == "rootfs" || d.Name() == "fs"):
					return filepath.SkipDir
				case isLogOf(path, id):
					addErrors(&b, path)
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	if b.Len() == 0 {
		return "no CRIU log of " + id
	}
	return b.String()
}

// isLogOf knows the stock shim's names (ID/criu-dump.log, ID/restore.log) and
// FastMig's (ID-dump.log).
func isLogOf(path, id string) bool {
	base := filepath.Base(path)
	if !strings.HasSuffix(base, "dump.log") && !strings.HasSuffix(base, "restore.log") {
		return false
	}
	return strings.Contains(path, "/"+id+"/") || strings.HasPrefix(base, id+"-")
}

func addErrors(b *strings.Builder, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		return
	}
	fmt.Fprintln(b, path)
	for _, line := range strings.Split(string(data), "\n") {
		if strings.Contains(line, "Error") || strings.Contains(line, "Warn") {
			fmt.Fprintln(b, "\t"+line)
		}
	}
}
