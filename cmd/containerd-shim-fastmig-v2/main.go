//go:build linux

// containerd-shim-fastmig-v2 is a containerd shim whose containers run under
// FastFreeze.
package main

import (
	"context"
	"os"
	"runtime"

	cshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/opencontainers/runc/libcontainer"
	// The first thing that a new container process runs, before Go.
	_ "github.com/opencontainers/runc/libcontainer/nsenter"

	"github.com/fastmig/fastmig/plugin"
	"github.com/fastmig/fastmig/shim"
)

func init() {
	// libcontainer runs this program as `init` to become a process of a
	// container.
	if len(os.Args) > 1 && os.Args[1] == "init" {
		libcontainer.Init()
	}
	// Threads that join a container's namespaces are thrown away afterwards. Go does
	// not end the first one: it would stay there, and /proc/self is its.
	runtime.LockOSThread()
}

func main() {
	// Every child is waited for by whoever started it.
	own := func(c *cshim.Config) {
		c.NoReaper = true
		c.NoSubreaper = true
	}
	cshim.RunShim(context.Background(), shim.NewManager("io.containerd.fastmig.v2", plugin.Decoder{}), own)
}
