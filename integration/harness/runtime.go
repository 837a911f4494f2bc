package harness

import (
	"fmt"
	"os"
)

// Runtime is a way to run containers that tests can choose.
type Runtime struct {
	// Name is what containerd's clients call it.
	Name string
	// inPlace installs FastMig's shim on the node's PATH under the stock
	// shim's file name.
	inPlace bool
}

var (
	// FastMig is our shim under its own name.
	FastMig = Runtime{Name: "io.containerd.fastmig.v2"}
	// InPlace is our shim in the place of the stock one, under its name.
	InPlace = Runtime{Name: "io.containerd.runc.v2", inPlace: true}
	// Stock is containerd's own runc shim.
	Stock = Runtime{Name: "io.containerd.runc.v2"}
)

func (r Runtime) String() string {
	switch r {
	case FastMig:
		return "fastmig"
	case InPlace:
		return "in-place"
	case Stock:
		return "stock"
	}
	return r.Name
}

// IsFastMig says whether containers run under our shim.
func (r Runtime) IsFastMig() bool { return r == FastMig || r == InPlace }

// runtimeVariable chooses the runtime that tests use, to compare a test's
// outcome with the stock shim's.
const runtimeVariable = "FASTMIG_TEST_RUNTIME"

// Default is FastMig, or what the environment variable FASTMIG_TEST_RUNTIME
// names: fastmig, in-place or stock. It panics at any other value.
func Default() Runtime {
	name := os.Getenv(runtimeVariable)
	if name == "" {
		return FastMig
	}
	r, err := ParseRuntime(name)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", runtimeVariable, err))
	}
	return r
}

// ParseRuntime is the inverse of Runtime.String for the three runtimes.
func ParseRuntime(name string) (Runtime, error) {
	for _, r := range []Runtime{FastMig, InPlace, Stock} {
		if name == r.String() {
			return r, nil
		}
	}
	return Runtime{}, fmt.Errorf("unknown runtime %q: it is one of fastmig, in-place, stock", name)
}
