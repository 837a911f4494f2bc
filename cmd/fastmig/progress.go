//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastmig/fastmig/shim/api"
)

// display shows how far an operation is.
type display interface {
	show(api.Progress)
	// close leaves nothing unfinished on the screen.
	close()
}

// newDisplay is a bar on a terminal, else a line a step.
func newDisplay(w io.Writer, what string) display {
	if f, ok := w.(*os.File); ok && os.Getenv("TERM") != "dumb" {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return newBar(f, what)
		}
	}
	return &lines{w: w, what: what}
}

// lines prints a line when a step begins.
type lines struct {
	w    io.Writer
	what string
	last string
}

func (l *lines) show(p api.Progress) {
	if p.Step == l.last {
		return
	}
	l.last = p.Step
	text := fmt.Sprintf("%s: %s", l.what, clean(p.Step))
	if p.Total > 0 {
		text += ", " + size(p.Total)
	}
	fmt.Fprintln(l.w, text)
}

func (l *lines) close() {}

// redraw is how often a bar is drawn at least, so that one sees it live: its rate and
// time change also when nothing is heard.
const redraw = 100 * time.Millisecond

// bar is one line of a terminal that is drawn again and again.
type bar struct {
	tty         *os.File
	what        string
	began       time.Time // of the operation
	stop, ended chan struct{}

	mu    sync.Mutex // guards what follows
	step  api.Progress
	since time.Time // of the step
	from  int64     // bytes that it began with
}

func newBar(tty *os.File, what string) *bar {
	b := &bar{tty: tty, what: what, began: time.Now(), stop: make(chan struct{}), ended: make(chan struct{})}
	b.step.Percent = -1
	b.since = b.began
	go b.run()
	return b
}

func (b *bar) run() {
	defer close(b.ended)
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	for {
		select {
		case <-b.stop:
			fmt.Fprint(b.tty, "\r\x1b[K")
			return
		case <-tick.C:
			b.draw()
		}
	}
}

func (b *bar) show(p api.Progress) {
	b.mu.Lock()
	next := p.Step != b.step.Step
	if next {
		b.since, b.from = time.Now(), p.Bytes
	}
	b.step = p
	b.mu.Unlock()
	if next {
		b.draw() // at once: many steps are shorter than a tick
	}
}

func (b *bar) close() {
	close(b.stop)
	<-b.ended
}

func (b *bar) draw() {
	columns := 80
	if s, err := unix.IoctlGetWinsize(int(b.tty.Fd()), unix.TIOCGWINSZ); err == nil && s.Col > 0 {
		columns = int(s.Col)
	}
	b.mu.Lock()
	defer b.mu.Unlock() // while it writes, too: the last that is drawn is the latest
	fmt.Fprint(b.tty, "\r"+b.line(time.Now(), columns-1)+"\x1b[K")
}

// line is the bar in at most the given number of columns.
func (b *bar) line(at time.Time, columns int) string {
	p := b.step
	parts := []string{b.what}
	if p.Step != "" {
		parts = append(parts, clean(p.Step))
	}
	percent := p.Percent
	if percent < 0 && p.Total > 0 {
		percent = int(p.Bytes * 100 / p.Total)
	}
	percent = min(percent, 100)
	if percent >= 0 {
		parts = append(parts, fmt.Sprintf("%3d%%", percent))
	}
	switch {
	case p.Total > 0:
		parts = append(parts, size(p.Bytes)+" of "+size(p.Total))
	case p.Bytes > 0:
		parts = append(parts, size(p.Bytes))
	}
	if took := at.Sub(b.since).Seconds(); p.Bytes > b.from && took > 0 {
		parts = append(parts, size(int64(float64(p.Bytes-b.from)/took))+"/s")
	}
	parts = append(parts, fmt.Sprintf("%.1f s", at.Sub(b.began).Seconds()))
	text := strings.Join(parts, "  ")
	// What is left of the line is the bar's, if it makes one.
	if width := min(columns-len([]rune(text))-4, 40); percent >= 0 && width >= 10 {
		full := width * percent / 100
		text += "  [" + strings.Repeat("=", full) + strings.Repeat(" ", width-full) + "]"
	}
	if r := []rune(text); len(r) > columns {
		text = string(r[:max(columns, 0)])
	}
	return text
}
