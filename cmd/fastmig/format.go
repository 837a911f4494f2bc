//go:build linux

package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// clean makes text that may come from a container fit for a terminal and a table: on
// one line and without control characters, of which a terminal would make commands.
func clean(s string) string {
	return cleanLines(strings.NewReplacer("\n", " ", "\t", " ").Replace(s))
}

// cleanLines is clean for text of several lines, such as the end of a log.
func cleanLines(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// size is a number of bytes for people.
func size(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/(1<<10), 0
	for v >= 1023.95 && unit < 4 {
		v /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

// span is a number of seconds for people.
func span(seconds float64) string {
	switch {
	case seconds < 0.01:
		return fmt.Sprintf("%.1f ms", seconds*1e3)
	case seconds < 1:
		return fmt.Sprintf("%.0f ms", seconds*1e3)
	case seconds < 100:
		return fmt.Sprintf("%.1f s", seconds)
	}
	return age(time.Duration(seconds * float64(time.Second)))
}

// age is how long something lasts already, in its two largest units.
func age(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	switch {
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// stamp is a point in time, to the millisecond.
func stamp(t time.Time) string { return t.Local().Format("2006-01-02T15:04:05.000Z07:00") }

// dash stands for what there is none of, in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
