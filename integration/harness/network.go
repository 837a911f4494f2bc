package harness

import (
	"fmt"
	"os"
	"path/filepath"
)

// Network is the name of the network that containers can be attached to with
// nerdctl's --net (it is the default there). Its bridge lives on the node's
// machine and goes with it.
const Network = "bridge"

// The subnet is of the range set aside for benchmarks (RFC 2544), which no
// real network of the host uses.
const subnet = "198.18.0.0/24"

// writeNetwork writes the CNI configuration. nerdctl takes the network as its
// default by its name.
func (n *Node) writeNetwork() error {
	conf := fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": %q,
  "plugins": [
    {"type": "bridge", "bridge": "fm0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": %q}]]}},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "firewall"},
    {"type": "tuning"}
  ]
}
`, Network, subnet)
	return os.WriteFile(filepath.Join(n.Dir, "cni", "10-bridge.conflist"), []byte(conf), 0o644)
}
