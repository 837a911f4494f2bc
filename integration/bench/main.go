// Command bench measures FastMig's shim side by side with the stock runc shim,
// on one private containerd, and removes everything at the end. It asserts
// nothing about times: it writes them down.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/integration/internal/checkout"
)

const help = `Bench measures FastMig's shim beside the stock runc shim.

  go run ./bench [flags]        in integration/, or: make bench

Both shims serve containers of one private containerd. The rounds alternate
between them (A B B A ...), so that a change of the machine's speed reaches both.
The table goes to standard output, progress to standard error, and the results
to integration/bench/results: latest.json with every value, latest.md with the
table, ports.svg with a figure. Measure on a machine that does nothing else: the load average before the
run is part of the results.

Sections (-only takes a list of them):
  lifecycle  create, start, exit, delete of a container that runs /bin/true
  ctr        ctr container checkpoint --task, ctr container restore --live
  share      the shim's own part of both, through the Task API
  tree       restore of 1, 4 and 16 processes
  memory     checkpoint and restore with touched, random memory
  warm       a service's restore in a container that waits, against a new one
  operations the other requests of the FastMig interface
  ports      restore with 0, 10 and 50 published ports, and a figure of it
  recovery   a redis-server whose PID 1 is killed
  overhead   memory and CPU time of a container with a memory hog, and in standby
  load       sysbench and iperf3 in a container
  idle       memory, CPU time and context switches of an idle container's shim
             and, under FastMig, its PID 1

Flags:
`

// config is what the flags say.
type config struct {
	rounds       int
	memoryRounds int
	portRounds   int
	memory       []int // MiB
	idle         time.Duration
	sections     []string
	out          string // empty: write no files
}

// serviceRounds are those of measurements that wait between their steps.
func (c config) serviceRounds() int { return min(c.rounds, 15) }

func main() {
	cfg, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		if ctx.Err() != nil {
			os.Exit(130)
		}
		os.Exit(1)
	}
}

// parse reads the flags. What is wrong, or the help, it prints to w.
func parse(args []string, w io.Writer) (config, error) {
	var (
		cfg     config
		fs      = flag.NewFlagSet("bench", flag.ContinueOnError)
		quick   = fs.Bool("quick", false, "a few rounds, to see that it works; changes the other flags' defaults and writes no files without -out")
		memory  = fs.String("memory", "16,128,512", "sizes of the section memory, in `MiB`")
		only    = fs.String("only", "", "run these `sections` only, separated by commas")
		results = "integration/bench/results"
	)
	fs.SetOutput(w)
	fs.IntVar(&cfg.rounds, "rounds", 20, "`rounds` of each measurement, at most 15 of the FastMig interface's (-quick: 3)")
	fs.IntVar(&cfg.memoryRounds, "memory-rounds", 5, "`rounds` of the sections memory and recovery (-quick: 1)")
	fs.IntVar(&cfg.portRounds, "port-rounds", 3, "`rounds` of the cold restores of the section ports (-quick: 1)")
	fs.DurationVar(&cfg.idle, "idle", time.Minute, "how long the section idle watches (-quick: 5s)")
	fs.StringVar(&cfg.out, "out", "", "`folder` of the results (default "+results+")")
	fs.Usage = func() {
		fmt.Fprint(w, help)
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if *quick {
		setDefault(given, "rounds", &cfg.rounds, 3)
		setDefault(given, "memory-rounds", &cfg.memoryRounds, 1)
		setDefault(given, "port-rounds", &cfg.portRounds, 1)
		setDefault(given, "idle", &cfg.idle, 5*time.Second)
	}
	err := cfg.complete(fs.Args(), *memory, *only)
	if err == nil && cfg.out == "" && !*quick {
		var root string
		if root, err = checkout.Root(); err == nil {
			cfg.out = filepath.Join(root, results)
		}
	}
	if err != nil {
		fmt.Fprintf(w, "bench: %v; see bench -help\n", err)
	}
	return cfg, err
}

func setDefault[T any](given map[string]bool, name string, value *T, def T) {
	if !given[name] {
		*value = def
	}
}

// complete reads the lists and checks the numbers.
func (c *config) complete(rest []string, memory, only string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case c.rounds < 1:
		return fmt.Errorf("-rounds is %d: at least 1 is needed", c.rounds)
	case c.memoryRounds < 1:
		return fmt.Errorf("-memory-rounds is %d: at least 1 is needed", c.memoryRounds)
	case c.portRounds < 1:
		return fmt.Errorf("-port-rounds is %d: at least 1 is needed", c.portRounds)
	case c.idle <= 0:
		return fmt.Errorf("-idle is %v: it must be more than nothing", c.idle)
	}
	for _, word := range strings.Split(memory, ",") {
		size, err := strconv.Atoi(word)
		if err != nil || size < 1 || size > 1<<20 {
			return fmt.Errorf("-memory: %q is no size in MiB", word)
		}
		c.memory = append(c.memory, size)
	}
	for _, s := range sections {
		c.sections = append(c.sections, s.name)
	}
	if only == "" {
		return nil
	}
	chosen := strings.Split(only, ",")
	for _, name := range chosen {
		if !slices.Contains(c.sections, name) {
			return fmt.Errorf("-only: there is no section %q", name)
		}
	}
	c.sections = chosen
	return nil
}
