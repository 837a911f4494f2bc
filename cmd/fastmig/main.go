//go:build linux

// Command fastmig is the operator's command: it installs what FastMig needs on
// a node and says what the node can do.
//
// Exit codes: 0 done; 1 failed, or the node cannot do what check looks for;
// 2 wrong usage; 130 interrupted.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// After the first signal the default action is back: a second one ends at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}
