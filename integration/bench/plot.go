package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// chart is a bar chart of groups, each with a value for each series.
type chart struct {
	title, unit string
	series      []string
	groups      []group
}

type group struct {
	name   string
	values []float64
}

// Measures of the picture, in its units.
const (
	chartWidth, chartHeight             = 720, 400
	plotLeft, plotRight                 = 70, 20
	plotTop, plotBottom                 = 86, 44
	barGap                              = 0.2 // of a group's width, between two
	labelSize, tickLength, legendStride = 12, 5, 17
)

// colours of the series, told apart by the colour-blind and in grey.
var colours = []string{"#8c8c8c", "#e69f00", "#0072b2", "#009e73"}

// svg draws the chart.
func (c chart) svg() string {
	var (
		b     strings.Builder
		top   float64
		width = float64(chartWidth - plotLeft - plotRight)
		floor = float64(chartHeight - plotBottom)
	)
	for _, g := range c.groups {
		for _, v := range g.values {
			top = max(top, v)
		}
	}
	step := niceStep(top)
	top = max(math.Ceil(top/step), 1) * step
	y := func(v float64) float64 { return floor - v/top*(floor-plotTop) }
	text := func(x, y float64, anchor, format string, a ...any) {
		fmt.Fprintf(&b, "  <text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, html.EscapeString(fmt.Sprintf(format, a...)))
	}
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"%d\">\n", chartWidth, chartHeight, labelSize)
	fmt.Fprintf(&b, "  <rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n", chartWidth, chartHeight)
	text(plotLeft, 20, "start", "%s, %s", c.title, c.unit)
	for i, name := range c.series {
		at := 28 + float64(i*legendStride)
		fmt.Fprintf(&b, "  <rect x=\"%d\" y=\"%.1f\" width=\"11\" height=\"11\" fill=\"%s\"/>\n", plotLeft, at, colours[i%len(colours)])
		text(plotLeft+17, at+10, "start", "%s", name)
	}
	for v := 0.0; v <= top+step/2; v += step {
		fmt.Fprintf(&b, "  <line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>\n", plotLeft-tickLength, chartWidth-plotRight, y(v), y(v))
		text(plotLeft-tickLength-3, y(v)+4, "end", "%g", v)
	}
	each := width / float64(max(len(c.groups), 1))
	for i, g := range c.groups {
		left := plotLeft + float64(i)*each + each*barGap/2
		bar := each * (1 - barGap) / float64(max(len(g.values), 1))
		for j, v := range g.values {
			x := left + float64(j)*bar
			fmt.Fprintf(&b, "  <rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y(v), bar*0.9, floor-y(v), colours[j%len(colours)])
			text(x+bar*0.45, y(v)-4, "middle", "%.0f", v)
		}
		text(left+each*(1-barGap)/2, floor+20, "middle", "%s", g.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// niceStep is the distance of the lines of a scale that goes up to top: 1, 2 or 5
// times a power of ten, some five lines in all.
func niceStep(top float64) float64 {
	if top <= 0 || math.IsInf(top, 0) || math.IsNaN(top) {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(top/5)))
	for _, f := range []float64{1, 2, 5} {
		if top/(f*power) <= 5 {
			return f * power
		}
	}
	return 10 * power
}
