package harness

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// CRIUErrors returns the lines of errors and warnings in the CRIU logs of a
// container, as long as it exists: the stock shim keeps only a path to them,
// and FastMig's message is compared with them.
func (n *Node) CRIUErrors(id string) string {
	var b strings.Builder
	for _, top := range []string{n.stateDir(), filepath.Join(n.Dir, "root")} {
		_ = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil
			case d.IsDir() && (d.Name() == "rootfs" || d.Name() == "fs"):
				return filepath.SkipDir
			case strings.Contains(path, "/"+id+"/") && (strings.HasSuffix(path, "dump.log") || strings.HasSuffix(path, "restore.log")):
				addErrors(&b, path)
			}
			return nil
		})
	}
	if b.Len() == 0 {
		return "no CRIU log of " + id
	}
	return b.String()
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
