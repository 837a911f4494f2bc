//go:build linux

package node

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Print writes the report for people: a line for each feature, a line for each
// verdict, and below it a line for each thing to do about it.
func (r Report) Print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "kernel\t\t%s (%s)\n", r.Kernel, r.Arch)
	for _, f := range r.Features {
		text := f.Detail
		if f.Status != Yes {
			text = join(": ", f.Detail, f.Consequence)
		}
		// An empty last cell would leave blanks at the line's end.
		fmt.Fprintf(tw, "%s\t%s\n", f.Title, strings.TrimRight(fmt.Sprintf("%s\t%s", f.Status, text), "\t"))
	}
	if err := tw.Flush(); err != nil {
		return fmt.Errorf("node: print the report: %w", err)
	}
	var b strings.Builder
	for _, verb := range Verbs {
		v := r.Verdicts[verb]
		fmt.Fprintf(&b, "\n%s: %s\n", verb, strings.ToUpper(string(v.Verdict)))
		for _, name := range v.Because {
			if f, ok := r.Feature(name); ok {
				fmt.Fprintf(&b, "  - %s %s: %s\n    do: %s\n", f.Title, f.Status, join(": ", f.Detail, f.Consequence), f.Remedy)
			}
		}
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("node: print the report: %w", err)
	}
	return nil
}

func join(sep string, parts ...string) string {
	var have []string
	for _, p := range parts {
		if p != "" {
			have = append(have, p)
		}
	}
	return strings.Join(have, sep)
}
