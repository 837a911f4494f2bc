package harness

import (
	"fmt"
	"path/filepath"
	"strings"
)

// unneeded are containerd's plugins that no test uses; without them it starts
// faster and probes less of the host.
var unneeded = []string{
	"io.containerd.nri.v1.nri",
	"io.containerd.internal.v1.opt",
	"io.containerd.internal.v1.tracing",
	"io.containerd.tracing.processor.v1.otlp",
	"io.containerd.image-verifier.v1.bindir",
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.erofs",
	"io.containerd.differ.v1.erofs",
	"io.containerd.mount-handler.v1.erofs",
	"io.containerd.podsandbox.controller.v1.podsandbox",
}

var criPlugins = []string{
	"io.containerd.grpc.v1.cri",
	"io.containerd.cri.v1.images",
	"io.containerd.cri.v1.runtime",
}

// config is containerd's configuration file. Its paths are short because
// socket names have room for 107 bytes.
func (n *Node) config(opts Options) string {
	disabled := unneeded
	if opts.CRI {
		disabled = nil
		for _, p := range unneeded {
			if !strings.Contains(p, "podsandbox") && !strings.Contains(p, "nri") {
				disabled = append(disabled, p)
			}
		}
	} else {
		disabled = append(disabled[:len(disabled):len(disabled)], criPlugins...)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version = 3\nroot = %q\nstate = %q\nimports = []\n", filepath.Join(n.Dir, "root"), n.stateDir())
	fmt.Fprintf(&b, "disabled_plugins = [\"%s\"]\n", strings.Join(disabled, `", "`))
	fmt.Fprintf(&b, "[debug]\nlevel = \"debug\"\n")
	fmt.Fprintf(&b, "[grpc]\naddress = %q\n", n.Address)
	fmt.Fprintf(&b, "[plugins]\n[plugins.'io.containerd.shim.v1.manager']\nsocket_dir = %q\n", filepath.Join(n.Dir, "s"))
	b.WriteString(opts.Plugins)
	return b.String()
}

func (n *Node) stateDir() string { return filepath.Join(n.Dir, "state") }
func (n *Node) fifoDir() string  { return filepath.Join(n.Dir, "fifo") }
