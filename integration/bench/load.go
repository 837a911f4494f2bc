package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
	"github.com/fastmig/fastmig/integration/images"
)

// loadRounds of a second each are run for each load.
const loadRounds = 3

// loads are what runs as fast as the machine lets it.
var loads = []struct {
	name, unit string
	args       []string
	read       func(output string) (float64, error)
}{
	{"sysbench cpu", "events/s", []string{"sysbench", "cpu", "--time=1", "run"},
		figureIn(`events per second:\s*([\d.]+)`)},
	{"sysbench memory", "MiB/s", []string{"sysbench", "memory", "--time=1", "--memory-total-size=10T", "run"},
		figureIn(`\(([\d.]+) MiB/sec\)`)},
	{"sysbench fileio, random reads", "reads/s", fileLoad("rndrd"),
		figureIn(`reads/s:\s*([\d.]+)`)},
	{"sysbench fileio, random writes", "writes/s", fileLoad("rndwr"),
		figureIn(`writes/s:\s*([\d.]+)`)},
	{"iperf3 over loopback", "Mbit/s", []string{"bash", "-c",
		"iperf3 -s -D; for i in {1..100}; do iperf3 -J -t 1 -c 127.0.0.1 >/tmp/report && break; sleep 0.05; done; cat /tmp/report"},
		iperfRate},
}

// fileLoad works on files in the container's read-write layer.
func fileLoad(mode string) []string {
	const files = "sysbench fileio --file-num=4 --file-total-size=64M --file-fsync-freq=0 --file-test-mode="
	return []string{"sh", "-c", "cd /tmp && " + files + mode + " prepare >/dev/null && exec " + files + mode + " --time=1 run"}
}

// load measures what a program gets of the machine in a container of each runtime.
func (b *bench) load(ctx context.Context) error {
	b.results.section("What programs get of the machine in a container (a second each)")
	if err := b.node.Import(ctx, images.Sysbench); err != nil {
		return err
	}
	for _, l := range loads {
		result := b.results.row(l.name, l.unit).goal("≈ 1×")
		p := program{image: images.Sysbench, args: l.args}
		err := b.alternate(ctx, l.name, min(loadRounds, b.cfg.rounds), func(ctx context.Context, r harness.Runtime) (_ values, err error) {
			c, err := b.newContainer(ctx, r, p)
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, c.remove(ctx)) }()
			err = inOrder(
				func() error { return c.create(ctx, "") },
				func() error { return c.wait(ctx) },
				func() error { return c.start(ctx) },
				func() error { return c.exit(ctx) })
			if err != nil {
				return nil, fmt.Errorf("%w; it printed:\n%s", err, c.output)
			}
			v := values{}
			return v, c.printed(ctx, func(output string) (err error) {
				v[result], err = l.read(output)
				return err
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// printed waits until all is there that a container has printed.
func (c *container) printed(ctx context.Context, read func(string) error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return harness.WaitFor(ctx, "the output of "+c.ID(), func(context.Context) (bool, error) {
		err := read(c.output.String())
		return err == nil, err
	})
}

// figureIn finds a number in what a program printed.
func figureIn(pattern string) func(string) (float64, error) {
	re := regexp.MustCompile(pattern)
	return func(output string) (float64, error) {
		found := re.FindStringSubmatch(output)
		if found == nil {
			return 0, fmt.Errorf("nothing like %q is in the output:\n%s", pattern, output)
		}
		return strconv.ParseFloat(found[1], 64)
	}
}

// iperfRate is what arrived, in millions of bits a second.
func iperfRate(output string) (float64, error) {
	var report struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal([]byte(output), &report); err != nil {
		return 0, fmt.Errorf("read iperf3's report: %w", err)
	}
	if report.Error != "" || report.End.Received.Rate == 0 {
		return 0, fmt.Errorf("iperf3 measured nothing: %s", report.Error)
	}
	return report.End.Received.Rate / 1e6, nil
}
