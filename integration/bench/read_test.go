package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestFigures(t *testing.T) {
	for i, output := range []string{
		"CPU speed:\n    events per second:  1234.56\n",
		"102400.00 MiB transferred (5678.90 MiB/sec)\n",
		"File operations:\n    reads/s:                      11.50\n    writes/s:                     0.00\n",
		"File operations:\n    reads/s:                      0.00\n    writes/s:                     22.25\n",
		`{"end": {"sum_received": {"bits_per_second": 33500000}}}`,
	} {
		want := []float64{1234.56, 5678.9, 11.5, 22.25, 33.5}[i]
		if got, err := loads[i].read(output); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", loads[i].name, got, err, want)
		}
		if _, err := loads[i].read("FATAL: no\n"); err == nil {
			t.Errorf("%s finds a value where there is none", loads[i].name)
		}
	}
	if _, err := iperfRate(`{"end": {}, "error": "unable to connect"}`); err == nil || !strings.Contains(err.Error(), "unable to connect") {
		t.Errorf("a failed iperf3: %v", err)
	}
}

func TestInactiveFile(t *testing.T) {
	for _, test := range []struct {
		stat string
		want float64
	}{
		{"", 0},
		{"anon 5\ninactive_file 4096\nactive_file 7\n", 4096},
		{"inactive_file 4096\ntotal_inactive_file 8192\n", 8192},
		{"total_inactive_file 0\n", 0},
	} {
		if got, err := inactiveFile(test.stat); err != nil || got != test.want {
			t.Errorf("%q: %v, %v; want %v", test.stat, got, err, test.want)
		}
	}
	if _, err := inactiveFile("inactive_file many\n"); err == nil {
		t.Error("a word is taken for a number")
	}
}

func TestGaps(t *testing.T) {
	var g gaps
	at := time.Now()
	for _, after := range []time.Duration{0, 1, 2} {
		g.answered(at.Add(after * time.Millisecond))
	}
	g.broken()
	g.answered(at.Add(52 * time.Millisecond))
	g.answered(at.Add(53 * time.Millisecond))
	if g.longest != 50*time.Millisecond || g.breaks != 1 || g.answers != 2 {
		t.Errorf("the gap is %v, after %d breaks, with %d answers since", g.longest, g.breaks, g.answers)
	}
	enough := func(breaks, answers int) bool { return breaks == 1 && answers == 2 }
	if err := g.await(t.Context(), enough); err != nil {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.await(ended, func(int, int) bool { return false }); !errors.Is(err, context.Canceled) {
		t.Errorf("it waits on: %v", err)
	}
}

func TestInOrder(t *testing.T) {
	failed := errors.New("failed")
	var done []int
	step := func(n int, err error) func() error {
		return func() error { done = append(done, n); return err }
	}
	if err := inOrder(step(1, nil), step(2, failed), step(3, nil)); !errors.Is(err, failed) || len(done) != 2 {
		t.Errorf("%v after %v", err, done)
	}
}

func TestMedianOf(t *testing.T) {
	if got := medianOf([]float64{9, 1, 5, 3}); got != 4 {
		t.Errorf("the median is %v", got)
	}
	if got := medianOf(nil); got != 0 {
		t.Errorf("the median of nothing is %v", got)
	}
}
