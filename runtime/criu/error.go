//go:build linux

package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

// Error is an operation of CRIU that failed.
type Error struct {
	// Step is what was being done.
	Step string
	// Cause is one sentence, with the process and the resource where CRIU's log tells them.
	Cause string
	// Remedy is what to do about it.
	Remedy string
	// Lines are the decisive lines of CRIU's log.
	Lines []string
	// Log is the path of the whole log.
	Log string
	// Kind is one of errdefs' errors, or ctx's.
	Kind error
	// Err is the error that ended the operation from our side, such as Notify's, or nil.
	Err error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Step, e.Cause)
	if e.Remedy != "" {
		fmt.Fprintf(&b, "; %s", e.Remedy)
	}
	if len(e.Lines) > 0 {
		fmt.Fprintf(&b, " [CRIU: %s]", strings.Join(e.Lines, " | "))
	}
	if e.Log != "" {
		fmt.Fprintf(&b, " (log: %s)", e.Log)
	}
	return b.String()
}

// Unwrap gives errors.Is both the kind and the error of our side.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// ok says whether CRIU did it and said so.
func (o outcome) ok() bool {
	return o.err == nil && o.resp.GetSuccess() && o.status.Exited() && o.status.ExitStatus() == 0
}

// maxLog bounds how much of a log is looked at, from its end.
const maxLog = 4 << 20

// logEnd is where the next operation's lines begin.
func logEnd(log *os.File) int64 {
	st, err := log.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

// newError explains an outcome that is not ok. The log is read from the offset on.
func newError(ctx context.Context, step string, o outcome, log *os.File, from int64) *Error {
	e := &Error{Step: step, Log: log.Name(), Kind: errdefs.ErrUnknown, Err: o.err}
	text := readFrom(log, from)
	found := explain(text)
	e.Cause, e.Remedy, e.Lines = found.cause, found.remedy, found.lines
	if found.kind != nil {
		e.Kind = found.kind
	}

	switch {
	case ctx.Err() != nil:
		e.Kind, e.Cause, e.Remedy = ctx.Err(), "it was given up: "+context.Cause(ctx).Error(), ""
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			e.Remedy = "give it more time, or look at what the log's last lines wait for"
		}
	case errors.Is(o.err, syscall.ESRCH):
		// It was killed before it was of use.
		e.Kind, e.Cause, e.Remedy = errdefs.ErrAborted, "CRIU has ended meanwhile: "+o.err.Error(), ""
	case o.err != nil:
		e.Cause, e.Remedy = o.err.Error(), ""
		for _, kind := range []error{errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, errdefs.ErrInternal} {
			if errors.Is(o.err, kind) {
				e.Kind = kind
			}
		}
	case o.status.Signaled():
		e.Kind = errdefs.ErrAborted
		e.Cause = fmt.Sprintf("CRIU was ended by signal %d (%s)", int(o.status.Signal()), o.status.Signal())
		if o.status.Signal() == syscall.SIGKILL {
			e.Remedy = "look for the out-of-memory killer in the kernel's log: CRIU restores inside the container's memory limit"
		}
	case o.status.ExitStatus() == exitLoader && len(found.lines) == 0:
		e.Kind, e.Cause = errdefs.ErrFailedPrecondition, "CRIU did not start"
		e.Lines, e.Remedy = lastLines(text, 3), "repair the toolkit with `fastmig install`"
	}
	if e.Cause == "" {
		e.Cause = fmt.Sprintf("CRIU ended with status %d and no reason", o.status.ExitStatus())
		e.Lines = lastLines(text, 3)
	}
	return e
}

// Explain makes the error of an operation that somebody else ran CRIU for out
// of its log; err is what they said.
func Explain(step, path string, err error) *Error {
	e := &Error{Step: step, Log: path, Kind: errdefs.ErrUnknown, Err: err}
	var text string
	if f, oerr := os.Open(path); oerr == nil {
		text = readFrom(f, 0)
		_ = f.Close()
	}
	found := explain(text)
	e.Cause, e.Remedy, e.Lines = found.cause, found.remedy, found.lines
	if found.kind != nil {
		e.Kind = found.kind
	}
	if e.Cause == "" {
		e.Cause = err.Error()
	}
	return e
}

// exitLoader is the status of a dynamic loader that cannot load the program.
const exitLoader = 127

// readFrom reads a log that may have been opened for writing only.
func readFrom(log *os.File, from int64) string {
	f, err := os.Open("/proc/self/fd/" + fdName(log))
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	from = max(from, logEnd(f)-maxLog)
	b, err := io.ReadAll(io.NewSectionReader(f, from, maxLog))
	if err != nil {
		return ""
	}
	return string(b)
}

func fdName(f *os.File) string {
	fd, err := rawFd(f)
	if err != nil {
		return ""
	}
	return fmt.Sprint(fd)
}

func lastLines(text string, n int) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines[max(len(lines)-n, 0):]
}
