//go:build linux

// Command fastmig is the operator's command: it installs what FastMig needs on
// a node, says what the node can do, and speaks to the containers' services.
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
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		// First the default action is back, then the work ends: a second signal ends the
		// command at once, whenever it comes.
		signal.Stop(signals)
		cancel()
	}()
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}
