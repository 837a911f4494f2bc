//go:build linux

// Package child makes the shim's program become a process of a container when
// libcontainer runs it as `init`. It is a package of its own to be early: Go
// initialises packages by their paths as soon as what they import is ready (The Go
// Programming Language Specification, Program initialization), and this one's is
// before most of what only the shim needs, which is then not initialised at each
// start of a container's process.
package child

import (
	"os"

	"github.com/opencontainers/runc/libcontainer"
	// The first thing that a new container process runs, before Go.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"
)

func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
}
