package harness

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// nodeConfig is where FastMig's shims look for the node's configuration.
const nodeConfig = "/etc/fastmig/config.toml"

// WriteConfig gives the node's machine FastMig's configuration file, in place of
// the one before. Containers that are made from now on follow it. The host's own
// /etc is not touched.
func (n *Node) WriteConfig(text string) error {
	own := filepath.Join(n.Dir, "etc")
	if _, err := os.Stat(own); err != nil {
		if err := n.ownEtc(own); err != nil {
			return fmt.Errorf("give the machine an /etc of its own: %w", err)
		}
	}
	return n.InMachine(func() error {
		if err := os.MkdirAll(filepath.Dir(nodeConfig), 0o755); err != nil {
			return err
		}
		return os.WriteFile(nodeConfig, []byte(text), 0o644)
	})
}

// ownEtc lays a folder over the machine's /etc that takes what is written there.
func (n *Node) ownEtc(dir string) error {
	for _, sub := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=/etc,upperdir=%s/upper,workdir=%s/work", dir, dir)
	return n.InMachine(func() error { return unix.Mount("overlay", "/etc", "overlay", 0, options) })
}
