//go:build linux

package shim

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// resetSignals sees to it that containers start with default signal actions. A
// signal that is ignored stays so across exec: a containerd that was started
// with nohup, or in a shell's background, would hand that on to every
// application, and a shell that starts with a signal ignored cannot trap it.
// Of these two only, Go leaves an inherited SIG_IGN in place (os/signal). A
// handler is reset by exec; nobody reads the channel: the shim itself is to
// outlive a hangup.
func resetSignals() {
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT)
}
