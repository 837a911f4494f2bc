//go:build linux

// containerd-shim-fastmig-v2 is a containerd shim whose containers run under
// FastFreeze.
package main

import (
	"context"
	"runtime"

	cshim "github.com/containerd/containerd/v2/pkg/shim"

	// What libcontainer runs this program for is done before all else.
	_ "github.com/fastmig/fastmig/cmd/containerd-shim-fastmig-v2/child"
	"github.com/fastmig/fastmig/plugin"
	"github.com/fastmig/fastmig/shim"
)

func init() {
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
