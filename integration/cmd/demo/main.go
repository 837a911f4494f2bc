// Command demo shows FastMig at work: a Redis server with data and a client is
// checkpointed, its container is deleted, and it goes on in another one. It
// runs a private containerd and removes everything at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/harness"
)

func main() {
	runtime := flag.String("runtime", harness.FastMig.String(), "what runs the container: fastmig, in-place or stock")
	keys := flag.Int("keys", 100_000, "how many keys to write")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, *runtime, *keys); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		if ctx.Err() != nil {
			os.Exit(130)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, runtime string, keys int) (err error) {
	chosen, err := harness.ParseRuntime(runtime)
	if err != nil {
		return err
	}
	fmt.Println("preparing (the first time takes some minutes) ...")
	node, err := harness.Start(ctx, harness.Options{Runtime: chosen, Progress: os.Stdout})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, node.Stop())
		if err == nil {
			fmt.Println("\ncontainerd, containers and files of the demo are removed.")
		}
	}()
	d := demo{node: node, keys: keys, out: os.Stdout}
	return d.play(ctx)
}
