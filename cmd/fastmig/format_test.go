//go:build linux

package main

import (
	"slices"
	"testing"
	"time"

	"github.com/fastmig/fastmig/shim/api"
)

func TestWords(t *testing.T) {
	for command, want := range map[string][]string{
		"a":               {"a"},
		"  a\tb\nc  ":     {"a", "b", "c"},
		`a "b c" 'd "e'`:  {"a", "b c", `d "e`},
		`a"b"'c'\ d`:      {"abc d"},
		`a "" ''`:         {"a", "", ""},
		`a "\"\\\$\x"`:    {"a", `"\$\x`},
		`a '\' \\`:        {"a", `\`, `\`},
		"a; b | c $D `e`": {"a;", "b", "|", "c", "$D", "`e`"},
		"":                nil,
		`""`:              nil,
		`a "b`:            nil,
		`a 'b`:            nil,
		`a \`:             nil,
	} {
		got, err := words(command)
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("words(%q) = %q, %v; want %q", command, got, err, want)
		}
	}
}

func TestFigures(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1.0 MiB", 3 << 29: "1.5 GiB", 1 << 62: "4096.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Hour: "0s", 59 * time.Second: "59s", 61 * time.Minute: "1h01m", 49 * time.Hour: "2d01h"} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %s, want %s", d, got, want)
		}
	}
}

func TestBarFits(t *testing.T) {
	at := time.Now()
	b := &bar{what: "restore of default/web", began: at, since: at}
	for _, tc := range []struct {
		step    api.Progress
		columns int
		want    string
	}{
		{api.Progress{Percent: -1}, 80, "restore of default/web  2.0 s"},
		{api.Progress{Step: "verify", Percent: 250}, 60, "restore of default/web  verify  100%  2.0 s  [=============]"},
		{api.Progress{Step: "verify", Bytes: 3 << 20, Percent: -1}, 80, "restore of default/web  verify  3.0 MiB  1.5 MiB/s  2.0 s"},
		{api.Progress{Step: "verify", Percent: 20}, 12, "restore of d"},
		{api.Progress{Step: "verify", Percent: 20}, -1, ""},
	} {
		b.step = tc.step
		if got := b.line(at.Add(2*time.Second), tc.columns); got != tc.want {
			t.Errorf("%+v in %d: %q, want %q", tc.step, tc.columns, got, tc.want)
		}
	}
}
