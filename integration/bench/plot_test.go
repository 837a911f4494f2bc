package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestChart(t *testing.T) {
	c := chart{
		title: "a < b", unit: "ms", series: []string{"one", "two & three"},
		groups: []group{{"0 ports", []float64{100, 20}}, {"50 ports", []float64{412, 21.4}}},
	}
	text := c.svg()
	bars, texts := 0, map[string]bool{}
	decoder := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("it is no XML: %v\n%s", err, text)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if token.Name.Local == "rect" {
				bars++
			}
		case xml.CharData:
			texts[string(token)] = true
		}
	}
	// The background, a key for each series, and the bars.
	if bars != 1+2+4 {
		t.Errorf("%d rectangles", bars)
	}
	for _, want := range []string{"a < b, ms", "two & three", "50 ports", "412", "21", "0", "500"} {
		if !texts[want] {
			t.Errorf("the text %q is missing in\n%s", want, text)
		}
	}
	// The highest bar ends below the top of the scale, 500, at 412/500 of its height.
	if !strings.Contains(text, `height="222.5"`) {
		t.Errorf("no bar has the height of 412 of 500:\n%s", text)
	}
	if empty := (chart{}).svg(); !strings.HasSuffix(empty, "</svg>\n") || strings.Contains(empty, "NaN") {
		t.Errorf("without values: %s", empty)
	}
}

func TestNiceStep(t *testing.T) {
	for _, test := range []struct{ top, step float64 }{
		{0, 1}, {-1, 1}, {1, 0.2}, {5, 1}, {5.1, 2}, {9, 2}, {11, 5}, {412, 100}, {501, 200}, {1200, 500}, {4999, 1000},
	} {
		if step := niceStep(test.top); step != test.step {
			t.Errorf("up to %v: %v, want %v", test.top, step, test.step)
		}
	}
}
