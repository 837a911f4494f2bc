// Command peers builds the pinned peer programs into the cache and prints
// their folders as one PATH value.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/fastmig/fastmig/integration/internal/peers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	set, err := peers.Build(ctx, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
	fmt.Println(set.Path())
}
