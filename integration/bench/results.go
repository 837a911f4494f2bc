package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fastmig/fastmig/integration/harness"
)

// results are what latest.json holds.
type results struct {
	Machine  machine    `json:"machine"`
	Finished time.Time  `json:"finished"`
	Rounds   int        `json:"rounds"`
	Sections []*section `json:"sections"`
	// figures are drawn beside the tables.
	figures []figureFile
}

type figureFile struct {
	name  string
	chart chart
}

type section struct {
	Title string `json:"title"`
	Rows  []*row `json:"rows"`
}

// row is one quantity under both runtimes.
type row struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	// Goal is what the project wants on an idle machine; nobody checks it.
	Goal    string  `json:"goal,omitempty"`
	FastMig *series `json:"fastmig"`
	Stock   *series `json:"stock"`
	// Ratio is FastMig's median by the stock shim's.
	Ratio float64 `json:"ratio,omitempty"`
	// of makes the row a quotient of two others' medians.
	of *[2]*row
}

// series are the values of one runtime, in the order in which they came.
type series struct {
	Median float64   `json:"median"`
	P90    float64   `json:"p90"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Values []float64 `json:"values"`
}

// section begins a new one; rows go into the last.
func (r *results) section(title string) {
	r.Sections = append(r.Sections, &section{Title: title})
}

// row adds a row to the section. A name that begins with spaces is a part of
// the row before.
func (r *results) row(name, unit string) *row {
	s := r.Sections[len(r.Sections)-1]
	s.Rows = append(s.Rows, &row{Name: name, Unit: unit, FastMig: &series{}, Stock: &series{}})
	return s.Rows[len(s.Rows)-1]
}

func (r *row) goal(text string) *row {
	r.Goal = text
	return r
}

func (r *row) quotient(a, b *row) { r.of = &[2]*row{a, b} }

func (r *row) series(of harness.Runtime) *series {
	if of == harness.FastMig {
		return r.FastMig
	}
	return r.Stock
}

// add takes a value, rounded to what can be meant.
func (r *row) add(of harness.Runtime, value float64) {
	s := r.series(of)
	s.Values = append(s.Values, math.Round(value*1000)/1000)
}

// finish computes what follows from the values.
func (r *results) finish() {
	r.Finished = time.Now().UTC().Truncate(time.Second)
	for _, s := range r.Sections {
		for _, row := range s.Rows {
			for _, of := range runtimes {
				if row.of != nil && row.of[0].series(of).Median > 0 && row.of[1].series(of).Median > 0 {
					row.add(of, row.of[0].series(of).Median/row.of[1].series(of).Median)
				}
				row.series(of).summarize()
			}
			// Below one of the unit it says nothing, nor without a peer's value.
			if row.of == nil && row.Stock.Median >= 1 && len(row.FastMig.Values) > 0 {
				row.Ratio = math.Round(row.FastMig.Median/row.Stock.Median*1000) / 1000
			}
		}
	}
}

func (s *series) summarize() {
	if len(s.Values) == 0 {
		return
	}
	sorted := slices.Sorted(slices.Values(s.Values))
	s.Min, s.Max = sorted[0], sorted[len(sorted)-1]
	s.Median, s.P90 = median(sorted), sorted[rank(len(sorted), 0.9)]
}

// medianOf is the median of values in any order.
func medianOf(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	return median(slices.Sorted(slices.Values(values)))
}

// median of sorted values.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// rank is the index of the nearest-rank quantile among n sorted values.
func rank(n int, q float64) int { return max(0, int(math.Ceil(q*float64(n)))-1) }

// cells are a row of the printed tables.
func (r *row) cells() []string {
	number := func(s *series, value float64) string {
		if len(s.Values) == 0 || math.IsNaN(value) || math.IsInf(value, 0) {
			return "–"
		}
		switch {
		case r.Unit == "×":
			return fmt.Sprintf("%.2f", value)
		case value >= 1000:
			return fmt.Sprintf("%.0f", value)
		}
		return fmt.Sprintf("%.1f", value)
	}
	ratio := "–"
	if r.Ratio > 0 {
		ratio = fmt.Sprintf("%.2f×", r.Ratio)
	}
	return []string{
		r.Name, r.Unit,
		number(r.FastMig, r.FastMig.Median), number(r.FastMig, r.FastMig.P90),
		number(r.Stock, r.Stock.Median), number(r.Stock, r.Stock.P90),
		ratio, r.Goal,
	}
}

var header = []string{"", "unit", "FastMig", "p90", "stock", "p90", "ratio", "goal"}

// The columns that are numbers.
const firstNumber, lastNumber = 2, 7

// table writes the results for a terminal.
func (r *results) table(w io.Writer) {
	lines := [][]string{header}
	for _, s := range r.Sections {
		for _, row := range s.Rows {
			lines = append(lines, row.cells())
		}
	}
	widths := make([]int, len(header))
	for _, cells := range lines {
		for i, cell := range cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	line := func(cells []string) {
		var b strings.Builder
		for i, cell := range cells {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i >= firstNumber && i < lastNumber {
				cell, space = space+cell, ""
			}
			b.WriteString("  " + cell + space)
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
	fmt.Fprintf(w, "\n%s\n", r.Machine.text(r.Rounds))
	line(header)
	for _, s := range r.Sections {
		fmt.Fprintf(w, "\n%s\n", s.Title)
		for _, row := range s.Rows {
			line(row.cells())
		}
	}
}

// markdown writes the results as a page.
func (r *results) markdown(w io.Writer) {
	fmt.Fprintf(w, "# FastMig's shim beside the stock runc shim\n\n%s\n", r.Machine.text(r.Rounds))
	fmt.Fprintln(w, "FastMig and stock are medians; the ratio is FastMig's by the stock shim's.")
	for _, s := range r.Sections {
		fmt.Fprintf(w, "\n## %s\n\n| %s |\n|%s\n", s.Title, strings.Join(header, " | "), strings.Repeat(" --- |", len(header)))
		for _, row := range s.Rows {
			cells := row.cells()
			if part := strings.TrimLeft(cells[0], " "); part != cells[0] {
				cells[0] = "– " + part
			}
			fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
		}
	}
	for _, f := range r.figures {
		fmt.Fprintf(w, "\n![%s](%s)\n", f.chart.title, f.name)
	}
}

// write makes latest.json, latest.md and the figures in the folder.
func (r *results) write(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	var page strings.Builder
	r.markdown(&page)
	errs := []error{
		os.WriteFile(filepath.Join(folder, "latest.json"), append(compact(data), '\n'), 0o644),
		os.WriteFile(filepath.Join(folder, "latest.md"), []byte(page.String()), 0o644),
	}
	for _, f := range r.figures {
		errs = append(errs, os.WriteFile(filepath.Join(folder, f.name), []byte(f.chart.svg()), 0o644))
	}
	return errors.Join(errs...)
}

// lists are those of numbers in indented JSON.
var lists = regexp.MustCompile(`\[[\s\d.,e+-]+\]`)

// compact puts each list of numbers on one line.
func compact(data []byte) []byte {
	return lists.ReplaceAllFunc(data, func(list []byte) []byte {
		return []byte("[" + strings.Join(strings.Fields(strings.Trim(string(list), "[]")), " ") + "]")
	})
}
