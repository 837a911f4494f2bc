package main

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fastmig/fastmig/integration/harness"
)

func TestParse(t *testing.T) {
	var out strings.Builder
	cfg, err := parse(nil, &out)
	if err != nil || cfg.rounds != 20 || cfg.idle != time.Minute || len(cfg.sections) != len(sections) || len(cfg.memory) != 3 {
		t.Errorf("without flags: %+v, %v", cfg, err)
	}
	if !strings.HasSuffix(cfg.out, "integration/bench/results") {
		t.Errorf("the results go to %q", cfg.out)
	}
	cfg, err = parse([]string{"-quick", "-idle", "1s", "-only", "tree,idle"}, &out)
	if err != nil || cfg.rounds != 3 || cfg.idle != time.Second || len(cfg.sections) != 2 || cfg.out != "" {
		t.Errorf("-quick: %+v, %v", cfg, err)
	}
	if out.Len() > 0 {
		t.Errorf("it said %q", out.String())
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct{ args, says string }{
		{"-no-such", "no-such"},
		{"-rounds 0", "-rounds"},
		{"-rounds x", "-rounds"},
		{"-memory-rounds 0", "-memory-rounds"},
		{"-port-rounds 0", "-port-rounds"},
		{"-memory 16,x", `"x"`},
		{"-memory 0", `"0"`},
		{"-idle 0s", "-idle"},
		{"-only tree,none", `"none"`},
		{"more", `"more"`},
	} {
		var out strings.Builder
		_, err := parse(strings.Fields(test.args), &out)
		if err == nil || !strings.Contains(out.String(), test.says) {
			t.Errorf("%s: error %v; it said %q", test.args, err, out.String())
		}
	}
	var out strings.Builder
	if _, err := parse([]string{"--help"}, &out); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "Sections") {
		t.Errorf("--help: %v; it said %q", err, out.String())
	}
}

func TestSummary(t *testing.T) {
	for _, test := range []struct {
		values      []float64
		median, p90 float64
	}{
		{nil, 0, 0},
		{[]float64{3}, 3, 3},
		{[]float64{4, 2}, 3, 4},
		{[]float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 5.5, 9},
	} {
		s := series{Values: test.values}
		s.summarize()
		if s.Median != test.median || s.P90 != test.p90 {
			t.Errorf("%v: median %v, p90 %v; want %v, %v", test.values, s.Median, s.P90, test.median, test.p90)
		}
	}
}

func TestResults(t *testing.T) {
	r := &results{Rounds: 2}
	r.section("First")
	one := r.row("one", "ms").goal("≤ 1.0×")
	three := r.row("  three", "ms")
	r.row("three to one", "×").quotient(three, one)
	r.row("nothing", "ms")
	alone := r.row("alone", "ms")
	alone.add(harness.Stock, 5)
	r.row("alone to one", "×").quotient(alone, one)
	r.figures = append(r.figures, figureFile{"figure.svg", chart{title: "a figure", unit: "ms"}})
	for _, v := range []float64{1, 3} {
		one.add(harness.FastMig, v)
		one.add(harness.Stock, 2*v)
		three.add(harness.FastMig, 3*v)
		three.add(harness.Stock, 3*v)
	}
	r.finish()
	if one.Ratio != 0.5 {
		t.Errorf("the ratio is %v", one.Ratio)
	}
	if alone.Ratio != 0 || len(r.Sections[0].Rows[5].FastMig.Values) != 0 {
		t.Errorf("a ratio to nothing is %v, a quotient %+v", alone.Ratio, r.Sections[0].Rows[5].FastMig)
	}
	folder := filepath.Join(t.TempDir(), "new")
	if err := r.write(folder); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(folder, "latest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), `"values": [1, 3]`) {
		t.Errorf("values are not on one line:\n%s", data)
	}
	var back results
	if err := json.Unmarshal(data, &back); err != nil || back.Sections[0].Rows[2].FastMig.Median != 3 {
		t.Errorf("read back: %+v, %v", back, err)
	}
	page, err := os.ReadFile(filepath.Join(folder, "latest.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"| one | ms | 2.0 | 3.0 | 4.0 | 6.0 | 0.50× | ≤ 1.0× |", "| – three |", "| nothing | ms | – | – | – | – | – |  |", "![a figure](figure.svg)"} {
		if !strings.Contains(string(page), strings.TrimSuffix(line, " |")) {
			t.Errorf("no line %q in\n%s", line, page)
		}
	}
	if figure, err := os.ReadFile(filepath.Join(folder, "figure.svg")); err != nil || !strings.HasPrefix(string(figure), "<svg") {
		t.Errorf("the figure is %q, %v", figure, err)
	}
	var table strings.Builder
	r.table(&table)
	if !strings.Contains(table.String(), "  one           ms") {
		t.Errorf("the table:\n%s", table.String())
	}
}
