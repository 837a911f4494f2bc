//go:build linux

package criu

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
)

func (o outcome) ok() bool {
	return o.err == nil && o.resp.GetSuccess() && o.status.Exited() && o.status.ExitStatus() == 0
}

func logEnd(log *os.File) int64 {
	n, _ := log.Seek(0, io.SeekEnd)
	return n
}

func newError(step string, ctx context.Context, o outcome, log *os.File, from int64) error {
	b, _ := io.ReadAll(io.NewSectionReader(log, from, 1<<20))
	var lines []string
	for _, l := range strings.Split(string(b), "\n") {
		if strings.Contains(l, "Error") || strings.Contains(l, "fastmig") || os.Getenv("V") != "" {
			lines = append(lines, l)
		}
	}
	return fmt.Errorf("%s: %v %v status %v %w: %s", step, o.err, o.resp, o.status, ctx.Err(), strings.Join(lines, "\n"))
}
