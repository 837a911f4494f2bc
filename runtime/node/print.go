//go:build linux

package node

import (
	"fmt"
	"io"
	"strings"
)

// Print writes the report for people: a line for each feature, a line for each
// verdict, and a line for each thing that can be done about what is not there.
func (r Report) Print(w io.Writer) error {
	width := 0
	for _, f := range r.Features {
		width = max(width, len(f.Title))
	}
	var b strings.Builder
	line := func(title string, status Status, text string) {
		b.WriteString(strings.TrimRight(fmt.Sprintf("%-*s  %-7s  %s", width, title, status, text), " ") + "\n")
	}
	line("kernel", Yes, fmt.Sprintf("%s (%s)", r.Kernel, r.Arch))
	for _, f := range r.Features {
		line(f.Title, f.Status, f.text())
	}
	b.WriteString("\n")
	for _, verb := range Verbs {
		v := r.Verdicts[verb]
		var because []string
		for _, name := range v.Because {
			if f, ok := r.Feature(name); ok {
				because = append(because, f.Title)
			}
		}
		line("=> "+string(verb), v.Verdict, strings.Join(because, ", "))
	}
	first := true
	for _, f := range r.Features {
		if f.Remedy == "" {
			continue
		}
		if first {
			b.WriteString("\nWhat can be done:\n")
			first = false
		}
		fmt.Fprintf(&b, "  %s: %s\n", f.Title, f.Remedy)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("node: print the report: %w", err)
	}
	return nil
}

// text says what was seen and, unless the detail is just that, what follows.
func (f FeatureReport) text() string {
	switch {
	case f.Consequence == "", f.Status == Limited && f.Detail != "":
		return f.Detail
	case f.Detail == "":
		return f.Consequence
	}
	return strings.TrimSuffix(f.Detail, ".") + "; " + f.Consequence
}
